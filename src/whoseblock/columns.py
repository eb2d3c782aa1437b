"""Answers in columns, mapped from the filesystem to the layer that was queried.

Most questions about a disk lie in one partition or volume, which has their bytes unchanged at some
distance.  Their answers stay in columns.  The others are answered one by one, by `Lookup.stream`.
"""

from array import array
from collections.abc import Callable, Iterable, Iterator, Sequence
from itertools import islice
from typing import TYPE_CHECKING, NamedTuple

import numpy as np
from msgspec import UNSET
from msgspec.structs import replace

from whoseblock.fs.arrays import OwnerArrays
from whoseblock.fs.base import Answer
from whoseblock.fs.stream import AnswerColumns, LeadingRows, join_rows
from whoseblock.lookup import Assembled, with_origin
from whoseblock.query import Leaf, Part, Query, QueryList, is_plain
from whoseblock.querying import QueryOptions, StreamItem
from whoseblock.ranges import RangeList
from whoseblock.stack.base import Layer, LayerOffset, RangeMapping, linear_window

if TYPE_CHECKING:
    from numpy.typing import NDArray

    Numbers = NDArray[np.uint64]

__all__ = ["PlacedColumns", "stream_placed"]

#: So many questions are compared with a window at first, and at most.
_FIRST, _MOST = 64, 1 << 16
#: Columns of fewer questions, on the average, cost more than objects; a few windows always pay.
_SHORT_WINDOW, _FEW_WINDOWS = 32, 8


class PlacedColumns(NamedTuple):
    """Answers in the address space of their questions.

    Their places and ``common`` are those of the layer that was queried.  The columns lack two
    fields, which their ``answer`` adds: ``via``, from ``way``, and ``origin``, from ``report`` and
    ``lines``, one for each question.  ``way`` has the layers from the one that was queried down to
    the filesystem's, each with what is added to a place.  An empty ``way`` or ``report`` means that
    the field is left out.
    """

    columns: AnswerColumns
    way: tuple[tuple[str, int], ...] = ()
    report: str = ""
    lines: Sequence[int] = ()


class _Window(NamedTuple):
    """Questions from ``begin`` up to ``end`` that ``mapping`` maps to ``leaf``.

    Without a mapping they are answered one by one.
    """

    begin: int
    end: int
    mapping: RangeMapping | None = None
    leaf: Leaf | None = None


def stream_placed(
    queries: QueryList,
    options: QueryOptions,
    find_leaf: Callable[[Layer], Leaf],
    stream: Callable[[Iterable[Query], QueryOptions], Iterator[StreamItem]],
) -> Iterator[StreamItem | PlacedColumns]:
    """Answer in the order of the queries; ``stream`` answers those that are not in a window.

    All questions about a leaf are asked at once, because it may need a scan for each call.  Where
    the questions alternate between windows, all are answered one by one.
    """
    most = _FEW_WINDOWS + len(queries.ranges) // _SHORT_WINDOW
    windows = list(islice(_windows(queries, find_leaf), most + 1))
    if len(windows) > most:
        yield from stream(queries.queries(), options)
        return
    asked: dict[Leaf, RangeList] = {}
    for window in windows:
        if window.mapping is not None and window.leaf is not None:
            ranges = queries.ranges[window.begin : window.end]
            if distance := _distance(window.mapping):
                starts = np.array(ranges.starts, np.int64) + distance
                ranges = RangeList(array("Q", starts.tobytes()), ranges.lengths)
            if window.leaf in asked:
                asked[window.leaf].extend(ranges)
            else:
                asked[window.leaf] = ranges
    answers = {leaf: _LeafAnswers(leaf, ranges) for leaf, ranges in asked.items()}
    others = (
        query
        for window in windows
        if window.mapping is None
        for query in queries.part(window.begin, window.end).queries()
    )
    other_answers = stream(others, options)
    for window in windows:
        part = queries.part(window.begin, window.end)
        if window.mapping is not None and window.leaf is not None:
            translation = _Translation(window.mapping, window.leaf, bare=options.bare)
            yield from translation.translate(part, answers[window.leaf])
        else:
            yield from _take(other_answers, window.end - window.begin)


def _windows(queries: QueryList, find_leaf: Callable[[Layer], Leaf]) -> Iterator[_Window]:
    """Group consecutive questions by the window in which they are."""
    starts = np.array(queries.ranges.starts, np.uint64)
    ends = starts + np.array(queries.ranges.lengths, np.uint64)
    # Those from ``begin`` up to ``at`` have no window.
    begin = at = 0
    while at < starts.size:
        mapping, leaf = _find_window(queries.layer, int(starts[at]), find_leaf)
        inside = 0 if mapping is None else _count_inside(starts[at:], ends[at:], mapping)
        if not inside:
            at += 1
            continue
        if begin < at:
            yield _Window(begin, at)
        yield _Window(at, at + inside, mapping, leaf)
        begin = at = at + inside
    if begin < at:
        yield _Window(begin, at)


def _find_window(
    layer: Layer, at: int, find_leaf: Callable[[Layer], Leaf]
) -> tuple[RangeMapping | None, Leaf | None]:
    """Return the window of a byte, and the filesystem there; None if there is none."""
    mapping = linear_window(layer, at)
    if mapping is None or mapping.layer is None:
        return None, None
    leaf = find_leaf(mapping.layer)
    if leaf.space is None:
        return None, None
    # An image may be shorter than the device that it is a copy of.
    length = min(mapping.length, leaf.space.device_size - mapping.offset)
    return mapping._replace(length=length), leaf


def _count_inside(starts: "Numbers", ends: "Numbers", mapping: RangeMapping) -> int:
    """Return how many questions, from the first one on, are in a window."""
    low, high = mapping.start, max(mapping.start + mapping.length, 0)
    at, step = 0, _FIRST
    while at < starts.size:
        inside = (starts[at : at + step] >= low) & (ends[at : at + step] <= high)
        if not inside.all():
            return at + int(inside.argmin())
        at += inside.size
        step = min(2 * step, _MOST)
    return at


def _take(stream: Iterator[StreamItem], answers: int) -> Iterator[StreamItem]:
    """Yield the items of the next answers of a stream."""
    while answers:
        item = next(stream)
        yield item
        answers -= isinstance(item, Answer)


def _distance(mapping: RangeMapping) -> int:
    return mapping.offset - mapping.start


class _LeafAnswers:
    """The answers of a leaf, which are taken a few at a time."""

    def __init__(self, leaf: Leaf, ranges: RangeList) -> None:
        if leaf.space is None:
            raise LookupError("a window has a filesystem")
        self._stream = iter(leaf.space.columns_stream(ranges))
        self._columns: AnswerColumns | None = None
        self._at = 0

    def take(self, most: int) -> AnswerColumns | Iterator[StreamItem]:
        """Return up to ``most`` answers as columns, or the items of one answer."""
        if self._columns is None:
            item = next(self._stream)
            if not isinstance(item, AnswerColumns):
                return self._one(item)
            self._columns, self._at = item, 0
        columns, begin = self._columns, self._at
        self._at = min(begin + most, len(columns.questions))
        if self._at == len(columns.questions):
            self._columns = None
        return _cut(columns, begin, self._at)

    def _one(self, item: StreamItem) -> Iterator[StreamItem]:
        # Columns do not follow before an answer has ended.
        following = (one for one in self._stream if not isinstance(one, AnswerColumns))
        yield item
        while isinstance(item, LeadingRows):
            item = next(following)
            yield item


def _cut(columns: AnswerColumns, begin: int, end: int) -> AnswerColumns:
    """Return the answers from ``begin`` up to ``end``."""
    if end - begin == len(columns.questions):
        return columns
    rows = columns.rows
    first, last = np.searchsorted(rows.question, (begin, end)).tolist()
    notes = {at - begin: said for at, said in rows.notes.items() if begin <= at < end}
    part = {name: getattr(rows, name)[first:last] for name in rows._fields[:-2]}
    part["question"] = part["question"] - begin
    return AnswerColumns(
        columns.questions[begin:end],
        OwnerArrays(**part, complete=rows.complete[begin:end], notes=notes),
        columns.common,
        columns.is_odd[begin:end],
        lambda number: columns.answer(begin + number),
    )


class _Translation:
    """Translates the answers about a window to the layer that was queried."""

    def __init__(self, mapping: RangeMapping, leaf: Leaf, *, bare: bool) -> None:
        self._mapping = mapping
        self._leaf = leaf
        self._bare = bare

    def translate(
        self, queries: QueryList, answers: _LeafAnswers
    ) -> Iterator[StreamItem | PlacedColumns]:
        """Yield the answers to ``queries``, which are the next ones of the leaf."""
        at = 0
        while at < len(queries.ranges):
            taken = answers.take(len(queries.ranges) - at)
            if isinstance(taken, AnswerColumns):
                end = at + len(taken.questions)
                yield self._columns(queries.part(at, end), taken)
                at = end
            else:
                yield from self._items(queries.query(at), taken)
                at += 1

    def _items(self, query: Query, items: Iterable[StreamItem]) -> Iterator[StreamItem]:
        """Translate the items of one answer."""
        if not query.named and is_plain(query.layer):
            for item in items:
                yield with_origin(item, query) if isinstance(item, Answer) else item
            return
        mapping = self._mapping
        distance = query.start - mapping.start
        part = mapping._replace(
            start=query.start,
            length=query.length,
            via=tuple(LayerOffset(step.layer, step.start + distance) for step in mapping.via),
            offset=mapping.offset + distance,
        )
        assembled = Assembled(query, bare=self._bare)
        yield from assembled.add(
            [Part(part, self._leaf)], {self._leaf: iter(items)}, QueryOptions(paths=False)
        )
        yield assembled.answer()

    def _columns(self, queries: QueryList, columns: AnswerColumns) -> PlacedColumns:
        def answer(number: int) -> Answer:
            (whole,) = join_rows(self._items(queries.query(number), [columns.answer(number)]))
            return whole

        (common,) = join_rows(self._items(queries.query(0), [columns.common]))
        steps = () if common.via is UNSET else self._mapping.via
        rows = columns.rows
        placed = AnswerColumns(
            queries.ranges,
            rows._replace(start=rows.start - _distance(self._mapping)),
            replace(common, start=0, length=0, origin=UNSET, via=UNSET),
            columns.is_odd,
            answer,
        )
        way = tuple((step.layer, step.start - self._mapping.start) for step in steps)
        return PlacedColumns(placed, way, queries.report, queries.lines)
