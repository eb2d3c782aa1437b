"""How much was done in the last hour, by a clock that nobody sets.

What was done is in the journal, and is counted from there: a count of our own could be lost, and
then everything would be allowed once more.
"""

import time
from collections.abc import Iterator, Mapping
from datetime import datetime
from typing import Any, Final, NamedTuple, Self

from whoseblock.journal.journal import Journal
from whoseblock.watch.clock import boot_id
from whoseblock.watch.policy.rules import ActionKind

__all__ = ["Limits", "Moment"]

_HOUR: Final = 3600.0


class Moment(NamedTuple):
    """A moment: in which boot, how many seconds after it (asleep or not), and the time of day."""

    boot: str
    uptime: float
    at: float

    @classmethod
    def now(cls) -> Self:
        """Give this moment."""
        return cls(boot_id(), time.clock_gettime(time.CLOCK_BOOTTIME), time.time())

    @property
    def kept(self) -> dict[str, Any]:
        """What the journal is to keep of it, beside the time of day that it writes itself."""
        return {"boot": self.boot, "uptime": self.uptime}

    @classmethod
    def of(cls, kept: Mapping[str, Any], at: datetime) -> Self | None:
        """Make a moment of what was kept; None if nothing was."""
        try:
            return cls(str(kept["boot"]), float(kept["uptime"]), at.timestamp())
        except (KeyError, TypeError, ValueError):
            return None

    def since(self, then: "Moment") -> float:
        """Give the seconds from a moment before this one.

        Of another boot the time of day has to be believed, but not that it was after this boot.
        """
        if self.boot == then.boot:
            return self.uptime - then.uptime
        return max(self.uptime, self.at - then.at)


class Limits:
    """What this machine did in the last hour, by kind; raises `JournalError`."""

    def __init__(self, journal: Journal) -> None:
        self._journal = journal
        self._done: dict[ActionKind, list[Moment]] = {}

    def take(self, kind: ActionKind, most: int, now: Moment) -> bool:
        """Count one more; False if there were as many as there may be."""
        known = self._done.get(kind)
        before = self._started(kind, now) if known is None else known
        recent = [moment for moment in before if now.since(moment) < _HOUR]
        allowed = len(recent) < most
        self._done[kind] = [*recent, now] if allowed else recent
        return allowed

    def _started(self, kind: ActionKind, now: Moment) -> Iterator[Moment]:
        """Give when the daemon began such an act, as long ago as an hour, the latest first."""
        for event in self._journal.starts(kind):
            moment = Moment.of(event.detail, event.at)
            # Without a moment it was somebody else, who has no limits.
            if moment is not None:
                if now.since(moment) >= _HOUR:
                    return
                yield moment
