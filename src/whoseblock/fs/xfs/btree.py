"""One verified walker for every btree of an allocation group.

A tree is described by its `Shape`.  The walker verifies magic number, checksum, UUID, owner, level
and self-address of every block.  It also compares the block with the `Promise` of its parent: the
keys of the child, and the blocks to its left and right.  So a block that was valid once, and is not
the newest, is noticed wherever keys or neighbours changed since.  No block is visited twice, and
the level falls with every step, so that a walk ends whatever is on the disk.

Keys may overlap: a reverse mapping that begins early may end late.  So a node of the rmap btree has
a low and a high key for every child, and the walker descends to *all* children whose key range
touches the question.  A running maximum of the ends makes both ends of the window of candidates a
bisection.  In the other trees a child's keys end where the next child's begin; those of the last
child end where the parent promised that the node's do.

A block that cannot be read or fails verification becomes a `Fault` with the range of keys that it
would have answered for; everything else is still found.  So does a block that is sound and not as
promised, but what it says is found too: it was true once.
"""

import struct
from bisect import bisect_left, bisect_right
from collections.abc import Callable, Iterator
from itertools import accumulate, chain
from typing import Final, NamedTuple

from whoseblock.errors import BlockError, CorruptError, MediaError
from whoseblock.fs.layout import Layout
from whoseblock.fs.xfs.format.btree import (
    ALLOC_REC,
    INOBT_REC,
    NULLAGBLOCK,
    REFCOUNT_REC,
    RMAP_KEY,
    RMAP_REC,
    SHORT_HEADER,
    SHORT_HEADER_SIZE,
    XFS_ABTB_CRC_MAGIC,
    XFS_ABTB_MAGIC,
    XFS_ABTC_CRC_MAGIC,
    XFS_ABTC_MAGIC,
    XFS_BTREE_MAXLEVELS,
    XFS_BTREE_SBLOCK_CRC_OFF,
    XFS_FIBT_CRC_MAGIC,
    XFS_IBT_CRC_MAGIC,
    XFS_IBT_MAGIC,
    XFS_INODES_PER_CHUNK,
    XFS_REFC_CRC_MAGIC,
    XFS_RMAP_CRC_MAGIC,
    XFS_RMAP_NON_INODE,
    XFS_RMAP_OFF_BMBT_BLOCK,
    XFS_RMAP_OFF_MASK,
    XFS_RMAP_OFF_UNWRITTEN,
    AllocRec,
    InobtRec,
    RefcountRec,
    RmapRec,
)
from whoseblock.fs.xfs.format.checksum import crc_matches
from whoseblock.fs.xfs.volume import DADDR, Volume

__all__ = [
    "BNOBT",
    "CNTBT",
    "FINOBT",
    "INOBT",
    "REFCOUNTBT",
    "RMAPBT",
    "AgTree",
    "Fault",
    "Leaf",
    "Node",
    "Promise",
    "Shape",
    "size_key",
]

#: Decoded blocks kept by one tree; a lookup needs as many as the tree is high.
_CACHED_BLOCKS: Final = 1024

#: A neighbour that is a block of another node's, so that its number is not known.
_SOME_BLOCK: Final = -1
#: Where a header has the siblings.
_LEFT_AT: Final = 8
_RIGHT_AT: Final = 12
#: Keys of other trees than the rmap btree are compared by the block or inode that they begin with.
_BLOCK_NUMBER: Final = 4
_LSN_AT: Final = 24
_LSN_END: Final = 32
#: The level of leaves in the headers of blocks.
_LEAF: Final = bytes(2)
#: Past every log sequence number.
_NEVER: Final = 1 << 64
#: The byte of an rmap key that has the flags, and those of them that are part of the key: kernels
#: before 6.3 leave the unwritten flag in, which is none.
_FLAGS_AT: Final = 12
_FLAGS_MASK: Final = 0xFF & ~(XFS_RMAP_OFF_UNWRITTEN >> 56)
OTHER_KEYS: Final = "not the keys that its parent names"


class Shape(NamedTuple):
    """The properties of a kind of tree.

    ``key_code`` and ``extent_code`` are `struct` codes of one key (pair) of a node, and of one
    record's start and length; a tree whose records all cover ``fixed_count`` has no length there.
    One that is ordered ``by_size`` has `size_key` for keys.  Whatever changes a tree that is
    ``counted`` changes the header of its group too, so that none of its blocks is newer.
    """

    kind: str
    magic: int
    record: Layout[RmapRec] | Layout[AllocRec] | Layout[RefcountRec] | Layout[InobtRec]
    key_code: str
    extent_code: str
    fixed_count: int = 0
    by_size: bool = False
    counted: bool = False
    old_magic: int = 0

    @property
    def overlapping(self) -> bool:
        """Whether nodes have a high key beside the low one."""
        return self is RMAPBT


_RMAP_KEY_CODE = f"I{RMAP_KEY.size - 4}x"

RMAPBT: Final = Shape("rmapbt", XFS_RMAP_CRC_MAGIC, RMAP_REC, _RMAP_KEY_CODE * 2, "II16x")
BNOBT: Final = Shape(
    "bnobt", XFS_ABTB_CRC_MAGIC, ALLOC_REC, "I4x", "II", counted=True, old_magic=XFS_ABTB_MAGIC
)
CNTBT: Final = Shape(
    *("cntbt", XFS_ABTC_CRC_MAGIC, ALLOC_REC, "II", "II"),
    by_size=True,
    counted=True,
    old_magic=XFS_ABTC_MAGIC,
)
REFCOUNTBT: Final = Shape("refcountbt", XFS_REFC_CRC_MAGIC, REFCOUNT_REC, "I", "II4x")
INOBT: Final = Shape(
    *("inobt", XFS_IBT_CRC_MAGIC, INOBT_REC, "I", "I12x", XFS_INODES_PER_CHUNK),
    old_magic=XFS_IBT_MAGIC,
)
FINOBT: Final = INOBT._replace(kind="finobt", magic=XFS_FIBT_CRC_MAGIC)


class Fault(NamedTuple):
    """Keys from ``low`` up to, not including, ``high`` whose records are lost or old, and why.

    ``unreadable`` is set if the medium does not return the block: nothing contradicts it then.
    """

    low: int
    high: int
    note: str
    unreadable: bool = False


def _fault(low: int, high: int, error: BlockError) -> Fault:
    return Fault(low, high, str(error), isinstance(error, MediaError))


class Promise(NamedTuple):
    """The keys and neighbours of a child, according to its parent.

    Its keys lie from ``low`` up to, not including, ``high``.  ``low_key`` is the key of its first
    record, ``high_key`` the highest of its records, and ``next_key`` that of the record behind its
    last, as `rmap_key` returns them; empty where nothing is promised.  ``left`` and ``right`` are
    the blocks beside it on its level.
    """

    low: int
    high: int
    low_key: bytes = b""
    high_key: bytes = b""
    next_key: bytes = b""
    left: int = NULLAGBLOCK
    right: int = NULLAGBLOCK


class Leaf(NamedTuple):
    """A leaf whose header has been verified, and its records not yet.

    The ``numrecs`` records at ``offset`` of ``block`` must ascend, and be as promised.
    """

    agbno: int
    promise: Promise
    block: bytes
    offset: int
    numrecs: int

    @property
    def low(self) -> int:
        """The first key that it may hold."""
        return self.promise.low

    @property
    def high(self) -> int:
        """The first key past those that it may hold."""
        return self.promise.high


class Node(NamedTuple):
    """A block decoded for searching: the range of keys of each child or record.

    ``ends`` are exclusive; ``reach[i]`` is the largest of ``ends[:i + 1]``.  All holds for one
    ``promise``; ``doubt`` says how the block is not as promised.
    """

    level: int
    block: bytes
    starts: tuple[int, ...]
    ends: tuple[int, ...]
    reach: list[int]
    children: tuple[int, ...]
    promise: Promise
    promised: dict[int, Promise]
    doubt: str = ""


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
        self._header = SHORT_HEADER.size if volume.has_crc else SHORT_HEADER_SIZE
        space = volume.block_size - self._header
        self._most_children = space // (self._key_size + 4)
        self._most_records = space // shape.record.size
        self._magic = (shape.magic if volume.has_crc else shape.old_magic).to_bytes(4, "big")
        self._uuid_and_owner = volume.uuid + agno.to_bytes(4, "big")
        self._cache: dict[int, Node] = {}
        #: What the header of the group was written with last, and what it counts.
        self._newest = _NEVER
        self._free_blocks = self._longest = 0
        #: Set once the tree was found to have no records.
        self.is_empty = False

    def _root(self) -> tuple[int, int]:
        """Find the root block and the number of levels; raises `BlockError`."""
        if self.shape is INOBT:
            agi = self.volume.agi(self.agno)
            return agi.root, agi.level
        if self.shape is FINOBT:
            agi = self.volume.agi(self.agno)
            return agi.free_root, agi.free_level
        agf = self.volume.agf(self.agno)
        if self.shape.counted:
            self._newest = agf.lsn if self.volume.has_crc else _NEVER
            self._free_blocks, self._longest = agf.freeblks, agf.longest
        return {
            "rmapbt": (agf.rmap_root, agf.rmap_level),
            "bnobt": (agf.bno_root, agf.bno_level),
            "cntbt": (agf.cnt_root, agf.cnt_level),
            "refcountbt": (agf.refcount_root, agf.refcount_level),
        }[self.shape.kind]

    def find(self, low: int, high: int, faults: list[Fault]) -> Iterator[tuple[int, ...]]:
        """Return every record that touches keys from ``low`` up to ``high``, in order."""
        record = self.shape.record

        def touched(node: Node) -> list[int]:
            window = range(bisect_right(node.reach, low), bisect_left(node.starts, high))
            return [index for index in window if node.ends[index] > low]

        for agbno, promise in self._descend(touched, faults):
            try:
                leaf = self._node(agbno, 0, promise)
            except BlockError as error:
                faults.append(_fault(promise.low, promise.high, error))
                continue
            if leaf.doubt:
                faults.append(Fault(promise.low, promise.high, leaf.doubt))
            self.is_empty = not (leaf.starts or leaf.doubt)
            for index in touched(leaf):
                at = self._header + index * record.size
                yield record.struct.unpack_from(leaf.block, at)

    def leaves(self, touched: Callable[[Node], list[int]], faults: list[Fault]) -> Iterator[Leaf]:
        """Return every leaf, in order, below the children that ``touched`` picks of each node."""
        for agbno, promise in self._descend(touched, faults):
            try:
                block, count = self._read(agbno, 0, promise)
                if doubt := self._doubt(block, promise):
                    raise self.corrupt(agbno, doubt)
            except BlockError as error:
                faults.append(_fault(promise.low, promise.high, error))
            else:
                yield Leaf(agbno, promise, block, self._header, count)

    def blocks(self, faults: list[Fault]) -> set[int]:
        """Return the blocks of the tree itself; its leaves are not read."""
        seen: set[int] = set()
        for _ in self._descend(lambda node: list(range(len(node.starts))), faults, seen):
            pass
        return {agbno for agbno in seen if agbno < self.volume.ag_blocks(self.agno)}

    def leads_to(self, agbno: int, head: bytes) -> bool:
        """Return whether the tree has a block at the place of one that begins with ``head``.

        It is looked for by the first key of ``head``, and not read itself.
        """
        if head[:4] != self._magic:
            return False
        start, count = struct.unpack_from(">II", head, self._header)
        first = size_key(start, count) if self.shape.by_size else start

        def touched(node: Node) -> list[int]:
            # In the rmap btree several children may begin with the same block.
            before = max(bisect_left(node.starts, first) - 1, 0)
            return list(range(before, bisect_right(node.starts, first)))

        level = int.from_bytes(head[4:6], "big")
        return any(block == agbno for block, _ in self._descend(touched, [], level=level))

    def _descend(
        self,
        touched: Callable[[Node], list[int]],
        faults: list[Fault],
        seen: set[int] | None = None,
        *,
        level: int = 0,
    ) -> Iterator[tuple[int, Promise]]:
        """Descend to the blocks of a level that are touched, and what is promised of each.

        They are not read.  ``seen`` receives the blocks on the way.
        """
        promise = Promise(0, self.limit)
        try:
            root, levels = self._root()
            if not 0 < levels <= XFS_BTREE_MAXLEVELS:
                raise self.corrupt(root, f"the root of {levels} levels")
        except BlockError as error:
            faults.append(_fault(0, self.limit, error))
            return
        seen = set() if seen is None else seen
        todo = [(root, levels - 1, promise)]
        while todo:
            agbno, at, promise = todo.pop()
            if agbno in seen:
                reason = str(self.corrupt(agbno, "reached twice"))
                faults.append(Fault(promise.low, promise.high, reason))
                continue
            seen.add(agbno)
            if at <= level:
                yield agbno, promise
                continue
            try:
                node = self._node(agbno, at, promise)
            except BlockError as error:
                faults.append(_fault(promise.low, promise.high, error))
                continue
            if node.doubt:
                faults.append(Fault(promise.low, promise.high, node.doubt))
            todo += [
                (node.children[index], at - 1, self._promise(node, index))
                for index in reversed(touched(node))
            ]

    def _promise(self, node: Node, index: int) -> Promise:
        """Return what a node says of a child."""
        promise = node.promised.get(index)
        if promise is None:
            low_key, high_key = self._keys(node, index)
            children = node.children
            left = children[index - 1] if index else _beyond(node.block, _LEFT_AT)
            if index + 1 < len(children):
                next_key, right = self._keys(node, index + 1)[0], children[index + 1]
            else:
                next_key, right = node.promise.next_key, _beyond(node.block, _RIGHT_AT)
            promise = node.promised[index] = Promise(
                node.starts[index], node.ends[index], low_key, high_key, next_key, left, right
            )
        return promise

    def _keys(self, node: Node, index: int) -> tuple[bytes, bytes]:
        """Return the low and the high key of a child; the latter is empty if nodes have none."""
        at = self._header + index * self._key_size
        if not self.shape.overlapping:
            size = self._key_size if self.shape.by_size else _BLOCK_NUMBER
            return node.block[at : at + size], b""
        middle = at + self._key_size // 2
        high = node.block[middle : middle + self._key_size // 2]
        return rmap_key(node.block[at:middle]), rmap_key(high)

    def _node(self, agbno: int, level: int, promise: Promise) -> Node:
        """Return a block decoded, from the cache or from the medium; raises `BlockError`."""
        node = self._cache.get(agbno)
        # A parent that was read anew may promise something else.
        if node is None or (node.promise is not promise and node.promise != promise):
            node = self._decode(agbno, level, promise)
            if len(self._cache) >= _CACHED_BLOCKS:
                self._cache.clear()
            self._cache[agbno] = node
        if node.level != level:
            raise self.corrupt(agbno, f"level {node.level}, not {level}")
        return node

    def _decode(self, agbno: int, level: int, promise: Promise) -> Node:
        block, count = self._read(agbno, level, promise)
        offset = self._header
        children: tuple[int, ...] = ()
        overlapping = self.shape.overlapping
        code = self.shape.key_code if level else self.shape.extent_code
        flat: tuple[int, ...] = struct.unpack_from(">" + code * count, block, offset)
        if self.shape.by_size:
            flat = tuple(map(size_key, flat[::2], flat[1::2]))
        if level:
            pointers_at = offset + self._most_children * self._key_size
            children = struct.unpack_from(f">{count}I", block, pointers_at)
            if overlapping:
                starts, ends = flat[::2], tuple(key + 1 for key in flat[1::2])
            else:
                starts, ends = flat, (*flat[1:], promise.high)
        elif self.shape.by_size:
            starts, ends = flat, tuple(key + 1 for key in flat)
        elif self.shape.fixed_count:
            starts, ends = flat, tuple(start + self.shape.fixed_count for start in flat)
        else:
            starts = flat[::2]
            ends = tuple(map(int.__add__, starts, flat[1::2]))
        in_order = starts if overlapping else tuple(chain.from_iterable(zip(starts, ends)))  # noqa: B905
        if any(map(int.__ge__, starts, ends)) or list(in_order) != sorted(in_order):
            raise self.corrupt(agbno, "keys out of order")
        node = Node(level, block, starts, ends, list(accumulate(ends, max)), children, promise, {})
        if starts and (starts[0] < promise.low or node.reach[-1] > promise.high):
            raise self.corrupt(agbno, "holds keys that its parent does not promise")
        doubt = self._doubt(block, promise)
        if overlapping:
            doubt = self._check_rmap_keys(agbno, node) or doubt
        elif promise.low_key and block[offset : offset + len(promise.low_key)] != promise.low_key:
            doubt = OTHER_KEYS
        return node._replace(doubt=str(self.corrupt(agbno, doubt))) if doubt else node

    def _check_rmap_keys(self, agbno: int, node: Node) -> str:
        """Verify the order of the keys of a node; say how they are not those promised.

        Raises `CorruptError`.
        """
        starts, promise, block = node.starts, node.promise, node.block
        count = len(starts)
        if node.level:
            pairs = [self._keys(node, index) for index in range(count)]
            lows, high = [low for low, _ in pairs], max(high for _, high in pairs)
            if any(map(bytes.__ge__, lows, lows[1:])):
                raise self.corrupt(agbno, "keys out of order")
            first, last = lows[0], lows[-1]
        else:
            for index in range(1, count):
                if starts[index - 1] == starts[index] and (
                    _record_key(block, index - 1) >= _record_key(block, index)
                ):
                    raise self.corrupt(agbno, "records out of order")
            if not promise.low_key:
                return ""
            first, last = _record_key(block, 0), _record_key(block, count - 1)
            high = max(
                rmap_high_key(*RMAP_REC.unpack_from(block, SHORT_HEADER.size + at * RMAP_REC.size))
                for at, end in enumerate(node.ends)
                if end == node.reach[-1]
            )
        if promise.low_key and (first, high) != (promise.low_key, promise.high_key):
            return OTHER_KEYS
        if promise.next_key and last >= promise.next_key:
            return "holds keys that its parent does not promise"
        return ""

    def _read(self, agbno: int, level: int, promise: Promise) -> tuple[bytes, int]:
        """Read a block and verify its header; returns it with its number of records."""
        volume = self.volume
        if agbno >= volume.ag_blocks(self.agno):
            raise self.corrupt(agbno, "past the end of its allocation group")
        start = volume.ag_to_byte(self.agno, agbno)
        block = volume.read(self.shape.kind, start, volume.block_size)
        # The header is compared as bytes, but for counts and LSN: of thousands of leaves, decoding
        # each header to compare its fields takes as long as all the rest.
        count = int.from_bytes(block[6:8], "big")
        if (
            block[:6] == self._magic + level.to_bytes(2, "big")
            and (not volume.has_crc or self._is_whole(block, start))
            # Only a root may be empty.
            and (count or (level == 0 and not promise.low_key))
            and count <= (self._most_children if level else self._most_records)
        ):
            return block, count
        raise self.corrupt(agbno, self._header_fault(block, level, start))

    def _is_whole(self, block: bytes, start: int) -> bool:
        """Return whether a block is of this tree and this place, and as it was written."""
        return (
            block[16:24] == (start // DADDR).to_bytes(8, "big")
            and block[32:52] == self._uuid_and_owner
            and crc_matches(block, XFS_BTREE_SBLOCK_CRC_OFF)
        )

    def _doubt(self, block: bytes, promise: Promise) -> str:
        """Return why a header is not that of the newest version of the block, "" if it may be."""
        for at, expected in ((_LEFT_AT, promise.left), (_RIGHT_AT, promise.right)):
            beside = int.from_bytes(block[at : at + 4], "big")
            if beside != expected and (expected != _SOME_BLOCK or beside == NULLAGBLOCK):
                return "not beside the blocks that its parent names"
        if self._newest < _NEVER and int.from_bytes(block[_LSN_AT:_LSN_END], "big") > self._newest:
            return "newer than the header of its allocation group"
        if self.shape.counted and block[4:6] == _LEAF:
            return self._miscounted(block, promise)
        return ""

    def _miscounted(self, block: bytes, promise: Promise) -> str:
        """Return how a leaf of a free-space btree contradicts the header of the group, or "".

        Only a root has all free blocks, and only the last leaf by size the longest free extent.
        """
        count = int.from_bytes(block[6:8], "big")
        lengths = struct.unpack_from(">" + "4xI" * count, block, self._header)
        if not promise.low_key and sum(lengths) != self._free_blocks:
            return "not as many free blocks as the header of its allocation group counts"
        last = self.shape.by_size and promise.right == NULLAGBLOCK and lengths
        if last and lengths[-1] != self._longest:
            return "not the longest free extent that the header of its allocation group knows"
        return ""

    def _header_fault(self, block: bytes, level: int, start: int) -> str:
        """Return which part of a header is wrong."""
        header = SHORT_HEADER.unpack_from(block)
        if not self.volume.has_crc:
            found = f"level {header.level} and {header.numrecs} records"
            return found if block[:4] == self._magic else "wrong magic number"
        faults = {
            "wrong magic number": header.magic != self.shape.magic,
            "checksum mismatch": not crc_matches(block, XFS_BTREE_SBLOCK_CRC_OFF),
            "of another filesystem": header.uuid != self.volume.uuid,
            f"owned by AG {header.owner}": header.owner != self.agno,
            f"written for byte {header.blkno * DADDR}": header.blkno * DADDR != start,
            f"level {header.level}, not {level}": header.level != level,
        }
        return next((why for why, true in faults.items() if true), f"{header.numrecs} records")

    def corrupt(self, agbno: int, reason: str) -> CorruptError:
        """Make the error for a block of the tree."""
        start = self.volume.ag_to_byte(self.agno, agbno)
        return CorruptError(self.volume.describe(self.shape.kind, start), start, reason)


def size_key(start: int, count: int) -> int:
    """Return the key of a free extent in the tree that is ordered by size."""
    return count << 32 | start


def rmap_key(raw: bytes) -> bytes:
    """Return an rmap key such that keys compare as their bytes do."""
    flags = raw[_FLAGS_AT] & _FLAGS_MASK
    return b"%b%c%b" % (raw[:_FLAGS_AT], flags, raw[_FLAGS_AT + 1 :])


def rmap_high_key(start: int, count: int, owner: int, offset: int) -> bytes:
    """Return the key of the last block of an rmap record."""
    last = count - 1
    offset &= ~XFS_RMAP_OFF_UNWRITTEN
    if not (owner & XFS_RMAP_NON_INODE or offset & XFS_RMAP_OFF_BMBT_BLOCK):
        block = (offset & XFS_RMAP_OFF_MASK) + last & XFS_RMAP_OFF_MASK
        offset = offset & ~XFS_RMAP_OFF_MASK | block
    return struct.pack(">IQQ", start + last, owner, offset)


def _record_key(block: bytes, index: int) -> bytes:
    """Return the low key of record ``index`` of an rmap leaf."""
    at = SHORT_HEADER.size + index * RMAP_REC.size
    return rmap_key(block[at : at + 4] + block[at + 8 : at + RMAP_REC.size])


def _beyond(block: bytes, at: int) -> int:
    """Return what is beside the outermost child: nothing, if nothing is beside its parent."""
    beside = int.from_bytes(block[at : at + 4], "big")
    return NULLAGBLOCK if beside == NULLAGBLOCK else _SOME_BLOCK
