"""The engine of a forward scan for very many ranges, with NumPy: the same answers as `engine`.

A driver yields columns; what intersects the ranges stays in columns, 48 bytes for each extent.
"""

from collections.abc import Callable, Iterable, Iterator
from typing import TYPE_CHECKING, NamedTuple

import numpy as np

from whoseblock.fs.scan.engine import WHAT_MASK, Batch, Extent, Found, UnreadInodes, Wanted

if TYPE_CHECKING:
    from numpy.typing import NDArray

    Ints = NDArray[np.int64]

__all__ = ["ArrayBatch", "ExtentArrays", "FoundArrays", "merge_ranges", "run_bulk_scan"]


class ExtentArrays(NamedTuple):
    """Extents as columns of one length, with the fields of an `Extent`."""

    starts: "Ints"
    lengths: "Ints"
    inodes: "Ints"
    forks: "Ints"
    offsets: "Ints"
    flags: "Ints"

    @classmethod
    def of(cls, batch: Batch) -> "ExtentArrays":
        """Convert a batch."""
        starts, lengths, inodes, forks, offsets, flags, _ = batch
        columns = (starts, lengths, inodes, forks, offsets, flags)
        return cls(*(np.array(column, np.int64) for column in columns))

    @classmethod
    def join(cls, parts: Iterable["ExtentArrays"]) -> "ExtentArrays":
        """Join columns."""
        joined = [np.concatenate(column) for column in zip(*parts, strict=True)]
        return cls(*joined) if joined else cls.of(Batch.of((), 0))

    @property
    def whats(self) -> "Ints":
        """The content of each extent; see `engine.what_of`."""
        return self.flags >> 1 & WHAT_MASK

    def pick(self, which: "NDArray[np.bool_] | Ints | slice") -> "ExtentArrays":
        """Return the extents that ``which`` selects."""
        return ExtentArrays(*(column[which] for column in self))

    def objects(self) -> Iterator[Extent]:
        """Yield the extents as objects."""
        return map(Extent._make, zip(*(column.tolist() for column in self), strict=True))


class ArrayBatch(NamedTuple):
    """Extents as arrays; ``inodes_done`` is how many inodes were read for them."""

    extents: ExtentArrays
    inodes_done: int = 0


class FoundArrays(Found):
    """The result of a scan in columns, by their start; ``reach`` is the largest end so far."""

    def __init__(self) -> None:
        self._parts: list[ExtentArrays] = []
        self.columns = ExtentArrays.join([])
        self.reach = self.columns.starts
        super().__init__()

    @property
    def extents(self) -> list[Extent]:
        """The extents as objects; those that replace them are sorted by `finish`."""
        return list(self.columns.objects())

    @extents.setter
    def extents(self, extents: list[Extent]) -> None:
        self._parts = [ExtentArrays.of(Batch.of(extents, 0))]
        self.columns = self._parts[0]

    def add(self, extents: ExtentArrays) -> None:
        """Add extents that intersect the ranges."""
        self._parts.append(extents)

    def finish(self) -> None:
        """Sort the extents for `within`."""
        columns = ExtentArrays.join(self._parts)
        keys = (columns.flags, columns.offsets, columns.forks, columns.inodes)
        self.columns = columns.pick(np.lexsort((*keys, columns.lengths, columns.starts)))
        self._parts = [self.columns]
        ends = self.columns.starts + self.columns.lengths
        self.reach = np.maximum.accumulate(ends)

    def has_flag(self, flag: int) -> bool:
        """Return whether any extent has a flag."""
        return bool((self.columns.flags & flag).any())

    def within(self, low: int, high: int) -> list[Extent]:
        """Return the extents that intersect a range, by their start; `finish` comes before."""
        first = int(np.searchsorted(self.reach, low, "right"))
        last = int(np.searchsorted(self.columns.starts, high))
        if first >= last:
            return []
        return [one for one in self.columns.pick(slice(first, last)).objects() if one.end > low]


def merge_ranges(lows: "Ints", highs: "Ints") -> Wanted:
    """Return the union of ranges, as `Wanted` makes it."""
    order = np.argsort(lows, kind="stable")
    lows, reach = lows[order], np.maximum.accumulate(highs[order])
    begins = np.append(True, lows[1:] > reach[:-1])[: len(lows)]
    wanted = Wanted(())
    wanted.lows = lows[begins].tolist()
    wanted.highs = reach[np.append(begins[1:], True)[: len(lows)]].tolist()
    return wanted


def run_bulk_scan(
    source: Iterable[Batch | ArrayBatch | UnreadInodes],
    wanted: Wanted,
    progress: Callable[[int], None] | None = None,
) -> FoundArrays:
    """Return all extents of ``source`` that intersect ``wanted``; see `engine.run_scan`."""
    found = FoundArrays()
    lows, highs = np.array(wanted.lows, np.int64), np.array(wanted.highs, np.int64)
    for item in source:
        if isinstance(item, UnreadInodes):
            found.add_unread(item)
            continue
        found.inodes_read += item.inodes_done
        if progress is not None:
            progress(found.inodes_read)
        extents = item.extents if isinstance(item, ArrayBatch) else ExtentArrays.of(item)
        # The ranges that end at or before the start, and those that begin before the end.
        before = np.searchsorted(highs, extents.starts, "right")
        upto = np.searchsorted(lows, extents.starts + extents.lengths)
        picked = before < upto
        if picked.any():
            found.add(extents.pick(picked))
    found.finish()
    return found
