"""Image files and devices: bytes, bad sectors, and paths that are neither."""

import errno
import os
from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from whoseblock.errors import MediaError, TargetError
from whoseblock.media import FileMedia
from whoseblock.ranges import ByteRange, merge

SECTOR = 512
SECTORS = 24


@pytest.fixture
def image(tmp_path: Path) -> Path:
    path = tmp_path / "image"
    path.write_bytes(os.urandom(SECTORS * SECTOR + 100))
    return path


def test_bytes_are_those_of_the_file(image: Path) -> None:
    media = FileMedia(image)
    assert media.size == image.stat().st_size
    assert media.pread(700, 900) == image.read_bytes()[700:1600]
    media.close()


def test_reads_past_the_end_lose_only_what_is_past_it(image: Path) -> None:
    media = FileMedia(image)
    with pytest.raises(MediaError) as error:
        media.pread(media.size - 300, 1000)
    lost = ByteRange(media.size, 700)
    # Half a sector at the end is indistinguishable from its other half.
    assert error.value.ranges[-1].end == lost.end
    assert error.value.ranges[0].start > media.size - SECTOR
    media.close()


@pytest.mark.parametrize("kind", ["missing", "folder", "fifo"])
def test_a_path_that_is_no_file_or_device_is_refused(tmp_path: Path, kind: str) -> None:
    path = tmp_path / kind
    if kind == "folder":
        path.mkdir()
    elif kind == "fifo":
        os.mkfifo(path)
    with pytest.raises(TargetError):
        FileMedia(path)


@pytest.fixture
def failing(image: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[tuple[FileMedia, set[int]]]:
    """Provide a medium whose bad sectors give EIO, and the set of them.

    A mock: this machine's kernel has no device-mapper whose error target would be the real thing.
    As on a device, a read that touches one bad sector fails as a whole.
    """
    bad: set[int] = set()
    real = os.pread

    def pread(descriptor: int, length: int, offset: int) -> bytes:
        if bad & set(range(offset // SECTOR, -(-(offset + length) // SECTOR))):
            raise OSError(errno.EIO, os.strerror(errno.EIO))
        return real(descriptor, length, offset)

    monkeypatch.setattr(os, "pread", pread)
    media = FileMedia(image)
    yield media, bad
    media.close()


def expected_ranges(bad: set[int], offset: int, length: int) -> list[ByteRange]:
    """Return the bad sectors within the requested range."""
    parts = []
    for sector in bad:
        start = max(sector * SECTOR, offset)
        end = min((sector + 1) * SECTOR, offset + length)
        if start < end:
            parts.append(ByteRange(start, end - start))
    return merge(parts)


def test_a_failed_read_names_exactly_the_bad_sectors(
    failing: tuple[FileMedia, set[int]], image: Path
) -> None:
    media, bad = failing

    @settings(max_examples=300)
    @given(
        st.sets(st.integers(0, SECTORS - 1), max_size=6),
        st.integers(0, SECTORS * SECTOR - 1),
        st.integers(1, SECTORS * SECTOR),
    )
    def check(sectors: set[int], offset: int, length: int) -> None:
        bad.clear()
        bad.update(sectors)
        length = min(length, SECTORS * SECTOR - offset)
        lost = expected_ranges(bad, offset, length)
        if not lost:
            assert media.pread(offset, length) == image.read_bytes()[offset : offset + length]
            return
        with pytest.raises(MediaError) as error:
            media.pread(offset, length)
        assert list(error.value.ranges) == lost

    check()


def test_other_errors_are_not_media_errors(image: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def pread(_descriptor: int, _length: int, _offset: int) -> bytes:
        raise OSError(errno.EPERM, "no")

    media = FileMedia(image)
    monkeypatch.setattr(os, "pread", pread)
    with pytest.raises(PermissionError):
        media.pread(0, 1)
