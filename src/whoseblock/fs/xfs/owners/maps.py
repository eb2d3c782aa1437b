"""Extent maps of inodes: where the blocks of a file are.

The reverse map and the extent map hold the same fact from two sides, written in one transaction.
Either of them alone may be outdated.

A map of few extents lies in the inode, which is read anyway.  A larger one is a btree whose root
lies there; only the path to the extent asked for is read, verified as `btree.AgTree` verifies.
"""

import struct
from bisect import bisect_left, bisect_right
from collections.abc import Iterator
from functools import cached_property
from typing import Final, NamedTuple

from whoseblock.errors import CorruptError
from whoseblock.fs.xfs.format.btree import (
    BMBT_REC,
    LONG_HEADER,
    LONG_HEADER_SIZE,
    NULLFSBLOCK,
    XFS_BMAP_CRC_MAGIC,
    XFS_BMAP_MAGIC,
    XFS_BTREE_LBLOCK_CRC_OFF,
    XFS_BTREE_MAXLEVELS,
)
from whoseblock.fs.xfs.format.checksum import crc_matches
from whoseblock.fs.xfs.format.inode import (
    XFS_DINODE_FMT_BTREE,
    XFS_DINODE_FMT_EXTENTS,
    XFS_DINODE_FMT_META_BTREE,
)
from whoseblock.fs.xfs.inodes import InodeTable
from whoseblock.fs.xfs.volume import Volume

__all__ = ["ExtentMaps", "MapLeaf"]

_CACHED: Final = 4096
#: Blocks of maps are cached up to so many bytes; decoded they take a few times as much.
_CACHED_BYTES: Final = 8 << 20
_CACHED_SETS: Final = 16
_ROOT_HEADER: Final = 4
_POINTER: Final = 8
_OFFSET_SHIFT: Final = 9
_OFFSET_MASK: Final = (1 << 54) - 1
_UNWRITTEN_BIT: Final = 63
_COUNT_BITS: Final = 21
#: Every inner node of a map is read for one of its blocks, up to so many.
_MOST_NODES: Final = 4096


class _Above(NamedTuple):
    """The facts about a block of a map in its parent: level, first key, next key, neighbours.

    None where a neighbour is there, and its number is not known.
    """

    fsbno: int
    level: int
    key: int
    next_key: int
    left: int | None
    right: int | None


class _MapNode(NamedTuple):
    keys: tuple[int, ...]
    children: tuple[_Above, ...]


class MapLeaf:
    """Extents of a map in order, as they are on the disk; decoded when first asked for."""

    def __init__(self, title: str, at: int, raw: bytes) -> None:
        self.title = title
        self.at = at
        self.raw = raw

    @cached_property
    def words(self) -> tuple[int, ...]:
        """The two words of each extent."""
        return struct.unpack(f">{len(self.raw) // 8}Q", self.raw)

    @cached_property
    def starts(self) -> list[int]:
        """The block of the file where each extent begins; raises `CorruptError`."""
        starts = [word >> _OFFSET_SHIFT & _OFFSET_MASK for word in self.words[::2]]
        if any(map(int.__ge__, starts, starts[1:])):
            raise CorruptError(self.title, self.at, "extents out of order")
        return starts

    def key(self, index: int) -> int:
        """Return where an extent begins, without decoding the others."""
        at = index * BMBT_REC.size
        return int.from_bytes(self.raw[at : at + 8], "big") >> _OFFSET_SHIFT & _OFFSET_MASK


_NOTHING: Final = MapLeaf("", 0, b"")


class ExtentMaps:
    """The extent maps of a volume's inodes; keeps the blocks that were read."""

    def __init__(self, volume: Volume, inodes: InodeTable) -> None:
        self.volume = volume
        self.inodes = inodes
        self._roots: dict[tuple[int, str], _MapNode | MapLeaf | None] = {}
        self._blocks: dict[tuple[int, str], frozenset[int] | None] = {}
        self._nodes: dict[tuple[int, _Above], _MapNode | MapLeaf] = {}

    def holds(  # noqa: PLR0913 - one mapping, as the rmap btree has it
        self, ino: int, fork: str, offset: int, fsbno: int, count: int, *, unwritten: bool
    ) -> bool:
        """Return whether blocks from ``offset`` of a fork are those from ``fsbno``, in one state.

        Raises `BlockError`.
        """
        at, end = offset, offset + count
        while at < end:
            leaf = self.leaf(ino, fork, at)
            index = bisect_right(leaf.starts, at) - 1
            if index < 0:
                return False
            high, low = leaf.words[2 * index : 2 * index + 2]
            start = (high & ((1 << _OFFSET_SHIFT) - 1)) << 43 | low >> _COUNT_BITS
            skipped, length = at - leaf.starts[index], low & ((1 << _COUNT_BITS) - 1)
            if (
                skipped >= length
                or start + skipped != fsbno + at - offset
                or bool(high >> _UNWRITTEN_BIT) is not unwritten
            ):
                return False
            at = leaf.starts[index] + length
        return True

    def is_btree(self, ino: int, fork: str) -> bool:
        """Return whether the map is a btree, so that an extent of it costs a descent.

        Raises `BlockError`.
        """
        return isinstance(self._root(ino, fork), _MapNode)

    def leaf(self, ino: int, fork: str, offset: int) -> MapLeaf:
        """Return the extents among which that of block ``offset`` is, if it has one.

        Raises `BlockError`.
        """
        node = self._root(ino, fork)
        while isinstance(node, _MapNode):
            index = max(bisect_right(node.keys, offset) - 1, 0)
            node = self._node(ino, node.children[index])
        return node or _NOTHING

    def leaves(self, ino: int, fork: str, offsets: list[int]) -> Iterator[MapLeaf]:
        """Return each leaf once, in order, that has any of ``offsets``, which ascend.

        What they hold is not verified.
        """
        todo = [(self._root(ino, fork), 0, len(offsets))]
        while todo:
            node, first, after = todo.pop()
            if not isinstance(node, _MapNode):
                if node is not None:
                    yield node
                continue
            below: list[tuple[_Above, int, int]] = []
            while first < after:
                index = max(bisect_right(node.keys, offsets[first]) - 1, 0)
                child = node.children[index]
                stop = bisect_left(offsets, max(child.next_key, offsets[first] + 1), first, after)
                below.append((child, first, stop))
                first = stop
            todo += [(self._node(ino, child), one, other) for child, one, other in below[::-1]]

    def walk(self, ino: int, fork: str) -> "Iterator[tuple[int, MapLeaf | None]]":
        """Yield every block of a map that is a btree, in order, with its extents if it is a leaf.

        Nothing is kept.  Raises `BlockError`.
        """
        root = self._read_root(ino, fork)
        todo = list(reversed(root.children)) if isinstance(root, _MapNode) else []
        while todo:
            above = todo.pop()
            node = self._read(ino, above)
            if isinstance(node, _MapNode):
                yield above.fsbno, None
                todo += reversed(node.children)
            else:
                yield above.fsbno, node

    def blocks(self, ino: int, fork: str) -> frozenset[int] | None:
        """Return the blocks that belong to a map itself, as filesystem block numbers.

        None if they are not known: the fork holds a btree of another kind, or too large a map.
        Raises `BlockError`.
        """
        key = ino, fork
        if key not in self._blocks:
            if len(self._blocks) >= _CACHED_SETS:
                self._blocks.clear()
            self._blocks[key] = self._collect(ino, fork)
        return self._blocks[key]

    def _collect(self, ino: int, fork: str) -> frozenset[int] | None:
        root = self._root(ino, fork)
        if root is None:
            return None
        found: set[int] = set()
        todo = [root]
        for _ in range(_MOST_NODES):
            if not todo:
                return frozenset(found)
            node = todo.pop()
            if isinstance(node, _MapNode):
                found.update(child.fsbno for child in node.children)
                todo += [self._node(ino, child) for child in node.children if child.level]
        return None

    def _root(self, ino: int, fork: str) -> _MapNode | MapLeaf | None:
        """Return what lies in the inode, None if that is the root of a btree of another kind."""
        key = ino, fork
        if key not in self._roots:
            if len(self._roots) >= _CACHED:
                self._roots.clear()
            self._roots[key] = self._read_root(ino, fork)
        return self._roots[key]

    def _read_root(self, ino: int, which: str) -> _MapNode | MapLeaf | None:
        inode = self.inodes.get(ino)
        fork = inode.core.fork(which, self.volume.inode_size)
        if fork is None:
            return _NOTHING
        if fork.format == XFS_DINODE_FMT_META_BTREE:
            return None
        raw = inode.fork_bytes(fork)
        if fork.format == XFS_DINODE_FMT_EXTENTS:
            if fork.nextents * BMBT_REC.size > len(raw):
                raise CorruptError(f"inode {ino}", inode.start, "more extents than fit")
            raw = raw[: fork.nextents * BMBT_REC.size]
            return MapLeaf(f"extent map of inode {ino}", inode.start, raw)
        if fork.format != XFS_DINODE_FMT_BTREE:
            return _NOTHING
        level, count = int.from_bytes(raw[:2], "big"), int.from_bytes(raw[2:4], "big")
        most = (len(raw) - _ROOT_HEADER) // (2 * _POINTER)
        if not 0 < level < XFS_BTREE_MAXLEVELS or not 0 < count <= most:
            raise CorruptError(f"inode {ino}", inode.start, "impossible root of the extent map")
        top = _Above(0, level, -1, 1 << 64, NULLFSBLOCK, NULLFSBLOCK)
        return self._inner(ino, inode.start, raw, _ROOT_HEADER, most, count, top)

    def _inner(  # noqa: PLR0913 - where a node is, and what is known of it
        self, ino: int, start: int, raw: bytes, at: int, most: int, count: int, above: _Above
    ) -> _MapNode:
        keys: tuple[int, ...] = struct.unpack_from(f">{count}Q", raw, at)
        pointers: tuple[int, ...] = struct.unpack_from(f">{count}Q", raw, at + most * _POINTER)
        if any(map(int.__ge__, keys, (*keys[1:], above.next_key))):
            raise CorruptError(f"extent map of inode {ino}", start, "keys out of order")
        lefts = (NULLFSBLOCK if above.left == NULLFSBLOCK else None, *pointers[:-1])
        rights = (*pointers[1:], NULLFSBLOCK if above.right == NULLFSBLOCK else None)
        nexts = (*keys[1:], above.next_key)
        level = (above.level - 1,) * count
        return _MapNode(keys, tuple(map(_Above, pointers, level, keys, nexts, lefts, rights)))

    def _node(self, ino: int, above: _Above) -> _MapNode | MapLeaf:
        node = self._nodes.get((ino, above))
        if node is None:
            if len(self._nodes) * self.volume.block_size >= _CACHED_BYTES:
                self._nodes.clear()
            node = self._nodes[ino, above] = self._read(ino, above)
        return node

    def _read(self, ino: int, above: _Above) -> _MapNode | MapLeaf:
        volume = self.volume
        title = f"extent map of inode {ino}"
        start = volume.fsb_to_byte(above.fsbno)
        if start is None:
            raise CorruptError(title, 0, f"there can be no block {above.fsbno}")
        block = volume.read("bmbt", start, volume.block_size)
        header = LONG_HEADER.unpack_from(block)
        has_crc = volume.has_crc
        count, size = header.numrecs, LONG_HEADER.size if has_crc else LONG_HEADER_SIZE
        most = (len(block) - size) // BMBT_REC.size
        beside = ((header.leftsib, above.left), (header.rightsib, above.right))
        faults = {
            "wrong magic number": header.magic
            != (XFS_BMAP_CRC_MAGIC if has_crc else XFS_BMAP_MAGIC),
            "checksum mismatch": has_crc and not crc_matches(block, XFS_BTREE_LBLOCK_CRC_OFF),
            "wrong level": header.level != above.level,
            "an impossible number of records": not 0 < count <= most,
            "not beside the blocks that its parent names": any(
                found == NULLFSBLOCK if expected is None else found != expected
                for found, expected in beside
            ),
        }
        if has_crc:
            faults |= volume.ownership_faults(header, ino, start)
        volume.verify(title, start, faults)
        node: _MapNode | MapLeaf
        if above.level:
            node = self._inner(ino, start, block, size, most, count, above)
            first, last = node.keys[0], node.keys[-1]
        else:
            node = MapLeaf(title, start, block[size : size + count * BMBT_REC.size])
            first, last = node.key(0), node.key(count - 1)
        if first != above.key or last >= above.next_key:
            raise CorruptError(title, start, "not the keys that its parent names")
        return node
