"""The bad sectors of a device, and the permanent ones among them."""

from bisect import bisect_left, bisect_right
from collections.abc import Iterable, Iterator
from operator import attrgetter
from typing import Final, Literal, NamedTuple, Self

from whoseblock.ranges import ByteRange, merge, subtract

__all__ = ["BadSectors", "Change", "Mark"]

#: ``good``: readable. ``bad``: fails until the whole sector is written. ``permanent``: fails
#: whatever is written.
Mark = Literal["good", "bad", "permanent"]

_start: Final = attrgetter("start")
_end: Final = attrgetter("end")


class Change(NamedTuple):
    """A new mark for every sector that overlaps ``where``."""

    mark: Mark
    where: ByteRange


class _Runs:
    """Disjoint, ascending ranges, none adjacent; the map of a rescue may have a million."""

    def __init__(self, runs: Iterable[ByteRange] = ()) -> None:
        self.runs = list(runs)

    def add(self, more: ByteRange) -> None:
        first = bisect_left(self.runs, more.start, key=_end)
        last = bisect_right(self.runs, more.end, key=_start)
        self.runs[first:last] = merge([*self.runs[first:last], more])

    def remove(self, cut: ByteRange) -> None:
        touched = self._touched(cut)
        self.runs[touched] = subtract(self.runs[touched], cut)

    def clip(self, asked: ByteRange) -> Iterator[ByteRange]:
        for run in self.runs[self._touched(asked)]:
            start, end = max(run.start, asked.start), min(run.end, asked.end)
            yield ByteRange(start, end - start)

    def _touched(self, asked: ByteRange) -> slice:
        first = bisect_right(self.runs, asked.start, key=_end)
        return slice(first, max(bisect_left(self.runs, asked.end, key=_start), first))


class BadSectors:
    """The bad sectors of a device; ``sector`` is their size in bytes.

    ``bad`` and ``permanent`` are in the form of the properties. Not safe for threads: callers that
    share it must lock it.
    """

    def __init__(
        self, sector: int, bad: Iterable[ByteRange] = (), permanent: Iterable[ByteRange] = ()
    ) -> None:
        self.sector = sector
        self._bad = _Runs(bad)
        self._permanent = _Runs(permanent)

    @property
    def bad(self) -> list[ByteRange]:
        """The ranges that a write heals, disjoint and ascending."""
        return list(self._bad.runs)

    @property
    def permanent(self) -> list[ByteRange]:
        """The permanent bad ranges, disjoint and ascending; no sector is in both lists."""
        return list(self._permanent.runs)

    def copy(self) -> Self:
        """Return a copy."""
        return type(self)(self.sector, self._bad.runs, self._permanent.runs)

    def apply(self, change: Change) -> None:
        """Mark sectors; a permanent bad sector becomes good by the mark good only, not by bad."""
        start = change.where.start // self.sector * self.sector
        where = ByteRange(start, -(-change.where.end // self.sector) * self.sector - start)
        if change.mark == "good":
            self._bad.remove(where)
            self._permanent.remove(where)
        elif change.mark == "permanent":
            self._bad.remove(where)
            self._permanent.add(where)
        else:
            self._bad.add(where)
            for run in list(self._permanent.clip(where)):
                self._bad.remove(run)

    def find_unreadable(self, asked: ByteRange) -> list[ByteRange]:
        """Return the unreadable bytes of a range."""
        return merge([*self._bad.clip(asked), *self._permanent.clip(asked)])

    def find_unwritable(self, asked: ByteRange) -> list[ByteRange]:
        """Return the bytes for which a write to a range fails.

        These are the permanent ones, and those of bad sectors that it covers in part.
        """
        covered = subtract(self._bad.clip(asked), self._covered(asked))
        return merge([*covered, *self._permanent.clip(asked)])

    def heal(self, written: ByteRange) -> int:
        """Mark the sectors that a write covers as good; return how many of them were bad."""
        covered = self._covered(written)
        healed = sum(run.length for run in self._bad.clip(covered))
        self._bad.remove(covered)
        return healed // self.sector

    def _covered(self, written: ByteRange) -> ByteRange:
        """Return the sectors that a write covers completely."""
        first = -(-written.start // self.sector) * self.sector
        last = written.end // self.sector * self.sector
        return ByteRange(first, max(last - first, 0))
