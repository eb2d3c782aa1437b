"""Answers in pieces, so that none has to be held whole.

A stream has one `Answer` for each question, in the order asked.  An answer with many rows is
preceded by `LeadingRows`: its first rows, in order.  The `Answer` then holds the last rows only,
and ``complete`` and ``notes`` for all of them.
"""

from collections.abc import Callable, Iterable, Iterator
from typing import TYPE_CHECKING, Final, NamedTuple

from msgspec import Struct
from msgspec.structs import replace

from whoseblock.fs.base import Answer, Owner
from whoseblock.ranges import RangeList

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    from whoseblock.fs.arrays import OwnerArrays

__all__ = ["ROW_BUDGET", "AnswerColumns", "LeadingRows", "chunks", "join_rows"]

#: The rows that are held at once as objects: about 500 bytes each.
ROW_BUDGET: Final = 1 << 16


class LeadingRows(Struct, frozen=True):
    """The next rows of the answer about ``length`` bytes from ``start``; more rows follow."""

    start: int
    length: int
    owners: tuple[Owner, ...]


class AnswerColumns(NamedTuple):
    """Whole answers to consecutive questions, without paths, not yet as objects.

    ``rows`` are ordered by question, and each question has one at least.  ``common`` has the fields
    that the answers share: all but ``start``, ``length`` and ``owners``.  ``is_odd`` is true for a
    question whose answer has other fields; ``answer`` makes the answer of a question as an object.
    """

    questions: RangeList
    rows: "OwnerArrays"
    common: Answer
    is_odd: "NDArray[np.bool_]"
    answer: Callable[[int], Answer]


def join_rows(stream: Iterable[LeadingRows | Answer]) -> Iterator[Answer]:
    """Return whole answers: put the leading rows of each before its last ones."""
    rows: list[Owner] = []
    for item in stream:
        if isinstance(item, LeadingRows):
            rows += item.owners
        elif rows:
            yield replace(item, owners=(*rows, *item.owners))
            rows = []
        else:
            yield item


def chunks(
    stream: Iterable[LeadingRows | Answer], budget: int
) -> Iterator[list[LeadingRows | Answer]]:
    """Group the items of a stream into lists with about ``budget`` rows each."""
    chunk: list[LeadingRows | Answer] = []
    rows = 0
    for item in stream:
        chunk.append(item)
        rows += len(item.owners)
        if rows >= budget:
            yield chunk
            chunk, rows = [], 0
    if chunk:
        yield chunk
