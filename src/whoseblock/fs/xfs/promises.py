"""Verification of many leaves against their parents at once, with NumPy.

`btree.AgTree` verifies the same of a single leaf that it decodes.
"""

from typing import TYPE_CHECKING, Final

import numpy as np

from whoseblock.fs.xfs.agree import size_keys
from whoseblock.fs.xfs.btree import RMAPBT, AgTree, Fault, Leaf, Shape, size_key
from whoseblock.fs.xfs.format.btree import (
    XFS_RMAP_NON_INODE,
    XFS_RMAP_OFF_BMBT_BLOCK,
    XFS_RMAP_OFF_MASK,
    XFS_RMAP_OFF_UNWRITTEN,
)

if TYPE_CHECKING:
    from numpy.typing import NDArray

    Ints = NDArray[np.int64]
    Bools = NDArray[np.bool_]
    Words = NDArray[np.uint64]

__all__ = ["sound_records", "unpromised"]

_NO_KEY: Final = bytes(20)
_RMAP_KEY: Final = np.dtype([("startblock", ">u4"), ("owner", ">u8"), ("offset", ">u8")])
_NO_UNWRITTEN: Final = np.uint64(~XFS_RMAP_OFF_UNWRITTEN & (1 << 64) - 1)
_BLOCK_MASK: Final = np.uint64(XFS_RMAP_OFF_MASK)
_FLAGS_MASK: Final = np.uint64(~XFS_RMAP_OFF_MASK & (1 << 64) - 1)


def sound_records(
    tree: AgTree, leaves: list[Leaf], faults: list[Fault]
) -> "tuple[NDArray[np.void], Ints, Ints]":
    """Return the records of leaves of a tree: with them, where each starts and ends.

    The records of a leaf that is not as promised are left out, and ``faults`` receives why.
    """
    layout = tree.shape.record
    leaves = [leaf for leaf in leaves if leaf.numrecs]
    raw = b"".join(
        leaf.block[leaf.offset : leaf.offset + leaf.numrecs * layout.size] for leaf in leaves
    )
    records = np.frombuffer(raw, layout.dtype())
    if tree.shape.by_size:
        start = size_keys(records)
        end = start + 1
    else:
        start = records[next(iter(layout.fields))].astype(np.int64)
        end = start + (tree.shape.fixed_count or records["blockcount"])
    if not leaves:
        return records, start, end
    counts = np.array([leaf.numrecs for leaf in leaves])
    broken = unpromised(tree.shape, leaves, records, np.cumsum(counts) - counts, start, end)
    if broken.any():
        faults += [
            Fault(
                leaf.low,
                leaf.high,
                str(tree.corrupt(leaf.agbno, "not the records that belong there")),
            )
            for leaf in map(leaves.__getitem__, np.flatnonzero(broken).tolist())
        ]
        whole = ~np.repeat(broken, counts)
        records, start, end = records[whole], start[whole], end[whole]
    return records, start, end


def unpromised(  # noqa: PLR0913 - all of them describe the same records
    shape: Shape,
    leaves: list[Leaf],
    records: "NDArray[np.void]",
    firsts: "Ints",
    start: "Ints",
    end: "Ints",
) -> "Bools":
    """Return for each leaf whether its records are out of order, or not those promised.

    ``records``, which begin at ``start`` and end before ``end``, are those of all leaves;
    ``firsts`` are the indices of the first of each.
    """
    inner = np.ones(start.size - 1, dtype=np.bool_)
    inner[firsts[1:] - 1] = False
    wrong = end <= start
    if shape is RMAPBT:
        wrong[1:] |= inner & (start[1:] < start[:-1])
        # Records that begin together are those of several owners of the same blocks.
        ties = np.flatnonzero(inner & (start[1:] == start[:-1]))
        wrong[ties + 1] |= ~_less(_keys(records, start, ties), _keys(records, start, ties + 1))
    else:
        wrong[1:] |= inner & (start[1:] < end[:-1])
    broken = np.logical_or.reduceat(wrong, firsts)
    reach = np.maximum.reduceat(end, firsts)
    broken |= start[firsts] < [leaf.promise.low for leaf in leaves]
    broken |= reach > [leaf.promise.high for leaf in leaves]
    promised = np.array([bool(leaf.promise.low_key) for leaf in leaves])
    if shape is not RMAPBT:
        low_keys = [_low_key(shape, leaf.promise.low_key) for leaf in leaves]
        return np.asarray(broken | promised & (start[firsts] != low_keys))
    return np.asarray(broken | promised & _other_keys(leaves, records, firsts, start, end, reach))


def _low_key(shape: Shape, raw: bytes) -> int:
    if shape.by_size:
        return size_key(int.from_bytes(raw[:4], "big"), int.from_bytes(raw[4:], "big"))
    return int.from_bytes(raw, "big")


def _other_keys(  # noqa: PLR0913 - as above
    leaves: list[Leaf],
    records: "NDArray[np.void]",
    firsts: "Ints",
    start: "Ints",
    end: "Ints",
    reach: "Ints",
) -> "Bools":
    """Return for each rmap leaf whether its first, highest and last keys are not as promised."""
    counts = np.diff(firsts, append=start.size)
    lows = _promised([leaf.promise.low_key for leaf in leaves])
    other = ~_equal(_keys(records, start, firsts), lows)
    # The highest key is that of a record which ends last; of several, the owner and offset decide.
    candidates = np.flatnonzero(end == np.repeat(reach, counts))
    leaf = np.repeat(np.arange(counts.size), counts)[candidates]
    block, owner, offset = _keys(records, end - 1, candidates)
    flags = offset & _FLAGS_MASK
    placed = (owner & np.uint64(XFS_RMAP_NON_INODE)) == 0
    placed &= (flags & np.uint64(XFS_RMAP_OFF_BMBT_BLOCK)) == 0
    last = records["blockcount"][candidates].astype(np.uint64) - np.uint64(1)
    with np.errstate(over="ignore"):
        offset = np.where(placed, (offset + last) & _BLOCK_MASK | flags, offset)
    order = np.lexsort((offset, owner, leaf))
    highest = order[np.flatnonzero(np.append(np.diff(leaf[order]), 1))]
    highs = _promised([leaf.promise.high_key for leaf in leaves])
    other |= ~_equal((block[highest], owner[highest], offset[highest]), highs)
    bounded = np.array([bool(leaf.promise.next_key) for leaf in leaves])
    nexts = _promised([leaf.promise.next_key for leaf in leaves])
    other |= bounded & ~_less(_keys(records, start, firsts + counts - 1), nexts)
    return other


def _keys(
    records: "NDArray[np.void]", start: "Ints", index: "Ints"
) -> "tuple[Words, Words, Words]":
    """Return the keys of the records at ``index``, with their blocks from ``start``."""
    some = records[index]
    return (
        start[index].astype(np.uint64),
        some["owner"].astype(np.uint64),
        some["offset"].astype(np.uint64) & _NO_UNWRITTEN,
    )


def _promised(keys: list[bytes]) -> "tuple[Words, Words, Words]":
    """Return keys that parents have, as `_keys` returns those of records."""
    found = np.frombuffer(b"".join(key or _NO_KEY for key in keys), _RMAP_KEY)
    return (
        found["startblock"].astype(np.uint64),
        found["owner"].astype(np.uint64),
        found["offset"].astype(np.uint64),
    )


def _equal(one: "tuple[Words, ...]", other: "tuple[Words, ...]") -> "Bools":
    equal = np.ones(one[0].size, dtype=np.bool_)
    for a, b in zip(one, other, strict=True):
        equal &= a == b
    return equal


def _less(one: "tuple[Words, ...]", other: "tuple[Words, ...]") -> "Bools":
    """Return where a key of ``one`` comes before that of ``other``."""
    less = np.zeros(one[0].size, dtype=np.bool_)
    for a, b in zip(reversed(one), reversed(other), strict=True):
        less = (a < b) | ((a == b) & less)
    return less
