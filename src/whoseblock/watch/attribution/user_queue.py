"""The failures whose processes are yet to be searched, kept so that a kill forgets none."""

from typing import NamedTuple

from msgspec import Struct, field

from whoseblock.closing import Closing
from whoseblock.fs.base import Answer
from whoseblock.watch.attribution.failure_records import FailureRecord
from whoseblock.watch.attribution.process_search import Devices, ProcessSearch
from whoseblock.watch.store.reports import FailedRange
from whoseblock.watch.store.state import StateFolder

__all__ = ["Unsearched", "UserQueue"]

#: So many failures are searched together.
_AT_A_TIME = 256


class Unsearched(NamedTuple):
    """A failure whose owners are journaled, with its report.

    ``answer`` is without the processes, and with them after the search; ``before`` stays without.
    ``devices`` are the numbers of its filesystems. ``finding`` is
    the number of the finding that they are in, 0 if it is that of an earlier worker, None if the
    processes are in the journal already.
    """

    entry: FailureRecord
    failed: FailedRange
    answer: Answer
    before: Answer
    devices: Devices
    finding: int | None


class _Saved(Struct):
    waiting: dict[int, FailedRange] = field(default_factory=dict)


class UserQueue(Closing):
    """The queue; ``left`` are the reports, by number, whose search an earlier worker left."""

    def __init__(self, state: StateFolder) -> None:
        self._state = state
        self._search = ProcessSearch(state)
        self._waiting: dict[int, Unsearched] = {}
        self._searched: list[Unsearched] = []
        self.left = (state.load("unsearched.json", _Saved) or _Saved()).waiting
        self._saved = set(self.left)

    def add(self, one: Unsearched) -> None:
        """Queue a failure."""
        self._waiting[one.entry.number] = one

    def fileno(self) -> int:
        """Return a descriptor that becomes readable with a result, -1 if there is no search."""
        return self._search.fileno()

    def start(self) -> bool:
        """Search those that wait, unless a search runs; return whether one runs now."""
        if not self._search.is_running and self._waiting:
            numbers = list(self._waiting)[:_AT_A_TIME]
            self._searched = [self._waiting.pop(number) for number in numbers]
            self._search.start([(one.answer, one.devices) for one in self._searched])
        return self._search.is_running

    def collect(self, *, wait: bool) -> list[Unsearched]:
        """Return those that were searched, with the processes."""
        answers = self._search.collect(wait=wait)
        if answers is None:
            return []
        found = [
            one._replace(answer=answer) for one, answer in zip(self._searched, answers, strict=True)
        ]
        self._searched = []
        return found

    def save(self) -> None:
        """Save which wait, if that has changed; before the reports are dropped."""
        both = (*self._searched, *self._waiting.values())
        waiting = {one.entry.number: one.failed for one in both}
        if waiting.keys() != self._saved:
            self._state.save("unsearched.json", _Saved(waiting))
            self._saved = set(waiting)

    def close(self) -> None:
        """End the search; what waits is searched by the next worker."""
        self._search.close()
