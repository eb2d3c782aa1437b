"""``whoseblock respond`` killed at every step boundary, and at random moments.

Each failure has files of its own on a filesystem that stays mounted.  After each kill the
filesystem must be in use, no readable byte lost, and the journal true; ``--resume`` must finish.
"""

import os
import random
from collections.abc import Iterator, Sequence
from pathlib import Path

import pytest
from tests.support.emulated_device import emulated
from tests.support.kernel_oracle import getfsmap
from tests.support.killable_program import ACTING
from tests.support.killed_repairs import (
    BLOCK,
    SECTOR,
    Ground,
    Ran,
    Victim,
    check_repair,
    ground,
    victim,
)
from tests.support.mounts import mounted
from tests.support.repair_cases import FAILURES, Failure
from tests.support.tools import need_loop_mounts
from tests.support.xfs_images import MIB, Geometry, make_image

from whoseblock.journal import Plan, State, open_journal
from whoseblock.ranges import ByteRange

_OFTEN = 20
#: Of the failures before, so many are looked at again after each run; all at the end.
_SAMPLE = 2


class Trial:
    """Failures of one kind, one after another on the same filesystem."""

    def __init__(self, ground_: Ground, victim_: Victim, kind: str, seed: int = 1) -> None:
        self.ground = ground_
        self.victim = victim_
        self.kind = kind
        self.past: list[Failure] = []
        self.chance = random.Random(f"{kind} {seed}")

    def fail(self) -> tuple[Failure, list[str]]:
        """Make new sectors fail; return the failure and the command line that repairs it."""
        failure = FAILURES[self.kind](self.ground, len(self.past), self.chance)
        self.past.append(failure)
        arguments = ["respond", str(self.ground.root), *failure.arguments]
        return failure, [*arguments, "--apply", "--yes", "--journal", str(self.ground.journal)]

    def check_killed(self, failure: Failure, ran: Ran, known: int) -> None:
        """See that a killed run left nothing behind, and that the journal tells the truth of it."""
        self.ground.check_after(ran)
        failure.check_readable(self.ground)
        plans = self.ground.plans(known)
        assert len(plans) <= 1
        check_order(ran)
        states = {step.state for plan in plans for step in plan.steps}
        for plan in plans:
            assert self.ground.is_closed(plan) == (states == {State.VERIFIED})
        if states <= {State.PLANNED}:
            assert failure.untouched(self.ground)
        if states & {State.DONE, State.VERIFIED}:
            failure.check_finished(self.ground)
        # Failed is only what is begun anew, and that was not reached.
        assert State.SKIPPED not in states

    @property
    def resuming(self) -> list[str]:
        return ["respond", "--resume", "--journal", str(self.ground.journal)]

    def resume(self) -> Ran:
        return self.victim.run(*self.resuming)

    def finish(self, failure: Failure, arguments: list[str], known: int) -> None:
        """Resume after a kill, and check that everything is done then."""
        # Killed before there was a plan, nothing was interrupted, and it is done as if new.
        ran = self.resume() if self.ground.plans(known) else self.victim.run(*arguments)
        assert ran.code == 0, ran.output
        self.ground.check_after(ran)
        check_order(ran)
        failure.check_finished(self.ground)
        (plan,) = self.ground.plans(known)
        check_history(plan)
        assert self.ground.is_closed(plan)
        assert not self.ground.unfinished()
        if len(self.past) % _SAMPLE == 0:
            again = self.resume()
            assert (again.code, "no interrupted steps" in again.output) == (0, True)
            assert not ACTING & set(again.begun()) - {"mkdir"}
        for one in self.chance.sample(self.past, min(_SAMPLE, len(self.past))):
            one.check_finished(self.ground)
        if len(self.past) % _OFTEN == 0:
            self.check_all()

    def check_all(self) -> None:
        """See what xfs_repair says, and look at all files of all failures so far."""
        self.ground.check_repair()
        for one in self.past:
            one.check_finished(self.ground)

    def kill(
        self, *, at: int | None = None, after: bool = False, delays: Sequence[float] = ()
    ) -> Ran:
        """Make sectors fail, kill the run that repairs them, and resume.

        Of ``delays``, the second is when the run that goes on is killed.
        """
        failure, arguments = self.fail()
        known = self.ground.last_plan()
        delay, *more = delays or (None,)
        ran = self.victim.run(*arguments, at=at, after=after, delay=delay)
        assert ran.killed or delay is not None, ran.output
        self.check_killed(failure, ran, known)
        for later in more:
            words = self.resuming if self.ground.plans(known) else arguments
            self.check_killed(failure, self.victim.run(*words, delay=later), known)
        self.finish(failure, arguments, known)
        return ran

    def undisturbed(self) -> Ran:
        """Make sectors fail, and repair them; return the run."""
        failure, arguments = self.fail()
        known = self.ground.last_plan()
        ran = self.victim.run(*arguments)
        assert ran.code == 0, ran.output
        self.ground.check_after(ran)
        check_order(ran)
        failure.check_finished(self.ground)
        check_history(self.ground.plans(known)[0])
        return ran


def check_order(ran: Ran) -> None:
    """See that a step was durably started before anything was done to a device or a file."""
    started = False
    for line in ran.trace:
        mark, _, name = line.split()[:3]
        started |= (mark, name) == (">", "Run.started")
        # SQLite's folder is made by the journal.
        assert started or mark == ">" or name not in ACTING - {"mkdir"}, ran.trace


def check_history(plan: Plan) -> None:
    """See that all steps of a plan came to their end in the one order that there is."""
    for step in plan.steps:
        states = [event.state for event in step.events]
        assert states[0] is State.PLANNED
        assert states[-3:] == [State.STARTED, State.DONE, State.VERIFIED], states
        assert len({event.run for event in step.events[-3:]}) == 1


@pytest.fixture
def trial(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Trial]:
    kind, exchange = request.param
    with ground(exchange=exchange) as made, victim(tmp_path / "runs") as program:
        yield Trial(made, program, kind)


KINDS = [(kind, True) for kind in FAILURES] + [("shared_by_five", False), ("given_up", False)]
NAMES = [f"{kind}{'' if exchange else '-lease'}" for kind, exchange in KINDS]


@pytest.mark.parametrize("trial", KINDS, ids=NAMES, indirect=True)
def test_killed_at_every_boundary(trial: Trial) -> None:
    usual = trial.undisturbed()
    for at, after in usual.moments():
        trial.kill(at=at, after=after)
    trial.check_all()


@pytest.mark.parametrize("trial", KINDS, ids=NAMES, indirect=True)
def test_killed_at_random_moments(trial: Trial) -> None:
    usual = max(trial.undisturbed().seconds for _ in range(2))
    for _ in range(15):
        trial.kill(delays=[trial.chance.random() * usual for _ in range(2)])
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
            planned = program.run(*arguments, at=6, after=True)
            assert (planned.killed, planned.begun()[-1]) == (True, "Run.plan")
        ran = program.run(*resuming)
        assert (ran.code, "cannot be resumed" in ran.output) == (14, True), ran.output
        with emulated(image, tmp_path / "at", bad=[bad]) as served:
            assert program.run(*resuming).code == 0
            assert served.bad() == []
        assert "no interrupted steps" in program.run(*resuming).output
