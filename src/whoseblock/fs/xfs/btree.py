"""One verified walker for every btree of an allocation group.

A tree is described by its `Shape`.  On every block the magic number, checksum, UUID, owner,
self-address and level are verified, and that keys and records lie in the range that the parent
promised; no block is visited twice, and the level falls with every step, so that a walk ends
whatever is on the disk.

Keys may overlap: a reverse mapping that begins early may end late, so a node of the rmap btree
gives every child a low and a high key, and *all* children whose key range touches the question are
descended.  A running maximum of the ends makes both ends of the window of candidates a bisection.
For the other trees the same walk degenerates to one child.

A block that cannot be read or believed becomes a `Fault` with the range of keys that it would have
answered for; everything else is still found.
"""

import struct
from bisect import bisect_left, bisect_right
from collections.abc import Callable, Iterator
from itertools import accumulate
from typing import TYPE_CHECKING, Final, NamedTuple

from whoseblock.errors import BlockError, CorruptError
from whoseblock.fs.layout import Layout
from whoseblock.fs.xfs.format.btree import (
    ALLOC_REC,
    INOBT_REC,
    REFCOUNT_REC,
    RMAP_KEY,
    RMAP_REC,
    SHORT_HEADER,
    XFS_ABTB_CRC_MAGIC,
    XFS_BTREE_MAXLEVELS,
    XFS_BTREE_SBLOCK_CRC_OFF,
    XFS_IBT_CRC_MAGIC,
    XFS_INODES_PER_CHUNK,
    XFS_REFC_CRC_MAGIC,
    XFS_RMAP_CRC_MAGIC,
    AllocRec,
    InobtRec,
    RefcountRec,
    RmapRec,
)
from whoseblock.fs.xfs.format.checksum import crc_matches
from whoseblock.fs.xfs.volume import DADDR, Volume

if TYPE_CHECKING:
    from whoseblock.fs.xfs.format.ag import Agf, Agi

__all__ = ["BNOBT", "INOBT", "REFCOUNTBT", "RMAPBT", "AgTree", "Fault", "Leaf", "Node", "Shape"]

#: Decoded blocks kept by one tree; a lookup needs as many as the tree is high.
_CACHED_BLOCKS: Final = 1024


class Shape(NamedTuple):
    """What tells one tree from another.

    ``key_code`` and ``extent_code`` are `struct` codes of one key (pair) of a node, and of one
    record's start and length; a tree whose records all cover ``fixed_count`` has no length there.
    """

    kind: str
    magic: int
    record: Layout[RmapRec] | Layout[AllocRec] | Layout[RefcountRec] | Layout[InobtRec]
    key_code: str
    extent_code: str
    fixed_count: int = 0

    @property
    def overlapping(self) -> bool:
        """Whether nodes have a high key beside the low one."""
        return self.key_code.count("I") > 1


_RMAP_KEY_CODE = f"I{RMAP_KEY.size - 4}x"

RMAPBT: Final = Shape("rmapbt", XFS_RMAP_CRC_MAGIC, RMAP_REC, _RMAP_KEY_CODE * 2, "II16x")
BNOBT: Final = Shape("bnobt", XFS_ABTB_CRC_MAGIC, ALLOC_REC, "I4x", "II")
REFCOUNTBT: Final = Shape("refcountbt", XFS_REFC_CRC_MAGIC, REFCOUNT_REC, "I", "II4x")
INOBT: Final = Shape("inobt", XFS_IBT_CRC_MAGIC, INOBT_REC, "I", "I12x", XFS_INODES_PER_CHUNK)


class Fault(NamedTuple):
    """Keys from ``low`` up to, not including, ``high`` whose records are lost, and why."""

    low: int
    high: int
    note: str


class Leaf(NamedTuple):
    """A leaf whose header has been verified, and its records not yet.

    The ``numrecs`` records at ``offset`` of ``block`` must lie within the keys from ``low`` up to
    ``high``, and ascend.
    """

    agbno: int
    low: int
    high: int
    block: bytes
    offset: int
    numrecs: int


class Node(NamedTuple):
    """A block decoded for searching: the range of keys of each child or record.

    ``ends`` are exclusive; ``reach[i]`` is the largest of ``ends[:i + 1]``.
    """

    level: int
    block: bytes
    starts: tuple[int, ...]
    ends: tuple[int, ...]
    reach: list[int]
    children: tuple[int, ...]


class AgTree:
    """One btree of one allocation group.

    ``limit`` is the first key past the group.  Raises nothing: what is damaged comes back as
    `Fault`.
    """

    def __init__(self, volume: Volume, agno: int, shape: Shape, limit: int) -> None:
        self.volume = volume
        self.agno = agno
        self.shape = shape
        self.limit = limit
        self._key_size = struct.calcsize(">" + shape.key_code)
        space = volume.block_size - SHORT_HEADER.size
        self._most_children = space // (self._key_size + 4)
        self._most_records = space // shape.record.size
        self._magic = shape.magic.to_bytes(4, "big")
        self._uuid_and_owner = volume.uuid + agno.to_bytes(4, "big")
        self._cache: dict[int, Node] = {}

    def _root(self) -> tuple[int, int]:
        """Find the root block and the number of levels; raises `BlockError`."""
        header: Agf | Agi
        if self.shape is INOBT:
            header = self.volume.agi(self.agno)
            return header.root, header.level
        header = self.volume.agf(self.agno)
        if self.shape is RMAPBT:
            return header.rmap_root, header.rmap_level
        if self.shape is BNOBT:
            return header.bno_root, header.bno_level
        return header.refcount_root, header.refcount_level

    def find(self, low: int, high: int, faults: list[Fault]) -> Iterator[tuple[int, ...]]:
        """Give every record that touches keys from ``low`` up to ``high``, in order."""
        record = self.shape.record

        def touched(node: Node) -> list[int]:
            window = range(bisect_right(node.reach, low), bisect_left(node.starts, high))
            return [index for index in window if node.ends[index] > low]

        for agbno, promised_low, promised_high in self._descend(touched, faults):
            try:
                leaf = self._node(agbno, 0, promised_low, promised_high)
            except BlockError as error:
                faults.append(Fault(promised_low, promised_high, str(error)))
                continue
            for index in touched(leaf):
                at = SHORT_HEADER.size + index * record.size
                yield record.struct.unpack_from(leaf.block, at)

    def leaves(self, touched: Callable[[Node], list[int]], faults: list[Fault]) -> Iterator[Leaf]:
        """Give every leaf, in order, below the children that ``touched`` picks of each node."""
        for agbno, low, high in self._descend(touched, faults):
            try:
                block, count = self._read(agbno, 0)
            except BlockError as error:
                faults.append(Fault(low, high, str(error)))
            else:
                yield Leaf(agbno, low, high, block, SHORT_HEADER.size, count)

    def _descend(
        self, touched: Callable[[Node], list[int]], faults: list[Fault]
    ) -> Iterator[tuple[int, int, int]]:
        """Descend to the leaves that are touched: each one's block and promised keys."""
        try:
            root, levels = self._root()
            if not 0 < levels <= XFS_BTREE_MAXLEVELS:
                raise self._corrupt(root, f"the root of {levels} levels")
        except BlockError as error:
            faults.append(Fault(0, self.limit, str(error)))
            return
        seen: set[int] = set()
        todo = [(root, levels - 1, 0, self.limit)]
        while todo:
            agbno, level, low, high = todo.pop()
            if agbno in seen:
                faults.append(Fault(low, high, str(self._corrupt(agbno, "reached twice"))))
                continue
            seen.add(agbno)
            if level == 0:
                yield agbno, low, high
                continue
            try:
                node = self._node(agbno, level, low, high)
            except BlockError as error:
                faults.append(Fault(low, high, str(error)))
                continue
            todo += [
                (node.children[index], level - 1, node.starts[index], node.ends[index])
                for index in reversed(touched(node))
            ]

    def _node(self, agbno: int, level: int, low: int, high: int) -> Node:
        """Give a block decoded, from the cache or from the medium; raises `BlockError`."""
        node = self._cache.get(agbno)
        if node is None:
            node = self._decode(agbno, level)
            if len(self._cache) >= _CACHED_BLOCKS:
                self._cache.clear()
            self._cache[agbno] = node
        if node.level != level:
            raise self._corrupt(agbno, f"level {node.level}, not {level}")
        if node.starts and (node.starts[0] < low or node.reach[-1] > high):
            raise self._corrupt(agbno, "holds keys that its parent does not promise")
        return node

    def _decode(self, agbno: int, level: int) -> Node:
        block, count = self._read(agbno, level)
        offset = SHORT_HEADER.size
        children: tuple[int, ...] = ()
        code = self.shape.key_code if level else self.shape.extent_code
        flat: tuple[int, ...] = struct.unpack_from(">" + code * count, block, offset)
        if level:
            pointers_at = offset + self._most_children * self._key_size
            children = struct.unpack_from(f">{count}I", block, pointers_at)
            if self.shape.overlapping:
                starts, ends = flat[::2], tuple(key + 1 for key in flat[1::2])
            else:
                starts, ends = flat, (*flat[1:], self.limit)
        elif self.shape.fixed_count:
            starts, ends = flat, tuple(start + self.shape.fixed_count for start in flat)
        else:
            starts = flat[::2]
            ends = tuple(map(int.__add__, starts, flat[1::2]))
        if any(map(int.__ge__, starts, ends)) or list(starts) != sorted(starts):
            raise self._corrupt(agbno, "keys out of order")
        return Node(level, block, starts, ends, list(accumulate(ends, max)), children)

    def _read(self, agbno: int, level: int) -> tuple[bytes, int]:
        """Read a block and verify its header; gives it with its number of records."""
        volume = self.volume
        if agbno >= volume.ag_blocks(self.agno):
            raise self._corrupt(agbno, "past the end of its allocation group")
        start = volume.ag_to_byte(self.agno, agbno)
        block = volume.read(self.shape.kind, start, volume.block_size)
        # The header is compared as bytes, but for counts, siblings and LSN: of thousands of leaves,
        # decoding each header to compare its fields takes as long as all the rest.
        count = int.from_bytes(block[6:8], "big")
        if (
            block[:6] == self._magic + level.to_bytes(2, "big")
            and block[16:24] == (start // DADDR).to_bytes(8, "big")
            and block[32:52] == self._uuid_and_owner
            and crc_matches(block, XFS_BTREE_SBLOCK_CRC_OFF)
            and (level == 0 or count)
            and count <= (self._most_children if level else self._most_records)
        ):
            return block, count
        raise self._corrupt(agbno, self._header_fault(block, level, start))

    def _header_fault(self, block: bytes, level: int, start: int) -> str:
        """Say which part of a header is not as it should be."""
        header = SHORT_HEADER.unpack_from(block)
        faults = {
            "wrong magic number": header.magic != self.shape.magic,
            "checksum mismatch": not crc_matches(block, XFS_BTREE_SBLOCK_CRC_OFF),
            "of another filesystem": header.uuid != self.volume.uuid,
            f"owned by AG {header.owner}": header.owner != self.agno,
            f"written for byte {header.blkno * DADDR}": header.blkno * DADDR != start,
            f"level {header.level}, not {level}": header.level != level,
        }
        return next((why for why, true in faults.items() if true), f"{header.numrecs} records")

    def _corrupt(self, agbno: int, reason: str) -> CorruptError:
        start = self.volume.ag_to_byte(self.agno, agbno)
        return CorruptError(self.volume.describe(self.shape.kind, start), start, reason)
