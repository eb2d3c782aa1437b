"""The blocks of the btrees of allocation groups, and those that wait to become such blocks.

A btree names each of its blocks once: its root in the header of the group, all others in its nodes.
Leaves need not be read for that.  The blocks that wait are in the free list of the group, the AGFL.

A block that can be read has the key under which it is named, which takes one descent to look up.
What it holds proves nothing: a file may have the block by now, and not have written it.
"""

from bisect import bisect_left
from collections import Counter
from collections.abc import Callable, Iterator
from functools import partial
from typing import Final, NamedTuple, Protocol

from whoseblock.errors import BlockError, MediaError
from whoseblock.fs.pieces import AG, INODE_BTREE, REFCOUNT_BTREE
from whoseblock.fs.xfs.btree import (
    BNOBT,
    CNTBT,
    FINOBT,
    INOBT,
    REFCOUNTBT,
    RMAPBT,
    AgTree,
    Fault,
    Shape,
)
from whoseblock.fs.xfs.format.ag import AGFL, XFS_AGFL_CRC_OFF, XFS_AGFL_MAGIC
from whoseblock.fs.xfs.format.checksum import crc_matches
from whoseblock.fs.xfs.volume import Volume

__all__ = ["GROUP_BTREES", "GroupBtrees", "Named", "Trees"]

#: Metadata that is named by btrees of a group.
GROUP_BTREES: Final = frozenset({AG, INODE_BTREE, REFCOUNT_BTREE})
_CACHED: Final = 1024
#: So many blocks of a group are looked for one by one, before all nodes are read.
_FEW: Final = 16
_AGFL_SECTOR: Final = 3
_NUMBER: Final = 4


class Trees(Protocol):
    """A provider of trees."""

    def tree(self, agno: int, shape: Shape) -> AgTree:
        """Return a tree of an allocation group."""


class Named(NamedTuple):
    """The blocks that a btree or the free list names, ascending, and why it may name others."""

    blocks: list[int]
    notes: list[str]


class GroupBtrees:
    """The blocks of the btrees of all groups of a volume; what was read is kept."""

    def __init__(self, volume: Volume, trees: Trees) -> None:
        self.volume = volume
        self.trees = trees
        self._named: dict[tuple[int, str], Named] = {}
        self._asked: Counter[tuple[int, int]] = Counter()

    def has(self, agno: int, what: int, low: int, high: int, notes: list[str]) -> bool:
        """Return whether the blocks of a group from ``low`` up to ``high`` are all named.

        ``what`` is one of `GROUP_BTREES`.  ``notes`` receives why blocks may be missing if some
        are.
        """
        if self._are_few(agno, what, high - low) and all(
            self._has_one(agno, what, block) for block in range(low, high)
        ):
            return True
        self._asked[agno, what] = _FEW
        found: set[int] = set()
        lost: list[str] = []
        for blocks, why in self.named(agno, what):
            found.update(blocks[bisect_left(blocks, low) : bisect_left(blocks, high)])
            if len(found) == high - low:
                return True
            lost += why
        notes += lost
        return False

    def _are_few(self, agno: int, what: int, count: int) -> bool:
        if len(self._asked) >= _CACHED:
            self._asked.clear()
        self._asked[agno, what] += count
        return self._asked[agno, what] <= _FEW

    def _has_one(self, agno: int, what: int, block: int) -> bool:
        """Return whether a block is found where its first sector says that it is named.

        It is not if the medium does not return that sector.
        """
        if what == AG and block in self._kept(agno, "agfl", self._free_list).blocks:
            return True
        volume = self.volume
        try:
            head = volume.read("btree", volume.ag_to_byte(agno, block), volume.sb.sectsize)
        except MediaError:
            return False
        trees = (self.trees.tree(agno, shape) for shape in self._shapes(what))
        return any(tree.leads_to(block, head) for tree in trees)

    def named(self, agno: int, what: int) -> Iterator[Named]:
        """Yield the blocks of one of `GROUP_BTREES`, by the structures that name them.

        Those with the most nodes to be read come last.
        """
        if what == AG:
            yield self._kept(agno, "agfl", self._free_list)
        for shape in self._shapes(what):
            yield self._kept(agno, shape.kind, partial(self._tree, shape))

    def _shapes(self, what: int) -> tuple[Shape, ...]:
        sb = self.volume.sb
        if what == AG:
            return BNOBT, CNTBT, *((RMAPBT,) if sb.has_rmapbt else ())
        if what == INODE_BTREE:
            return INOBT, *((FINOBT,) if sb.has_finobt else ())
        return (REFCOUNTBT,) if sb.has_reflink else ()

    def _kept(self, agno: int, kind: str, read: Callable[[int], Named]) -> Named:
        if (agno, kind) not in self._named:
            if len(self._named) >= _CACHED:
                self._named.clear()
            self._named[agno, kind] = read(agno)
        return self._named[agno, kind]

    def _tree(self, shape: Shape, agno: int) -> Named:
        faults: list[Fault] = []
        blocks = sorted(self.trees.tree(agno, shape).blocks(faults))
        return Named(blocks, [fault.note for fault in faults])

    def _free_list(self, agno: int) -> Named:
        try:
            return Named(sorted(set(self._waiting(agno))), [])
        except BlockError as error:
            return Named([], [str(error)])

    def _waiting(self, agno: int) -> Iterator[int]:
        """Yield the blocks that wait to become those of btrees; raises `BlockError`."""
        volume = self.volume
        agf = volume.agf(agno)
        size = volume.sb.sectsize
        start = agno * volume.ag_bytes + _AGFL_SECTOR * size
        raw = volume.read("agfl", start, size)
        begin = AGFL.size if volume.has_crc else 0
        room = (size - begin) // _NUMBER
        faults = {"more blocks than fit": agf.flcount > room or agf.flfirst >= room}
        if volume.has_crc:
            header = AGFL.unpack_from(raw)
            faults |= {
                "wrong magic number": header.magicnum != XFS_AGFL_MAGIC,
                "checksum mismatch": not crc_matches(raw, XFS_AGFL_CRC_OFF),
                "of another filesystem": header.uuid != volume.uuid,
                "of another allocation group": header.seqno != agno,
            }
        volume.verify(volume.describe("agfl", start), start, faults)
        for index in range(agf.flfirst, agf.flfirst + agf.flcount):
            at = begin + index % room * _NUMBER
            block = int.from_bytes(raw[at : at + _NUMBER], "big")
            if block < volume.ag_blocks(agno):
                yield block
