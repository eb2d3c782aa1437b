"""Map reports to failure records of the journal: one a failure, however often reported.

Open records of one device never overlap. Reported bytes that have a record become a report of it;
the rest becomes a new record.
"""

import time
from bisect import bisect_left
from collections.abc import Iterable, Iterator
from datetime import UTC, datetime, timedelta
from typing import Final, NamedTuple

from msgspec.structs import replace

from whoseblock.journal import Filter, NewReport, Overview, RecordedFailure
from whoseblock.journal.journal import Journal
from whoseblock.journal.run import Run
from whoseblock.ranges import ByteRange, subtract
from whoseblock.watch.attribution.locations import FailureLocation
from whoseblock.watch.store.reports import FailedRange

__all__ = ["FailureRecord", "FailureRecords", "RepeatedReport", "coalesce_reports"]

#: Why a record is closed that a list no longer has. Only the list knows since when. Any other
#: reason to close a record means that its bytes were verified at that moment.
NOT_LISTED: Final = "the kernel's list of bad blocks has it no longer"
#: No report waits longer than this in the spool of a working daemon.
_MAX_DELAY: Final = timedelta(hours=1)
#: Cached records are read again after this many seconds, or when there are more than this.
_CACHE_S: Final = 60.0
_MAX_CACHED: Final = 50_000
#: How many records before a location are checked for one that reaches into it.
_LOOK_BACK: Final = 4


class RepeatedReport(NamedTuple):
    """A failed range and how often a source reported it in a batch; ``last`` is the last time."""

    failed: FailedRange
    times: int
    last: float

    @property
    def where(self) -> tuple[str, int, int]:
        """The device, the start and the length."""
        return self.failed.device, self.failed.start, self.failed.length


class FailureRecord(NamedTuple):
    """A journal record that a report belongs to; ``new`` if the report created it.

    ``looked_up`` is true if the owners were queried before, ``planned`` if actions were planned for
    it. ``replayed`` is true if the journal knew this very report: the process that journaled it was
    killed before it had finished.
    """

    number: int
    place: FailureLocation
    new: bool
    looked_up: bool
    planned: bool
    replayed: bool


def coalesce_reports(reports: Iterable[FailedRange]) -> list[RepeatedReport]:
    """Merge what one source reported repeatedly about the same bytes."""
    same: dict[tuple[str, str, int, int], RepeatedReport] = {}
    for one in reports:
        place = (one.source, one.device, one.start, one.length)
        if before := same.get(place):
            same[place] = RepeatedReport(before.failed, before.times + 1, one.at)
        else:
            same[place] = RepeatedReport(one, 1, one.at)
    return list(same.values())


class _CachedRecord(NamedTuple):
    # An open record, and whether its owners were looked up and actions planned.
    entry: RecordedFailure
    looked_up: bool
    planned: bool


class _DeviceCache(NamedTuple):
    # What the journal has of a device: open records in order of their starts, the starts alone for
    # bisecting, and the ranges closed lately with the time, latest first. Reports from before that
    # time may still arrive.
    starts: list[int]
    open: list[_CachedRecord]
    dealt_with: list[tuple[datetime, ByteRange]]


class FailureRecords:
    """The open failure records of this host, cached by device.

    Those of a device are read once, and again after a minute, since other processes write to the
    journal too; a report needs no query. Every method raises `JournalError`.
    """

    def __init__(self, journal: Journal, run: Run) -> None:
        self._journal = journal
        self._run = run
        #: By identity, else by device.
        self._devices: dict[str, _DeviceCache] = {}
        self._since = time.monotonic()

    def drop_cache(self) -> None:
        """Drop the cache: a record was closed."""
        self._devices.clear()

    def refresh(self, *, others_close: bool) -> None:
        """Drop the cache if it is old or large.

        If ``others_close`` records, what was open a moment ago may be closed by now, so the cache
        is dropped in any case.
        """
        count = sum(len(one.open) for one in self._devices.values())
        if others_close or time.monotonic() - self._since > _CACHE_S or count > _MAX_CACHED:
            self._devices.clear()
            self._since = time.monotonic()

    def record(self, repeated: RepeatedReport, place: FailureLocation) -> Iterator[FailureRecord]:
        """Journal a report under every record that has bytes of it; create records for the rest.

        A report from before its bytes were closed is not new, even if it arrives only now:
        verifying a healed range makes the kernel report it once more.
        """
        left = [ByteRange(place.start, place.length)]
        seen = datetime.fromtimestamp(repeated.last, UTC)
        for entry, looked_up, planned in self._overlapping(place):
            left = subtract(left, entry.range)
            report = _new_report(repeated, place, entry.range)
            noted = self._run.record_report(entry, report, seen)
            known = place._replace(start=entry.start, length=entry.length, device=entry.device)
            if noted.failure == entry.id:
                yield FailureRecord(
                    entry.id,
                    known,
                    new=False,
                    looked_up=looked_up,
                    planned=planned,
                    replayed=not noted.new_report,
                )
            elif noted.new_failure:
                # Another process has closed it meanwhile.
                self.drop_cache()
                yield _created(noted.failure, known)
        for closed, where in self._cache_of(place).dealt_with:
            if closed < seen:
                break
            left = subtract(left, where)
        for piece in left:
            report = _new_report(repeated, place, piece)
            noted = self._run.record_failure(place.device, piece, report, identity=place.identity)
            # An event that was journaled before belongs to a record that is closed by now.
            if noted.new_failure:
                part = place._replace(start=piece.start, length=piece.length)
                self._add(noted.failure, part)
                yield _created(noted.failure, part)

    def close_healed(self, place: FailureLocation) -> int:
        """Close the open records that lie wholly within a location; return their number."""
        end = place.start + place.length
        healed = 0
        for entry, _, _ in self._overlapping(place):
            if place.start <= entry.start and entry.start + entry.length <= end:
                self._run.close_failure(entry.id, NOT_LISTED)
                healed += 1
        if healed:
            self.drop_cache()
        return healed

    def covers(self, place: FailureLocation) -> bool:
        """Return whether open records with journaled owners cover a location."""
        left = [ByteRange(place.start, place.length)]
        for entry, looked_up, _ in self._overlapping(place):
            left = subtract(left, entry.range) if looked_up else left
        return not left

    def mark_looked_up(self, numbers: Iterable[int]) -> None:
        """Mark records whose owners are journaled."""
        done = set(numbers)
        for device in self._devices.values():
            for at, one in enumerate(device.open):
                if one.entry.id in done:
                    device.open[at] = one._replace(looked_up=True)

    # ------------------------------------------------------------------ what is known

    def _overlapping(self, place: FailureLocation) -> list[_CachedRecord]:
        """Return the open records that overlap a location."""
        starts, known, _ = self._cache_of(place)
        # Records of one device do not overlap unless another program made some: look back no
        # further.
        first = max(bisect_left(starts, place.start) - _LOOK_BACK, 0)
        last = bisect_left(starts, place.start + place.length)
        return [
            one for one in known[first:last] if one.entry.start + one.entry.length > place.start
        ]

    def _cache_of(self, place: FailureLocation) -> _DeviceCache:
        key = place.identity or place.device
        if key not in self._devices:
            opened = [
                _CachedRecord(one.failure, one.complete is not None, bool(one.states))
                for one in self._find(place, Filter(open=True))
            ]
            opened.sort(key=lambda one: one.entry.start)
            # Read these second: a record that is closed in between is found as open, as closed, or
            # both.
            lately = Filter(closed_since=datetime.now(UTC) - _MAX_DELAY)
            dealt_with = [
                (one.failure.closed, one.failure.range)
                for one in self._find(place, lately)
                if one.failure.closed is not None and one.failure.closed_because != NOT_LISTED
            ]
            dealt_with.sort(reverse=True)
            starts = [one.entry.start for one in opened]
            self._devices[key] = _DeviceCache(starts, opened, dealt_with)
        return self._devices[key]

    def _find(self, place: FailureLocation, wanted: Filter) -> Iterable[Overview]:
        """Return the records of a location's device that match a filter."""
        found: dict[int, Overview] = {}
        # Also by device: records made while the identity was unknown, or by a program without it.
        for name in dict.fromkeys((place.identity or place.device, place.device)):
            wanted = replace(wanted, host=self._journal.host.name, device=name)
            for one in self._journal.failures(wanted):
                if _is_of(one.failure, place):
                    found[one.failure.id] = one
        return found.values()

    def _add(self, number: int, place: FailureLocation) -> None:
        starts, known, _ = self._cache_of(place)
        at = bisect_left(starts, place.start)
        entry = RecordedFailure(
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
        known.insert(at, _CachedRecord(entry, looked_up=False, planned=False))


def _created(number: int, place: FailureLocation) -> FailureRecord:
    return FailureRecord(number, place, new=True, looked_up=False, planned=False, replayed=False)


def _is_of(entry: RecordedFailure, place: FailureLocation) -> bool:
    """Return whether a record is of the same device: by identity, else by name."""
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
