"""Refused repairs: they have a reason, and change nothing."""

import contextlib
import os
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from tests.support.failing_filesystem import (
    BLOCK,
    KINDS,
    Bench,
    back_up,
    bench,
    pattern,
    write_file,
)
from tests.support.shared_blocks import Five, share_five
from tests.support.tools import run
from tests.support.xfs_images import Geometry

from whoseblock.ranges import ByteRange

kinds = pytest.mark.parametrize("kind", KINDS[:2], ids=lambda kind: kind.name)


@contextlib.contextmanager
def unchanged(served: Bench, but: list[Path]) -> Iterator[None]:
    """See that nothing is changed: no mapping, no file, no sector of the device."""
    rows, bad = served.rows(), served.served.bad()
    others = served.everything(but=but)
    stats = {path: path.stat() for path in but}
    yield
    assert served.served.bad() == bad
    assert served.rows() == rows
    assert served.everything(but=but) == others
    for path, status in stats.items():
        now = path.stat()
        assert (now.st_mtime_ns, now.st_size, now.st_mode, now.st_ctime_ns) == (
            status.st_mtime_ns,
            status.st_size,
            status.st_mode,
            status.st_ctime_ns,
        )


def another_size(five: Five, served: Bench) -> str:
    with five.keep_only(served.root / "c", served).open("ab") as file:
        file.write(b"x")
    return "bytes, the damaged file"


def flip(copy: Path, at: int) -> None:
    """Change one byte of a copy, and keep its time."""
    status = copy.stat()
    content = bytearray(copy.read_bytes())
    content[at] ^= 1
    copy.write_bytes(content)
    os.utime(copy, ns=(status.st_atime_ns, status.st_mtime_ns))


def one_byte_nearby(five: Five, served: Bench) -> str:
    flip(five.keep_only(served.root / "c", served), 16 * BLOCK - 1)
    return "differs from the damaged file at byte 65535"


def one_byte_within_the_block(five: Five, served: Bench) -> str:
    flip(five.keep_only(served.root / "c", served), 17 * BLOCK - 1)
    return "differs from the damaged file at byte 69631"


def copies_that_disagree(five: Five, served: Bench) -> str:
    for path in five.files:
        if path.name not in ("b", "last"):
            five.copy_of(path, served).unlink()
    flip(five.copy_of(served.root / "last", served), 5 * BLOCK + 600)
    return "deep/er/b' differ"


def no_copy(five: Five, _served: Bench) -> str:
    shutil.rmtree(five.copies)
    five.copies.mkdir()
    return "does not exist"


def a_link_out(five: Five, served: Bench) -> str:
    copy = five.keep_only(served.root / "c", served)
    copy.rename(five.copies.parent / "elsewhere")
    copy.symlink_to(five.copies.parent / "elsewhere")
    return "a symbolic link"


@pytest.mark.parametrize(
    "spoil",
    [
        another_size,
        one_byte_nearby,
        one_byte_within_the_block,
        copies_that_disagree,
        no_copy,
        a_link_out,
    ],
)
def test_a_copy_that_does_not_match(
    tmp_path: Path, spoil: Callable[[Five, Bench], str], request: pytest.FixtureRequest
) -> None:
    # Half of them on each kind of filesystem, and half of them with quarantine.
    number = len(request.node.name)
    with bench(tmp_path, KINDS[number % 2]) as served:
        five = share_five(served, tmp_path / "copies")
        lost = ByteRange(five.place.start + 512, 512)
        served.fail(lost)
        why = spoil(five, served)
        with unchanged(served, list(five.files)):
            quarantine = ["--quarantine"] * (number // 2 % 2)
            said = served.apply(lost, "--restore-from", five.copies, *quarantine, code=14)
        assert why in said
        assert served.states() == [["planned", "started", "skipped"]]


@kinds
def test_a_file_that_is_being_executed(tmp_path: Path, kind: Geometry) -> None:
    with bench(tmp_path, kind) as served:
        path = served.root / "program"
        shutil.copy("/bin/sleep", path)
        copy = Path(shutil.copy("/bin/sleep", tmp_path / "good"))
        place = served.place(path, path.stat().st_size // BLOCK)
        with subprocess.Popen([path, "60"]) as child:
            try:
                served.served.add(ByteRange(place.start, 512))
                with unchanged(served, [path]):
                    said = served.apply(place, "--restore-file", copy, code=14)
                assert "being executed" in said
            finally:
                child.kill()
        # When it is over, it can be done.
        served.apply(place, "--restore-file", copy)
        assert path.read_bytes() == copy.read_bytes()


@kinds
def test_an_active_swap_file(tmp_path: Path, kind: Geometry) -> None:
    with bench(tmp_path, kind) as served:
        path = write_file(served.root / "swap", pattern("swap", 512 * BLOCK))
        path.chmod(0o600)
        # The area ends before the block that fails: a kernel short of memory pages out to it at
        # once, and a write heals.
        run(["mkswap", path, "256"])
        served.sync()
        copy = back_up(path, tmp_path / "good", path.read_bytes())
        place = served.place(path, 100)
        served.fail(ByteRange(place.start, 512))
        run(["swapon", path])
        try:
            with unchanged(served, [path]):
                said = served.apply(place, "--restore-file", copy, code=14)
            assert "swap" in said
            assert served.states() == [["planned", "started", "skipped"]]
        finally:
            run(["swapoff", path])


@kinds
def test_a_read_only_mount(tmp_path: Path, kind: Geometry) -> None:
    with bench(tmp_path, kind) as served:
        five = share_five(served, tmp_path / "copies")
        served.fail(five.place)
        run(["mount", "-o", "remount,ro", served.root])
        with unchanged(served, list(five.files)):
            said = served.apply(five.place, "--restore-from", five.copies, code=14)
        assert "read-only" in said.lower()


def test_without_yes_and_without_a_terminal(tmp_path: Path) -> None:
    with bench(tmp_path) as served:
        bad = served.free(1)
        served.fail(bad)
        done = served.respond(bad, "--apply")
        assert done.returncode == 2
        assert "--yes" in done.stderr
        assert served.served.bad() == [bad]
        # The plan was not confirmed, so it is not resumed either.
        again = served.respond("--resume")
        assert again.returncode == 0, again.stdout
        assert served.served.bad() == [bad]


def test_the_answer_no_is_respected(tmp_path: Path) -> None:
    program = (
        "import os, pty, sys\n"
        "pid, fd = pty.fork()\n"
        "command = [sys.executable, '-m', 'whoseblock', *sys.argv[1:]]\n"
        "if not pid: os.execv(sys.executable, command)\n"
        "os.write(fd, b'n\\n')\n"
        "try:\n"
        "    while os.read(fd, 4096): pass\n"
        "except OSError: pass\n"
        "sys.exit(os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]))\n"
    )
    with bench(tmp_path) as served:
        bad = served.free(1)
        served.fail(bad)
        words = ["respond", served.root, str(bad), "--apply", "--journal", served.journal]
        done = subprocess.run([sys.executable, "-c", program, *map(str, words)], check=False)
        assert done.returncode == 14
        assert "no interrupted steps" in served.respond("--resume").stderr
        assert served.served.bad() == [bad]
