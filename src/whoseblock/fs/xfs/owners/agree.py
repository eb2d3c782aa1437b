"""Comparison of the trees of a group for many blocks at once: `crosscheck` in NumPy."""

from typing import TYPE_CHECKING, Final

import numpy as np

from whoseblock.fs.xfs.format.btree import (
    XFS_INODES_PER_CHUNK,
    XFS_INODES_PER_HOLEMASK_BIT,
    XFS_REFC_COWFLAG,
    XFS_RMAP_NON_INODE,
    XFS_RMAP_OFF_ATTR_FORK,
    XFS_RMAP_OFF_BMBT_BLOCK,
)

if TYPE_CHECKING:
    from numpy.typing import NDArray

    Ints = NDArray[np.int64]

__all__ = ["miscounted", "size_keys", "within_chunks"]

_NOT_SHAREABLE: Final = np.uint64(XFS_RMAP_OFF_ATTR_FORK | XFS_RMAP_OFF_BMBT_BLOCK)


def miscounted(records: "NDArray[np.void]", counts: "NDArray[np.void]") -> "tuple[Ints, Ints]":
    """Return the blocks, from and to, whose rmap records are not as many as are counted.

    ``records`` are of the rmap btree, ``counts`` of the refcount btree; neither need be all that
    there are, but where one side was not read the result means nothing.
    """
    first = records["startblock"].astype(np.int64)
    after = first + records["blockcount"]
    counted = np.empty(0, np.int64), np.empty(0, np.int64), np.empty(0, np.int64)
    if counts.size:
        counts = counts[counts["startblock"] < XFS_REFC_COWFLAG]
        start = counts["startblock"].astype(np.int64)
        counted = start, start + counts["blockcount"], counts["refcount"].astype(np.int64)
    reach = np.maximum.accumulate(after)
    if not counted[0].size and not (reach[:-1] > first[1:]).any():
        return counted[0], counted[0]
    # Not np.unique, which imports numpy.ma.
    edges = np.sort(np.concatenate((first, after, counted[0], counted[1])))
    edges = edges[np.append(True, edges[1:] > edges[:-1])]
    shareable = (records["owner"].astype(np.uint64) & np.uint64(XFS_RMAP_NON_INODE)) == 0
    shareable &= (records["offset"].astype(np.uint64) & _NOT_SHAREABLE) == 0
    sharers = _depth(edges, first[shareable], after[shareable])
    others = _depth(edges, first[~shareable], after[~shareable])
    has_count = _depth(edges, counted[0], counted[1]) > 0
    count = _depth(edges, *counted)
    named = sharers + others
    expected = np.where(has_count, count, np.minimum(named, 1))
    wrong = (named != expected) | (has_count & (count < 2))  # noqa: PLR2004 - one owner has no record
    wrong |= (others > 1) | ((others > 0) & ((sharers > 0) | has_count))
    bad = np.flatnonzero(wrong)
    return edges[:-1][bad], edges[1:][bad]


def _depth(edges: "Ints", low: "Ints", high: "Ints", weights: "Ints | None" = None) -> "Ints":
    """Return how many intervals cover what is between each edge and the next; or their weights."""
    size = edges.size
    up = np.bincount(np.searchsorted(edges, low), weights, size)
    down = np.bincount(np.searchsorted(edges, high), weights, size)
    return np.cumsum(up - down)[:-1].astype(np.int64)


def size_keys(space: "NDArray[np.void]") -> "Ints":
    """Return the keys of free extents in the tree by size, as `btree.size_key` returns one.

    No group has 2³¹ blocks, so that they fit.
    """
    key = space["blockcount"].astype(np.int64) << 32
    return np.asarray(key | space["startblock"])


def within_chunks(
    chunks: "NDArray[np.void]", log: int, low: "Ints", high: "Ints"
) -> "NDArray[np.bool_]":
    """Return whether the blocks from ``low`` up to ``high`` all have inodes of ``chunks``.

    The chunks ascend; a block has ``1 << log`` inodes.
    """
    bits = np.arange(XFS_INODES_PER_CHUNK // XFS_INODES_PER_HOLEMASK_BIT)
    there = (chunks["holemask"].astype(np.int64)[:, None] >> bits & 1) == 0
    inode = chunks["startino"].astype(np.int64)[:, None] + bits * XFS_INODES_PER_HOLEMASK_BIT
    first = inode[there] >> log
    after = -(-(inode[there] + XFS_INODES_PER_HOLEMASK_BIT) >> log)
    if not first.size:
        return np.zeros(low.size, dtype=np.bool_)
    reach = np.maximum.accumulate(after)
    begins = np.flatnonzero(np.concatenate(([True], first[1:] > reach[:-1])))
    run_low = first[begins]
    run_high = reach[np.append(begins[1:], first.size) - 1]
    run = np.searchsorted(run_low, low, "right") - 1
    return np.asarray((run >= 0) & (run_high[run] >= high))
