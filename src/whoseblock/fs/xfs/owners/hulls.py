"""One question about each record, instead of many: their hull is looked up and confirmed.

Most questions lie within one record.  All those within the same record get the row of their hull,
clipped to themselves.
"""

from typing import TYPE_CHECKING

import numpy as np

from whoseblock.fs.xfs.owners.intervals import run_starts

if TYPE_CHECKING:
    from numpy.typing import NDArray

    Ints = NDArray[np.int64]
    Bools = NDArray[np.bool_]

__all__ = ["Hulls"]


class Hulls:
    """The hulls of questions, which have the numbers from 0 up to ``questions``.

    Hulls have the numbers from there up to twice as many.
    """

    def __init__(self, questions: int) -> None:
        self.questions = questions
        #: The hull of each question, -1 if it is looked up itself.
        self._hull = np.full(questions, -1)

    def join(
        self, record: "Ints", number: "Ints", low: "Ints", high: "Ints"
    ) -> "tuple[Ints, Ints, Ints, Ints]":
        """Join questions of the same ``record``; return the columns of the hulls, alike.

        The records and ``low`` ascend.  No record may be joined twice.
        """
        heads = run_starts(record)
        if not heads.size:
            return record, number, low, high
        hulls = self.questions + number[heads]
        self._hull[number] = np.repeat(hulls, np.diff(heads, append=number.size))
        return record[heads], hulls, low[heads], np.maximum.reduceat(high, heads)

    def mark(self, odd: "Bools") -> None:
        """Mark the questions as odd whose hull is."""
        if odd[self.questions :].any():
            joined = np.flatnonzero(self._hull >= 0)
            odd[joined] |= odd[self._hull[joined]]

    def spread(self, rows: "NDArray[np.void]", odd: "Bools") -> "tuple[Ints, Ints]":
        """Return the index of every question's rows, and the question of each.

        A hull that is not ``odd`` has one row, which is that of all its questions but the odd ones.
        """
        number = rows["question"]
        is_hull = number >= self.questions
        row_of = np.full(self.questions, -1)
        row_of[number[is_hull] - self.questions] = np.flatnonzero(is_hull)
        alone = np.flatnonzero(~is_hull)
        joined = np.flatnonzero((self._hull >= 0) & ~odd[: self.questions])
        index = row_of[self._hull[joined] - self.questions]
        if not alone.size:
            return index, joined
        return np.concatenate((alone, index)), np.concatenate((number[alone], joined))
