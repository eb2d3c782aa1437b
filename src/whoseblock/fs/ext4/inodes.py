"""Inodes and their maps of blocks, verified."""

from collections.abc import Iterator
from typing import Final, NamedTuple

from whoseblock.errors import BlockError, CorruptError
from whoseblock.fs.ext4.ahead import MapBlocks
from whoseblock.fs.ext4.format import extents
from whoseblock.fs.ext4.format.inode import (
    Inode,
    checksum_seed,
    inode_matches,
    parse_inode,
)
from whoseblock.fs.ext4.volume import Volume

__all__ = ["MappedExtent", "get_inode", "inode_at", "map_of", "read_fork"]

_DIRECT: Final = 12
#: The most blocks of a map of one file that are held to see whether one comes twice.
_MAX_LOGICAL: Final = extents.MAX_LOGICAL


class MappedExtent(NamedTuple):
    """``length`` blocks from ``start``, at block ``logical`` of the file; -1 is a block of the map.

    A fault is an exception of `map_of`, so that whatever comes is verified.
    """

    start: int
    length: int
    logical: int
    unwritten: bool


def get_inode(volume: Volume, number: int) -> Inode:
    """Return an inode, verified; raises `BlockError`."""
    return inode_at(volume, number)[0]


def inode_at(volume: Volume, number: int) -> tuple[Inode, bytes]:
    """Return an inode, verified, and its bytes; raises `BlockError`."""
    raw = volume.read_inode(number)
    if not inode_matches(volume.sb, volume.seed, number, raw):
        group, place = volume.inode_place(number)
        at = volume.descriptor(group).inode_table * volume.block_size + place * len(raw)
        raise CorruptError(f"inode {number}", at, "checksum mismatch")
    return parse_inode(raw), raw


def map_of(
    volume: Volume, number: int, inode: Inode, fetched: MapBlocks | None = None
) -> Iterator[MappedExtent]:
    """Yield the extents of an inode, and the blocks of its map; raises `BlockError`.

    What comes before the error is verified.  ``fetched`` may have the blocks below the root.
    """
    if inode.has_extents:
        yield from _extents_of(volume, number, inode, fetched)
    else:
        yield from _Indirect(volume, number, fetched).walk(inode)


def _extents_of(
    volume: Volume, number: int, inode: Inode, fetched: MapBlocks | None
) -> Iterator[MappedExtent]:
    """Walk an extent tree, depth first, so that extents come in the order of the file."""
    seed = checksum_seed(volume.seed, number, inode.generation)
    visited: set[int] = set()
    lower = MapBlocks(volume)
    # Nodes to visit: block (None: the root), depth, the first block of the file, and the end.
    todo: list[tuple[int | None, int | None, int, int]] = [(None, None, 0, _MAX_LOGICAL)]
    while todo:
        block, depth, low, high = todo.pop()
        if block is None:
            raw = inode.i_block
        else:
            if not volume.is_block(block) or block in visited:
                raise volume.corrupt(f"extent map of inode {number}", block, "no such block")
            visited.add(block)
            source = fetched if fetched is not None and block in fetched else lower
            if block not in source:
                # With its siblings, which are visited next.
                near = [node[0] for node in todo[-lower.most :] if node[1] == depth]
                lower.fetch(filter(None, (block, *near)))
            raw = source.read(f"extent map of inode {number}", block)
            if volume.sb.has_checksums and not extents.block_matches(seed, raw):
                raise volume.corrupt(f"extent map of inode {number}", block, "checksum mismatch")
        parsed = extents.parse_extents(raw, depth, low, high)
        if isinstance(parsed, str):
            raise volume.corrupt(f"extent map of inode {number}", block or 0, parsed)
        found, leaves, below = parsed
        if block is not None:
            yield MappedExtent(block, 1, -1, unwritten=False)
        for extent in leaves:
            if not volume.is_block(extent.start, extent.length):
                raise volume.corrupt(
                    f"extent map of inode {number}", block or 0, "an extent past the filesystem"
                )
            yield MappedExtent(extent.start, extent.length, extent.logical, extent.unwritten)
        ends = [*(index.logical for index in below[1:]), high][: len(below)]
        nodes = [
            (index.block, found - 1, index.logical, end)
            for index, end in zip(below, ends, strict=True)
        ]
        todo += reversed(nodes)


class _Indirect:
    """Walks the indirect map of one inode."""

    def __init__(self, volume: Volume, number: int, fetched: MapBlocks | None) -> None:
        self.volume = volume
        self.number = number
        self.fetched = fetched
        self.visited: set[int] = set()
        self.what = f"indirect map of inode {number}"

    def walk(self, inode: Inode) -> Iterator[MappedExtent]:
        """Yield all extents; raises `BlockError`."""
        root = extents.pointers(inode.i_block)
        yield from self._runs(root[:_DIRECT], 0)
        logical, each = _DIRECT, self.volume.block_size // 4
        for depth, block in enumerate(root[_DIRECT:], 1):
            if block:
                yield from self._below(block, depth, logical, self.fetched)
            logical += each**depth

    def _below(
        self, block: int, depth: int, logical: int, blocks: MapBlocks | None
    ) -> Iterator[MappedExtent]:
        if not self.volume.is_block(block) or block in self.visited:
            raise self.volume.corrupt(self.what, block, "no such block")
        self.visited.add(block)
        raw = (blocks or MapBlocks(self.volume)).read(self.what, block)
        yield MappedExtent(block, 1, -1, unwritten=False)
        below = extents.pointers(raw)
        if depth == 1:
            yield from self._runs(below, logical)
            return
        each = (self.volume.block_size // 4) ** (depth - 1)
        lower = MapBlocks(self.volume)
        for place, child in enumerate(below):
            if child:
                if child not in lower:
                    lower.fetch(filter(None, below[place : place + lower.most]))
                yield from self._below(child, depth - 1, logical + place * each, lower)

    def _runs(self, blocks: tuple[int, ...], logical: int) -> Iterator[MappedExtent]:
        """Join consecutive blocks."""
        start, length, first = 0, 0, 0
        for place, block in enumerate(blocks):
            if block and not self.volume.is_block(block):
                raise self.volume.corrupt(self.what, block, "no such block")
            if length and block == start + length:
                length += 1
                continue
            if length:
                yield MappedExtent(start, length, logical + first, unwritten=False)
            start, length, first = block, 1 if block else 0, place
        if length:
            yield MappedExtent(start, length, logical + first, unwritten=False)


def read_fork(volume: Volume, number: int, inode: Inode) -> Iterator[tuple[int, int, bytes | None]]:
    """Yield ``(logical, block, content)`` of each written block of an inode's data.

    The content is None if the block cannot be read.  Raises `BlockError` for the map.
    """
    for extent in map_of(volume, number, inode):
        if extent.logical < 0 or extent.unwritten:
            continue
        for place in range(extent.length):
            block = extent.start + place
            try:
                content: bytes | None = volume.read_block("directory block", block)
            except BlockError:
                content = None
            yield extent.logical + place, block, content
