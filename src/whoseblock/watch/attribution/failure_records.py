"""From reports to entries of the journal: one for each failure, however often it is reported.

Entries of one device that are open never overlap.  What a report says of bytes that have an entry
is a report of that; the rest of it becomes a new one.
"""

import time
from bisect import bisect_left
from collections.abc import Iterable, Iterator
from datetime import UTC, datetime, timedelta
from typing import Final, NamedTuple

from msgspec.structs import replace

from whoseblock.journal import Entry, Filter, NewReport, Overview
from whoseblock.journal.journal import Journal
from whoseblock.journal.run import Run
from whoseblock.ranges import ByteRange, subtract
from whoseblock.watch.attribution.locations import FailureLocation
from whoseblock.watch.store.reports import FailedRange

__all__ = ["FailureRecord", "FailureRecords", "RepeatedReport", "coalesce_reports"]

#: Why a failure is closed that a list no longer has.  Since when, only the list knows; whoever
#: closes one for another reason has just seen that its bytes are good again.
NOT_LISTED: Final = "the kernel's list of bad blocks has it no longer"
#: Nothing waits longer than this in the spool of a daemon that works.
_LATELY: Final = timedelta(hours=1)
#: So long, in seconds, and so many open entries are kept in mind.
_FRESH_S: Final = 60.0
_MOST: Final = 50_000
#: So many entries before a place are looked at for one that reaches into it.
_BACK: Final = 4


class RepeatedReport(NamedTuple):
    """A failure, and how often a source said so in one batch; ``last`` is when it last did."""

    failed: FailedRange
    times: int
    last: float

    @property
    def where(self) -> tuple[str, int, int]:
        """The device, the start and the length."""
        return self.failed.device, self.failed.start, self.failed.length


class FailureRecord(NamedTuple):
    """An entry that a report belongs to, ``new`` if there was none before.

    ``looked`` is true if somebody has asked for the owners, ``planned`` if something was planned
    about it.  ``replayed`` if the journal knew the very report: whoever journaled it was killed
    before all was done.
    """

    number: int
    place: FailureLocation
    new: bool
    looked: bool
    planned: bool
    replayed: bool


def coalesce_reports(reports: Iterable[FailedRange]) -> list[RepeatedReport]:
    """Put together what one source says again and again of the same bytes."""
    same: dict[tuple[str, str, int, int], RepeatedReport] = {}
    for one in reports:
        place = (one.source, one.device, one.start, one.length)
        if before := same.get(place):
            same[place] = RepeatedReport(before.failed, before.times + 1, one.at)
        else:
            same[place] = RepeatedReport(one, 1, one.at)
    return list(same.values())


class _Known(NamedTuple):
    # An open entry, and whether somebody looked or planned.
    entry: Entry
    looked: bool
    planned: bool


class _Device(NamedTuple):
    # What the journal has of a device: what is open, in the order of the starts, which stand apart
    # for bisecting; and what was dealt with lately and when, the last first.  What was noticed
    # before that may come only now.
    starts: list[int]
    open: list[_Known]
    dealt_with: list[tuple[datetime, ByteRange]]


class FailureRecords:
    """The open entries of this host, as the journal has them, and what makes more of them.

    Those of a device are read once, and again after a minute, for others may write to the journal,
    too; a report costs no search.  Every method raises `JournalError`.
    """

    def __init__(self, journal: Journal, run: Run) -> None:
        self._journal = journal
        self._run = run
        #: By identity or device.
        self._devices: dict[str, _Device] = {}
        self._since = time.monotonic()

    def forget(self) -> None:
        """Have all read again: something was closed."""
        self._devices.clear()

    def refresh(self, *, others_close: bool) -> None:
        """Have all read again that was read a while ago, or is too much to keep.

        If ``others_close`` entries when they have dealt with them, what a moment ago was open may
        be so no more.
        """
        count = sum(len(one.open) for one in self._devices.values())
        if others_close or time.monotonic() - self._since > _FRESH_S or count > _MOST:
            self._devices.clear()
            self._since = time.monotonic()

    def enter(self, repeated: RepeatedReport, place: FailureLocation) -> Iterator[FailureRecord]:
        """Journal a report under every entry that has bytes of it; make entries for the others.

        What was noticed before bytes were dealt with is nothing new about them, though we hear of
        it only now: looking at them to heal them makes the kernel complain once more.
        """
        left = [ByteRange(place.start, place.length)]
        seen = datetime.fromtimestamp(repeated.last, UTC)
        for entry, looked, planned in self._touching(place):
            left = subtract(left, entry.range)
            report = _new_report(repeated, place, entry.range)
            noted = self._run.record_report(entry, report, seen)
            known = place._replace(start=entry.start, length=entry.length, device=entry.device)
            if noted.failure == entry.id:
                yield FailureRecord(
                    entry.id,
                    known,
                    new=False,
                    looked=looked,
                    planned=planned,
                    replayed=not noted.new_report,
                )
            elif noted.new_failure:
                # Somebody else has closed it meanwhile.
                self.forget()
                yield _new(noted.failure, known)
        for closed, where in self._of(place).dealt_with:
            if closed < seen:
                break
            left = subtract(left, where)
        for piece in left:
            report = _new_report(repeated, place, piece)
            noted = self._run.record_failure(place.device, piece, report, identity=place.identity)
            # An event that was journaled before is of an entry that is closed by now.
            if noted.new_failure:
                part = place._replace(start=piece.start, length=piece.length)
                self._add(noted.failure, part)
                yield _new(noted.failure, part)

    def close_healed(self, place: FailureLocation) -> int:
        """Close the open entries that lie wholly within a place; give how many there were."""
        end = place.start + place.length
        healed = 0
        for entry, _, _ in self._touching(place):
            if place.start <= entry.start and entry.start + entry.length <= end:
                self._run.close_failure(entry.id, NOT_LISTED)
                healed += 1
        if healed:
            self.forget()
        return healed

    def has(self, place: FailureLocation) -> bool:
        """Whether all of a place is in open entries whose owners are journaled."""
        left = [ByteRange(place.start, place.length)]
        for entry, looked, _ in self._touching(place):
            left = subtract(left, entry.range) if looked else left
        return not left

    def looked(self, numbers: Iterable[int]) -> None:
        """Take note that the owners of these are journaled."""
        done = set(numbers)
        for device in self._devices.values():
            for at, one in enumerate(device.open):
                if one.entry.id in done:
                    device.open[at] = one._replace(looked=True)

    # ------------------------------------------------------------------ what is known

    def _touching(self, place: FailureLocation) -> list[_Known]:
        """Give the open entries with bytes of a place."""
        starts, known, _ = self._of(place)
        # Those of one device do not overlap, unless somebody else made some: so far back at most.
        first = max(bisect_left(starts, place.start) - _BACK, 0)
        last = bisect_left(starts, place.start + place.length)
        return [
            one for one in known[first:last] if one.entry.start + one.entry.length > place.start
        ]

    def _of(self, place: FailureLocation) -> _Device:
        key = place.identity or place.device
        if key not in self._devices:
            opened = [
                _Known(one.failure, one.complete is not None, bool(one.states))
                for one in self._find(place, Filter(open=True))
            ]
            opened.sort(key=lambda one: one.entry.start)
            # Only now: what somebody closes meanwhile is found as open, or here, or both.
            lately = Filter(closed_since=datetime.now(UTC) - _LATELY)
            dealt_with = [
                (one.failure.closed, one.failure.range)
                for one in self._find(place, lately)
                if one.failure.closed is not None and one.failure.closed_because != NOT_LISTED
            ]
            dealt_with.sort(reverse=True)
            starts = [one.entry.start for one in opened]
            self._devices[key] = _Device(starts, opened, dealt_with)
        return self._devices[key]

    def _find(self, place: FailureLocation, wanted: Filter) -> Iterable[Overview]:
        """Give the entries of a device that are wanted."""
        found: dict[int, Overview] = {}
        # By device, too: made when nobody knew the identity, or by somebody who does not.
        for name in dict.fromkeys((place.identity or place.device, place.device)):
            wanted = replace(wanted, host=self._journal.host.name, device=name)
            for one in self._journal.failures(wanted):
                if _is_of(one.failure, place):
                    found[one.failure.id] = one
        return found.values()

    def _add(self, number: int, place: FailureLocation) -> None:
        starts, known, _ = self._of(place)
        at = bisect_left(starts, place.start)
        entry = Entry(
            id=number,
            host=self._journal.host.name,
            machine_id=self._journal.host.machine_id,
            device=place.device,
            identity=place.identity,
            start=place.start,
            length=place.length,
            target="",
            first_seen=datetime.now(UTC),
            run=self._run.id,
            closed=None,
            closed_by=None,
            closed_because=None,
        )
        starts.insert(at, place.start)
        known.insert(at, _Known(entry, looked=False, planned=False))


def _new(number: int, place: FailureLocation) -> FailureRecord:
    return FailureRecord(number, place, new=True, looked=False, planned=False, replayed=False)


def _is_of(entry: Entry, place: FailureLocation) -> bool:
    """Tell whether an entry is of the same device: by identity, or else by name."""
    if entry.identity and place.identity:
        return entry.identity == place.identity
    return entry.device == place.device


def _new_report(repeated: RepeatedReport, place: FailureLocation, entry: ByteRange) -> NewReport:
    one, times, last = repeated
    detail = {"device": one.device, "start": one.start, "length": one.length, **one.detail}
    if times > 1:
        detail |= {"times": times, "last": last}
    return NewReport(
        source=one.source,
        origin=one.origin,
        at=datetime.fromtimestamp(one.at, UTC),
        key=f"{one.key}@{place.device}:{entry.start}",
        detail=detail,
    )
