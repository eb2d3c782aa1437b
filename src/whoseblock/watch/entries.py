"""From reports to entries of the journal: one for each failure, however often it is reported.

Entries of one device that are open never overlap.  What a report says of bytes that have an entry
is a report of that; the rest of it becomes a new one.
"""

from collections.abc import Iterable, Iterator
from datetime import UTC, datetime
from typing import Final, NamedTuple

from msgspec.structs import replace

from whoseblock.journal import Entry, Filter, NewReport
from whoseblock.journal.journal import Journal
from whoseblock.journal.run import Run
from whoseblock.ranges import ByteRange, subtract
from whoseblock.watch.places import Place
from whoseblock.watch.reports import Failed

__all__ = ["DEALT_WITH", "Entered", "Repeated", "close_healed", "coalesced", "enter"]

#: Why the failure is closed whose bytes were seen to be good again.
DEALT_WITH: Final = "the failed bytes were dealt with, and can be read again"


class Repeated(NamedTuple):
    """A failure, and how often a source said so in one batch; ``last`` is when it last did."""

    failed: Failed
    times: int
    last: float

    @property
    def where(self) -> tuple[str, int, int]:
        """The device, the start and the length."""
        return self.failed.device, self.failed.start, self.failed.length


class Entered(NamedTuple):
    """An entry that a report belongs to, ``new`` if there was none before.

    ``looked`` is true if somebody has asked for the owners, ``planned`` if something was planned
    about it.  ``replayed`` if the journal knew the very report: whoever journaled it was killed
    before all was done.
    """

    number: int
    place: Place
    new: bool
    looked: bool
    planned: bool
    replayed: bool


def coalesced(reports: Iterable[Failed]) -> list[Repeated]:
    """Put together what one source says again and again of the same bytes."""
    same: dict[tuple[str, str, int, int], Repeated] = {}
    for one in reports:
        place = (one.source, one.device, one.start, one.length)
        if before := same.get(place):
            same[place] = Repeated(before.failed, before.times + 1, one.at)
        else:
            same[place] = Repeated(one, 1, one.at)
    return list(same.values())


def enter(journal: Journal, run: Run, repeated: Repeated, place: Place) -> Iterator[Entered]:
    """Journal a report under every entry that has bytes of it, and make entries for the others.

    What was noticed before bytes were dealt with is nothing new about them, though we hear of it
    only now: looking at them to heal them makes the kernel complain once more.  Raises
    `JournalError`.
    """
    where = ByteRange(place.start, place.length)
    left = [where]
    for entry, looked, planned in _entries(journal, place, where, still_open=True):
        left = subtract(left, entry.range)
        noted = run.record_failure(
            entry.device,
            entry.range,
            _new_report(repeated, place, entry.range),
            identity=entry.identity,
        )
        if noted.failure != entry.id:
            # An event that was journaled before, and is of an entry that is closed by now.
            continue
        known = place._replace(start=entry.start, length=entry.length, device=entry.device)
        yield Entered(
            noted.failure, known, noted.new_failure, looked, planned, not noted.new_report
        )
    if left:
        seen = datetime.fromtimestamp(repeated.last, UTC)
        for entry, _, _ in _entries(journal, place, where, still_open=False):
            # Of what a list no longer has, only the list knows since when.
            dealt_with = entry.closed_because == DEALT_WITH
            if dealt_with and entry.closed is not None and seen <= entry.closed:
                left = subtract(left, entry.range)
    for piece in left:
        noted = run.record_failure(
            place.device, piece, _new_report(repeated, place, piece), identity=place.identity
        )
        # An event that was journaled before is of an entry that is closed by now.
        if noted.new_failure:
            part = place._replace(start=piece.start, length=piece.length)
            yield Entered(
                noted.failure, part, new=True, looked=False, planned=False, replayed=False
            )


def _entries(
    journal: Journal, place: Place, where: ByteRange, *, still_open: bool
) -> Iterator[tuple[Entry, bool, bool]]:
    """Give the entries with bytes of a place, and whether somebody looked or planned."""
    wanted = Filter(host=journal.host.name, open=still_open, overlapping=where)
    found = list(journal.failures(replace(wanted, device=place.identity or place.device)))
    if not found and place.identity:
        # Made when nobody knew the identity, or by somebody who does not.
        found = list(journal.failures(replace(wanted, device=place.device)))
    for one in found:
        entry = one.failure
        same = not (entry.identity and place.identity) or entry.identity == place.identity
        if same and (entry.device == place.device or entry.identity == place.identity != ""):
            yield entry, one.complete is not None, bool(one.states)


def _new_report(repeated: Repeated, place: Place, entry: ByteRange) -> NewReport:
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


def close_healed(journal: Journal, run: Run, place: Place, because: str) -> int:
    """Close the open entries that lie wholly within a place; give how many there were."""
    where = ByteRange(place.start, place.length)
    healed = 0
    for entry, _, _ in _entries(journal, place, where, still_open=True):
        if where.start <= entry.start and entry.start + entry.length <= where.end:
            run.close_failure(entry.id, because)
            healed += 1
    return healed
