"""Finding good copies of damaged files, and believing no others."""

import contextlib
import errno
import json
import os
import random
import shutil
import socket
import threading
import time
from collections.abc import Iterator, Sequence
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from tests.support.emulated_device import Emulated, emulated
from tests.support.kernel_oracle import getfsmap
from tests.support.mounts import mounted
from tests.support.tools import need_loop_mounts, run
from tests.support.xfs_images import MIB, Geometry, make_image

from whoseblock.media.direct import DirectMedia
from whoseblock.ranges import ByteRange
from whoseblock.respond import copies
from whoseblock.respond.copies import Candidate, Copies, CopyError, agree, find, verify_copy

BLOCK = 4096
SIZE = 24 * BLOCK + 777
LOST = ByteRange(9 * BLOCK, BLOCK)


@contextlib.contextmanager
def opened(path: Path) -> Iterator[int]:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        yield descriptor
    finally:
        os.close(descriptor)


def check(
    path: Path,
    candidate: Candidate | str | Path,
    lost: Sequence[ByteRange] = (LOST,),
    *,
    whole: bool = False,
    window: int = 2 * BLOCK,
) -> int:
    """Verify a copy; return the number of bytes compared, or raise."""
    if isinstance(candidate, Path):
        candidate = str(candidate)
    before = len(os.listdir("/proc/self/fd"))
    try:
        with (
            opened(path) as descriptor,
            verify_copy(descriptor, candidate, lost, whole=whole, window=window) as replacement,
        ):
            return replacement.compared
    finally:
        assert len(os.listdir("/proc/self/fd")) == before


def refused(path: Path, candidate: Candidate | str | Path, why: str) -> None:
    with pytest.raises(CopyError, match=why):
        check(path, candidate)


@pytest.fixture
def pair(tmp_path: Path) -> tuple[Path, Path]:
    """Provide a damaged file, and a good copy of it."""
    good = random.Random(0).randbytes(SIZE)
    damaged, copy = tmp_path / "damaged", tmp_path / "copy"
    damaged.write_bytes(good[: LOST.start] + b"?" * LOST.length + good[LOST.end :])
    copy.write_bytes(good)
    return damaged, copy


def flip(path: Path, at: int) -> None:
    with path.open("r+b") as file:
        file.seek(at)
        (byte,) = file.read(1)
        file.seek(at)
        file.write(bytes([byte ^ 1]))


def test_a_good_copy_is_accepted_and_read(pair: tuple[Path, Path]) -> None:
    damaged, copy = pair
    good = copy.read_bytes()
    with opened(damaged) as descriptor, verify_copy(descriptor, str(copy), [LOST]) as replacement:
        assert replacement.compared == SIZE - LOST.length
        assert replacement.size == SIZE
        assert replacement.read(*LOST) == good[LOST.start : LOST.end]
        assert replacement.read(SIZE - 5, BLOCK) == good[-5:] + bytes(BLOCK - 5)
        assert replacement.read(SIZE + 5, 9) == bytes(9)
        assert str(replacement.candidate) == repr(str(copy))
    assert check(damaged, copy) == 4 * BLOCK
    assert check(damaged, copy, [ByteRange(LOST.start + 100, 7), LOST], window=1) == 2


@pytest.mark.parametrize("at", [LOST.start - 1, LOST.end, LOST.start - BLOCK, LOST.end + BLOCK - 1])
def test_one_different_byte_in_the_window_is_a_mismatch(pair: tuple[Path, Path], at: int) -> None:
    damaged, copy = pair
    flip(copy, at)
    with pytest.raises(CopyError, match=f"differs from the damaged file at byte {at}"):
        check(damaged, copy, window=BLOCK)


@pytest.mark.parametrize("at", [LOST.start - BLOCK - 1, LOST.end + BLOCK, SIZE - 1, 0])
def test_outside_of_the_window_only_the_whole_tells(pair: tuple[Path, Path], at: int) -> None:
    damaged, copy = pair
    flip(copy, at)
    assert check(damaged, copy, window=BLOCK) == 2 * BLOCK
    with pytest.raises(CopyError, match=f"differs from the damaged file at byte {at}"):
        check(damaged, copy, whole=True)


def around(lost: Sequence[ByteRange], window: int) -> set[int]:
    """Return the bytes of a file around the loss, one by one."""
    compared: set[int] = set()
    for start, length in lost:
        # Of what is lost past the end there is nothing on this side of it either.
        if start < SIZE:
            end = min(start + length, SIZE)
            compared |= set(range(max(start - window, 0), min(end + window, SIZE)))
    for start, length in lost:
        compared -= set(range(start, start + length))
    return compared


RANGES = st.lists(
    st.builds(ByteRange, st.integers(0, SIZE + 100), st.integers(1, 3 * BLOCK)),
    min_size=1,
    max_size=5,
)


@settings(max_examples=150, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    lost=RANGES,
    unread=st.lists(st.integers(0, SIZE // 512), max_size=3),
    changed=st.lists(st.integers(0, SIZE - 1), max_size=2),
    window=st.one_of(st.integers(0, SIZE), st.integers(0, 600)),
    whole=st.booleans(),
    same_time=st.booleans(),
)
def test_a_copy_is_accepted_only_if_all_surrounding_bytes_are_equal(  # noqa: PLR0913 - one draw each
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    lost: list[ByteRange],
    unread: list[int],
    changed: list[int],
    window: int,
    whole: bool,  # noqa: FBT001 - drawn
    same_time: bool,  # noqa: FBT001 - drawn
) -> None:
    # What is compared, byte by byte; sectors of the damaged file that give EIO are a mock.
    good = random.Random(1).randbytes(SIZE)
    damaged, copy = tmp_path / "damaged", tmp_path / "copy"
    damaged.write_bytes(good)
    copy.write_bytes(good)
    for at in changed:
        flip(damaged, at)
    os.utime(damaged, ns=(0, 10**18))
    os.utime(copy, ns=(0, 10**18 + (not same_time)))
    inode = damaged.stat().st_ino
    real = os.preadv

    def preadv(descriptor: int, buffers: Sequence[memoryview], offset: int) -> int:
        end = offset + sum(map(len, buffers))
        mine = os.fstat(descriptor).st_ino == inode
        if mine and any(offset < (at + 1) * 512 and at * 512 < end for at in unread):
            raise OSError(errno.EIO, os.strerror(errno.EIO))
        return real(descriptor, buffers, offset)

    compared = around([*lost, ByteRange(0, 0)], SIZE) if whole else around(lost, window)
    with opened(damaged) as descriptor, DirectMedia(descriptor) as media:
        sector = media.align
    unread = [
        n for at in unread for n in range(at * 512 // sector * sector // 512, at + sector // 512)
    ]
    for at in unread:
        compared -= set(range(at * 512, (at + 1) * 512))
    differing = {at for at in changed if changed.count(at) == 1} & compared
    with monkeypatch.context() as patch:
        patch.setattr(os, "preadv", preadv)
        if differing:
            with pytest.raises(CopyError, match=f"at byte {min(differing)}$"):
                check(damaged, copy, lost, whole=whole, window=window)
        elif not compared and not same_time:
            with pytest.raises(CopyError, match="has another modification time"):
                check(damaged, copy, lost, whole=whole, window=window)
        else:
            assert check(damaged, copy, lost, whole=whole, window=window) == len(compared)


def test_a_copy_that_cannot_be_compared_is_accepted_by_its_time(pair: tuple[Path, Path]) -> None:
    damaged, copy = pair
    all_of_it = [ByteRange(0, 10 * BLOCK), ByteRange(10 * BLOCK, 15 * BLOCK)]
    with pytest.raises(CopyError, match="has another modification time"):
        check(damaged, copy, all_of_it, whole=True)
    os.utime(copy, ns=(0, damaged.stat().st_mtime_ns))
    assert check(damaged, copy, all_of_it) == 0
    os.utime(copy, ns=(0, damaged.stat().st_mtime_ns + 1))
    with pytest.raises(CopyError, match="has another modification time"):
        check(damaged, copy, all_of_it)


def test_another_size_is_refused(pair: tuple[Path, Path]) -> None:
    damaged, copy = pair
    os.truncate(copy, SIZE - 1)
    refused(damaged, copy, f"has {SIZE - 1} bytes, the damaged file {SIZE}")


def test_holes_are_compared_as_zeros(tmp_path: Path) -> None:
    damaged, copy = tmp_path / "damaged", tmp_path / "copy"
    damaged.touch()
    os.truncate(damaged, 4 * MIB)
    copy.write_bytes(bytes(4 * MIB))
    assert check(damaged, copy, whole=True) == 4 * MIB - LOST.length


# ---------------------------------------------------------------------- what is no copy


@pytest.mark.parametrize("kind", ["fifo", "socket", "folder", "link", "device"])
def test_only_a_regular_file_is_opened(
    pair: tuple[Path, Path],
    kind: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    damaged, copy = pair
    path = tmp_path / kind
    if kind == "fifo":
        os.mkfifo(path)
    elif kind == "socket":
        monkeypatch.chdir(tmp_path)  # the path of a socket must be short
        with socket.socket(socket.AF_UNIX) as server:
            server.bind(kind)
    elif kind == "folder":
        path.mkdir()
    elif kind == "link":
        path.symlink_to(copy)
    else:
        path = Path("/dev/null")
    began = time.monotonic()
    refused(damaged, path, "not a regular file")
    refused(damaged, Candidate(path.name, str(path.parent)), "not a regular file")
    assert time.monotonic() - began < 5


def test_the_damaged_file_is_no_copy_of_itself(pair: tuple[Path, Path]) -> None:
    damaged, _ = pair
    os.link(damaged, damaged.with_name("another"))
    refused(damaged, damaged.with_name("another"), "is the damaged file itself")


def test_a_missing_copy_is_reported(pair: tuple[Path, Path]) -> None:
    damaged, copy = pair
    refused(damaged, copy.with_name("none"), "does not exist")
    refused(damaged, copy / "below", "is not a directory")
    refused(damaged, str(copy) + "\0", "null")
    refused(damaged, str(copy.parent / ("x" * 300)), "File name too long")


def test_nothing_outside_of_the_folder_is_opened(pair: tuple[Path, Path], tmp_path: Path) -> None:
    damaged, copy = pair
    folder = tmp_path / "folder"
    (folder / "sub" / "deeper").mkdir(parents=True)
    shutil.copy(copy, folder / "sub" / "deeper" / "file")
    (folder / "out").symlink_to(tmp_path)
    (folder / "up").symlink_to("..")
    (folder / "inside").symlink_to("sub")
    (folder / "sub" / "file").symlink_to(copy)

    def place(path: str) -> Candidate:
        return Candidate(path, str(folder))

    assert check(damaged, place("sub/deeper/file")) == 4 * BLOCK
    # Another file of the folder is not the one that was asked for, either.
    for path in ("out/copy", "up/copy", "inside/deeper/file"):
        refused(damaged, place(path), "is not a directory")
    refused(damaged, place("sub/file"), "a symbolic link, not a regular file")
    for path in (
        "../copy",
        "sub/../../copy",
        "",
        "sub//deeper/file",
        "./sub/deeper/file",
        str(copy),
    ):
        refused(damaged, place(path), "is not a valid path in a filesystem")
    # The folder itself is the user's word.
    (tmp_path / "alias").symlink_to(folder)
    assert check(damaged, Candidate("sub/deeper/file", str(tmp_path / "alias"))) == 4 * BLOCK


NAMES = st.binary(min_size=1, max_size=40).filter(
    lambda name: b"/" not in name and b"\0" not in name and name not in (b".", b"..")
)


@settings(max_examples=60, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(names=st.lists(NAMES, min_size=1, max_size=4))
def test_names_are_any_bytes(pair: tuple[Path, Path], tmp_path: Path, names: list[bytes]) -> None:
    damaged, copy = pair
    folder = tmp_path / "any"
    shutil.rmtree(folder, ignore_errors=True)
    path = b"/".join(names)
    os.makedirs(os.path.join(os.fsencode(folder), os.path.dirname(path)))
    shutil.copy(os.fsencode(copy), os.path.join(os.fsencode(folder), path))
    (candidate,) = find(Copies(folder=str(folder)), ["/" + os.fsdecode(path)], b"{}")
    assert check(damaged, candidate) == 4 * BLOCK
    assert str(candidate).isprintable()


def test_a_path_may_be_longer_than_one_call_takes(pair: tuple[Path, Path], tmp_path: Path) -> None:
    damaged, copy = pair
    step = os.open(tmp_path, os.O_RDONLY)
    for _ in range(30):
        os.mkdir("d" * 200, dir_fd=step)
        further = os.open("d" * 200, os.O_RDONLY, dir_fd=step)
        os.close(step)
        step = further
    os.link(copy, "file", dst_dir_fd=step)
    os.close(step)
    path = "/".join(["d" * 200] * 30 + ["file"])
    assert check(damaged, Candidate(path, str(tmp_path))) == 4 * BLOCK


def test_a_copy_that_changes_is_refused(
    pair: tuple[Path, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    damaged, copy = pair
    compare = copies._compare

    def slowly(*arguments: object) -> int:
        compared = compare(*arguments)  # type: ignore[arg-type] # whatever it takes
        time.sleep(0.02)
        flip(copy, LOST.start)
        arguments[1].read(0, 1)  # type: ignore[attr-defined] # the replacement
        return compared

    with monkeypatch.context() as patch:
        patch.setattr(copies, "_compare", slowly)
        refused(damaged, copy, "changes while it is read")
    flip(copy, LOST.start)
    with opened(damaged) as descriptor, verify_copy(descriptor, str(copy), [LOST]) as replacement:
        time.sleep(0.02)
        os.truncate(copy, LOST.start)
        with pytest.raises(CopyError, match="changes while it is read"):
            replacement.read(*LOST)


def test_a_copy_that_is_written_all_the_time_is_refused(tmp_path: Path) -> None:
    # A writer in a thread of its own changes what is lost, at any moment of the reading.
    damaged, copy = tmp_path / "damaged", tmp_path / "copy"
    damaged.write_bytes(bytes(32 * MIB))
    copy.write_bytes(bytes(32 * MIB))
    over = threading.Event()

    with copy.open("r+b", 0) as file:

        def write() -> None:
            while not over.is_set():
                os.pwrite(file.fileno(), b"new", LOST.start)
                time.sleep(0.005)

        writer = threading.Thread(target=write)
        writer.start()
        try:
            for _ in range(3):
                with pytest.raises(CopyError, match="changes while it is read"):
                    check(damaged, copy, whole=True)
        finally:
            over.set()
            writer.join()


def test_two_copies_must_agree(pair: tuple[Path, Path]) -> None:
    damaged, copy = pair
    other = copy.with_name("other")
    shutil.copy(copy, other)
    with opened(damaged) as descriptor:
        for same in (True, False):
            if not same:
                flip(other, LOST.end - 1)
            with (
                verify_copy(descriptor, str(copy), [LOST]) as first,
                verify_copy(descriptor, str(other), [LOST]) as second,
            ):
                agree([], [LOST])
                agree([first], [LOST])
                if same:
                    agree([first, second, first], [LOST])
                    continue
                agree([first, second], [ByteRange(LOST.start, 100)])
                with pytest.raises(CopyError, match=r"the copies .*copy.* and .*other.* differ in"):
                    agree([first, second], [LOST])


# ---------------------------------------------------------------------- where to look


def test_all_locations_are_tried_in_order(tmp_path: Path) -> None:
    wanted = Copies(folder="/backup", file="/one", command="cat; printf /fetched")
    found = find(wanted, ["/a/b", "/c"], b"")
    assert list(found) == [
        Candidate("/one"),
        Candidate("a/b", "/backup"),
        Candidate("c", "/backup"),
        Candidate("/fetched"),
    ]
    assert list(find(Copies(), ["/a"], b"{}")) == []
    # A command runs only if nothing before was good.
    late = find(Copies(file="/one", command=f"touch {tmp_path}/ran"), [], b"")
    assert next(late) == Candidate("/one")
    assert not (tmp_path / "ran").exists()


def test_a_command_gets_the_finding_and_names_a_copy(tmp_path: Path) -> None:
    name = os.fsdecode(b"odd\xff\nname\n")
    finding = json.dumps({"start": 4096}).encode() * 9999
    script = f'cat > {tmp_path}/got; printf "%s\\n" "$WHOSEBLOCK_PATH"'
    (found,) = find(Copies(command=script), ["/" + name, "/other"], finding)
    # The shell drops no newline here, and we no more than the one that ends the line.
    assert found == Candidate("/" + name)
    assert (tmp_path / "got").read_bytes() == finding


@pytest.mark.parametrize(
    ("command", "why"),
    [
        ("exit 3", "failed with status 3"),
        ("kill -9 $$", "was ended by SIGKILL"),
        ("true", "printed no path"),
    ],
)
def test_a_command_that_fails_is_reported(command: str, why: str) -> None:
    with pytest.raises(CopyError, match=why):
        list(find(Copies(command=command), ["/a"], b"{}" * (1 << 20)))


def test_a_command_that_takes_too_long_is_ended() -> None:
    copied = Copies(command="sleep 100 & sleep 100", command_s=0.5)
    with pytest.raises(CopyError, match=r"took longer than 0\.5 seconds"):
        list(find(copied, ["/a"], b"{}" * (1 << 20)))


# ---------------------------------------------------------------------- a medium that fails


@contextlib.contextmanager
def failing_filesystem(folder: Path) -> Iterator[tuple[Emulated, Path]]:
    need_loop_mounts()
    image = make_image(folder / "disk", Geometry("copies", size=32 * MIB, parent=False))
    with (
        emulated(image, folder / "at") as served,
        served.loop() as loop,
        mounted(loop, loop=False) as root,
    ):
        yield served, Path(os.fsdecode(root))


def break_block(served: Emulated, root: Path, path: Path, offset: int, sectors: int = 8) -> None:
    """Make the medium fail at a block of a file."""
    (row,) = (
        row
        for row in getfsmap(os.fsencode(root))
        if row.inode == path.stat().st_ino
        and not row.attr
        and row.offset <= offset < row.offset + row.length
    )
    served.add(ByteRange(row.start + offset - row.offset, sectors * 512))


def test_a_file_on_a_failing_medium_is_compared_around_its_losses(tmp_path: Path) -> None:
    good = random.Random(2).randbytes(SIZE)
    (tmp_path / "copy").write_bytes(good)
    with failing_filesystem(tmp_path) as (served, root):
        damaged = root / "damaged"
        damaged.write_bytes(good)
        os.sync()
        break_block(served, root, damaged, LOST.start)
        # One more loss in the window: it is neither equal nor different.
        break_block(served, root, damaged, LOST.end + BLOCK + 512, 1)
        assert check(damaged, tmp_path / "copy") == 4 * BLOCK - 512
        assert check(damaged, tmp_path / "copy", whole=True) == SIZE - LOST.length - 512
        flip(tmp_path / "copy", LOST.end + BLOCK + 512)
        assert check(damaged, tmp_path / "copy") == 4 * BLOCK - 512
        flip(tmp_path / "copy", LOST.end + BLOCK + 1024)
        refused(damaged, tmp_path / "copy", f"at byte {LOST.end + BLOCK + 1024}")


def test_a_copy_that_shares_the_failed_blocks_is_refused(tmp_path: Path) -> None:
    good = random.Random(3).randbytes(SIZE)
    with failing_filesystem(tmp_path) as (served, root):
        damaged = root / "damaged"
        damaged.write_bytes(good)
        run(["cp", "--reflink=always", damaged, root / "shared"])
        run(["cp", "--reflink=never", damaged, root / "apart"])
        os.sync()
        # What the page cache remembers is no copy, either.
        assert (root / "shared").read_bytes() == good
        break_block(served, root, root / "shared", LOST.start + 1024, 1)
        refused(damaged, root / "shared", f"is unreadable itself at {LOST.start + 1024}.512")
        assert check(damaged, root / "apart") == 4 * BLOCK
