"""Failures with unknown owners, which are looked up again later.

A booting kernel reports errors of disks whose volumes are assembled later, and a disk that does not
answer now may do so in a minute. Only failures whose answer is wholly unknown are retried.
"""

import time
from collections.abc import Iterator
from typing import Final

from msgspec import Struct, field

from whoseblock.fs.base import Answer, Unknown
from whoseblock.watch.log import log_event
from whoseblock.watch.store.reports import FailedRange
from whoseblock.watch.store.state import StateFolder

__all__ = ["RETRY_DELAYS_S", "RetryQueue"]

#: Delays in seconds before each retry; the last one repeats as long as the failure is open.
RETRY_DELAYS_S: Final[tuple[float, ...]] = (60.0, 600.0, 3600.0, 6 * 3600.0, 86400.0)
#: The queue's limit, and the number of retries at a time.
_MAX_WAITING: Final = 4096
_AT_A_TIME: Final = 256


class _Waiting(Struct):
    """A report, the number of retries so far, and when the next is due.

    ``lost`` is true if even the device was unknown or did not answer.
    """

    failed: FailedRange
    tries: int
    due: float
    lost: bool


class _Saved(Struct):
    waiting: dict[int, _Waiting] = field(default_factory=dict)


class RetryQueue:
    """The failures to retry, by the numbers of their records; kept in the state folder.

    ``delays_s`` are as in `RETRY_DELAYS_S`.
    """

    def __init__(self, state: StateFolder, delays_s: tuple[float, ...] = RETRY_DELAYS_S) -> None:
        self._state = state
        self._delays_s = delays_s
        self._waiting = (state.load("unanswered.json", _Saved) or _Saved()).waiting
        self._changed = False

    def update(self, number: int, failed: FailedRange, answer: Answer, *, lost: bool) -> None:
        """Queue a failure if its answer is unknown; remove it otherwise."""
        if not _is_unknown(answer):
            self.remove(number)
        elif len(self._waiting) >= _MAX_WAITING:
            log_event(
                "warning", "not-asked-again", failure=number, why=f"{_MAX_WAITING} others wait"
            )
        else:
            self._waiting[number] = _Waiting(failed, 0, time.time() + self._delays_s[0], lost)
            self._changed = True

    def hasten(self, number: int, failed: FailedRange) -> None:
        """Retry a failure soon whose device was lost: a new report shows that the device is back.

        Not one whose device could be queried: reading the failed bytes makes the kernel report them
        again, without end.
        """
        waiting = self._waiting.get(number)
        if waiting is not None and waiting.lost:
            waiting.due = time.time()
            if not failed.past:
                waiting.failed = failed
            self._changed = True

    def postpone(self, number: int, answer: Answer, *, lost: bool) -> bool:
        """Return whether the answer is still unknown, and if so postpone the next retry."""
        waiting = self._waiting.get(number)
        if waiting is None or not _is_unknown(answer):
            return False
        waiting.tries += 1
        waiting.lost = lost
        waiting.due = time.time() + self._delays_s[min(waiting.tries, len(self._delays_s) - 1)]
        self._changed = True
        return True

    def remove(self, number: int) -> None:
        """Remove a failure from the queue."""
        self._changed |= self._waiting.pop(number, None) is not None

    def iter_due(self) -> Iterator[tuple[int, FailedRange]]:
        """Yield some of the failures that are due, longest waiting first."""
        now = time.time()
        # A clock that was set back must not postpone them for ever.
        ready = [
            (waiting.due, number)
            for number, waiting in self._waiting.items()
            if not now < waiting.due <= now + self._delays_s[-1]
        ]
        for _, number in sorted(ready)[:_AT_A_TIME]:
            yield number, self._waiting[number].failed

    @property
    def next_due(self) -> float:
        """The time of the next retry, in seconds since 1970; 0 if the queue is empty."""
        return min((waiting.due for waiting in self._waiting.values()), default=0.0)

    def save(self) -> None:
        """Save the queue if it has changed."""
        if self._changed:
            self._state.save("unanswered.json", _Saved(self._waiting))
            self._changed = False


def _is_unknown(answer: Answer) -> bool:
    """Return whether all of an answer is unknown."""
    return not answer.complete and all(isinstance(row, Unknown) for row in answer)
