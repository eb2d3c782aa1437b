"""The questions: failed ranges of layers, one by one and in columns, and where their parts lead."""

from collections.abc import Iterator
from typing import TYPE_CHECKING, NamedTuple

from whoseblock.errors import WhoseblockError
from whoseblock.fs.driver import AddressSpace
from whoseblock.ranges import RangeList
from whoseblock.stack.base import Layer, RangeMapping

if TYPE_CHECKING:
    from array import array

__all__ = ["Leaf", "Part", "Query", "QueryList", "is_plain"]


class Query(NamedTuple):
    """``length`` bytes from ``start`` of ``layer`` that failed.

    ``origin`` is where the failure was read, "" if the user named it; only then must the range be
    on the device.  ``named`` puts ``via`` into the answer in any case; see `QueryOptions.bare`.
    ``remark`` becomes a note of the answer that does not make it incomplete.
    """

    start: int
    length: int
    layer: Layer
    origin: str = ""
    named: bool = False
    remark: str = ""


class QueryList(NamedTuple):
    """Failed ranges of one layer, without remarks, in columns.

    ``lines`` are those of the ``report`` where they were read; there are none if the user named the
    ranges.  The rest is as in a `Query`.
    """

    layer: Layer
    ranges: RangeList
    report: str
    lines: "array[int]"
    named: bool

    def query(self, number: int) -> Query:
        """Return one of the questions."""
        start, length = self.ranges[number]
        origin = f"{self.report}, line {self.lines[number]}" if self.report else ""
        return Query(start, length, self.layer, origin, self.named)

    def queries(self) -> Iterator[Query]:
        """Yield each question."""
        return map(self.query, range(len(self.ranges)))

    def part(self, begin: int, end: int) -> "QueryList":
        """Return the questions from ``begin`` up to ``end``."""
        return self._replace(ranges=self.ranges[begin:end], lines=self.lines[begin:end])


class Leaf:
    """The content of a layer that nothing is made of: an address space, or the reason why not."""

    def __init__(self, space: AddressSpace | None, error: WhoseblockError | None = None) -> None:
        self.space = space
        self.error = error


class Part(NamedTuple):
    """A part of a query: where it led, and what is there; None if there is nothing to query."""

    mapping: RangeMapping
    leaf: Leaf | None


def is_plain(layer: Layer) -> bool:
    """Return whether the answers of the filesystem on a layer need no translation."""
    return not (layer.segments or layer.backing_segments or layer.remarks or layer.doubts)
