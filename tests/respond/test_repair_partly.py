"""One owner that is busy or must not be changed: the others are repaired, and it is taken later."""

import contextlib
import errno
import fcntl
import json
import os
import shutil
import struct
import subprocess
import sys
from collections.abc import Iterator
from itertools import count
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner
from tests.support.failing_filesystem import (
    BLOCK,
    EXCHANGE,
    KINDS,
    PLAIN,
    Bench,
    Facts,
    bench,
)
from tests.support.mapping_processes import running
from tests.support.shared_blocks import Five, share_five
from tests.support.xfs_images import MIB, Geometry

from whoseblock.cli.group import cli
from whoseblock.fs.xfs.mounted import exchange
from whoseblock.ranges import ByteRange

_FS_IOC_FSGETXATTR, _FS_IOC_FSSETXATTR = 0x801C581F, 0x401C5820
_IMMUTABLE, _APPEND = 0x8, 0x10


def flag(path: Path, flags: int) -> None:
    """Set FS_XFLAG_… of a file."""
    file = os.open(path, os.O_RDONLY | os.O_NOATIME)
    try:
        attributes = bytearray(28)
        fcntl.ioctl(file, _FS_IOC_FSGETXATTR, attributes)
        struct.pack_into("=I", attributes, 0, flags)
        fcntl.ioctl(file, _FS_IOC_FSSETXATTR, attributes)
    finally:
        os.close(file)


@contextlib.contextmanager
def flagged(path: Path, flags: int) -> Iterator[None]:
    flag(path, flags)
    try:
        yield
    finally:
        flag(path, 0)


def lose(served: Bench, folder: Path) -> tuple[Five, ByteRange]:
    five = share_five(served, folder)
    lost = ByteRange(five.place.start + 512, 512)
    served.fail(lost)
    return five, lost


def check_all_but(served: Bench, five: Five, left: Path, lost: ByteRange) -> None:
    """See that all but one are whole and share one extent, and that one is as it was."""
    for path, facts in five.facts.items():
        if path != left:
            assert Facts.of(path) == facts, path
    places = {served.place(path, number) for path, number in five.files.items() if path != left}
    assert len(places) == 1
    assert served.place(left, five.files[left]) == five.place
    assert served.served.bad() == [lost]


@pytest.mark.parametrize(
    ("kind", "flags"), [(EXCHANGE, _IMMUTABLE), (PLAIN, _APPEND)], ids=["immutable", "append-only"]
)
def test_one_owner_that_must_not_be_changed(tmp_path: Path, kind: Geometry, flags: int) -> None:
    with bench(tmp_path, kind) as served:
        five, lost = lose(served, tmp_path / "copies")
        left = served.root / "last"
        with flagged(left, flags):
            words = ["--restore-from", five.copies, "--apply", "--yes", "--json"]
            done = served.respond(lost, *words)
            assert done.returncode == 14, done.stdout + done.stderr
            check_all_but(served, five, left, lost)
            outcome = json.loads(done.stdout.splitlines()[-1])
            assert outcome["state"] == "failed"
            assert "gave the good copy to 4 files" in outcome["says"]
            (not_changed,) = (owner for owner in outcome["owners"] if not owner["changed"])
            assert not_changed["inode"] == left.stat().st_ino
            assert "immutable or append-only" in not_changed["because"]
            assert len(outcome["owners"]) == 5
            # It is taken up again, and stays unfinished.
            assert served.respond("--resume").returncode == 14
            (step,) = served.steps()
            assert step.state == "failed"
            assert step.events[-1].detail["owners"] == [not_changed]
        done = served.respond("--resume")
        assert done.returncode == 0, done.stdout + done.stderr
        five.check_whole(served)
        assert served.served.bad() == []


def test_one_owner_that_another_process_has_mapped(tmp_path: Path) -> None:
    # Without the exchange of ranges, the process would see the write.
    with bench(tmp_path, KINDS[1]) as served:
        five, lost = lose(served, tmp_path / "copies")
        first = min(five.files, key=lambda path: path.stat().st_ino)
        with running("map_file(0, PAGE); ready()", first):
            # To map a file is to access it.
            five.facts[first] = five.facts[first]._replace(atime=first.stat().st_atime_ns)
            said = served.apply(lost, "--restore-from", five.copies, code=14)
            assert "has it open" in said
            check_all_but(served, five, first, lost)
        done = served.respond("--resume")
        assert done.returncode == 0, done.stdout + done.stderr
        five.check_whole(served)


def test_an_owner_that_is_busy_for_a_second(tmp_path: Path) -> None:
    holding = "import os, sys, time; os.open(sys.argv[1], os.O_RDWR); print(flush=True); {}"
    with bench(tmp_path, PLAIN) as served:
        five, lost = lose(served, tmp_path / "copies")
        program = holding.format("sys.stdin.read()")
        with subprocess.Popen(
            [sys.executable, "-c", program, served.root / "c"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
        ) as child:
            assert child.stdin is not None
            assert child.stdout is not None
            assert child.stdout.readline()
            words = ["--restore-from", five.copies, "--apply", "--yes"]
            with served.responding(lost, *words) as process:
                # It ends once another owner was given the copy.
                other = served.root / "a"
                # GETFSMAP reads one group after the other: a block that moves may be in no row.
                while not any(
                    row.offset == 0 and row.start != five.place.start
                    for row in served.rows_of(other)
                ):
                    assert process.poll() is None
                child.stdin.close()
                assert process.wait(60) == 0
        five.check_whole(served)


def fill(served: Bench) -> None:
    """Leave no free block: each file takes what the kernel reserved for those before."""
    folder = served.root / "filler"
    folder.mkdir()
    for number in count():
        taken = 0
        with contextlib.suppress(OSError), (folder / f"{number}").open("wb", 0) as file:
            while more := file.write(bytes([1]) * (BLOCK if taken else 4 * MIB)):
                taken += more
        served.sync()
        if not taken:
            break


def test_a_full_filesystem(tmp_path: Path) -> None:
    with bench(tmp_path) as served:
        five, lost = lose(served, tmp_path / "copies")
        before = served.everything(but=five.files)
        fill(served)
        for words in [lost, "--restore-from", five.copies, "--apply", "--yes"], ["--resume"]:
            done = served.respond(*words)
            assert done.returncode == 14
            # Nothing was written, and no owner has other blocks.
            assert "failed: restore" in done.stdout
            assert "o space" in done.stdout
            assert "gave" not in done.stdout
            assert served.served.bad() == [lost]
            places = {served.place(path, number) for path, number in five.files.items()}
            assert places == {five.place}
        shutil.rmtree(served.root / "filler")
        assert served.respond("--resume").returncode == 0
        five.check_whole(served)
        assert served.everything(but=five.files) == before


def test_no_space_is_left_for_some_owners(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with bench(tmp_path) as served:
        five, lost = lose(served, tmp_path / "copies")
        usual, asked = exchange.exchange_range, count()

        def then_full(*arguments: Any) -> bool:  # noqa: ANN401 - those of `exchange_range`
            if next(asked) > 1:
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
            return usual(*arguments)

        words = [str(served.root), str(lost), "--restore-from", str(five.copies), "--apply"]
        words += ["--yes", "--journal", str(served.journal)]
        with monkeypatch.context() as patched:
            patched.setattr(exchange, "exchange_range", then_full)
            done = CliRunner().invoke(cli, ["respond", *words])
        assert "failed: restore" in done.output
        assert "gave the good copy to 2 files" in done.output
        assert ": no space is left on the filesystem" in done.output
        assert served.respond("--resume").returncode == 0
        five.check_whole(served)
