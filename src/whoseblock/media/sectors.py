"""Which sectors of a device are bad, and which of those stay so whatever is written."""

from bisect import bisect_left, bisect_right
from collections.abc import Iterable, Iterator
from operator import attrgetter
from typing import Final, Literal, NamedTuple, Self

from whoseblock.ranges import ByteRange, merge, subtract

__all__ = ["BadSectors", "Change", "Mark"]

#: ``good``: readable. ``bad``: fails until the whole sector is written. ``stubborn``: always fails.
Mark = Literal["good", "bad", "stubborn"]

_start: Final = attrgetter("start")
_end: Final = attrgetter("end")


class Change(NamedTuple):
    """Give every sector that ``where`` touches the mark ``mark``."""

    mark: Mark
    where: ByteRange


class _Runs:
    """Disjoint ranges, ascending, none of them adjacent: a map of a rescue may have a million."""

    def __init__(self, runs: Iterable[ByteRange] = ()) -> None:
        self.runs = list(runs)

    def add(self, more: ByteRange) -> None:
        first = bisect_left(self.runs, more.start, key=_end)
        last = bisect_right(self.runs, more.end, key=_start)
        self.runs[first:last] = merge([*self.runs[first:last], more])

    def remove(self, cut: ByteRange) -> None:
        touched = self._touched(cut)
        self.runs[touched] = subtract(self.runs[touched], cut)

    def within(self, asked: ByteRange) -> Iterator[ByteRange]:
        for run in self.runs[self._touched(asked)]:
            start, end = max(run.start, asked.start), min(run.end, asked.end)
            yield ByteRange(start, end - start)

    def _touched(self, asked: ByteRange) -> slice:
        first = bisect_right(self.runs, asked.start, key=_end)
        return slice(first, max(bisect_left(self.runs, asked.end, key=_start), first))


class BadSectors:
    """The bad sectors of a device; ``sector`` is their size in bytes.

    It begins with ``bad`` and ``stubborn``, which are as the properties give them.  Not safe for
    threads by itself: whoever shares it has the lock.
    """

    def __init__(
        self, sector: int, bad: Iterable[ByteRange] = (), stubborn: Iterable[ByteRange] = ()
    ) -> None:
        self.sector = sector
        self._bad = _Runs(bad)
        self._stubborn = _Runs(stubborn)

    @property
    def bad(self) -> list[ByteRange]:
        """What writing heals, as disjoint ranges, ascending."""
        return list(self._bad.runs)

    @property
    def stubborn(self) -> list[ByteRange]:
        """What nothing heals, as disjoint ranges, ascending; no sector is in both lists."""
        return list(self._stubborn.runs)

    def copy(self) -> Self:
        """Give another one with the same sectors."""
        return type(self)(self.sector, self._bad.runs, self._stubborn.runs)

    def apply(self, change: Change) -> None:
        """Mark sectors; what is stubborn stays so if it is called bad, but not if called good."""
        start = change.where.start // self.sector * self.sector
        where = ByteRange(start, -(-change.where.end // self.sector) * self.sector - start)
        if change.mark == "good":
            self._bad.remove(where)
            self._stubborn.remove(where)
        elif change.mark == "stubborn":
            self._bad.remove(where)
            self._stubborn.add(where)
        else:
            self._bad.add(where)
            for run in list(self._stubborn.within(where)):
                self._bad.remove(run)

    def failing(self, asked: ByteRange) -> list[ByteRange]:
        """Give the bytes of ``asked`` that cannot be read."""
        return merge([*self._bad.within(asked), *self._stubborn.within(asked)])

    def refusing(self, asked: ByteRange) -> list[ByteRange]:
        """Give the bytes for which a write to ``asked`` fails.

        These are the stubborn ones, and those of bad sectors that it covers in part.
        """
        covered = subtract(self._bad.within(asked), self._covered(asked))
        return merge([*covered, *self._stubborn.within(asked)])

    def heal(self, written: ByteRange) -> int:
        """Take note that ``written`` was written; give how many sectors that healed."""
        covered = self._covered(written)
        healed = sum(run.length for run in self._bad.within(covered))
        self._bad.remove(covered)
        return healed // self.sector

    def _covered(self, written: ByteRange) -> ByteRange:
        """Give the sectors that are written whole."""
        first = -(-written.start // self.sector) * self.sector
        last = written.end // self.sector * self.sector
        return ByteRange(first, max(last - first, 0))
