"""Count the actions of the last hour, by a clock that cannot be set.

They are counted from the journal: a separate counter could be lost, and then everything would be
allowed again.
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
    """A moment: the boot, the seconds since then (also asleep), and the time of day."""

    boot: str
    uptime: float
    at: float

    @classmethod
    def now(cls) -> Self:
        """Return the present moment."""
        return cls(boot_id(), time.clock_gettime(time.CLOCK_BOOTTIME), time.time())

    @property
    def detail(self) -> dict[str, Any]:
        """The fields that the journal keeps, besides the time of day that it records itself."""
        return {"boot": self.boot, "uptime": self.uptime}

    @classmethod
    def from_detail(cls, detail: Mapping[str, Any], at: datetime) -> Self | None:
        """Return the moment that was kept; None if there is none."""
        try:
            return cls(str(detail["boot"]), float(detail["uptime"]), at.timestamp())
        except (KeyError, TypeError, ValueError):
            return None

    def since(self, then: "Moment") -> float:
        """Return the seconds from an earlier moment to this one.

        For an earlier boot there is only the time of day, but it was before this boot.
        """
        if self.boot == then.boot:
            return self.uptime - then.uptime
        return max(self.uptime, self.at - then.at)


class Limits:
    """The actions of the last hour on this machine, by kind; raises `JournalError`."""

    def __init__(self, journal: Journal) -> None:
        self._journal = journal
        self._taken: dict[ActionKind, list[Moment]] = {}

    def take(self, kind: ActionKind, most: int, now: Moment) -> bool:
        """Count one more action; return False if the limit was reached."""
        known = self._taken.get(kind)
        before = self._read_starts(kind, now) if known is None else known
        recent = [moment for moment in before if now.since(moment) < _HOUR]
        allowed = len(recent) < most
        self._taken[kind] = [*recent, now] if allowed else recent
        return allowed

    def _read_starts(self, kind: ActionKind, now: Moment) -> Iterator[Moment]:
        """Yield when the daemon started such an action in the last hour, latest first."""
        for event in self._journal.starts(kind):
            moment = Moment.from_detail(event.detail, event.at)
            # Without a moment it was another program, to which no limits apply.
            if moment is not None:
                if now.since(moment) >= _HOUR:
                    return
                yield moment
