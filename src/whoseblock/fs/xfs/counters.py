"""Comparing the counters of the superblock with those of the allocation groups.

The headers of a group count its free blocks and its inodes, and the kernel writes the sums into the
superblock when it unmounts (``xfs_log_sb``; ``xfs_initialize_perag_data`` adds them up as it is
done here).  So on a filesystem that was unmounted cleanly they agree.  A header that lost its last
write names the roots of btrees that are no longer in use.  Where the medium still holds their
blocks, all structures of the group agree with each other, and only these sums differ.
"""

from functools import cached_property
from typing import Final

from whoseblock.fs.xfs.volume import MOST_LOST_GROUPS, Volume

__all__ = ["ALWAYS_COMPARED", "SummaryCounters"]

#: The headers of so many groups are compared before any answer, those of up to ``_MOST_COMPARED``
#: before space is called free: a group is one read.
ALWAYS_COMPARED: Final = 64
_MOST_COMPARED: Final = 4096


class SummaryCounters:
    """The counters of a filesystem whose log is clean, and that is not mounted."""

    def __init__(self, volume: Volume) -> None:
        self.volume = volume

    @cached_property
    def note(self) -> str:
        """A note about counters of the superblock and of the groups that differ; "" if none do.

        Reads the headers of all groups once, up to ``_MOST_COMPARED``.  Headers that do not verify
        may count anything that fits into their group.
        """
        sb = self.volume.sb
        if sb.agcount > _MOST_COMPARED or not sb.counts_lazily:
            return ""
        blocks = inodes = unused = 0
        lost_blocks = lost_inodes = lost_in_a_row = 0
        for agno in range(sb.agcount):
            agf, agi = (None, None)
            if agno < self.volume.groups_on_device:
                agf, agi = self.volume.headers(agno)
            if agf is None:
                lost_blocks += self.volume.ag_blocks(agno)
            else:
                blocks += agf.freeblks + agf.flcount + agf.btreeblks
            if agi is None:
                lost_inodes += self.volume.ag_blocks(agno) << sb.inopblog
            else:
                inodes += agi.icount
                unused += agi.freecount
            lost_in_a_row = 0 if agf or agi else lost_in_a_row + 1
            if lost_in_a_row == MOST_LOST_GROUPS:
                return ""
        for what, where, said, counted, lost in (
            ("free blocks", "AGFs", sb.fdblocks, blocks, lost_blocks),
            ("inodes", "AGIs", sb.icount, inodes, lost_inodes),
            ("unused inodes", "AGIs", sb.ifree, unused, lost_inodes),
        ):
            if not counted <= said <= counted + lost:
                return (
                    f"the superblock counts {said} {what}, the {where} of its allocation groups"
                    f" {counted}: the superblock or one of the AGFs and AGIs is old, and with it"
                    " what is called free"
                )
        return ""
