"""Records of a reverse map that a forward scan makes, with NumPy: the same as `scanned` makes."""

from collections.abc import Iterable
from typing import TYPE_CHECKING

import numpy as np

from whoseblock.fs.pieces import ATTR, DIRECTORY, EXTENT_MAP, FILE, FILE_DATA, SYMLINK
from whoseblock.fs.scan.bulk import ExtentArrays, FoundArrays
from whoseblock.fs.scan.engine import UNWRITTEN, Batch, Found
from whoseblock.fs.xfs.format.btree import (
    RMAP_REC,
    XFS_RMAP_OFF_ATTR_FORK,
    XFS_RMAP_OFF_BMBT_BLOCK,
    XFS_RMAP_OFF_UNWRITTEN,
)

if TYPE_CHECKING:
    from numpy.typing import NDArray

    Ints = NDArray[np.int64]

__all__ = ["ExtentRecords"]


class ExtentRecords:
    """The extents that a scan found, as records of the reverse map."""

    def __init__(self, found: Found) -> None:
        if isinstance(found, FoundArrays):
            self._extents, self._reach = found.columns, found.reach
        else:
            self._extents = ExtentArrays.of(Batch.of(found.extents))
            ends = self._extents.starts + self._extents.lengths
            self._reach = np.maximum.accumulate(ends)
        whats = self._extents.whats
        self._inodes = {
            what: np.unique(self._extents.inodes[whats == what]) for what in (DIRECTORY, SYMLINK)
        }

    def within(
        self, base: int, low: int, high: int, metadata: Iterable[tuple[int, int, int, int]]
    ) -> "NDArray[np.void]":
        """Return the records that touch blocks of the group that begins at block ``base``.

        They have the layout `RMAP_REC`, and the order of the rmap btree; ``metadata`` are others.
        """
        first = np.searchsorted(self._reach, base + low, "right")
        last = max(np.searchsorted(self._extents.starts, base + high), first)
        own = self._extents.pick(slice(int(first), int(last)))
        whats = own.whats
        is_map = whats == EXTENT_MAP
        offsets = np.where(is_map, 0, own.offsets).astype(np.uint64)
        for which, flag in (
            (own.forks == ATTR, XFS_RMAP_OFF_ATTR_FORK),
            (is_map, XFS_RMAP_OFF_BMBT_BLOCK),
            (own.flags & UNWRITTEN != 0, XFS_RMAP_OFF_UNWRITTEN),
        ):
            offsets[which] |= np.uint64(flag)
        joined = _join(own.starts - base, own.lengths, own.inodes, offsets, is_map)
        others = np.array(list(metadata), np.uint64).reshape(-1, len(joined))
        start, count, owner, offset = (
            np.concatenate((column.astype(np.uint64), other))
            for column, other in zip(joined, others.T, strict=True)
        )
        order = np.lexsort((offset, owner, count, start))
        records = np.empty(order.size, RMAP_REC.dtype())
        columns = (start, count, owner, offset)
        for name, column in zip(RMAP_REC.fields, columns, strict=True):
            records[name] = column[order]
        return records

    def set_whats(self, rows: "NDArray[np.void]") -> None:
        """Set what the data forks hold that rows are of."""
        data = np.flatnonzero((rows["kind"] == FILE) & (rows["what"] == FILE_DATA))
        inodes = rows["inode"][data].astype(np.int64)
        for what, of_it in self._inodes.items():
            rows["what"][data[np.isin(inodes, of_it)]] = what


def _join(
    start: "Ints",
    count: "Ints",
    owner: "Ints",
    offset: "NDArray[np.uint64]",
    is_map: "NDArray[np.bool_]",
) -> "tuple[Ints, Ints, Ints, NDArray[np.uint64]]":
    """Join records as the reverse map does: those that follow one another in file and device."""
    # The same for all records that may be joined; it may wrap around.
    key = np.where(is_map, offset, offset - start.astype(np.uint64))
    order = np.lexsort((start, key, owner))
    start, count, owner = start[order], count[order], owner[order]
    offset, key = offset[order], key[order]
    follows = (owner[1:] == owner[:-1]) & (key[1:] == key[:-1])
    follows &= start[1:] == start[:-1] + count[:-1]
    heads = np.flatnonzero(np.append(True, ~follows)[: len(start)])
    if heads.size < start.size:
        count = np.add.reduceat(count, heads)
    return start[heads], count, owner[heads], offset[heads]
