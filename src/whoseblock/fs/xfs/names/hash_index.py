"""Looking up names in the hash index of a large directory.

A directory of several blocks has a second structure for its names: an index of their hashes, each
with the place of the entry.  The kernel changes both in one transaction.  So a name that a data
block has and the index has not is from a block that is old, or the index is.
"""

import struct
from bisect import bisect_left
from typing import Final, NamedTuple

from whoseblock.errors import CorruptError
from whoseblock.fs.xfs.format.attr import (
    XFS_DA3_CRC_OFF,
    XFS_DA3_NODE_MAGIC,
    XFS_DA_NODE_MAGIC,
    XFS_DA_NODE_MAXDEPTH,
    da_header,
    node_header_size,
)
from whoseblock.fs.xfs.format.checksum import crc_matches
from whoseblock.fs.xfs.format.directory import (
    XFS_DIR2_FREE_OFFSET,
    XFS_DIR2_LEAF1_MAGIC,
    XFS_DIR2_LEAF_OFFSET,
    XFS_DIR2_LEAFN_MAGIC,
    XFS_DIR3_LEAF1_MAGIC,
    XFS_DIR3_LEAFN_MAGIC,
    hash_of_name,
)
from whoseblock.fs.xfs.format.inode import DATA_FORK
from whoseblock.fs.xfs.inodes import Extent, InodeTable
from whoseblock.fs.xfs.volume import Volume

__all__ = ["HashIndex"]

#: An index has no more extents than this here, and so many of its blocks are kept.
_MOST_EXTENTS: Final = 1 << 16
_CACHED_BLOCKS: Final = 1024
#: So many leaves in a row may have one hash.
_MOST_LEAVES: Final = 1024
#: Nodes, and all magic numbers, by whether metadata has checksums.
_NODES: Final = {True: XFS_DA3_NODE_MAGIC, False: XFS_DA_NODE_MAGIC}
_MAGICS: Final = {
    True: (XFS_DIR3_LEAF1_MAGIC, XFS_DIR3_LEAFN_MAGIC, XFS_DA3_NODE_MAGIC),
    False: (XFS_DIR2_LEAF1_MAGIC, XFS_DIR2_LEAFN_MAGIC, XFS_DA_NODE_MAGIC),
}
#: One entry: a hash, and the place of a name or a block.
_ENTRY: Final = struct.Struct(">II")
#: Places count in units of so many bytes.
_PLACE_UNIT: Final = 8


class _Block(NamedTuple):
    """A block of the index, verified: a node, or a leaf with the leaf behind it."""

    raw: bytes
    entries: int
    is_node: bool
    forw: int
    header: int

    def entry(self, index: int) -> tuple[int, int]:
        """Return the hash and the place of an entry."""
        found: tuple[int, int] = _ENTRY.unpack_from(self.raw, self.header + index * _ENTRY.size)
        return found

    def first(self, wanted: int) -> int:
        """Return the first entry whose hash is not less than one."""
        return bisect_left(range(self.entries), wanted, key=lambda index: self.entry(index)[0])


class HashIndex:
    """The hash index of directory ``ino``; every method raises `BlockError`."""

    def __init__(self, volume: Volume, inodes: InodeTable, ino: int) -> None:
        self.volume = volume
        self.inodes = inodes
        self.ino = ino
        self._extents: list[Extent] | None = None
        self._cache: dict[int, _Block] = {}

    def has(self, name: bytes, offset: int) -> bool:
        """Return whether a name is indexed at byte ``offset`` of the directory."""
        wanted, place = hash_of_name(name), offset // _PLACE_UNIT
        block = self._leaf(wanted)
        index = block.first(wanted) if block is not None else 0
        for _ in range(_MOST_LEAVES):
            if block is None:
                return False
            while index < block.entries:
                found, at = block.entry(index)
                if found != wanted:
                    return False
                if at == place:
                    return True
                index += 1
            block, index = self._read(block.forw) if block.forw else None, 0
        raise CorruptError(*self._name(), "too many leaves of one hash")

    def _leaf(self, wanted: int) -> _Block | None:
        """Descend to the first leaf that may have a hash; None if no leaf may."""
        number = XFS_DIR2_LEAF_OFFSET // self.volume.block_size
        for _ in range(XFS_DA_NODE_MAXDEPTH + 1):
            block = self._read(number)
            if not block.is_node:
                return block
            index = block.first(wanted)
            if index == block.entries:
                return None
            number = block.entry(index)[1]
        raise CorruptError(*self._name(), "a tree too high")

    def _name(self) -> tuple[str, int]:
        return f"hash index of directory inode {self.ino}", self.inodes.get(self.ino).start

    def _read(self, number: int) -> _Block:
        """Read the block of the index that begins at block ``number`` of the fork."""
        block = self._cache.get(number)
        if block is not None:
            return block
        volume = self.volume
        pieces = self._pieces(number)
        raw = b"".join(volume.read("dir", at, length) for at, length in pieces)
        start = pieces[0][0]
        has_crc = volume.has_crc
        header = da_header(raw, has_crc=has_crc)
        size = node_header_size(has_crc=has_crc)
        faults = {
            "wrong magic number": header.magic not in _MAGICS[has_crc],
            "checksum mismatch": has_crc and not crc_matches(raw, XFS_DA3_CRC_OFF),
            "more entries than fit": size + header.entries * _ENTRY.size > len(raw),
        }
        if has_crc:
            faults |= volume.ownership_faults(header, self.ino, start)
        volume.verify(self._name()[0], start, faults)
        if len(self._cache) >= _CACHED_BLOCKS:
            self._cache.clear()
        is_node = header.magic == _NODES[has_crc]
        block = self._cache[number] = _Block(raw, header.entries, is_node, header.forw, size)
        return block

    def _pieces(self, number: int) -> list[tuple[int, int]]:
        """Return the ranges of bytes that make up the block that begins at ``number``."""
        size = self.volume.block_size
        if self._extents is None:
            self._extents = list(self._find_extents())
        pieces: list[tuple[int, int]] = []
        end = number + self.volume.dir_block_size // size
        for extent in self._extents:
            if number == end:
                break
            if extent.offset <= number < extent.offset + extent.blocks:
                skipped = number - extent.offset
                count = min(end - number, extent.blocks - skipped)
                pieces.append((extent.start + skipped * size, count * size))
                number += count
        if number != end:
            raise CorruptError(*self._name(), f"no block {number} in the directory")
        return pieces

    def _find_extents(self) -> list[Extent]:
        size = self.volume.block_size
        found: list[Extent] = []
        for extent in self.inodes.extents(self.ino, DATA_FORK):
            if XFS_DIR2_LEAF_OFFSET <= extent.offset * size < XFS_DIR2_FREE_OFFSET:
                found.append(extent)
                if len(found) == _MOST_EXTENTS:
                    raise CorruptError(*self._name(), "too many extents")
        return sorted(found)
