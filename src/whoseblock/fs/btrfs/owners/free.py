"""Whether logical addresses without an extent are certainly free."""

from bisect import bisect_right
from collections.abc import Iterator
from functools import lru_cache
from typing import Final

from whoseblock.errors import BlockError, CorruptError
from whoseblock.fs.btrfs.chunks import Chunk
from whoseblock.fs.btrfs.format.items import free_runs, parse_block_group
from whoseblock.fs.btrfs.format.keys import (
    BLOCK_GROUP_ITEM,
    BLOCK_GROUP_TREE,
    EXTENT_TREE,
    FREE_SPACE_BITMAP,
    FREE_SPACE_EXTENT,
    FREE_SPACE_INFO,
    FREE_SPACE_TREE,
)
from whoseblock.fs.btrfs.trees import LostKeys
from whoseblock.fs.btrfs.volume import Volume

__all__ = ["FreeSpace"]

#: Block groups whose free space is kept.
_KEPT: Final = 8


class FreeSpace:
    """Confirms gaps between extents by the block group and, if it is valid, the free space tree."""

    def __init__(self, volume: Volume) -> None:
        self.volume = volume
        self.group_fault = lru_cache(1 << 12)(self._group_fault)
        self._runs = lru_cache(_KEPT)(self._read_runs)

    def fault(self, chunk: Chunk, low: int, high: int) -> str:
        """Return why addresses of a chunk are not certainly free, "" if they are."""
        if fault := self.volume.later_changes or self.group_fault(chunk):
            return fault
        if not self.volume.sb.has_free_space_tree:
            return ""
        starts, ends, why = self._runs(chunk)
        if why:
            return why
        index = bisect_right(starts, low) - 1
        if index < 0 or ends[index] < high:
            return f"the extent tree and the free space tree differ at logical address {low}"
        return ""

    def _group_fault(self, chunk: Chunk) -> str:
        """Return why the chunk is no block group with extents as recorded, "" if it is."""
        volume = self.volume
        what = f"block group at logical address {chunk.start}"
        tree = BLOCK_GROUP_TREE if volume.sb.has_block_group_tree else EXTENT_TREE
        extents, faults = volume.device_extents
        for place in chunk.stripes:
            if extents.get(place) != (chunk.start, chunk.stripe_length):
                return faults[0] if faults else f"{what}: the device tree differs"
        try:
            item = volume.reader.item(
                volume.root(tree), (chunk.start, BLOCK_GROUP_ITEM, chunk.length)
            )
        except BlockError as error:
            return f"{what}: {error}"
        found = None if item is None else parse_block_group(item.data)
        if found is None or found.type != chunk.type or found.used > chunk.length:
            return f"{what}: its item is missing, or differs from the chunk"
        return ""

    def _read_runs(self, chunk: Chunk) -> tuple[list[int], list[int], str]:
        """Return the starts and the ends of the free runs, or why they are unknown."""
        what = f"free space tree of the block group at logical address {chunk.start}"
        starts: list[int] = []
        ends: list[int] = []
        try:
            for low, high in self._items(chunk):
                if ends and ends[-1] == low:
                    # A run may go on in the next bitmap.
                    ends[-1] = high
                    continue
                if ends and ends[-1] > low:
                    return [], [], f"{what}: items overlap at {low}"
                starts.append(low)
                ends.append(high)
        except BlockError as error:
            return [], [], f"{what}: {error}"
        return starts, ends, ""

    def _items(self, chunk: Chunk) -> Iterator[tuple[int, int]]:
        """Yield where each free run begins, and the address past it; raises `BlockError`."""
        volume = self.volume
        root = volume.root(FREE_SPACE_TREE)
        has_info = False
        for item in volume.reader.walk(root, (chunk.start, 0, 0), (chunk.end, 0, 0)):
            if isinstance(item, LostKeys):
                raise CorruptError("free space tree", root.address, item.reason)
            start, kind, length = item.key
            runs: list[tuple[int, int]] | None = None
            if kind == FREE_SPACE_INFO:
                has_info = (start, length) == (chunk.start, chunk.length)
                continue
            if start + length <= chunk.end:
                if kind == FREE_SPACE_EXTENT:
                    runs = [(start, start + length)]
                elif kind == FREE_SPACE_BITMAP:
                    runs = free_runs(item.data, start, length, volume.sector_size)
            if runs is None:
                raise CorruptError("free space tree", item.node.address, f"damaged item {item.key}")
            yield from runs
        if not has_info:
            raise CorruptError("free space tree", root.address, "the block group is not in it")
