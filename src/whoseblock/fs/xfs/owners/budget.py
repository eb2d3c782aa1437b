"""The records of questions are counted before they are matched, which takes memory."""

from typing import TYPE_CHECKING, NamedTuple

import numpy as np

if TYPE_CHECKING:
    from numpy.typing import NDArray

    Ints = NDArray[np.int64]

__all__ = ["OverBudgetError", "RecordCount", "Window"]


class OverBudgetError(Exception):
    """Several questions have more records than the budget.

    ``cuts`` divide them, in the order asked, so that each part is within it as far as counted: the
    index of its first question, and that past its last.
    """

    def __init__(self, records: "Ints", budget: int) -> None:
        super().__init__(f"more than {budget} records")
        self.cuts: list[tuple[int, int]] = []
        total = np.cumsum(records)
        begin = 0
        while begin < records.size:
            before = int(total[begin] - records[begin])
            end = max(int(np.searchsorted(total, before + budget, "right")), begin + 1)
            self.cuts.append((begin, end))
            begin = end


class Window(NamedTuple):
    """The records from ``first[i]`` up to ``stop[i]`` are all that may touch question i.

    If their ends ascend as their starts do, all of them touch it.
    """

    first: "Ints"
    stop: "Ints"
    ends_ascend: bool


class RecordCount:
    """Counts the records of each question, but the first ``uncounted``, before they are matched."""

    def __init__(self, order: "Ints", budget: int | None, uncounted: int = 0) -> None:
        self._order = order
        self._budget = budget
        self._uncounted = uncounted
        self._records = np.zeros(order.size, dtype=np.int64)
        self._total = 0

    def add(self, number: "Ints", low: "Ints", after: "Ints", window: "Window") -> None:
        """Count the records that touch each question; raises `OverBudgetError`.

        The records end before ``after``, the questions begin at ``low``; the first of these, and of
        the window, have the numbers.
        """
        if self._budget is None or self._order.size == 1:
            return
        # A record touches a question unless it begins past it or ends before it.
        before = window.first
        if not window.ends_ascend:
            before = np.searchsorted(np.sort(after), low, "right")
        self._count(number, (window.stop - before)[: number.size])

    def add_one(self, number: "Ints") -> None:
        """Count one record that touches each question; raises `OverBudgetError`."""
        if not self._uncounted:
            self._count(number, np.ones(number.size, np.int64))

    def _count(self, number: "Ints", records: "Ints") -> None:
        if self._budget is None or self._order.size == 1:
            return
        records = np.maximum(records - self._uncounted, 0)
        self._records[number] += records
        self._total += int(records.sum())
        if self._total > self._budget:
            asked = np.empty_like(self._records)
            asked[self._order] = self._records
            raise OverBudgetError(asked, self._budget)
