"""The metadata of allocation groups as records of a reverse map, where there is none.

The headers and the log are at known places.  The blocks of btrees are those that their nodes name,
inode chunks those of the inode btree, and blocks staged for copy-on-write those of the refcount
btree.
"""

from collections.abc import Iterable
from typing import Final, NamedTuple

from whoseblock.fs.pieces import AG, INODE_BTREE, REFCOUNT_BTREE
from whoseblock.fs.xfs.btree import INOBT, REFCOUNTBT, Fault
from whoseblock.fs.xfs.format.btree import (
    XFS_REFC_COWFLAG,
    XFS_RMAP_OWN_AG,
    XFS_RMAP_OWN_COW,
    XFS_RMAP_OWN_FS,
    XFS_RMAP_OWN_INOBT,
    XFS_RMAP_OWN_INODES,
    XFS_RMAP_OWN_LOG,
    XFS_RMAP_OWN_REFC,
)
from whoseblock.fs.xfs.owners.crosscheck import Part, inode_blocks, static_blocks
from whoseblock.fs.xfs.owners.group_btrees import GroupBtrees, Trees
from whoseblock.fs.xfs.volume import Volume

__all__ = ["GroupMetadata", "Run"]

_CACHED_GROUPS: Final = 256
_BTREE_OWNERS: Final = {
    XFS_RMAP_OWN_AG: AG,
    XFS_RMAP_OWN_INOBT: INODE_BTREE,
    XFS_RMAP_OWN_REFC: REFCOUNT_BTREE,
}
#: The start, the length and the owner of blocks of a group.
Run = tuple[int, int, int]


class _Blocks(NamedTuple):
    """The blocks of a group that are not found by their place, and why some may be missing."""

    runs: list[Run]
    notes: list[str]


class GroupMetadata:
    """The metadata of all groups of a volume."""

    def __init__(self, volume: Volume, trees: Trees) -> None:
        self.volume = volume
        self.trees = trees
        self._btrees = GroupBtrees(volume, trees)
        self._blocks: dict[int, _Blocks] = {}

    def find(self, part: Part, notes: list[str]) -> list[tuple[int, int, int, int]]:
        """Return the records that touch a part, in order: start, length, owner and offset.

        ``notes`` receives why others may be missing.
        """
        agno, low, high = part
        runs = [run for run in self.named(agno, notes) if run[0] < high and low < run[0] + run[1]]
        runs += self._inodes(part, notes)
        runs += self._staging(part, notes)
        return [(*run, 0) for run in sorted(runs)]

    def named(self, agno: int, notes: list[str]) -> list[Run]:
        """Return the headers, the log, and the blocks of btrees and of the free list of a group.

        ``notes`` receives why others may be missing.
        """
        if agno not in self._blocks:
            if len(self._blocks) >= _CACHED_GROUPS:
                self._blocks.clear()
            self._blocks[agno] = self._read(agno)
        notes += self._blocks[agno].notes
        return self._blocks[agno].runs

    def _read(self, agno: int) -> _Blocks:
        sb = self.volume.sb
        notes: list[str] = []
        runs = [(0, static_blocks(self.volume), XFS_RMAP_OWN_FS)]
        if sb.logstart and sb.logstart >> sb.agblklog == agno:
            start = sb.logstart & ((1 << sb.agblklog) - 1)
            runs.append((start, sb.logblocks, XFS_RMAP_OWN_LOG))
        owned: set[tuple[int, int]] = set()
        for owner, what in _BTREE_OWNERS.items():
            for blocks, why in self._btrees.named(agno, what):
                owned.update((block, owner) for block in blocks)
                notes += why
        runs += _joined((block, 1, owner) for block, owner in sorted(owned))
        return _Blocks(sorted(runs), notes)

    def _inodes(self, part: Part, notes: list[str]) -> list[Run]:
        agno, low, high = part
        log = self.volume.sb.inopblog
        faults: list[Fault] = []
        found = [
            (first, after - first, XFS_RMAP_OWN_INODES)
            for chunk in self.trees.tree(agno, INOBT).find(low << log, high << log, faults)
            for first, after in inode_blocks(chunk[0], chunk[1], log)
            if first < high and low < after
        ]
        notes += [
            fault.note for fault in faults if fault.low < high << log and low << log < fault.high
        ]
        return _joined(found)

    def _staging(self, part: Part, notes: list[str]) -> list[Run]:
        if not self.volume.sb.has_reflink:
            return []
        agno, low, high = part
        first, last = low | XFS_REFC_COWFLAG, high | XFS_REFC_COWFLAG
        faults: list[Fault] = []
        records = self.trees.tree(agno, REFCOUNTBT).find(first, last, faults)
        found = [
            (start & ~XFS_REFC_COWFLAG, count, XFS_RMAP_OWN_COW) for start, count, _ in records
        ]
        notes += [fault.note for fault in faults if fault.low < last and first < fault.high]
        return _joined(found)


def _joined(runs: Iterable[Run]) -> list[Run]:
    """Join runs, which are in order, that follow one another and have one owner."""
    found: list[Run] = []
    for start, count, owner in runs:
        if found and found[-1][2] == owner and sum(found[-1][:2]) >= start:
            begin = found[-1][0]
            found[-1] = begin, max(start + count, sum(found[-1][:2])) - begin, owner
        else:
            found.append((start, count, owner))
    return found
