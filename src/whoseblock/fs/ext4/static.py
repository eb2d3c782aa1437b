"""The fixed metadata: superblocks, descriptors, bitmaps, inode tables, and the MMP block.

What GETFSMAP calls them decides their class, so that a mounted filesystem has the same rows.
"""

from bisect import bisect_right
from typing import Final, NamedTuple

from whoseblock.errors import BlockError
from whoseblock.fs.ext4.format.superblock import INCOMPAT_MMP
from whoseblock.fs.ext4.volume import Volume
from whoseblock.fs.pieces import (
    BLOCK_BITMAP,
    GROUP_DESCRIPTORS,
    INODE_BITMAP,
    INODES,
    MMP,
    RESERVED_GROUP_DESCRIPTORS,
    STATIC,
)

__all__ = ["FixedMetadata", "FixedRun"]

#: Groups whose descriptors cannot be believed are listed up to this number.
_MOST_FAULTS: Final = 8


class FixedRun(NamedTuple):
    """``length`` blocks from ``start``: ``what`` as in `WHATS`, of a group, and its name."""

    start: int
    length: int
    what: int
    group: int
    name: str


class FixedMetadata:
    """All fixed metadata of a volume, by its first block.

    ``lost`` are the groups whose descriptor cannot be read or believed, nor a copy of it: their
    bitmaps and inode tables may be anywhere.  ``faults`` say why, name runs that overlap, and the
    groups whose descriptor is a copy.
    """

    def __init__(self, volume: Volume) -> None:
        self.volume = volume
        self.lost: list[int] = []
        self.faults: list[str] = []
        runs: list[FixedRun] = []
        for group in range(volume.groups):
            _add_group_head(volume, group, runs)
            try:
                descriptor = volume.descriptor(group)
            except BlockError as error:
                self.lost.append(group)
                self._add_fault(str(error))
                continue
            if group in volume.copied:
                self._add_fault(volume.copied[group])
            runs.append(FixedRun(descriptor.block_bitmap, 1, BLOCK_BITMAP, group, "block bitmap"))
            runs.append(FixedRun(descriptor.inode_bitmap, 1, INODE_BITMAP, group, "inode bitmap"))
            table = volume.table_blocks
            runs.append(FixedRun(descriptor.inode_table, table, INODES, group, "inode table"))
        sb = volume.sb
        if sb.incompat & INCOMPAT_MMP and volume.is_block(sb.mmp_block):
            group = volume.group_of(sb.mmp_block)
            runs.append(FixedRun(sb.mmp_block, 1, MMP, group, "MMP block"))
        runs.sort()
        self.runs: list[FixedRun] = []
        self.starts: list[int] = []
        end = 0
        for run in runs:
            if run.start < end:
                self._add_fault(f"the {run.name} of group {run.group} overlaps other metadata")
                self.lost.append(run.group)
            end = max(end, run.start + run.length)
            self.runs.append(run)
            self.starts.append(run.start)

    def _add_fault(self, fault: str) -> None:
        if len(self.faults) < _MOST_FAULTS:
            self.faults.append(fault)

    def within(self, low: int, high: int) -> list[FixedRun]:
        """Return the runs that intersect blocks ``low`` to before ``high``."""
        at = max(bisect_right(self.starts, low) - 1, 0)
        found = []
        while at < len(self.runs) and self.runs[at].start < high:
            if self.runs[at].start + self.runs[at].length > low:
                found.append(self.runs[at])
            at += 1
        return found

    def touches(self, low: int, high: int) -> bool:
        """Return whether any run intersects blocks ``low`` to before ``high``."""
        # Not past the last run that begins before the end, whose reach is the largest.
        at = bisect_right(self.starts, high - 1) - 1
        return at >= 0 and self.runs[at].start + self.runs[at].length > low


def _add_group_head(volume: Volume, group: int, runs: list[FixedRun]) -> None:
    """Add the superblock and the descriptors at the start of a group."""
    sb, start = volume.sb, volume.group_start(group)
    if group == 0 and volume.super_block > 0:
        # Block 0 has the boot sector, and no group has it unless clusters are larger.
        runs.append(FixedRun(0, 1, STATIC, 0, "boot block"))
        start = volume.super_block
    if sb.has_super(group) and start < volume.blocks:
        runs.append(FixedRun(start, 1, STATIC, group, "superblock"))
    count = volume.descriptor_blocks(group)
    count = min(count, volume.blocks - start - 1)
    if count > 0:
        reserved = min(sb.reserved_gdt_blocks, count)
        if used := count - reserved:
            runs.append(FixedRun(start + 1, used, GROUP_DESCRIPTORS, group, "group descriptors"))
        if reserved:
            what, name = RESERVED_GROUP_DESCRIPTORS, "reserved group descriptors"
            runs.append(FixedRun(start + 1 + used, reserved, what, group, name))
    meta = volume.meta_descriptor_block(group)
    if meta is not None and meta < volume.blocks:
        runs.append(FixedRun(meta, 1, GROUP_DESCRIPTORS, group, "group descriptors"))
