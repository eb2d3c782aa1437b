"""Many failures of one report in columns: a map of a dying disk has millions of lines."""

from array import array
from collections.abc import Iterable, Iterator
from itertools import islice
from typing import Final, NamedTuple, Self

from whoseblock.ranges import RangeList
from whoseblock.sources.base import Failure

__all__ = ["FailureList", "NumberedText"]

#: So many failures that were parsed one by one are put into one list.
_MANY: Final = 1 << 12


class FailureList(NamedTuple):
    """Failures of the device that the user named, 24 bytes each.

    ``lines`` are their lines in the report, whose name is ``report``.
    """

    ranges: RangeList
    report: str
    lines: "array[int]"

    @classmethod
    def of(cls, report: str, failures: Iterable[tuple[int, int, int]]) -> Self:
        """Return the list of failures in ``report``, each a start, a length and a line."""
        numbers = array("Q")
        for failure in failures:
            numbers.extend(failure)
        return cls(RangeList(numbers[::3], numbers[1::3]), report, numbers[2::3])

    @classmethod
    def many_of(cls, report: str, failures: Iterable[tuple[int, int, int]]) -> Iterator[Self]:
        """Yield lists of the failures in ``report``, of a few thousand each."""
        waiting = iter(failures)
        while some := list(islice(waiting, _MANY)):
            yield cls.of(report, some)

    def failures(self) -> Iterator[Failure]:
        """Yield each failure as an object."""
        for (start, length), line in zip(self.ranges, self.lines, strict=True):
            yield Failure(start, length, "", f"{self.report}, line {line}")


class NumberedText:
    """The lines of a text that comes in pieces of whole lines: an iterator of numbers and lines.

    The rest of the text can be taken in its pieces at any time.
    """

    def __init__(self, pieces: Iterable[str]) -> None:
        self._pieces = iter(pieces)
        self._text = ""
        self._at = 0
        self._number = 0

    def __iter__(self) -> Iterator[tuple[int, str]]:
        return self

    def __next__(self) -> tuple[int, str]:
        while self._at == len(self._text):
            self._text, self._at = next(self._pieces), 0
        begin = self._at
        self._at = self._text.find("\n", begin) + 1 or len(self._text)
        self._number += 1
        return self._number, self._text[begin : self._at]

    def rest(self) -> Iterator[tuple[int, str]]:
        """Yield what is left of the text in pieces, each with the number of its first line."""
        text = self._text[self._at :]
        self._at = len(self._text)
        while True:
            if text:
                yield self._number + 1, text
                self._number += text.count("\n")
            text = next(self._pieces, "")
            if not text:
                return
