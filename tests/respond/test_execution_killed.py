"""``whoseblock respond`` killed at every step boundary, and at random moments.

Each failure has files of its own on a filesystem that stays mounted.  After each kill the
filesystem must be in use, no readable byte lost, and the journal true; ``--resume`` must finish.
"""

import os
import random
from collections.abc import Iterator
from pathlib import Path

import pytest
from tests.support.emulated_device import emulated
from tests.support.kernel_oracle import getfsmap
from tests.support.killed_repairs import (
    BLOCK,
    SECTOR,
    Ran,
    check_repair,
    ground,
    victim,
)
from tests.support.killed_trials import Trial, check_order
from tests.support.mounts import mounted
from tests.support.repair_cases import FAILURES
from tests.support.tools import need_loop_mounts
from tests.support.xfs_images import MIB, Geometry, make_image

from whoseblock.journal import open_journal
from whoseblock.ranges import ByteRange


@pytest.fixture
def trial(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Trial]:
    kind, exchange = request.param
    with ground(exchange=exchange) as made, victim(tmp_path / "runs") as program:
        yield Trial(made, program, kind)


KINDS = [(kind, True) for kind in FAILURES] + [("shared_by_five", False), ("given_up", False)]
NAMES = [f"{kind}{'' if exchange else '-lease'}" for kind, exchange in KINDS]


@pytest.mark.parametrize("trial", KINDS, ids=NAMES, indirect=True)
def test_killed_at_every_boundary(trial: Trial) -> None:
    # The first run makes the journal, its key and the lock, too.
    trial.undisturbed()
    usual = trial.undisturbed()
    for at, after in usual.moments():
        trial.kill(at=at, after=after)
    trial.check_all()


@pytest.mark.parametrize("trial", KINDS, ids=NAMES, indirect=True)
def test_killed_at_random_moments(trial: Trial) -> None:
    usual = max(trial.undisturbed().seconds for _ in range(2))
    for number in range(15):
        group = number % 5 == 0 and trial.victim.has_groups
        trial.kill(delays=[trial.chance.random() * usual for _ in range(2)], group=group)
    trial.check_all()


def test_killed_while_it_zeroes_what_is_not_mounted(tmp_path: Path) -> None:
    need_loop_mounts()
    image = make_image(tmp_path / "disk", Geometry("killed", size=32 * MIB, parent=False))
    with mounted(image) as root:
        left = Path(os.fsdecode(root)) / "left"
        left.write_bytes(random.Random("left").randbytes(4 * MIB))
        os.sync()
        inode = left.stat().st_ino
        (place, *_) = (row.start for row in getfsmap(root) if row.inode == inode)
        left.unlink()
    check_repair(image)
    journal = tmp_path / "journal.sqlite"
    with emulated(image, tmp_path / "at") as served, victim(tmp_path / "runs") as program:
        yes = ["--apply", "--yes", "--journal", str(journal)]

        def zero(at: int | None = None, *, after: bool = False) -> Ran:
            """Make a part of a free block fail, and kill the zeroing; resume until it is done."""
            bad = ByteRange(place + program.runs * BLOCK + SECTOR, 2 * SECTOR)
            before = bytearray(image.read_bytes())
            assert any(before[bad.start : bad.end])
            served.add(bad)
            arguments = ["respond", str(served.device), str(bad), *yes]
            ran = program.run(*arguments, at=at, after=after)
            assert ran.killed == (at is not None), ran.output
            check_order(ran)
            if "Run.started" not in ran.begun():
                assert (served.bad(), image.read_bytes()) == ([bad], bytes(before))
            if ran.killed:
                assert program.run("respond", "--resume", *yes[2:]).code == 0
                # Killed before there was a plan, it begins anew.
                assert program.run(*arguments).code == 0
            # Exactly the failed sectors were zeroed, and nothing else was written.
            before[bad.start : bad.end] = bytes(bad.length)
            assert (served.bad(), image.read_bytes()) == ([], bytes(before))
            return ran

        for at, after in zero().moments():
            zero(at, after=after)
        with open_journal(str(journal)) as opened:
            assert not opened.unfinished()
    assert program.kills > 10
    check_repair(image)


def test_interrupted_steps_of_an_unreachable_target(tmp_path: Path) -> None:
    need_loop_mounts()
    image = make_image(tmp_path / "disk", Geometry("killed", size=32 * MIB, parent=False))
    bad = ByteRange(12 * MIB, SECTOR)
    yes = ["--yes", "--apply", "--journal", str(tmp_path / "journal.sqlite")]
    resuming = ["respond", "--resume", *yes[2:]]
    with victim(tmp_path / "runs") as program:
        with emulated(image, tmp_path / "at", bad=[bad]) as served:
            arguments = ["respond", str(served.device), str(bad), *yes]
            # The first run makes the key of the journal, too.
            for name in "first", "second":
                usual = program.run(*arguments[:-1], str(tmp_path / name))
                served.add(bad)
            at = usual.begun().index("Run.plan") + 1
            planned = program.run(*arguments, at=at, after=True)
            assert (planned.killed, planned.begun()[-1]) == (True, "Run.plan")
        ran = program.run(*resuming)
        assert (ran.code, "cannot be resumed" in ran.output) == (14, True), ran.output
        with emulated(image, tmp_path / "at", bad=[bad]) as served:
            assert program.run(*resuming).code == 0
            assert served.bad() == []
        assert "no interrupted steps" in program.run(*resuming).output
