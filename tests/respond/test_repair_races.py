"""Others write, clone, punch and delete while a step is being taken: theirs is never lost."""

import contextlib
import fcntl
import json
import mmap
import os
import shlex
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from tests.support.failing_filesystem import (
    BLOCK,
    KINDS,
    Bench,
    back_up,
    bench,
    forget,
    pattern,
    write_file,
)
from tests.support.shared_blocks import Five, share_five
from tests.support.tools import CHECKOUT
from tests.support.xfs_images import Geometry

from whoseblock import cli
from whoseblock.fs.xfs.mounted import exchange
from whoseblock.ranges import ByteRange
from whoseblock.respond import syscalls
from whoseblock.respond.exceptions import NotNowError

kinds = pytest.mark.parametrize("kind", KINDS[:2], ids=lambda kind: kind.name)

#: What others do to the owner ``path``, whose block ``number`` is one of those that are shared.
DEEDS = {
    "overwrite": "f = os.open(path, os.O_RDWR); os.pwrite(f, NEW, number * 4096)",
    "overwrite beside": "f = os.open(path, os.O_RDWR); os.pwrite(f, NEW[:9], number * 4096 + 4096)",
    "punch": "f = os.open(path, os.O_RDWR); calls.punch_hole(f, number * 4096, 4096)",
    "delete": "os.unlink(path)",
    "truncate": "os.truncate(path, number * 4096)",
    "append": "f = os.open(path, os.O_WRONLY | os.O_APPEND); os.write(f, NEW)",
    "change its mode": "os.chmod(path, 0o741)",
    "clone": (
        "s = os.open(path, os.O_RDONLY); f = os.open(path + '-clone', os.O_CREAT | os.O_RDWR);"
        " calls.clone_range(s, 0, 0, f, 0)"
    ),
}


def deed(name: str, path: Path, number: int, after: str = "") -> str:
    """Return a command that does it."""
    program = (
        "import os; from tests.support import system_calls as calls;"
        f" path = {str(path)!r}; number = {number};"
        f" NEW = b'new data' * 512; {DEEDS[name]}; {after}"
    )
    return f"cd {shlex.quote(str(CHECKOUT))}; {sys.executable} -c {shlex.quote(program)}"


def expected(name: str, content: bytes, number: int) -> bytes | None:
    """Return the expected content of the file after the change, if it was good before."""
    new, at = b"new data" * 512, number * BLOCK
    return {
        "overwrite": content[:at] + new + content[at + BLOCK :],
        "overwrite beside": content[: at + BLOCK] + new[:9] + content[at + BLOCK + 9 :],
        "punch": content[:at] + bytes(BLOCK) + content[at + BLOCK :],
        "delete": None,
        "truncate": content[:at],
        "append": content + new,
    }.get(name, content)


def readable(path: Path) -> dict[int, bytes]:
    """Read a file sector by sector, past the page cache; leave out what fails."""
    found = {}
    forget(path)
    file = os.open(path, os.O_RDONLY | os.O_DIRECT | os.O_NOATIME)
    try:
        with mmap.mmap(-1, 512) as buffer:
            for at in range(0, os.fstat(file).st_size, 512):
                with contextlib.suppress(OSError):
                    done = os.preadv(file, [buffer], at)
                    found[at] = bytes(buffer[:done])
    finally:
        os.close(file)
    return found


def check_nothing_lost(
    served: Bench, five: Five, name: str, changed: Path, lost: ByteRange
) -> None:
    """See that each file holds what it did and what was done to it, or fails where it failed."""
    for path, number in five.files.items():
        content: bytes | None = five.copy_of(path, served).read_bytes()
        assert content is not None
        if path == changed:
            content = expected(name, content, number)
        if content is None:
            assert not path.exists()
            continue
        found = readable(path)
        assert path.stat().st_size == len(content)
        first = number * BLOCK + lost.start - five.place.start
        for at in range(0, len(content), 512):
            if at in found:
                assert found[at] == content[at : at + 512], (path, at)
            else:
                assert first <= at < first + lost.length, (path, at)
    clone = Path(f"{changed}-clone")
    if name == "clone":
        content = five.copy_of(changed, served).read_bytes()
        for at, data in readable(clone).items():
            assert data == content[at : at + 512]
        # It fails, or it is good; it is never mapped into another file.
        number = five.files[changed]
        at = number * BLOCK + lost.start - five.place.start
        if at not in readable(clone):
            assert served.place(clone, number) == five.place


@pytest.mark.parametrize(
    ("kind", "when", "name"),
    [
        # Each in both ways, and on both kinds of filesystems.
        (KINDS[(number + late) % 2], when, name)
        for number, name in enumerate(sorted(DEEDS))
        for late, when in enumerate(["before the step", "during the step"])
    ],
    ids=lambda given: getattr(given, "name", given),
)
def test_one_owner_is_changed(tmp_path: Path, kind: Geometry, when: str, name: str) -> None:
    with bench(tmp_path, kind) as served:
        five = share_five(served, tmp_path / "copies")
        changed = served.root / "c"
        copy = five.copy_of(served.root / "large/d", served)
        lost = ByteRange(five.place.start + 1024, 1536)
        served.fail(lost)
        before = served.everything(but=five.files)
        doing = deed(name, changed, five.files[changed])
        if when == "before the step":
            words = ["--exec", doing, "--restore-from", five.copies]
        else:
            once = tmp_path / "once"
            line = f"[ -e {once} ] || {{ touch {once}; {doing}; }} >&2; echo {copy}"
            words = ["--restore-command", line]
        done = served.respond(lost, *words, "--apply", "--yes")
        assert done.returncode in (0, 14), done.stderr
        check_nothing_lost(served, five, name, changed, lost)
        there = [path for path in (*five.files, Path(f"{changed}-clone")) if path.exists()]
        assert served.everything(but=there) == before
        if name == "change its mode":
            assert changed.stat().st_mode & 0o7777 == 0o741
        # Sooner or later all is well, or the reason is known.
        if served.served.bad():
            final = served.steps()[-1].state
            assert final in ("skipped", "failed")
            done = served.respond(lost, "--restore-from", five.copies, "--apply", "--yes")
            check_nothing_lost(served, five, name, changed, lost)


def test_the_first_owner_moves_and_the_others_are_repaired(tmp_path: Path) -> None:
    with bench(tmp_path) as served:
        five = share_five(served, tmp_path / "copies")
        first = min(five.files, key=lambda path: path.stat().st_ino)
        copy = five.copy_of(served.root / "large/d", served)
        lost = ByteRange(five.place.start + 1024, 1536)
        served.fail(lost)
        doing = deed("overwrite", first, five.files[first])
        line = f"{{ {doing}; }} >&2; echo {copy}"
        said = served.apply(lost, "--restore-command", line, code=14)
        # The copy does not count for the file of another user.
        assert "gave the good copy to 3 files" in said
        assert "left: inode" in said
        check_nothing_lost(served, five, "overwrite", first, lost)


def test_a_write_after_the_exchange_keeps_its_time(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with bench(tmp_path) as served:
        content = pattern("file", 6 * BLOCK)
        path = write_file(served.root / "file", content)
        copy = write_file(tmp_path / "good", content)
        os.utime(copy, ns=(path.stat().st_atime_ns, path.stat().st_mtime_ns))
        subprocess.run(["cp", "--reflink=always", path, served.root / "clone"], check=True)
        place = served.place(path, 2)
        served.fail(place)
        told: list[int] = []
        usual = exchange.exchange_range

        def then_written(*arguments: Any) -> bool:  # noqa: ANN401 - those of `exchange_range`
            done = usual(*arguments)
            if os.fstat(arguments[0]).st_ino == path.stat().st_ino:
                write_file(path, b"new data", 5 * BLOCK)
                told.append(path.stat().st_mtime_ns)
            return done

        monkeypatch.setattr(exchange, "exchange_range", then_written)
        words = ["--restore-file", str(copy), "--apply", "--yes"]
        words += ["--journal", str(served.journal)]
        monkeypatch.setattr(
            sys, "argv", ["whoseblock", "respond", str(path.parent), str(place), *words]
        )
        with pytest.raises(SystemExit) as end:
            cli.main()
        assert not end.value.code
        assert told == [path.stat().st_mtime_ns]
        assert path.read_bytes() == content[: 5 * BLOCK] + b"new data" + content[5 * BLOCK + 8 :]


def test_a_copy_that_changed_with_its_file_is_not_shared_with_the_others(tmp_path: Path) -> None:
    # Between plan and step ``a`` is rewritten and backed up; ``b`` shared the old block.
    with bench(tmp_path) as served:
        old, new = pattern("old", 3 * BLOCK), bytearray(pattern("old", 3 * BLOCK))
        new[BLOCK : 2 * BLOCK] = pattern("new", BLOCK)
        a = write_file(served.root / "a", old)
        b = served.root / "b"
        subprocess.run(["cp", "--reflink=always", a, b], check=True)
        copies = tmp_path / "copies"
        copy = back_up(a, copies / "a", old)
        fresh = write_file(tmp_path / "fresh", bytes(new))
        place = served.place(a, 1)
        served.fail(place)
        rewriting = f"dd if={fresh} of={a} bs=4096 seek=1 skip=1 count=1 conv=notrunc,fsync"
        doing = f"{rewriting} 2>/dev/null && cp {fresh} {copy}"
        served.respond(place, "--exec", doing, "--restore-from", copies, "--apply", "--yes")
        assert a.read_bytes() == new
        found = b"".join(readable(b).get(at, b"") for at in range(BLOCK, 2 * BLOCK, 512))
        assert found in (b"", old[BLOCK : 2 * BLOCK])


# ---------------------------------------------------------------------- without a pause

_WRITER = r"""
import ctypes, json, mmap, os, select, struct, sys
path, offset, way = sys.argv[1], int(sys.argv[2]), sys.argv[3]
flags = os.O_RDWR | (os.O_DIRECT if way == "direct" else 0)
file = os.open(path, flags)
buffer = mmap.mmap(-1, 4096)
shared = mmap.mmap(file, 4096, offset=offset) if way == "mapped" else None
number = synced = failed = 0
print("ready", flush=True)
while not select.select([sys.stdin], [], [], 0)[0]:
    number += 1
    data = struct.pack("=Q", number) * 512
    try:
        if shared is not None:
            shared[:] = data
            if number % 8 == 0:
                shared.flush()
                synced = number
        else:
            buffer[:] = data
            os.pwritev(file, [buffer], offset)
            if number % 8 == 0:
                os.fsync(file)
                synced = number
    except OSError:
        failed += 1
os.fsync(file)
print(json.dumps([number, synced, failed]), flush=True)
"""


@contextlib.contextmanager
def writing(path: Path, block: int, way: str) -> Iterator[list[int]]:
    """Start a process that rewrites a block continuously; yield a reader of its last number."""
    told: list[int] = []
    with subprocess.Popen(
        [sys.executable, "-c", _WRITER, path, str(block * BLOCK), way],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    ) as child:
        try:
            assert child.stdout is not None
            assert child.stdout.readline()
            yield told
            told += json.loads(child.communicate(timeout=60)[0])
        finally:
            child.kill()


@kinds
@pytest.mark.parametrize("way", ["direct", "buffered", "mapped"])
@pytest.mark.parametrize("beside", [False, True], ids=["the very block", "the block beside"])
def test_a_writer_that_never_pauses(
    tmp_path: Path,
    kind: Geometry,
    way: str,
    beside: bool,  # noqa: FBT001 - of the test
) -> None:
    with bench(tmp_path, kind) as served:
        content = pattern("file", 12 * BLOCK)
        path = write_file(served.root / "file", content)
        copy = back_up(path, tmp_path / "good", content)
        clone = served.root / "clone"
        subprocess.run(["cp", "--reflink=always", path, clone], check=True)
        at = 5 if beside else 4
        with writing(path, at, way) as told:
            for number in range(3):
                # The block is lost in the middle of the writing, whichever file has it by now.
                block = 4 if beside else at
                with contextlib.suppress(ValueError, AssertionError):
                    place = served.place(path, block)
                    served.served.add(ByteRange(place.start + 512 * number, 512))
                    words = (
                        ["--restore-file", copy, "--accept-older"] if number < 2 else ["--punch"]
                    )
                    done = served.respond(place, *words, "--apply", "--yes")
                    assert done.returncode in (0, 14), done.stderr
                time.sleep(0.05)
        written, _, failed = told
        assert written > 50
        forget(path)
        served.sync()
        found = readable(path)
        for sector in range(0, len(content), 512):
            if at * BLOCK <= sector < (at + 1) * BLOCK:
                last = written.to_bytes(8, sys.byteorder) * 64
                # The data of its last successful fsync is there.
                if not failed:
                    assert found[sector] == last, sector
            elif sector in found and not (beside and 4 * BLOCK <= sector < 5 * BLOCK):
                assert found[sector] == content[sector : sector + 512]
        # Its clone has the old block, or lost only what was lost.
        for sector, data in readable(clone).items():
            if not 4 * BLOCK <= sector < 6 * BLOCK:
                assert data == content[sector : sector + 512]


def test_a_lease_break_is_noticed(tmp_path: Path) -> None:
    # The kernel takes it away after a while, and a device that fails may take longer.
    path = write_file(tmp_path / "file", b"data")
    with path.open("r+b") as file, syscalls.write_lease(file.fileno()):
        syscalls.check_lease(file.fileno())
        with subprocess.Popen([sys.executable, "-c", f"open({str(path)!r}).read()"]) as other:
            end = time.monotonic() + 20
            with pytest.raises(NotNowError, match="waits for it"):  # noqa: PT012 - till it waits
                while time.monotonic() < end:
                    syscalls.check_lease(file.fileno())
            assert other.poll() is None
            fcntl.fcntl(file.fileno(), fcntl.F_SETLEASE, fcntl.F_UNLCK)
            assert other.wait(20) == 0
