"""Map reports to failure records of the journal: one a failure, however often reported.

Open records of one device never overlap. Reported bytes that have a record become a report of it;
the rest becomes a new record.
"""

import time
from bisect import bisect_left
from collections.abc import Iterable, Iterator
from datetime import UTC, datetime, timedelta
from sys import intern
from typing import Final, NamedTuple

from msgspec.structs import replace

from whoseblock.journal import Filter, NewReport, Overview, RecordedFailure
from whoseblock.journal.journal import Journal
from whoseblock.journal.run import Run
from whoseblock.ranges import ByteRange, subtract
from whoseblock.watch.attribution.locations import FailureLocation
from whoseblock.watch.store.reports import FailedRange

__all__ = ["HISTORY", "MAY_BE_HIT", "FailureRecord", "FailureRecords", "coalesce_reports"]

#: Why a record is closed that a list no longer has. Only the list knows since when. Any other
#: reason to close a record means that its bytes were verified at that moment.
NOT_LISTED: Final = "the kernel's list of bad blocks has it no longer"
#: How the note of a finding begins whose owners are not certain: the failure is of the past, or
#: only some of the bytes failed.
HISTORY: Final = "history"
MAY_BE_HIT: Final = "may be hit"
#: No report waits longer than this in the spool of a working daemon.
_MAX_DELAY: Final = timedelta(hours=1)
#: Cached records are read again after this many seconds, or when there are more than this.
_CACHE_S: Final = 60.0
_MAX_CACHED: Final = 10_000
#: A device may have more open records than fit into memory, so those of parts of it are cached, of
#: so many bytes. A location in more parts than that is looked up by itself.
_PART: Final = 1 << 20
_MAX_PARTS: Final = 64
#: How many records before a location are checked for one that reaches into it.
_LOOK_BACK: Final = 4


class FailureRecord(NamedTuple):
    """An open record of the journal; ``place`` has the bytes of the record.

    ``looked_up`` is true if the owners were queried before, ``planned`` if actions were planned for
    it. About the report that led to it: ``new`` is true if it created the record, and ``replayed``
    if the journal knew this very report. Then the process that journaled it was killed before it
    had finished. ``complete`` is whether the journaled owners are certain.
    """

    number: int
    place: FailureLocation
    looked_up: bool = False
    planned: bool = False
    new: bool = False
    replayed: bool = False
    complete: bool = False


def coalesce_reports(reports: Iterable[FailedRange]) -> list[FailedRange]:
    """Merge what one source reported repeatedly about the same bytes."""
    same: dict[tuple[str, str, int, int], FailedRange] = {}
    for one in reports:
        place = (one.source, *one.where)
        if before := same.get(place):
            same[place] = replace(before, times=before.times + 1, last=one.at)
        else:
            same[place] = one
    return list(same.values())


class _PartCache(NamedTuple):
    # What the journal has of a part of a device: open records in order of their starts, the starts
    # alone for bisecting, and the ranges closed lately with the time, latest first. Reports from
    # before that time may still arrive.
    starts: list[int]
    open: list[FailureRecord]
    dealt_with: list[tuple[datetime, ByteRange]]


class FailureRecords:
    """The open failure records of this host, cached by device.

    Those of a part of a device are read once, and again after a minute, since other processes write
    to the journal too; a report near another needs no query. Every method raises `JournalError`.
    """

    def __init__(self, journal: Journal, run: Run) -> None:
        self._journal = journal
        self._run = run
        #: By identity, else by device, and by the number of the part.
        self._known: dict[tuple[str, int], _PartCache] = {}
        #: The notes of uncertain findings, by record.
        self._notes: dict[int, tuple[str, ...]] = {}
        self._since = time.monotonic()

    def drop_cache(self) -> None:
        """Drop the cache: a record was closed."""
        self._known.clear()

    def refresh(self, *, others_close: bool) -> None:
        """Drop the cache if it is old or large.

        If ``others_close`` records, what was open a moment ago may be closed by now, so the cache
        is dropped in any case.
        """
        if others_close or time.monotonic() - self._since > _CACHE_S or self._count() > _MAX_CACHED:
            self._known.clear()
            self._since = time.monotonic()

    def record(self, failed: FailedRange, place: FailureLocation) -> Iterator[FailureRecord]:
        """Journal a report under every record that has bytes of it; create records for the rest.

        A report from before its bytes were closed is not new, even if it arrives only now:
        verifying a healed range makes the kernel report it once more.
        """
        left = [place.range]
        seen = datetime.fromtimestamp(failed.last or failed.at, UTC)
        for entry in self._overlapping(place):
            if not place.suspected and self.has_note(entry, MAY_BE_HIT):
                # It is known now which bytes failed, or some of them. They get their own record.
                continue
            known = entry.place
            left = subtract(left, known.range)
            report = _new_report(failed, place, known.start)
            noted = self._run.record_report(entry.number, report, seen)
            # The way to the record, and its identity, are those that the report has found.
            here = place._replace(device=known.device, start=known.start, length=known.length)
            if noted.failure == entry.number:
                yield entry._replace(place=here, replayed=not noted.new_report)
            elif noted.new_failure:
                # Another process has closed it meanwhile.
                self.drop_cache()
                yield FailureRecord(noted.failure, here, new=True)
        for closed, where in self._dealt_with(place):
            if closed < seen:
                break
            left = subtract(left, where)
        for piece in left:
            report = _new_report(failed, place, piece.start)
            noted = self._run.record_failure(place.device, piece, report, identity=place.identity)
            # An event that was journaled before belongs to a record that is closed by now.
            if noted.new_failure:
                part = place._replace(start=piece.start, length=piece.length)
                self._add(FailureRecord(noted.failure, part))
                yield FailureRecord(noted.failure, part, new=True)

    def close_healed(self, place: FailureLocation) -> int:
        """Close the open records that lie wholly within a location; return their number."""
        end = place.start + place.length
        healed = 0
        for number, where, *_ in self._overlapping(place):
            if place.start <= where.start and where.start + where.length <= end:
                self._run.close_failure(number, NOT_LISTED)
                healed += 1
        if healed:
            self.drop_cache()
        return healed

    def covers(self, place: FailureLocation) -> bool:
        """Return whether open records with journaled owners cover a location."""
        left = [place.range]
        for entry in self._overlapping(place):
            if entry.looked_up and (place.suspected or not self.has_note(entry, MAY_BE_HIT)):
                left = subtract(left, entry.place.range)
        return not left

    def has_note(self, entry: FailureRecord, beginning: str) -> bool:
        """Return whether a note of the record's last finding begins with a word."""
        if not entry.looked_up or entry.complete:
            return False
        notes = self._notes.get(entry.number)
        if notes is None:
            if len(self._notes) >= _MAX_CACHED:
                self._notes.clear()
            last = self._journal.history(entry.number).findings[-1:]
            notes = self._notes[entry.number] = tuple(
                note for one in last for note in one.notes if note.startswith((HISTORY, MAY_BE_HIT))
            )
        return any(note.startswith(beginning) for note in notes)

    def mark_looked_up(self, answered: Iterable[tuple[int, bool]]) -> None:
        """Mark records whose owners are journaled: their numbers, and whether they are certain."""
        done = dict(answered)
        for number in done:
            self._notes.pop(number, None)
        for part in self._known.values():
            for at, one in enumerate(part.open):
                if one.number in done:
                    complete = done[one.number]
                    part.open[at] = one._replace(looked_up=True, complete=complete)

    # ------------------------------------------------------------------ what is known

    def _overlapping(self, place: FailureLocation) -> list[FailureRecord]:
        """Return the open records that overlap a location, in order of their starts."""
        found: dict[int, FailureRecord] = {}
        for starts, known, _ in self._parts_of(place):
            # Records of one device do not overlap unless another program made some: look back no
            # further.
            first = max(bisect_left(starts, place.start) - _LOOK_BACK, 0)
            last = bisect_left(starts, place.start + place.length)
            for one in known[first:last]:
                if one.place.start + one.place.length > place.start:
                    found[one.number] = one
        return sorted(found.values(), key=lambda one: one.place.start)

    def _dealt_with(self, place: FailureLocation) -> list[tuple[datetime, ByteRange]]:
        """Return the ranges of a location that were closed lately, latest first."""
        found = {both for part in self._parts_of(place) for both in part.dealt_with}
        return sorted(found, reverse=True)

    def _parts_of(self, place: FailureLocation) -> list[_PartCache]:
        """Return what the journal has of the parts of the device that a location touches."""
        first, last = _parts(place)
        if last - first >= _MAX_PARTS:
            return [self._load(place, place.range)]
        device = place.identity or place.device
        found = []
        for number in range(first, last + 1):
            part = self._known.get((device, number))
            if part is None:
                part = self._load(place, ByteRange(number * _PART, _PART))
                if self._count() > _MAX_CACHED:
                    self._known.clear()
                self._known[device, number] = part
            found.append(part)
        return found

    def _count(self) -> int:
        return len(self._known) + sum(len(one.open) for one in self._known.values())

    def _load(self, place: FailureLocation, where: ByteRange) -> _PartCache:
        """Read what the journal has of a range of a location's device."""
        # Overviews are large: no more than one is held at a time.
        wanted = Filter(open=True, overlapping=where)
        found = {one.failure.id: _known(one) for one in self._find(place, wanted)}
        opened = sorted(found.values(), key=lambda one: one.place.start)
        # Read these second: a record that is closed in between is found as open, as closed, or
        # both.
        lately = Filter(closed_since=datetime.now(UTC) - _MAX_DELAY, overlapping=where)
        closed = {
            (one.failure.closed, one.failure.range)
            for one in self._find(place, lately)
            if one.failure.closed is not None and one.failure.closed_because != NOT_LISTED
        }
        starts = [one.place.start for one in opened]
        return _PartCache(starts, opened, sorted(closed, reverse=True))

    def _find(self, place: FailureLocation, wanted: Filter) -> Iterator[Overview]:
        """Yield the records of a location's device that match a filter, some of them twice."""
        # Also by device: records made while the identity was unknown, or by a program without it.
        for name in dict.fromkeys((place.identity or place.device, place.device)):
            wanted = replace(wanted, host=self._journal.host.name, device=name)
            for one in self._journal.failures(wanted):
                if _is_of(one.failure, place):
                    yield one

    def _add(self, entry: FailureRecord) -> None:
        device = entry.place.identity or entry.place.device
        first, last = _parts(entry.place)
        for number in range(first, min(last, first + _MAX_PARTS) + 1):
            if part := self._known.get((device, number)):
                at = bisect_left(part.starts, entry.place.start)
                part.starts.insert(at, entry.place.start)
                part.open.insert(at, entry)


def _parts(place: FailureLocation) -> tuple[int, int]:
    """Return the numbers of the first and the last part of a device that a location touches."""
    return place.start // _PART, (place.start + max(place.length, 1) - 1) // _PART


def _known(one: Overview) -> FailureRecord:
    """Return an open record that the journal has."""
    failure = one.failure
    # Thousands of records have the same two names.
    device, identity = intern(failure.device), intern(failure.identity)
    place = FailureLocation(device, identity, *failure.range, layer=None)
    return FailureRecord(
        failure.id, place, one.complete is not None, bool(one.states), complete=bool(one.complete)
    )


def _is_of(entry: RecordedFailure, place: FailureLocation) -> bool:
    """Return whether a record is of the same device: by identity, else by name."""
    if entry.identity and place.identity:
        return entry.identity == place.identity
    return entry.device == place.device


def _new_report(one: FailedRange, place: FailureLocation, start: int) -> NewReport:
    """Return what the journal keeps of a report, for the record that begins at ``start``."""
    detail = {"device": one.device, "start": one.start, "length": one.length, **one.detail}
    if one.times > 1:
        detail |= {"times": one.times, "last": one.last}
    return NewReport(
        source=one.source,
        origin=one.origin,
        at=datetime.fromtimestamp(one.at, UTC),
        key=f"{one.key}@{place.device}:{start}",
        detail=detail,
    )
