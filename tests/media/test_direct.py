"""Reading and writing past the page cache: devices and files, on a medium that really fails."""

import contextlib
import errno
import fcntl
import os
import random
from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from tests.support.emulated_device import Emulated, emulated
from tests.support.kernel_oracle import getfsmap
from tests.support.mounts import loop_device, mounted
from tests.support.tools import need_loop_mounts, need_root, run
from tests.support.xfs_images import MIB, Geometry, make_image

from whoseblock.errors import MediaError, TargetError
from whoseblock.media import direct
from whoseblock.media.direct import DirectMedia
from whoseblock.ranges import ByteRange, merge

SECTOR = 512
BLOCK = 4096


@pytest.fixture
def image(tmp_path: Path) -> Path:
    need_loop_mounts()
    return make_image(tmp_path / "disk", Geometry("direct", size=32 * MIB, parent=False))


@contextlib.contextmanager
def failing_filesystem(image: Path, folder: Path) -> Iterator[tuple[Emulated, Path]]:
    """Mount an image on a device whose sectors can be made to fail."""
    with (
        emulated(image, folder) as served,
        served.loop() as loop,
        mounted(loop, loop=False) as root,
    ):
        yield served, Path(os.fsdecode(root))


def fill(path: Path, size: int) -> bytes:
    content = random.Random(path.name).randbytes(size)
    path.write_bytes(content)
    os.sync()
    return content


def place_of(root: Path, path: Path, offset: int) -> int:
    """Ask the kernel at which byte of the device a byte of a file is."""
    (row,) = (
        row
        for row in getfsmap(os.fsencode(root))
        if row.inode == path.stat().st_ino
        and not row.attr
        and row.offset <= offset < row.offset + row.length
    )
    return row.start + offset - row.offset


def clip(bad: list[ByteRange], start: int, end: int) -> list[ByteRange]:
    cut = [(max(one.start, start), min(one.end, end)) for one in bad]
    return merge(ByteRange(low, high - low) for low, high in cut if low < high)


def check_reading(media: DirectMedia, content: bytes, bad: list[ByteRange]) -> None:
    """Read any ranges, and have exactly the bad sectors blamed."""

    @settings(max_examples=40, suppress_health_check=[HealthCheck.function_scoped_fixture])
    @given(st.integers(0, len(content) - 1), st.integers(1, 3 * MIB), st.booleans())
    def check(offset: int, length: int, few: bool) -> None:  # noqa: FBT001 - of hypothesis
        end = min(offset + (length % 3000 if few else length) + 1, len(content))
        lost = clip(bad, offset, end)
        if lost:
            with pytest.raises(MediaError) as error:
                media.pread(offset, end - offset)
            assert list(error.value.ranges) == lost
            assert error.value.reason == "input/output error"
        else:
            assert media.pread(offset, end - offset) == content[offset:end]
        good = dict(media.readable(offset, end - offset))
        assert all(content[at : at + len(data)] == data for at, data in good.items())
        parts = [ByteRange(at, len(data)) for at, data in good.items()]
        assert merge([*parts, *lost]) == [ByteRange(offset, end - offset)]
        assert sum(one.length for one in (*parts, *lost)) == end - offset
        first, last = offset // media.align * media.align, -(-end // media.align) * media.align
        assert media.failing(offset, end - offset) == clip(bad, first, last)

    check()


def test_a_failed_read_of_a_device_names_exactly_the_bad_sectors(tmp_path: Path) -> None:
    need_root()
    content = fill(tmp_path / "disk", 3 * MIB)
    bad = [ByteRange(at * SECTOR, SECTOR) for at in (0, 9, 11, 2047, 2048, 4000, 6143)]
    with emulated(tmp_path / "disk", tmp_path / "at", bad=bad) as served, served.loop() as loop:
        with DirectMedia(loop) as media:
            assert (media.size, media.align, media.write_align) == (3 * MIB, SECTOR, SECTOR)
            check_reading(media, content, merge(bad))
            assert media.failing(0, media.size) == merge(bad)
            # What the page cache of the device has would not be asked for.
            assert media.failing(12 * SECTOR - 1, 1) == [ByteRange(11 * SECTOR, SECTOR)]
        with DirectMedia(loop, writable=True) as media:
            media.pwrite(9 * SECTOR, b"\1" * SECTOR)
            media.sync()
            assert served.bad() == merge(one for one in bad if one.start != 9 * SECTOR)
            assert media.pread(9 * SECTOR, SECTOR) == b"\1" * SECTOR
            served.add(ByteRange(20 * SECTOR, SECTOR), permanent=True)
            with pytest.raises(OSError, match="Input/output error") as error:
                media.pwrite(20 * SECTOR, bytes(SECTOR))
            assert error.value.errno == errno.EIO
            assert ByteRange(20 * SECTOR, SECTOR) in media.failing(0, media.size)


def test_a_device_of_large_sectors_fails_by_large_sectors(tmp_path: Path) -> None:
    need_root()
    content = fill(tmp_path / "disk", MIB)
    bad = [ByteRange(8 * BLOCK, BLOCK)]
    with (
        emulated(tmp_path / "disk", tmp_path / "at", bad=[ByteRange(8 * BLOCK, 1)]) as served,
        loop_device(served.device, "--direct-io=on", f"--sector-size={BLOCK}") as loop,
        DirectMedia(loop, writable=True) as media,
    ):
        assert media.align == BLOCK
        check_reading(media, content, bad)
        with pytest.raises(ValueError, match="not aligned to 4096"):
            media.pwrite(8 * BLOCK, bytes(SECTOR))


def test_a_failed_read_of_a_file_names_exactly_the_bad_sectors(image: Path, tmp_path: Path) -> None:
    with failing_filesystem(image, tmp_path / "at") as (served, root):
        path = root / "hit"
        content = fill(path, 3 * MIB + 1000)
        sectors = (8, 15, 17, 2048, 6144, 6145)
        for sector in sectors:
            served.add(ByteRange(place_of(root, path, sector * SECTOR), SECTOR))
        bad = clip([ByteRange(at * SECTOR, SECTOR) for at in sectors], 0, len(content))
        with DirectMedia(path) as media:
            assert media.align == SECTOR
            assert media.size == len(content)
            check_reading(media, content, bad)
            # The last sector of the file is not whole.
            assert media.failing(media.size - 1, 1) == [ByteRange(6145 * SECTOR, 488)]


def test_a_shared_file_is_written_by_whole_blocks(image: Path, tmp_path: Path) -> None:
    with failing_filesystem(image, tmp_path / "at") as (_, root):
        path = root / "one"
        content = fill(path, 8 * BLOCK)
        with DirectMedia(path, writable=True) as media:
            alone = media.write_align
            run(["cp", "--reflink=always", path, root / "two"])
            assert (alone, media.align) == (SECTOR, SECTOR)
            # Kernels before 6.16 do not say.
            if media.write_align != alone:
                with pytest.raises(ValueError, match="not aligned to 4096"):
                    media.pwrite(SECTOR, bytes(SECTOR))
            media.pwrite(BLOCK, bytes(BLOCK))
        assert path.read_bytes() == content[:BLOCK] + bytes(BLOCK) + content[2 * BLOCK :]
        assert (root / "two").read_bytes() == content


def test_the_flags_of_a_descriptor_are_not_changed(tmp_path: Path) -> None:
    content = fill(tmp_path / "file", 3 * BLOCK)
    descriptor = os.open(tmp_path / "file", os.O_RDONLY)
    os.lseek(descriptor, 7, os.SEEK_SET)
    (tmp_path / "file").unlink()  # a file without a name is read just the same
    with DirectMedia(descriptor) as media:
        assert media.pread(100, BLOCK) == content[100:][:BLOCK]
    assert os.read(descriptor, 5) == content[7:12]
    os.close(descriptor)


def test_a_leased_file_is_not_opened_again(tmp_path: Path) -> None:
    content = fill(tmp_path / "file", 3 * BLOCK)
    descriptor = os.open(tmp_path / "file", os.O_RDWR)
    fcntl.fcntl(descriptor, fcntl.F_SETLEASE, fcntl.F_WRLCK)
    flags = fcntl.fcntl(descriptor, fcntl.F_GETFL)
    with DirectMedia(descriptor, writable=True, reopen=False) as media:
        assert fcntl.fcntl(descriptor, fcntl.F_GETFL) == flags | os.O_DIRECT
        assert media.pread(100, BLOCK) == content[100:][:BLOCK]
        media.pwrite(BLOCK, bytes(BLOCK))
    assert fcntl.fcntl(descriptor, fcntl.F_GETFL) == flags
    assert fcntl.fcntl(descriptor, fcntl.F_GETLEASE) == fcntl.F_WRLCK
    os.close(descriptor)
    assert (tmp_path / "file").read_bytes() == content[:BLOCK] + bytes(BLOCK) + content[-BLOCK:]


def test_reads_past_the_end_lose_only_what_is_past_it(tmp_path: Path) -> None:
    content = fill(tmp_path / "file", 2 * BLOCK + 100)
    with DirectMedia(tmp_path / "file") as media:
        assert media.pread(len(content) - 7, 7) == content[-7:]
        for offset, length in ((len(content) - 7, 1 << 60), (1 << 50, 9)):
            with pytest.raises(MediaError, match="past the end") as error:
                media.pread(offset, length)
            lost = clip([ByteRange(len(content), 1 << 62)], offset, offset + length)
            assert list(error.value.ranges) == media.failing(offset, length) == lost
        assert media.failing(0, len(content)) == []


def test_large_writes_go_in_pieces(tmp_path: Path) -> None:
    path = tmp_path / "file"
    path.write_bytes(b"")
    content = random.Random(0).randbytes(5 * MIB // 2)
    with DirectMedia(path, writable=True) as media:
        media.pwrite(0, content)
        media.sync()
        assert media.size == len(content)
    assert path.read_bytes() == content


@pytest.mark.parametrize("told", [True, False])
def test_holes_are_zeros(
    tmp_path: Path,
    told: bool,  # noqa: FBT001 - a parameter of the test
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    if not told:
        monkeypatch.setattr(direct, "_query_alignment", lambda _descriptor: None)
    path = tmp_path / "file"
    with path.open("wb") as file:
        file.seek(MIB)
        file.write(b"end")
    with DirectMedia(path) as media:
        assert media.align in (SECTOR, BLOCK)
        assert media.pread(5, MIB - 5) == bytes(MIB - 5)
        assert media.pread(MIB - 5, 8) == bytes(5) + b"end"


@pytest.mark.parametrize("kind", ["missing", "folder", "fifo", "null", "closed"])
def test_a_path_that_is_no_file_or_device_is_refused(tmp_path: Path, kind: str) -> None:
    path: int | Path = tmp_path / kind
    if kind == "folder":
        (tmp_path / kind).mkdir()
    elif kind == "fifo":
        os.mkfifo(tmp_path / kind)
    elif kind == "null":
        path = Path("/dev/null")
    elif kind == "closed":
        path = 1 << 20
    before = len(os.listdir("/proc/self/fd"))
    with pytest.raises(TargetError):
        DirectMedia(path)
    assert len(os.listdir("/proc/self/fd")) == before


def test_a_descriptor_without_direct_access_stays_so() -> None:
    reading, writing = os.pipe()
    flags = fcntl.fcntl(reading, fcntl.F_GETFL)
    with pytest.raises(TargetError):
        DirectMedia(reading, reopen=False)
    assert fcntl.fcntl(reading, fcntl.F_GETFL) == flags
    os.close(reading)
    os.close(writing)
