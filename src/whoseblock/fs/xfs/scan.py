"""The source of a forward scan: the inode chunks of XFS, group by group, and the maps of inodes.

The inode btree tells which inodes are in use; each of those is verified, and so is each block of
its extent maps.  What cannot be read or verified becomes a range of inodes that may own the
blocks, too.  The number of extents and blocks that an inode counts must be those of its maps: a
block of a map that lost its last write is noticed there.
"""

from collections.abc import Callable, Iterable, Iterator
from struct import Struct
from typing import TYPE_CHECKING, Final, NamedTuple, TypeVar

from whoseblock.errors import BlockError, CorruptError, MediaError
from whoseblock.fs.pieces import ATTR, DATA, EXTENT_MAP, XATTR, data_what
from whoseblock.fs.scan.engine import UNWRITTEN, Batch, UnreadInodes
from whoseblock.fs.xfs.btree import INOBT, AgTree, Fault
from whoseblock.fs.xfs.format.btree import (
    BMBT_REC,
    XFS_INODES_PER_CHUNK,
    XFS_INODES_PER_HOLEMASK_BIT,
    InobtRec,
)
from whoseblock.fs.xfs.format.inode import (
    ATTR_FORK,
    DATA_FORK,
    XFS_DIFLAG_REALTIME,
    XFS_DINODE_FMT_BTREE,
    XFS_DINODE_FMT_DEV,
    XFS_DINODE_FMT_EXTENTS,
    XFS_DINODE_FMT_LOCAL,
    XFS_DINODE_FMT_META_BTREE,
    Fork,
    parse_inode,
)
from whoseblock.fs.xfs.inodes import InodeTable
from whoseblock.fs.xfs.owners.maps import ExtentMaps, MapLeaf
from whoseblock.fs.xfs.volume import MOST_LOST_GROUPS, Volume

if TYPE_CHECKING:
    from whoseblock.fs.scan.bulk import ArrayBatch
    from whoseblock.fs.xfs.chunks import ChunkDecoder, Decoded

__all__ = ["InodeScan"]

#: Bytes of inode chunks that are read at once.
_PIECE: Final = 1 << 20
#: Chunks that are parted by so many bytes are read together: a disk skips them no faster.
_GAP: Final = 1 << 16
#: Extents of a batch: a file of very many extents is passed on in several.
_BATCH: Final = 1 << 16
#: The formats of forks that have no blocks.
_WITHOUT_BLOCKS: Final = (XFS_DINODE_FMT_DEV, XFS_DINODE_FMT_LOCAL)
_OFFSET_BITS: Final = (1 << 54) - 1
_COUNT_BITS: Final = (1 << 21) - 1
#: Bytes of the level of a btree whose root is in the inode.
_LEVEL: Final = 2
#: What is made of runs of inodes.
_Item = TypeVar("_Item")
#: The fields of an `Extent`.
Row = tuple[int, int, int, int, int, int]


class _Run(NamedTuple):
    """Inodes ``first`` to before ``end`` of a group, which a chunk of the inode btree has."""

    first: int
    end: int
    chunk: InobtRec


class InodeScan:
    """Reads the inode chunks of a volume, as batches of extents.

    Starts and lengths are blocks of the device, in the order of bytes.
    """

    def __init__(self, volume: Volume, inodes: InodeTable, maps: ExtentMaps) -> None:
        self.volume = volume
        self.inodes = inodes
        self.maps = maps
        #: The blocks of maps that the present scan has read.
        self._map_blocks = 0
        #: The fields that tell whether an inode may have blocks.
        self._head = Struct(f">2xHxB58xQ4xI2xB{volume.inode_size - 83}x")

    def batches(self) -> Iterator[Batch | UnreadInodes]:
        """Yield the extents of all inodes, and the inodes that are unread."""
        yield from self._scan(self._read_runs)

    def columns(self) -> "Iterator[Batch | ArrayBatch | UnreadInodes]":
        """Yield the same as `batches`, with NumPy: a fraction of the time for many inodes."""
        if not self.volume.has_crc:
            yield from self.batches()
            return
        from whoseblock.fs.scan.bulk import ArrayBatch
        from whoseblock.fs.xfs.chunks import ChunkDecoder

        decoder = ChunkDecoder(self.volume)

        def read(agno: int, runs: list[_Run]) -> "Iterator[Batch | ArrayBatch | UnreadInodes]":
            return self._read_columns(decoder, agno, runs)

        yield from self._scan(read)
        for decoded in decoder.finish():
            yield ArrayBatch(decoded.extents, decoded.inodes_done)
            yield from self._decode_others(decoded)

    def _scan(
        self, read: Callable[[int, list[_Run]], Iterator[_Item]]
    ) -> Iterator[_Item | UnreadInodes]:
        """Yield what ``read`` makes of the runs of inodes of all groups."""
        self._map_blocks = 0
        lost = 0
        for agno in range(self.volume.sb.agcount):
            try:
                self.volume.agi(agno)
            except BlockError:
                lost += 1
                if lost > MOST_LOST_GROUPS:
                    first, last = self._inodes_of(agno)[0], self._inodes_of(-1)[1]
                    yield UnreadInodes(first, last, "their groups have no header that verifies")
                    return
            else:
                lost = 0
            yield from self._group(agno, read)

    def _inodes_of(self, agno: int) -> tuple[int, int]:
        """Return the first and the last number that an inode of a group may have."""
        agno %= self.volume.sb.agcount
        count = self.volume.ag_blocks(agno) << self.volume.sb.inopblog
        return self.volume.join_inode(agno, 0), self.volume.join_inode(agno, count - 1)

    def _group(
        self, agno: int, read: Callable[[int, list[_Run]], Iterator[_Item]]
    ) -> Iterator[_Item | UnreadInodes]:
        volume = self.volume
        limit = (volume.ag_blocks(agno) << volume.sb.inopblog) + XFS_INODES_PER_CHUNK
        faults: list[Fault] = []
        tree = AgTree(volume, agno, INOBT, limit)
        count = unused = 0
        runs: list[_Run] = []
        for record in tree.find(0, limit, faults):
            chunk = InobtRec._make(record)
            for run in _runs(chunk):
                count += run.end - run.first
                if runs and not self._continues(runs, run):
                    yield from read(agno, runs)
                    runs = []
                runs.append(run)
            unused += chunk.freecount
        if runs:
            yield from read(agno, runs)
        first, last = self._inodes_of(agno)
        for fault in faults:
            low = max(first, first + fault.low)
            yield UnreadInodes(low, max(low, min(last, first + fault.high - 1)), fault.note)
        if not faults:
            agi = volume.agi(agno)
            if (agi.icount, agi.freecount) != (count, unused):
                why = (
                    f"the inode btree of AG {agno} has {count} inodes and {unused} of them unused,"
                    f" its AGI counts {agi.icount} and {agi.freecount}"
                )
                yield UnreadInodes(first, last, why)

    def _continues(self, runs: list[_Run], run: _Run) -> bool:
        """Return whether one read gets a run of inodes, too."""
        size = self.volume.inode_size
        gap = run.first - runs[-1].end
        return 0 <= gap * size <= _GAP and (run.end - runs[0].first) * size <= _PIECE

    def _read_whole(self, agno: int, runs: list[_Run]) -> bytes | None:
        """Read runs of inodes, and what is between them; None if the medium returns not all."""
        volume = self.volume
        first = runs[0].first
        volume.reads["inode-chunk"] += len(runs)
        volume.reads["read of inode chunks"] += 1
        start = volume.agino_to_byte(agno, first)
        try:
            return volume.media.pread(start, (runs[-1].end - first) * volume.inode_size)
        except MediaError:
            return None

    def _read_columns(
        self, decoder: "ChunkDecoder", agno: int, runs: list[_Run]
    ) -> "Iterator[Batch | ArrayBatch | UnreadInodes]":
        """Read runs of inodes for a decoder, and yield what it has decoded so far."""
        from whoseblock.fs.scan.bulk import ArrayBatch
        from whoseblock.fs.xfs.chunks import Piece

        data = self._read_whole(agno, runs)
        if data is None:
            yield from self._read_blocks(agno, runs)
            return
        chunks = list({run.chunk: None for run in runs})
        for decoded in decoder.add(Piece(agno, runs[0].first, chunks, data)):
            yield ArrayBatch(decoded.extents, decoded.inodes_done)
            yield from self._decode_others(decoded)

    def _decode_others(self, decoded: "Decoded") -> Iterator[Batch | UnreadInodes]:
        """Yield the extents of inodes that a decoder passed over, or that they are unread."""
        size = self.volume.inode_size
        for ino, raw in decoded.odd:
            if fault := self.inodes.fault(ino, raw):
                yield UnreadInodes(ino, ino, f"inode {ino}: {fault}")
                continue
            rows: list[Row] = []
            start = self.volume.agino_to_byte(*self.volume.split_inode(ino))
            yield from self._add_extents(ino, memoryview(raw), start, rows)
            yield Batch.of(rows)
        for (agno, first, chunks, data), places in decoded.stray:
            for run in (run for chunk in chunks for run in _runs(chunk)):
                low, high = run.first - first, run.end - first
                here = [place - low for place in places if low <= place < high]
                if here:
                    part = memoryview(data)[low * size : high * size]
                    yield from self._decode(agno, run, run.first, part, here)

    def _read_runs(self, agno: int, runs: list[_Run]) -> Iterator[Batch | UnreadInodes]:
        """Read runs of inodes that are near one another."""
        data = self._read_whole(agno, runs)
        if data is None:
            yield from self._read_blocks(agno, runs)
            return
        size = self.volume.inode_size
        for run in runs:
            at = (run.first - runs[0].first) * size
            raw = memoryview(data)[at : at + (run.end - run.first) * size]
            yield from self._decode(agno, run, run.first, raw)

    def _read_blocks(self, agno: int, runs: list[_Run]) -> Iterator[Batch | UnreadInodes]:
        """Read runs of inodes block by block."""
        volume = self.volume
        size = volume.inode_size
        step = max(volume.block_size // size, 1)
        for run in runs:
            for begin in range(run.first, run.end, step):
                end = min(begin + step, run.end)
                at = volume.agino_to_byte(agno, begin)
                try:
                    raw = memoryview(volume.media.pread(at, (end - begin) * size))
                except MediaError as error:
                    why = str(MediaError(error.ranges, error.reason, "inodes"))
                    inode = volume.join_inode(agno, begin)
                    yield UnreadInodes(inode, volume.join_inode(agno, end - 1), why)
                else:
                    yield from self._decode(agno, run, begin, raw)

    def _decode(
        self,
        agno: int,
        run: _Run,
        first: int,
        data: memoryview,
        places: Iterable[int] | None = None,
    ) -> Iterator[Batch | UnreadInodes]:
        """Yield the extents of the inodes from ``first`` on, whose bytes are ``data``.

        Of these only the inodes at ``places``, which are then not counted as read.
        """
        volume, chunk = self.volume, run.chunk
        size = volume.inode_size
        free = chunk.free >> (first - chunk.startino)
        base = volume.join_inode(agno, first)
        rows: list[Row] = []
        odd = -1
        found: Iterable[tuple[int, tuple[int, ...]]] = enumerate(self._head.iter_unpack(data))
        if places is not None:
            found = ((place, self._head.unpack_from(data, place * size)) for place in places)
        for index, (mode, *fields) in found:
            used = not free >> index & 1
            ino = base + index
            if not (used or mode):
                continue
            raw = data[index * size : (index + 1) * size]
            fault = self.inodes.fault(ino, raw)
            if not (used and mode):
                if used or not fault:
                    odd = ino
            elif fault:
                yield UnreadInodes(ino, ino, f"inode {ino}: {fault}")
            elif _may_have_blocks(*fields):
                start = volume.agino_to_byte(agno, first + index)
                yield from self._add_extents(ino, raw, start, rows)
        yield Batch.of(rows, len(data) // size if places is None else 0)
        if odd >= 0:
            last = volume.join_inode(agno, chunk.startino + XFS_INODES_PER_CHUNK - 1)
            why = f"inode {odd} is in use or free, and the inode btree says otherwise"
            yield UnreadInodes(volume.join_inode(agno, chunk.startino), last, why)

    # ------------------------------------------------------------------ extents

    def extents_of(self, ino: int) -> Iterator[Row]:
        """Yield all extents of one inode, as the fields of `Extent`; raises `BlockError`."""
        inode = self.inodes.get(ino)
        self._map_blocks = 0
        return self._extents(ino, memoryview(inode.raw), inode.start)

    def _add_extents(
        self, ino: int, raw: memoryview, start: int, rows: list[Row]
    ) -> Iterator[Batch | UnreadInodes]:
        """Add the extents of an inode to rows; yield those that are too many to hold."""
        try:
            for row in self._extents(ino, raw, start):
                rows.append(row)
                if len(rows) >= _BATCH:
                    yield Batch.of(rows, 0)
                    rows.clear()
        except BlockError as error:
            yield UnreadInodes(ino, ino, str(error))

    def _extents(self, ino: int, raw: memoryview, start: int) -> Iterator[Row]:
        """Yield all extents of an inode, as the fields of `Extent`; raises `BlockError`."""
        core = parse_inode(raw)
        total = 0
        for number, name in ((DATA, DATA_FORK), (ATTR, ATTR_FORK)):
            fork = core.fork(name, self.volume.inode_size)
            if fork is None or fork.format in _WITHOUT_BLOCKS:
                continue
            what = data_what(core.mode) if number == DATA else XATTR
            is_realtime = number == DATA and bool(core.flags & XFS_DIFLAG_REALTIME)
            for row in self._fork(ino, raw, start, fork, name):
                offset, fsbno, count, unwritten = row
                total += count
                if is_realtime and offset >= 0:
                    # Its address is one of the realtime section.
                    continue
                block = self._block(ino, start, fsbno, count)
                flags = (EXTENT_MAP if offset < 0 else what) << 1 | (UNWRITTEN if unwritten else 0)
                yield block, count, ino, number, offset, flags
        if total != core.nblocks:
            why = f"it counts {core.nblocks} blocks, and its maps have {total}"
            raise CorruptError(f"inode {ino}", start, why)

    def _fork(
        self, ino: int, raw: memoryview, start: int, fork: Fork, name: str
    ) -> Iterator[tuple[int, int, int, bool]]:
        """Yield the extents of a fork: offset, block, count and state; the offset of a map is -1.

        Raises `BlockError`.
        """
        if fork.format == XFS_DINODE_FMT_EXTENTS:
            length = fork.nextents * BMBT_REC.size
            if length > len(raw[fork.offset : fork.offset + fork.size]):
                raise CorruptError(f"inode {ino}", start, "more extents than fit")
            data = bytes(raw[fork.offset : fork.offset + length])
            yield from self._leaf(MapLeaf(f"extent map of inode {ino}", start, data), 0)
        elif fork.format == XFS_DINODE_FMT_BTREE:
            self.inodes.verified(ino, bytes(raw), start)
            yield from self._tree(ino, start, fork, name)
        elif fork.format != XFS_DINODE_FMT_META_BTREE:
            raise CorruptError(f"inode {ino}", start, f"fork of format {fork.format}")
        elif any(raw[fork.offset : fork.offset + _LEVEL]):
            raise CorruptError(f"inode {ino}", start, "the map of a realtime group is not read")

    def _tree(
        self, ino: int, start: int, fork: Fork, name: str
    ) -> Iterator[tuple[int, int, int, bool]]:
        """Yield the blocks of a map that is a btree, and its extents; raises `BlockError`."""
        count = end = 0
        for fsbno, leaf in self.maps.walk(ino, name):
            self._map_blocks += 1
            if self._map_blocks > self.volume.sb.dblocks:
                raise CorruptError(f"inode {ino}", start, "more blocks of maps than there are")
            yield -1, fsbno, 1, False
            for row in self._leaf(leaf, end) if leaf is not None else ():
                end = row[0] + row[2]
                count += 1
                yield row
        if count != fork.nextents:
            why = f"it counts {fork.nextents} extents, and its map has {count}"
            raise CorruptError(f"inode {ino}", start, why)

    @staticmethod
    def _leaf(leaf: MapLeaf, at: int) -> Iterator[tuple[int, int, int, bool]]:
        """Yield the extents of a part of a map, none of which begins before block ``at``."""
        words = leaf.words
        for high, low in zip(words[::2], words[1::2], strict=True):
            offset, count = high >> 9 & _OFFSET_BITS, low & _COUNT_BITS
            if offset < at or not count:
                raise CorruptError(leaf.title, leaf.at, "extents out of order")
            at = offset + count
            yield offset, (high & 0x1FF) << 43 | low >> 21, count, bool(high >> 63)

    def _block(self, ino: int, start: int, fsbno: int, count: int) -> int:
        """Return the block of the device that an extent begins at; raises `CorruptError`."""
        sb = self.volume.sb
        agno, agbno = fsbno >> sb.agblklog, fsbno & ((1 << sb.agblklog) - 1)
        if agno >= sb.agcount or agbno + count > self.volume.ag_blocks(agno):
            raise CorruptError(f"extent map of inode {ino}", start, "an extent that cannot be")
        return agno * sb.agblocks + agbno


def _may_have_blocks(form: int, nblocks: int, nextents: int, forkoff: int) -> bool:
    """Return whether an inode may have blocks, by the form of its data fork and its counts."""
    return bool(nblocks or nextents or forkoff or form not in _WITHOUT_BLOCKS)


def _runs(chunk: InobtRec) -> Iterator[_Run]:
    """Yield the inodes that a chunk has, which holes may part."""
    if not chunk.holemask:
        yield _Run(chunk.startino, chunk.startino + XFS_INODES_PER_CHUNK, chunk)
        return
    first = -1
    for index in range(0, XFS_INODES_PER_CHUNK, XFS_INODES_PER_HOLEMASK_BIT):
        if chunk.is_hole(index):
            if first >= 0:
                yield _Run(chunk.startino + first, chunk.startino + index, chunk)
            first = -1
        elif first < 0:
            first = index
    if first >= 0:
        yield _Run(chunk.startino + first, chunk.startino + XFS_INODES_PER_CHUNK, chunk)
