"""A scan with NumPy finds exactly what one without it finds, on damaged tables, too."""

import random
from collections.abc import Iterator
from pathlib import Path

import pytest
from tests.support.ext4_damage import BASES, make_base, run_case
from tests.support.ext4_images import fill, make_image

import whoseblock
from whoseblock.byte_range import ByteRange
from whoseblock.errors import MediaError
from whoseblock.fs.ext4.filesystem import Ext4Filesystem
from whoseblock.fs.ext4.owners import finder
from whoseblock.fs.ext4.scan import InodeScan
from whoseblock.fs.ext4.static import FixedMetadata
from whoseblock.fs.scan.bulk import run_bulk_scan
from whoseblock.fs.scan.engine import Found, Wanted, run_scan

MIB = 1 << 20
FORMS = (
    "-t ext4 -b 4096",
    "-t ext4 -b 1024 -I 128",
    "-t ext2 -b 1024",
    "-t ext4 -b 4096 -O bigalloc -C 65536",
    "-t ext4 -b 1024 -O inline_data -I 512",
)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Provide a folder with files of every kind that its user may make."""
    path = tmp_path_factory.mktemp("files")
    fill(path)
    return path


class Bytes:
    """A medium in memory, a block of which may be unreadable."""

    name = "/nowhere/tables.img"

    def __init__(self, raw: bytearray, lost: int) -> None:
        self.raw = raw
        self.lost = lost
        self.size = len(raw)

    def pread(self, offset: int, length: int) -> bytes:
        """Return bytes, or raise `MediaError`."""
        if offset <= self.lost < offset + length:
            raise MediaError([ByteRange(self.lost, 1024)])
        return bytes(self.raw[offset : offset + length])

    def close(self) -> None:
        """Leave everything as it is: no file is open."""


def facts(found: Found) -> tuple[object, ...]:
    """Return all that a scan found, in one order."""
    return sorted(found.extents), sorted(found.unread), found.unread_count, found.inodes_read


def scans(media: Bytes, wanted: Wanted) -> Iterator[Found]:
    with whoseblock.open(media) as fs:
        assert isinstance(fs, Ext4Filesystem)
        fixed = FixedMetadata(fs.volume)
        groups = range(fs.volume.groups)
        yield run_scan(InodeScan(fs.volume, fixed).batches(groups), wanted)
        yield run_bulk_scan(InodeScan(fs.volume, fixed).tables(groups), wanted)


@pytest.mark.parametrize("form", FORMS)
def test_both_scans_find_the_same(form: str, folder: Path, tmp_path: Path) -> None:
    image = make_image(tmp_path / "disk.img", 96 * MIB, *form.split(), folder=folder)
    healthy = image.read_bytes()
    with whoseblock.open(image) as fs:
        assert isinstance(fs, Ext4Filesystem)
        sb, descriptor = fs.volume.sb, fs.volume.descriptor(0)
    table = descriptor.inode_table * sb.block_size
    end = table + (sb.inodes_per_group - descriptor.itable_unused) * sb.inode_size
    rnd = random.Random(form)
    for case in range(8):
        raw, lost = bytearray(healthy), -1
        if case:
            for _ in range(30):
                # Most of an inode that matters is before its attributes.
                at = rnd.randrange(table, end, sb.inode_size) + rnd.randrange(128)
                raw[at] = rnd.choice((0, 1, 255, raw[at] ^ 1 << rnd.randrange(8)))
        if case % 3 == 2:
            lost = rnd.randrange(table, end, sb.block_size)
        wanted = Wanted((low, low + rnd.randrange(1, 400)) for low in range(0, 98304, 500))
        if not case:
            wanted = Wanted([(0, sb.blocks_count)])
        alone, bulk = scans(Bytes(raw, lost), wanted)
        assert facts(alone) == facts(bulk)
        assert len(alone.extents) > (100 if not case else 0)
        for low, high in zip(wanted.lows, wanted.highs, strict=True):
            assert sorted(alone.within(low, high)) == sorted(bulk.within(low, high))


@pytest.mark.parametrize("name", BASES)
def test_no_complete_answer_of_a_large_scan_is_wrong(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(finder, "_LARGE", 0)
    base = make_base(name, tmp_path)
    assert [line for seed in range(100, 108) for line in run_case(base, seed)] == []
