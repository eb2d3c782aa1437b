"""The block bitmaps: blocks that are free, and whether a bitmap is to be believed."""

from collections.abc import Iterator
from functools import cached_property, lru_cache
from typing import Final, NamedTuple

from whoseblock.fs.ext4.static import FixedMetadata
from whoseblock.fs.ext4.volume import Bitmap, Volume

__all__ = ["Allocation", "AllocationRun"]

_KEPT: Final = 64


class AllocationRun(NamedTuple):
    """Blocks ``start`` to before ``end``: free or in use; ``fault`` if that is not certain."""

    start: int
    end: int
    is_free: bool
    fault: str


class Allocation:
    """The block bitmaps of a volume."""

    def __init__(self, volume: Volume, fixed: FixedMetadata) -> None:
        self.volume = volume
        self.fixed = fixed
        self._bitmap = lru_cache(_KEPT)(self._read)

    @cached_property
    def _count_fault(self) -> str:
        """The reason why the counts of groups and superblock cannot all be true, or "".

        A device that loses a write may leave both a bitmap and its descriptor as they were before.
        """
        volume = self.volume
        if self.fixed.lost or volume.copied or volume.groups < volume.sb.groups_count:
            # All answers are incomplete already.
            return ""
        count = sum(volume.descriptor(group).free_clusters for group in range(volume.groups))
        if count * volume.ratio == volume.sb.free_blocks:
            return ""
        return (
            f"the groups have {count * volume.ratio} free blocks, and the superblock counts"
            f" {volume.sb.free_blocks}"
        )

    def certain_bits(self, group: int) -> str:
        """Return the bits of the clusters of a group, "" if they are not certain."""
        bitmap = self._bitmap(group)
        return "" if bitmap.fault or self._count_fault else bitmap.bits

    def runs(self, low: int, high: int) -> Iterator[AllocationRun]:
        """Yield the runs of blocks ``low`` to before ``high``, which are all in groups."""
        volume = self.volume
        while low < high:
            group = volume.group_of(low)
            base, end = volume.group_start(group), min(volume.group_end(group), high)
            bitmap = self._bitmap(group)
            if not bitmap.bits:
                yield AllocationRun(low, end, is_free=False, fault=bitmap.fault)
                low = end
                continue
            fault = bitmap.fault or self._count_fault
            while low < end:
                cluster = (low - base) // volume.ratio
                bit = bitmap.bits[cluster]
                after = bitmap.bits.find("1" if bit == "0" else "0", cluster)
                upto = end if after < 0 else min(base + after * volume.ratio, end)
                yield AllocationRun(low, upto, bit == "0", fault)
                low = upto

    def _read(self, group: int) -> Bitmap:
        """Return the bitmap of a group, made of its fixed metadata if it was never written."""
        volume = self.volume
        bitmap = volume.read_block_bitmap(group)
        if bitmap.fault and not bitmap.bits:
            return bitmap
        taken = self._fixed_clusters(group)
        if bitmap.bits:
            for first, last in taken:
                if "0" in bitmap.bits[first:last] and not bitmap.fault:
                    fault = f"the block bitmap of group {group} has fixed metadata free"
                    return Bitmap(bitmap.bits, fault)
            return bitmap
        bits = ["0"] * volume.clusters_in(group)
        for first, last in taken:
            bits[first:last] = "1" * (last - first)
        fault = ""
        if self.fixed.lost:
            # The metadata of other groups may lie in this one.
            fault = f"group {group} has no block bitmap, and descriptors of other groups are lost"
        elif bits.count("0") != volume.descriptor(group).free_clusters:
            fault = f"group {group} has no block bitmap, and a wrong number of free blocks"
        return Bitmap("".join(bits), fault)

    def _fixed_clusters(self, group: int) -> list[tuple[int, int]]:
        """Return the clusters of a group that its fixed metadata takes, as ranges."""
        volume = self.volume
        base, end = volume.group_start(group), volume.group_end(group)
        found = []
        for run in self.fixed.within(base, end):
            low, high = max(run.start, base), min(run.start + run.length, end)
            if low < high:
                first = (low - base) // volume.ratio
                found.append((first, -(-(high - base) // volume.ratio)))
        return found
