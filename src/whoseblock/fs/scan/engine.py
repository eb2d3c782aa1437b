"""The engine of a forward scan: which of all extents of a filesystem touch the ranges asked about.

A driver reads its inode tables and yields what it decodes in batches of columns.  The engine keeps
only what intersects the ranges, which takes two bisections for each extent.  Memory grows with
the answer, not with the filesystem.  What a driver could not read or verify is a range of inodes
that may own the ranges, too.

Starts, lengths and offsets have one unit, which the driver chooses.
"""

from bisect import bisect_left, bisect_right
from collections.abc import Callable, Iterable, Iterator, Sequence
from itertools import accumulate, compress, repeat
from typing import Final, NamedTuple

__all__ = [
    "UNWRITTEN",
    "WHAT_MASK",
    "Batch",
    "Extent",
    "Found",
    "UnreadInodes",
    "Wanted",
    "run_scan",
    "what_of",
]

#: The lowest bit of `Extent.flags`; the eight above it are a number of `WHATS`, and those above are
#: the driver's own.
UNWRITTEN: Final = 1
WHAT_MASK: Final = 0xFF
#: So many ranges of unread inodes are listed; further ones are only counted.
_MOST_UNREAD: Final = 64


def what_of(flags: int) -> int:
    """Return what an extent holds, as a number of `whoseblock.fs.arrays.WHATS`."""
    return flags >> 1 & WHAT_MASK


class Extent(NamedTuple):
    """``length`` units from ``start`` that a fork of an inode has at ``offset``; -1 is a map."""

    start: int
    length: int
    inode: int
    fork: int
    offset: int
    flags: int

    @property
    def end(self) -> int:
        """The first unit past it."""
        return self.start + self.length

    @property
    def what(self) -> int:
        """The content, as a number of `whoseblock.fs.arrays.WHATS`."""
        return what_of(self.flags)

    @property
    def unwritten(self) -> bool:
        """Whether it was reserved and never written."""
        return bool(self.flags & UNWRITTEN)


class Batch(NamedTuple):
    """Extents as columns; ``inodes_done`` is how many inodes were read for them."""

    starts: Sequence[int]
    lengths: Sequence[int]
    inodes: Sequence[int]
    forks: Sequence[int]
    offsets: Sequence[int]
    flags: Sequence[int]
    inodes_done: int = 0

    @classmethod
    def of(
        cls, rows: Sequence[tuple[int, int, int, int, int, int]], inodes_done: int = 0
    ) -> "Batch":
        """Make a batch of rows with the fields of `Extent`."""
        if not rows:
            return cls((), (), (), (), (), (), inodes_done)
        starts, lengths, inodes, forks, offsets, flags = zip(*rows, strict=True)
        return cls(starts, lengths, inodes, forks, offsets, flags, inodes_done)


class UnreadInodes(NamedTuple):
    """The inodes from ``first`` to ``last`` could not be read or verified, or not all of them."""

    first: int
    last: int
    reason: str


class Wanted:
    """The union of the ranges asked about: sorted, disjoint, and not adjacent."""

    def __init__(self, ranges: Iterable[tuple[int, int]]) -> None:
        self.lows: list[int] = []
        self.highs: list[int] = []
        for low, high in sorted(ranges):
            if self.highs and low <= self.highs[-1]:
                self.highs[-1] = max(self.highs[-1], high)
            else:
                self.lows.append(low)
                self.highs.append(high)

    def __bool__(self) -> bool:
        return bool(self.lows)

    @property
    def total(self) -> int:
        """The number of units in all ranges."""
        return sum(self.highs) - sum(self.lows)

    def within(self, low: int, high: int) -> Iterator[tuple[int, int]]:
        """Yield the parts of the ranges from ``low`` to before ``high``, in order."""
        for index in range(bisect_right(self.highs, low), bisect_left(self.lows, high)):
            yield max(self.lows[index], low), min(self.highs[index], high)

    def gaps(self, low: int, high: int) -> Iterator[tuple[int, int]]:
        """Yield the parts from ``low`` to before ``high`` that no range covers, in order."""
        for start, end in self.within(low, high):
            if low < start:
                yield low, start
            low = end
        if low < high:
            yield low, high

    def touched(self, batch: Batch) -> Iterable[Extent]:
        """Return the extents of a batch that intersect the ranges."""
        starts, lengths = batch.starts, batch.lengths
        if len(self.lows) == 1:
            low, high = self.lows[0], self.highs[0]
            picked = [
                start < high and start + length > low
                for start, length in zip(starts, lengths, strict=True)
            ]
        else:
            ends = map(int.__add__, starts, lengths)
            # The ranges that end at or before the start, and those that begin before the end.
            before = map(bisect_right, repeat(self.highs), starts)
            upto = map(bisect_left, repeat(self.lows), ends)
            picked = [first < last for first, last in zip(before, upto, strict=True)]
        if not any(picked):
            return ()
        return map(Extent._make, compress(zip(*batch[:6], strict=True), picked))

    def is_covered(self, extents: Iterable[Extent]) -> bool:
        """Return whether extents cover all ranges."""
        runs = sorted((extent.start, extent.end) for extent in extents)
        starts = [start for start, _ in runs]
        for low, high in zip(self.lows, self.highs, strict=True):
            at = low
            for start, end in runs[: bisect_left(starts, high)]:
                if start > at:
                    break
                at = max(at, end)
            if at < high:
                return False
        return True


class Found:
    """The result of a scan: extents by their start, and what could not be read.

    ``inodes_read`` counts the inodes read; ``is_whole`` is false if the scan stopped early.
    ``unread_count`` is the number of inodes that ``unread`` covers, those included that are not
    listed.  ``unowned_values`` is the driver's own: inodes that an attribute should have.
    """

    def __init__(self) -> None:
        self.unowned_values: set[int] = set()
        self.extents: list[Extent] = []
        self.unread: list[UnreadInodes] = []
        self.unread_count = 0
        self.inodes_read = 0
        self.is_whole = True
        self._starts: list[int] = []
        self._reach: list[int] = []

    def finish(self) -> None:
        """Sort the extents for `within`."""
        self.extents.sort()
        self._starts = [extent.start for extent in self.extents]
        self._reach = list(accumulate((extent.end for extent in self.extents), max))

    def has_flag(self, flag: int) -> bool:
        """Return whether any extent has a flag."""
        return any(one.flags & flag for one in self.extents)

    def add_unread(self, unread: UnreadInodes) -> None:
        """Add inodes that could not be read."""
        self.unread_count += unread.last - unread.first + 1
        if len(self.unread) < _MOST_UNREAD:
            self.unread.append(unread)

    def within(self, low: int, high: int) -> list[Extent]:
        """Return the extents that intersect a range, by their start; `finish` comes before."""
        # Before the first whose reach passes the start, none does.
        first = bisect_right(self._reach, low)
        last = bisect_left(self._starts, high)
        return [extent for extent in self.extents[first:last] if extent.end > low]


def run_scan(
    source: Iterable[Batch | UnreadInodes],
    wanted: Wanted,
    is_enough: Callable[[list[Extent]], bool] | None = None,
    progress: Callable[[int], None] | None = None,
) -> Found:
    """Return all extents of ``source`` that intersect ``wanted``.

    ``is_enough`` may end the scan after a batch that had any.  ``progress`` takes the number of
    inodes read so far.
    """
    found = Found()
    length = 0
    for item in source:
        if isinstance(item, UnreadInodes):
            found.add_unread(item)
            continue
        found.inodes_read += item.inodes_done
        if progress is not None:
            progress(found.inodes_read)
        new = list(wanted.touched(item))
        if not new:
            continue
        found.extents += new
        length += sum(extent.length for extent in new)
        # Only so many units can cover all ranges: a cheap test before the other.
        if is_enough is not None and length >= wanted.total and is_enough(found.extents):
            found.is_whole = False
            break
    found.finish()
    return found
