"""Failures whose owners nobody could say, which are asked about again.

A kernel that boots complains of disks whose volumes are put together later, and a disk that does
not answer now may do so in a minute.  What is asked again is what nobody knew at all.
"""

import time
from collections.abc import Iterator
from typing import Final

from msgspec import Struct, field

from whoseblock.fs.base import Answer, Unknown
from whoseblock.watch.log import log_event
from whoseblock.watch.store.reports import FailedRange
from whoseblock.watch.store.state import StateFolder

__all__ = ["RetryQueue"]

#: After so many seconds they are asked for again; at last once a day, as long as they are open.
RETRY_DELAYS_S: Final = (60.0, 600.0, 3600.0, 6 * 3600.0, 86400.0)
#: More than these are not kept in mind, and so many are asked about at a time.
_MOST: Final = 4096
_AT_A_TIME: Final = 256


class _Waiting(Struct):
    """What was reported, how often was asked since, and when it is to be asked again.

    ``lost`` if even the device was not known, or did not answer.
    """

    failed: FailedRange
    tries: int
    due: float
    lost: bool


class _Saved(Struct):
    waiting: dict[int, _Waiting] = field(default_factory=dict)


class RetryQueue:
    """Those that wait, by the numbers of their entries; kept in the state folder."""

    def __init__(self, state: StateFolder) -> None:
        self._state = state
        self._waiting = (state.load("unanswered.json", _Saved) or _Saved()).waiting
        self._changed = False

    def note(self, number: int, failed: FailedRange, answer: Answer, *, lost: bool) -> None:
        """Have it asked again if nobody knew; and not, if somebody does."""
        if not _is_unknown(answer):
            self.forget(number)
        elif len(self._waiting) >= _MOST:
            log_event("warning", "not-asked-again", failure=number, why=f"{_MOST} others wait")
        else:
            self._waiting[number] = _Waiting(failed, 0, time.time() + RETRY_DELAYS_S[0], lost)
            self._changed = True

    def heard(self, number: int) -> None:
        """Have one whose device was lost asked again soon: it is there, for it fails again.

        Not so one that could be asked: to read what cannot be read makes it fail again, and so on.
        """
        waiting = self._waiting.get(number)
        if waiting is not None and waiting.lost:
            waiting.due = time.time()
            self._changed = True

    def put_off(self, number: int, answer: Answer, *, lost: bool) -> bool:
        """Whether nobody knows still: then it is asked again later."""
        waiting = self._waiting.get(number)
        if waiting is None or not _is_unknown(answer):
            return False
        waiting.tries += 1
        waiting.lost = lost
        waiting.due = time.time() + RETRY_DELAYS_S[min(waiting.tries, len(RETRY_DELAYS_S) - 1)]
        self._changed = True
        return True

    def forget(self, number: int) -> None:
        """Ask no more."""
        self._changed |= self._waiting.pop(number, None) is not None

    def due(self) -> Iterator[tuple[int, FailedRange]]:
        """Give those for which it is time, some of them, those that wait longest first."""
        now = time.time()
        # A clock that was set back must not have them wait for longer than ever.
        ready = [
            (waiting.due, number)
            for number, waiting in self._waiting.items()
            if not now < waiting.due <= now + RETRY_DELAYS_S[-1]
        ]
        for _, number in sorted(ready)[:_AT_A_TIME]:
            yield number, self._waiting[number].failed

    @property
    def next_at(self) -> float:
        """When there is something to be asked, in seconds since 1970; 0 if there is nothing."""
        return min((waiting.due for waiting in self._waiting.values()), default=0.0)

    def save(self) -> None:
        """Keep what has changed."""
        if self._changed:
            self._state.save("unanswered.json", _Saved(self._waiting))
            self._changed = False


def _is_unknown(answer: Answer) -> bool:
    """Whether nobody knows of anything in it."""
    return not answer.complete and all(isinstance(row, Unknown) for row in answer)
