"""Finding good copies of damaged files, and believing no others."""

import contextlib
import errno
import os
import random
import shutil
import socket
import struct
import threading
import time
from collections.abc import Iterator, Sequence
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from tests.support.copy_checks import (
    ANY_TIME,
    BLOCK,
    LOST,
    SIZE,
    check,
    damaged_pair,
    flip,
    opened,
    refused,
    same_time,
)
from tests.support.emulated_device import Emulated, emulated
from tests.support.kernel_oracle import getfsmap
from tests.support.mounts import mounted
from tests.support.system_calls import punch_hole
from tests.support.tools import need_loop_mounts, need_root, run
from tests.support.xfs_images import MIB, Geometry, make_image

from whoseblock.media.direct import DirectMedia
from whoseblock.ranges import ByteRange
from whoseblock.respond.copies import verification
from whoseblock.respond.copies.locations import Candidate, Copies, CopyError
from whoseblock.respond.copies.verification import time_of, verify_copy


@pytest.fixture
def pair(tmp_path: Path) -> tuple[Path, Path]:
    """Provide a damaged file, and a good copy of it."""
    return damaged_pair(tmp_path)


def window(length: int) -> Copies:
    return ANY_TIME._replace(window=length)


OTHER_TIME = r"was modified at .*, and the damaged file at .*: no byte"
WHOLE = ANY_TIME._replace(whole=True)


def test_a_good_copy_is_accepted_and_read(pair: tuple[Path, Path]) -> None:
    damaged, copy = pair
    good = copy.read_bytes()
    with (
        opened(damaged) as descriptor,
        verify_copy(descriptor, Candidate(str(copy)), [LOST], Copies()) as replacement,
    ):
        assert replacement.compared == SIZE - LOST.length
        assert replacement.size == SIZE
        assert replacement.read(*LOST) == good[LOST.start : LOST.end]
        assert replacement.read(SIZE - 5, BLOCK) == good[-5:] + bytes(BLOCK - 5)
        assert replacement.read(SIZE + 5, 9) == bytes(9)
        assert str(replacement.candidate) == repr(str(copy))
    assert check(damaged, copy) == 4 * BLOCK
    assert check(damaged, copy, [ByteRange(LOST.start + 100, 7), LOST], window(1)) == 2


@pytest.mark.parametrize("at", [LOST.start - 1, LOST.end, LOST.start - BLOCK, LOST.end + BLOCK - 1])
def test_one_different_byte_in_the_window_is_a_mismatch(pair: tuple[Path, Path], at: int) -> None:
    damaged, copy = pair
    flip(copy, at)
    with pytest.raises(CopyError, match=f"differs from the damaged file at byte {at}"):
        check(damaged, copy, rules=window(BLOCK))


@pytest.mark.parametrize("at", [LOST.start - BLOCK - 1, LOST.end + BLOCK, SIZE - 1, 0])
def test_outside_of_the_window_only_the_whole_tells(pair: tuple[Path, Path], at: int) -> None:
    damaged, copy = pair
    flip(copy, at)
    assert check(damaged, copy, rules=window(BLOCK)) == 2 * BLOCK
    with pytest.raises(CopyError, match=f"differs from the damaged file at byte {at}"):
        check(damaged, copy, rules=WHOLE)


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
    width=st.one_of(st.integers(0, SIZE), st.integers(0, 600)),
    whole=st.booleans(),
    same_time=st.booleans(),
)
def test_a_copy_is_accepted_only_if_all_surrounding_bytes_are_equal(  # noqa: PLR0913 - one draw each
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    lost: list[ByteRange],
    unread: list[int],
    changed: list[int],
    width: int,
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

    rules = ANY_TIME._replace(whole=whole, window=width)
    compared = around([*lost, ByteRange(0, 0)], SIZE) if whole else around(lost, width)
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
                check(damaged, copy, lost, rules)
        elif not compared and not same_time:
            with pytest.raises(CopyError, match=OTHER_TIME):
                check(damaged, copy, lost, rules)
        else:
            assert check(damaged, copy, lost, rules) == len(compared)


def test_a_copy_that_cannot_be_compared_is_accepted_by_its_time(pair: tuple[Path, Path]) -> None:
    damaged, copy = pair
    all_of_it = [ByteRange(0, 10 * BLOCK), ByteRange(10 * BLOCK, 15 * BLOCK)]
    os.utime(copy, ns=(0, 0))
    with pytest.raises(CopyError, match=OTHER_TIME):
        check(damaged, copy, all_of_it, WHOLE)
    os.utime(copy, ns=(0, damaged.stat().st_mtime_ns))
    assert check(damaged, copy, all_of_it) == 0
    os.utime(copy, ns=(0, damaged.stat().st_mtime_ns + 1))
    with pytest.raises(CopyError, match=OTHER_TIME):
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
    assert check(damaged, copy, rules=WHOLE) == 4 * MIB - LOST.length


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


def test_a_copy_that_changes_is_refused(
    pair: tuple[Path, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    damaged, copy = pair
    compare = verification._compare

    def slowly(*arguments: object) -> int:
        compared = compare(*arguments)  # type: ignore[arg-type] # whatever it takes
        time.sleep(0.02)
        flip(copy, LOST.start)
        arguments[1].read(0, 1)  # type: ignore[attr-defined] # the replacement
        return compared

    with monkeypatch.context() as patch:
        patch.setattr(verification, "_compare", slowly)
        refused(damaged, copy, "changes while it is read")
    flip(copy, LOST.start)
    with (
        opened(damaged) as descriptor,
        verify_copy(descriptor, Candidate(str(copy)), [LOST], ANY_TIME) as replacement,
    ):
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
                    check(damaged, copy, rules=WHOLE)
        finally:
            over.set()
            writer.join()


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
        assert check(damaged, tmp_path / "copy", rules=WHOLE) == SIZE - LOST.length - 512
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


# ---------------------------------------------------------------------- old and hollow copies


def test_a_copy_with_another_time_is_refused_unless_told(pair: tuple[Path, Path]) -> None:
    damaged, copy = pair
    assert check(damaged, copy, rules=Copies()) == SIZE - LOST.length
    for step in (-1, 1, -(10**9), 10**9):
        os.utime(copy, ns=(0, damaged.stat().st_mtime_ns + step))
        for whole in (False, True):
            refused(damaged, copy, "was modified at .*: pass --accept-older", Copies(whole=whole))
        assert check(damaged, copy, rules=Copies(older=True)) == SIZE - LOST.length


def test_a_time_that_no_calendar_has_is_printed_in_seconds() -> None:
    assert time_of(1_700_000_000_000_000_001) == "2023-11-14 22:13:20.000000001 UTC"
    assert time_of(-1) == "1969-12-31 23:59:59.999999999 UTC"
    assert time_of((1 << 60) * 10**9) == f"{1 << 60}.000000000 seconds since 1970"


@pytest.mark.parametrize("hole", [False, True], ids=["zeros", "hole"])
@pytest.mark.parametrize(
    "gap",
    [
        LOST,
        ByteRange(LOST.start, 512),
        ByteRange(LOST.end - 512, 512),
        ByteRange(LOST.start + 700, 1024),
    ],
)
def test_a_copy_with_a_gap_in_the_lost_part_is_refused_unless_told(
    pair: tuple[Path, Path],
    gap: ByteRange,
    hole: bool,  # noqa: FBT001 - of the test
) -> None:
    damaged, copy = pair
    with copy.open("r+b") as file:
        if hole:
            punch_hole(file.fileno(), *gap)
        else:
            os.pwrite(file.fileno(), bytes(gap.length), gap.start)
    same_time(damaged, copy)
    first = -(-gap.start // 512) * 512
    refused(damaged, copy, f"has only zeros at {first}.*pass --accept-zeros", Copies())
    assert check(damaged, copy, rules=Copies(zeros=True)) == SIZE - LOST.length


def test_a_sector_with_one_other_byte_is_no_gap(pair: tuple[Path, Path]) -> None:
    damaged, copy = pair
    data = bytearray(LOST.length)
    data[::512] = b"x" * (LOST.length // 512)
    with copy.open("r+b") as file:
        os.pwrite(file.fileno(), data, LOST.start)
    same_time(damaged, copy)
    assert check(damaged, copy, rules=Copies()) == SIZE - LOST.length


@pytest.mark.parametrize(
    ("blocks", "why"),
    [
        ([(0, SIZE, "+")], ""),
        ([(0, LOST.start, "-"), (LOST.start, LOST.length, "+"), (LOST.end, 99999, "?")], ""),
        ([(0, LOST.end - 1, "+"), (LOST.end - 1, 1, "-")], f"not rescued at {LOST.end - 1}.1,"),
        ([(0, LOST.start, "+"), (LOST.start, 512, "*"), (LOST.start + 512, SIZE, "+")], "512,"),
        ([(0, SIZE, "?")], "not rescued at"),
        ([(0, 10, "+"), (11, 10, "+")], "cannot read the map"),
        (None, "cannot read the map"),
    ],
)
def test_the_map_of_a_rescue_says_which_zeros_are_data(
    pair: tuple[Path, Path],
    tmp_path: Path,
    blocks: list[tuple[int, int, str]] | None,
    why: str,
) -> None:
    damaged, copy = pair
    where = tmp_path / "rescue.map"
    if blocks is not None:
        lines = (f"0x{start:08X}  0x{length:08X}  {status}\n" for start, length, status in blocks)
        where.write_text("# Mapfile.\n0x00000000     +     1\n" + "".join(lines))
    rules = Copies(file=str(copy), rescue_map=str(where))
    for zeros in (False, True):
        if zeros:
            with copy.open("r+b") as file:
                os.pwrite(file.fileno(), bytes(LOST.length), LOST.start)
            same_time(damaged, copy)
        # Data that is no zeros may be what a rescue fills its gaps with.
        if why:
            refused(damaged, copy, why, rules)
        else:
            assert check(damaged, copy, rules=rules) == SIZE - LOST.length
    # The map is that of the one file.
    other = tmp_path / "folder"
    other.mkdir()
    shutil.copy2(copy, other / "copy")
    refused(damaged, Candidate("copy", str(other)), "has only zeros", rules)


def test_a_map_that_another_user_could_write_or_that_is_a_pipe(
    pair: tuple[Path, Path], tmp_path: Path
) -> None:
    # Who writes the map decides which zeros are taken for data.
    damaged, copy = pair
    where = tmp_path / "rescue.map"
    where.write_text(f"0x0 + 1\n0x0 {SIZE} +\n")
    rules = Copies(file=str(copy), rescue_map=str(where))
    where.chmod(0o666)
    refused(damaged, copy, r"the map '.*' all users may write", rules)
    where.unlink()
    os.mkfifo(where)
    refused(damaged, copy, r"the map '.*' is not a regular file", rules)


# ---------------------------------------------------------------------- copies of other users


@pytest.mark.parametrize(
    ("owner", "group", "mode", "why"),
    [
        (0, 0, 0o644, ""),
        (77, 99, 0o600, ""),
        (78, 77, 0o400, "belongs to user 78, and not to root or to user 77"),
        (77, 77, 0o646, "all users may write"),
        (0, 0, 0o666, "all users may write"),
        (77, 99, 0o664, "group 99 may write"),
        (77, 0, 0o664, ""),
        (77, 88, 0o664, ""),
    ],
)
@pytest.mark.parametrize("folder", [False, True], ids=["file", "folder"])
def test_another_user_must_not_control_a_copy(  # noqa: PLR0913 - the cases
    pair: tuple[Path, Path],
    tmp_path: Path,
    owner: int,
    group: int,
    mode: int,
    why: str,
    folder: bool,  # noqa: FBT001 - of the test
) -> None:
    need_root()
    damaged, copy = pair
    os.chown(damaged, 77, 88)
    damaged.chmod(0o660)
    candidate = Candidate("sub/copy", str(tmp_path / "backup"))
    place = tmp_path / "backup" / "sub"
    place.mkdir(parents=True)
    copied = place / "copy"
    shutil.copy2(copy, copied)
    changed = place if folder else copied
    os.chown(changed, owner, group)
    changed.chmod(mode | 0o111 if folder else mode)
    for one in (candidate,) if folder else (candidate, copied):
        if why:
            refused(damaged, one, why, Copies())
        else:
            assert check(damaged, one, rules=Copies()) == SIZE - LOST.length
    if folder:
        # With the sticky bit, others cannot replace what is in it.
        changed.chmod(mode | 0o1111)
        if owner != 78:
            assert check(damaged, candidate, rules=Copies()) == SIZE - LOST.length


def test_an_access_list_that_lets_others_write_a_copy(pair: tuple[Path, Path]) -> None:
    need_root()
    damaged, copy = pair
    # Version 2 (linux/posix_acl_xattr.h): user, user 1234, group, mask and others.
    entries = ((1, 6, -1), (2, 6, 1234), (4, 4, -1), (16, 6, -1), (32, 4, -1))
    acl = struct.pack("<I", 2) + b"".join(struct.pack("<HHi", *entry) for entry in entries)
    try:
        os.setxattr(copy, "system.posix_acl_access", acl)
    except OSError:
        pytest.skip("the filesystem of the tests has no access control lists")
    refused(damaged, copy, "users in its access control list may write", Copies())
    os.setxattr(damaged, "system.posix_acl_access", acl)
    assert check(damaged, copy, rules=Copies()) == SIZE - LOST.length
