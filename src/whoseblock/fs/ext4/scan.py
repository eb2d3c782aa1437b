"""The source of a forward scan: the inode tables of ext4, group by group.

A whole scan verifies every inode; one that may end at the owner verifies those that it uses.
Only inodes that the bitmap has in use are decoded; each is verified.  What cannot be read or
verified becomes a range of inodes that may own the blocks, too.
"""

from array import array
from collections.abc import Iterable, Iterator, Sequence
from struct import Struct
from typing import TYPE_CHECKING, Any, Final, NamedTuple

from whoseblock.errors import BlockError, MediaError
from whoseblock.fs.ext4.ahead import MapBlocks
from whoseblock.fs.ext4.columns import Columns
from whoseblock.fs.ext4.format.extents import nodes_below, pointers, root_extents
from whoseblock.fs.ext4.format.inode import (
    EXT4_EA_INODE_FL,
    INODE,
    Inode,
    inode_matches,
    type_fault,
)
from whoseblock.fs.ext4.inodes import map_of
from whoseblock.fs.ext4.static import FixedMetadata
from whoseblock.fs.ext4.volume import Bitmap, Volume
from whoseblock.fs.pieces import ATTR, DATA, EXTENT_MAP, XATTR, data_what
from whoseblock.fs.scan.engine import UNWRITTEN, Batch, UnreadInodes

if TYPE_CHECKING:
    from whoseblock.fs.ext4.tables import TableDecoder
    from whoseblock.fs.scan.bulk import ArrayBatch

__all__ = [
    "EXT4_BAD_INO",
    "EXT4_RESIZE_INO",
    "EXT4_ROOT_INO",
    "VALUE_INODE",
    "InodeScan",
    "nearest_groups",
]

EXT4_BAD_INO: Final = 1
EXT4_ROOT_INO: Final = 2
EXT4_RESIZE_INO: Final = 7
_PIECE: Final = 1 << 20
_LARGE_PIECE: Final = 4 << 20
#: Extents of a batch: a file of very many extents is passed on in several.
_BATCH: Final = 1 << 16
_INODE_BYTES: Final = 128
#: Directories that are kept for further searches: eight bytes each.
_MOST_KEPT: Final = 1 << 20
_MODE, _DTIME, _LINKS = (Inode._fields.index(name) for name in ("mode", "dtime", "links"))
_INDIRECT, _DOUBLE_INDIRECT = 12, 13
#: A flag of extents: the inode is the value of an attribute of other inodes.
VALUE_INODE: Final = 1 << 16
#: The fields of an `Extent`.
Row = tuple[int, int, int, int, int, int]


def nearest_groups(volume: Volume, group: int) -> Iterator[int]:
    """Yield all groups from ``group`` outwards, by whole flex groups."""
    flexes = -(-volume.groups // volume.flex)
    middle = group // volume.flex
    for distance in range(flexes):
        for flex in dict.fromkeys((middle + distance, middle - distance)):
            if 0 <= flex < flexes:
                first = flex * volume.flex
                groups = range(first, min(first + volume.flex, volume.groups))
                yield from sorted(groups, key=lambda one: abs(one - group))
        if middle + distance >= flexes and middle - distance < 0:
            return


class _Part(NamedTuple):
    """The bytes of ``places`` inodes from ``first`` on, which has the bit ``place``.

    There are none of inodes that were never in use.
    """

    first: int
    place: int
    places: int
    data: bytes
    bitmap: Bitmap


class InodeScan:
    """Reads the inode tables of a volume, as batches of extents in blocks.

    The directories of groups are kept, for searches of names.
    """

    def __init__(self, volume: Volume, fixed: FixedMetadata) -> None:
        self.volume = volume
        self.fixed = fixed
        self._directories: dict[int, array[int]] = {}
        self._kept = 0
        #: Bytes of a table that are read and held at once, by a scan with NumPy the latter.
        self.piece = _PIECE
        self.large_piece = _LARGE_PIECE
        size = volume.sb.inode_size
        #: The blocks of maps that the present scan has read.
        self._map_blocks = 0
        self._struct = Struct(f"{INODE.format}{size - _INODE_BYTES}x")

    def batches(self, groups: Iterable[int]) -> Iterator[Batch | UnreadInodes]:
        """Yield the extents of all inodes of ``groups``, and the inodes that are unread."""
        self._map_blocks = 0
        for group in groups:
            yield from self._batched(self.inodes(group))

    def tables(self, groups: Iterable[int]) -> "Iterator[Batch | ArrayBatch | UnreadInodes]":
        """Yield the same as `batches`, with NumPy as columns: a tenth of the time for many."""
        from whoseblock.fs.ext4.tables import TableDecoder

        self._map_blocks = 0
        decoder = TableDecoder(self.volume, self.fixed)
        for group in groups:
            yield from self.decoded(group, decoder)

    def decoded(
        self, group: int, decoder: "TableDecoder"
    ) -> "Iterator[Batch | ArrayBatch | UnreadInodes]":
        """Yield the extents of all inodes of a group as columns, and the inodes that are unread."""
        from whoseblock.fs.scan.bulk import ArrayBatch

        for part in self._table(group, self.large_piece):
            if isinstance(part, UnreadInodes):
                yield part
            elif part.bitmap.fault:
                yield from self._batched(self._decode(part, part.places))
            else:
                bits = part.bitmap.bits[part.place : part.place + part.places]
                decoded = decoder.decode(part.first, part.data, bits)
                yield ArrayBatch(decoded.extents, part.places)
                others = sorted((*decoded.odd, *decoded.corrupt, *decoded.stray))
                yield from self._batched_in_order(part, others)

    def _batched(
        self,
        items: "Iterable[tuple[int, Inode, bytes] | int | UnreadInodes]",
        blocks: MapBlocks | None = None,
    ) -> Iterator[Batch | UnreadInodes]:
        """Collect the extents of inodes; ``blocks`` may have those of their maps."""
        rows: list[Row] = []
        for item in items:
            if isinstance(item, UnreadInodes):
                yield item
                continue
            if isinstance(item, int):
                yield Batch.of(rows, item)
                rows = []
                continue
            number, inode, _ = item
            try:
                for row in self.extents_of(number, inode, blocks):
                    rows.append(row)
                    if len(rows) >= _BATCH:
                        yield Batch.of(rows, 0)
                        rows = []
            except BlockError as error:
                yield UnreadInodes(number, number, str(error))

    def _batched_in_order(
        self, part: _Part, places: Sequence[int]
    ) -> Iterator[Batch | UnreadInodes]:
        """Collect the extents of inodes at ``places``, whose maps are read in order of the disk."""
        blocks = MapBlocks(self.volume)
        some: list[int] = []
        below: list[int] = []
        for place in places:
            some.append(place)
            below += self._nodes_below(part, place)
            if len(below) >= blocks.most:
                blocks.fetch(below)
                yield from self._batched(self._decode(part, 0, some), blocks)
                some, below = [], []
        blocks.fetch(below)
        yield from self._batched(self._decode(part, 0, some), blocks)

    def _nodes_below(self, part: _Part, place: int) -> list[int]:
        """Return the blocks of a map right below an inode, of which nothing is verified."""
        inode = Inode._make(self._struct.unpack_from(part.data, place * self.volume.sb.inode_size))
        if not inode.has_map:
            return []
        if inode.has_extents:
            return nodes_below(inode.i_block)
        return [block for block in pointers(inode.i_block)[_INDIRECT:] if block]

    def likely(
        self, groups: Iterable[int], ranges: Sequence[tuple[int, int]]
    ) -> Iterator[Batch | UnreadInodes]:
        """Yield extents of inodes that touch ``ranges`` of blocks, if an extent tree has them.

        The inodes are verified.  Others are not, and what cannot be read or verified is passed
        over: only an owner that was found is certain.
        """
        self._map_blocks = 0
        for group in groups:
            for part in self._table(group):
                if isinstance(part, UnreadInodes):
                    continue
                yield Batch.of((), part.places)
                columns = Columns(part.data, self.volume.sb.inode_size)
                places = sorted({*columns.mapping(ranges), *columns.with_tree()})
                if places and not part.bitmap.fault:
                    items = self._batched_in_order(part, places)
                    yield from (one for one in items if isinstance(one, Batch))

    def directories_of(self, group: int) -> "array[int]":
        """Return the inodes of a group that may be directories, which their own reader verifies."""
        if group in self._directories:
            return self._directories[group]
        found = array("Q")
        base = group * self.volume.sb.inodes_per_group + 1
        for part in self._table(group):
            if not isinstance(part, UnreadInodes):
                columns = Columns(part.data, self.volume.sb.inode_size)
                found.extend(part.first + place for place in columns.directories())
        bitmap = self.volume.inode_bitmap(group) if found else None
        if bitmap is not None and not bitmap.fault:
            found = array("Q", (one for one in found if bitmap.bits[one - base] == "1"))
        if self._kept + len(found) <= _MOST_KEPT:
            self._kept += len(found)
            self._directories[group] = found
        return found

    def count_unread(self) -> int:
        """Return how many inodes cannot be read or verified; this takes a whole scan."""
        return sum(
            item.last - item.first + 1
            for group in range(self.volume.groups)
            for item in self.inodes(group)
            if isinstance(item, UnreadInodes)
        )

    def inodes(self, group: int) -> Iterator[tuple[int, Inode, bytes] | int | UnreadInodes]:
        """Yield the inodes of a group that are in use, verified, with their bytes.

        A number says that so many places of the table were read, and is followed by others.
        """
        for part in self._table(group):
            if isinstance(part, UnreadInodes):
                yield part
            else:
                yield from self._decode(part, part.places)

    def _table(self, group: int, piece: int = 0) -> "Iterator[_Part | UnreadInodes]":
        """Read the inode table of a group, about ``piece`` bytes at a time, or `piece`."""
        volume = self.volume
        count = volume.sb.inodes_per_group
        first = group * count + 1
        try:
            descriptor = volume.descriptor(group)
        except BlockError as error:
            yield UnreadInodes(first, first + count - 1, str(error))
            return
        bitmap = volume.inode_bitmap(group)
        if bitmap.fault:
            yield UnreadInodes(first, first + count - 1, bitmap.fault)
        elif group in self.fixed.lost:
            why = f"the metadata of group {group} overlaps that of another"
            yield UnreadInodes(first, first + count - 1, why)
        used = count - descriptor.itable_unused
        if not bitmap.fault and "1" not in bitmap.bits:
            used = 0
        start = descriptor.inode_table * volume.block_size
        size = volume.sb.inode_size
        # Whole blocks, so that one that cannot be read costs its own inodes only.
        step = max((piece or self.piece) // volume.block_size, 1) * volume.block_size // size
        for place in range(0, used, step):
            length = min(step, used - place) * size
            for at, data in self._read(start + place * size, length):
                skipped = (at - start) // size
                if isinstance(data, str):
                    last = min(skipped + volume.block_size // size, used)
                    yield UnreadInodes(first + skipped, first + last - 1, data)
                else:
                    yield _Part(first + skipped, skipped, len(data) // size, data, bitmap)
        if used < count:
            yield _Part(first + used, used, count - used, b"", bitmap)

    def _read(self, start: int, length: int) -> Iterator[tuple[int, bytes | str]]:
        """Read a part of a table; where that fails, block by block, or the reason."""
        volume = self.volume
        volume.reads["inode table"] += -(-length // volume.block_size)
        try:
            yield start, volume.media.pread(start, length)
        except MediaError:
            for at in range(start, start + length, volume.block_size):
                try:
                    yield at, volume.media.pread(at, min(volume.block_size, start + length - at))
                except MediaError as error:
                    yield at, str(MediaError(error.ranges, error.reason, "an inode table"))

    def _decode(
        self, part: "_Part", done: int, places: Iterable[int] | None = None
    ) -> Iterator[tuple[int, Inode, bytes] | int | UnreadInodes]:
        """Decode the inodes of a part, or those at ``places``, and yield ``done`` in the end."""
        sb, seed = self.volume.sb, self.volume.seed
        size, data, bitmap = sb.inode_size, part.data, part.bitmap
        bits = bitmap.bits[part.place : part.place + part.places]
        found: Iterable[tuple[int, tuple[Any, ...]]] = enumerate(self._struct.iter_unpack(data))
        if places is not None:
            found = ((place, self._struct.unpack_from(data, place * size)) for place in places)
        for index, values in found:
            number = part.first + index
            if not bitmap.fault and bits[index] == "0":
                if values[_LINKS] and values[_MODE] and not values[_DTIME]:
                    why = f"inode {number} has links, and is free by its bitmap"
                    yield UnreadInodes(number, number, why)
                continue
            inode = Inode._make(values)
            if bitmap.fault and not (inode.mode and (inode.links or not inode.dtime)):
                # Without a bitmap, whatever looks like an inode is read; the doubt stays.
                continue
            raw = data[index * size : (index + 1) * size]
            if inode_matches(sb, seed, number, raw):
                yield number, inode, raw
            else:
                yield UnreadInodes(number, number, f"inode {number} has a wrong checksum")
        yield done

    def extents_of(
        self, number: int, inode: Inode, blocks: MapBlocks | None = None
    ) -> Iterator[Row]:
        """Yield all extents of an inode, as the fields of `Extent`; raises `BlockError`."""
        volume = self.volume
        if number == EXT4_RESIZE_INO:
            # Its other blocks are reserved descriptors, which are fixed metadata.
            block = pointers(inode.i_block)[_DOUBLE_INDIRECT]
            if block and volume.is_block(block):
                yield block, 1, number, DATA, -1, EXTENT_MAP << 1
            return
        acl = inode.acl_block
        if acl:
            self._check(number, acl, 1)
            yield acl, 1, number, ATTR, 0, XATTR << 1
        if not inode.has_map:
            return
        if fault := type_fault(volume.sb, number, inode):
            raise volume.corrupt(f"inode {number}", 0, fault)
        yield from self._mapped(number, inode, blocks)

    def _mapped(self, number: int, inode: Inode, blocks: MapBlocks | None) -> Iterator[Row]:
        """Yield what the map of an inode has; raises `BlockError`."""
        fork, what, extra = DATA, data_what(inode.mode), 0
        if inode.flags & EXT4_EA_INODE_FL:
            fork, what, extra = ATTR, XATTR, VALUE_INODE
        found: Iterable[tuple[int, int, int, bool]] | None = None
        if inode.has_extents:
            found = root_extents(inode.i_block)
        ratio = self.volume.ratio
        for start, length, logical, unwritten in found or map_of(
            self.volume, number, inode, blocks
        ):
            if number != EXT4_BAD_INO:
                self._check(number, start, length)
            if logical >= 0 and (start - logical) % ratio:
                why = "not in its place of a cluster"
                raise self.volume.corrupt(f"extent map of inode {number}", start, why)
            if logical < 0:
                self._count_map_block(number, start)
            flags = (EXTENT_MAP if logical < 0 else what) << 1 | (UNWRITTEN if unwritten else 0)
            yield start, length, number, fork, logical, flags | extra

    def _count_map_block(self, number: int, block: int) -> None:
        """Raise `CorruptError` if inodes have more blocks of maps than there are blocks."""
        self._map_blocks += 1
        if self._map_blocks > self.volume.blocks:
            what = f"extent map of inode {number}"
            raise self.volume.corrupt(what, block, "more blocks of maps than the filesystem has")

    def _check(self, number: int, start: int, length: int) -> None:
        """Raise `CorruptError` if an inode claims blocks that it cannot have."""
        volume = self.volume
        if not volume.is_block(start, length) or self.fixed.touches(start, start + length):
            what = f"inode {number}, which claims block {start}"
            raise volume.corrupt(what, start, "no inode can have it")
