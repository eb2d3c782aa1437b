"""Inodes decoded together with NumPy, against the kernel and against one by one."""

import random
from collections.abc import Iterable, Iterator
from contextlib import contextmanager

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tests.support.filled_images import Zoo
from tests.support.image_damage import Overlay, overwrite, seal
from tests.support.truth import Truth

from whoseblock.byte_range import ByteRange
from whoseblock.errors import MediaError
from whoseblock.fs.pieces import ATTR, EXTENT_MAP
from whoseblock.fs.scan.bulk import FoundArrays, run_bulk_scan
from whoseblock.fs.scan.engine import Extent, Wanted
from whoseblock.fs.xfs import chunks
from whoseblock.fs.xfs.btree import INOBT, AgTree
from whoseblock.fs.xfs.filesystem import XfsFilesystem
from whoseblock.fs.xfs.format.btree import XFS_INODES_PER_CHUNK, InobtRec
from whoseblock.fs.xfs.format.inode import DINODE
from whoseblock.fs.xfs.owners.maps import ExtentMaps
from whoseblock.fs.xfs.scan import InodeScan
from whoseblock.media.base import Media
from whoseblock.media.device import FileMedia

_NAMES = ["4k", "1k", "64k", "plain", "3ag", "populated-1k"]
_SECTOR = 512


class _Unreadable(Overlay):
    """A medium that does not return some sectors."""

    def __init__(self, base: Media, patches: dict[int, bytes], lost: Iterable[int]) -> None:
        super().__init__(base, patches)
        self._lost = list(lost)

    def pread(self, offset: int, length: int) -> bytes:
        lost = [at for at in self._lost if offset < at + _SECTOR and at < offset + length]
        if lost:
            raise MediaError([ByteRange(at, _SECTOR) for at in lost])
        return super().pread(offset, length)


@contextmanager
def opened(truth: Truth) -> Iterator[FileMedia]:
    media = FileMedia(truth.image)
    try:
        yield media
    finally:
        media.close()


def both(media: Media) -> tuple[FoundArrays, FoundArrays]:
    """Scan for all blocks, one inode after the other and in columns."""
    # Not closed: the medium serves several.
    fs = XfsFilesystem(media)
    wanted = Wanted([(0, fs.size // fs.block_size)])
    scan = InodeScan(fs.volume, fs.inodes, ExtentMaps(fs.volume, fs.inodes))
    return run_bulk_scan(scan.batches(), wanted), run_bulk_scan(scan.columns(), wanted)


def same(media: Media) -> FoundArrays:
    """Check that both ways find the same, and return it."""
    one, other = both(media)
    assert one.extents == other.extents
    assert one.inodes_read == other.inodes_read
    assert one.unread_count == other.unread_count
    assert sorted(one.unread) == sorted(other.unread)
    return other


@pytest.mark.parametrize("name", _NAMES)
def test_columns_have_every_extent_that_the_oracle_has(zoo: Zoo, name: str) -> None:
    truth = zoo.any(name)
    with opened(truth) as media:
        found = same(media)
    assert not found.unread_count
    size = truth.superblock.block
    blocks: set[tuple[int, int, bool, bool, bool, int]] = set()
    for extent in map(Extent._make, found.extents):
        is_map = extent.what == EXTENT_MAP
        for at in range(extent.length):
            offset = -1 if is_map else (extent.offset + at) * size
            key = (extent.start + at) * size, extent.inode, extent.fork == ATTR
            blocks.add((*key, is_map, extent.unwritten, offset))
    expected: set[tuple[int, int, bool, bool, bool, int]] = set()
    for row in truth.rows:
        if row.kind == "file":
            for at in range(0, row.length, size):
                offset = -1 if row.extent_map else row.offset + at
                key = row.start + at, row.inode, row.attr
                expected.add((*key, row.extent_map, row.unwritten, offset))
    assert blocks == expected


def inodes_of(fs: XfsFilesystem) -> list[tuple[int, int]]:
    """Return the places in bytes of the chunks' inodes, and whether each is in use."""
    volume = fs.volume
    found: list[tuple[int, int]] = []
    for agno in range(volume.sb.agcount):
        limit = (volume.ag_blocks(agno) << volume.sb.inopblog) + XFS_INODES_PER_CHUNK
        for chunk in map(InobtRec._make, AgTree(volume, agno, INOBT, limit).find(0, limit, [])):
            found += (
                (volume.agino_to_byte(agno, chunk.startino + index), chunk.is_allocated(index))
                for index in range(XFS_INODES_PER_CHUNK)
                if not chunk.is_hole(index)
            )
    return found


_FIELDS = [
    *("magic", "mode", "version", "format", "big_nextents", "size", "nblocks", "nextents"),
    *("anextents", "forkoff", "aformat", "flags", "flags2", "ino", "uuid"),
]
_AT = {name: offset for name, (_, offset, *_) in (DINODE.dtype().fields or {}).items()}
_WIDTH = {name: kind.itemsize for name, (kind, *_) in (DINODE.dtype().fields or {}).items()}


@st.composite
def changes(draw: st.DrawFn) -> list[tuple[int, int, bytes, bool]]:
    """Return changes of inodes: which, where, what, and whether the checksum is made right."""
    made: list[tuple[int, int, bytes, bool]] = []
    for _ in range(draw(st.integers(1, 12))):
        field = draw(st.sampled_from([*_FIELDS, "records", "anywhere"]))
        if field in _AT:
            at, width = _AT[field], _WIDTH[field]
            small = draw(st.integers(0, 7)).to_bytes(width, "big")
            new = draw(st.just(small) | st.binary(min_size=width, max_size=width))
        elif field == "records":
            at = DINODE.size + 8 * draw(st.integers(0, 10))
            new = draw(st.binary(min_size=8, max_size=8) | st.just(bytes(8)))
        else:
            at, new = draw(st.integers(0, 500)), draw(st.binary(min_size=1, max_size=8))
        made.append((draw(st.integers(0)), at, new, draw(st.booleans())))
    return made


@pytest.mark.parametrize("name", ["plain", "populated-1k"])
def test_damaged_inodes_are_the_same_both_ways(zoo: Zoo, name: str) -> None:
    truth = zoo.any(name)
    with opened(truth) as media:
        fs = XfsFilesystem(media)
        size = fs.volume.inode_size
        places = inodes_of(fs)
        used = [place for place, is_used in places if is_used]
        kinds: set[str] = set()

        @settings(max_examples=50, deadline=None)
        @given(changes(), st.lists(st.integers(0), max_size=2))
        def check(made: list[tuple[int, int, bytes, bool]], lost: list[int]) -> None:
            patches: dict[int, bytes] = {}
            for which, at, new, sealed in made:
                # Seven of eight are in use.
                place = used[which % len(used)]
                if which % 8 == 0:
                    place = places[which % len(places)][0]
                raw = overwrite(patches.get(place, media.pread(place, size)), at, new)[:size]
                patches[place] = seal("inode", raw) if sealed else raw
            sectors = [places[which % len(places)][0] // _SECTOR * _SECTOR for which in lost]
            found = same(_Unreadable(media, patches, sectors))
            kinds.update(one.reason.rpartition(": ")[2] for one in found.unread)

        check()
        assert "checksum mismatch" in kinds
        assert len(kinds) > 3


def test_the_number_decoded_together_makes_no_difference(
    zoo: Zoo, monkeypatch: pytest.MonkeyPatch
) -> None:
    with opened(zoo.any("plain")) as media:
        whole = both(media)[1].extents
        for capacity in (7, 64):
            monkeypatch.setattr(chunks, "_CAPACITY", capacity)
            assert both(media)[1].extents == whole


def test_chunks_are_read_in_few_large_reads(zoo: Zoo) -> None:
    with opened(zoo.filled("4k")) as media:
        fs = XfsFilesystem(media)
        wanted = Wanted([(0, 1)])
        scan = InodeScan(fs.volume, fs.inodes, ExtentMaps(fs.volume, fs.inodes))
        run_bulk_scan(scan.columns(), wanted)
        assert 0 < fs.reads["read of inode chunks"] < fs.reads["inode-chunk"]
        # Neither way reads what the other does not.
        before = fs.reads.copy()
        run_bulk_scan(scan.batches(), wanted)
        for kind in ("inode-chunk", "read of inode chunks"):
            assert fs.reads[kind] == 2 * before[kind]


def test_a_sample_of_ranges_is_found_in_columns(zoo: Zoo) -> None:
    truth = zoo.any("populated-1k")
    rng = random.Random(3)
    rows = [row for row in truth.rows if row.kind == "file"]
    with opened(truth) as media:
        fs = XfsFilesystem(media)
        scan = InodeScan(fs.volume, fs.inodes, ExtentMaps(fs.volume, fs.inodes))
        for row in rng.sample(rows, 20):
            low = row.start // fs.block_size
            found = run_bulk_scan(scan.columns(), Wanted([(low, low + 1)]))
            owners = {one.inode for one in rows if one.start <= row.start < one.start + one.length}
            assert {extent.inode for extent in found.extents} == owners
