"""The words of the journal: states of a step, and the records that are read from it.

Times are aware and in UTC.  Offsets and lengths are bytes of the device that failed.
"""

from collections.abc import Mapping
from datetime import datetime
from enum import StrEnum
from types import MappingProxyType
from typing import Any, Final, NamedTuple

from msgspec import Struct, field

from whoseblock.journal.host import Host, Process, lives
from whoseblock.ranges import ByteRange

__all__ = [
    "FINAL",
    "NEXT",
    "Entry",
    "Event",
    "Filter",
    "Finding",
    "History",
    "NewReport",
    "Noted",
    "Overview",
    "Plan",
    "PlannedStep",
    "Report",
    "RunRecord",
    "State",
    "Step",
]


class State(StrEnum):
    """What has become of a step."""

    PLANNED = "planned"
    STARTED = "started"
    DONE = "done"
    VERIFIED = "verified"
    FAILED = "failed"
    SKIPPED = "skipped"


#: What may follow a state.  A step is started again after it failed, or if whoever had started it
#: did not live to say more; done becomes failed if the device does not give back what was written.
NEXT: Final[Mapping[State, frozenset[State]]] = MappingProxyType(
    {
        State.PLANNED: frozenset({State.STARTED, State.SKIPPED}),
        State.STARTED: frozenset({State.STARTED, State.DONE, State.FAILED, State.SKIPPED}),
        State.DONE: frozenset({State.VERIFIED, State.FAILED, State.SKIPPED}),
        State.FAILED: frozenset({State.STARTED, State.SKIPPED}),
        State.VERIFIED: frozenset(),
        State.SKIPPED: frozenset(),
    }
)

#: The states that end a step; whatever is in another is unfinished.
FINAL: Final = frozenset(state for state, following in NEXT.items() if not following)


class RunRecord(Struct, frozen=True, kw_only=True):
    """One run of whoseblock that wrote to the journal.

    ``process`` names the process for ever (boot, pid namespace, start time), ``pid`` only as long
    as it lives.  ``ended`` is None while it runs, and for ever if it was killed.  ``sudo_user`` is
    who became ``user`` with sudo, "" if nobody did.
    """

    id: int
    host: str
    machine_id: str
    uid: int
    user: str
    sudo_user: str
    pid: int
    process: str
    command: tuple[str, ...]
    version: str
    started: datetime
    ended: datetime | None

    def may_live(self, here: Host) -> bool:
        """Whether the run still goes on, or may: nobody on host ``here`` sees one of another."""
        if self.ended is not None:
            return False
        there = Host(self.host, self.machine_id)
        return there != here or lives(Process(self.pid, self.process))


class Entry(Struct, frozen=True, kw_only=True):
    """A failure: ``length`` bytes from ``start`` of ``device`` on ``host``.

    ``identity`` names the device whatever the kernel calls it (a serial number, a UUID), "" if
    nobody knows.  ``target`` is what the user named, if anything, and ``first_seen`` the time of
    the first report.  As long as ``closed`` is None, whoever reports the same bytes reports this
    failure.
    """

    id: int
    host: str
    machine_id: str
    device: str
    identity: str
    start: int
    length: int
    target: str
    first_seen: datetime
    run: int
    closed: datetime | None
    closed_by: int | None
    closed_because: str | None

    @property
    def range(self) -> ByteRange:
        """The bytes that failed."""
        return ByteRange(self.start, self.length)


class Report(Struct, frozen=True, kw_only=True):
    """Somebody noticed the failure: ``source`` is who, ``origin`` where that was read."""

    id: int
    run: int
    at: datetime
    source: str
    origin: str
    detail: dict[str, Any]


class Finding(Struct, frozen=True, kw_only=True):
    """Who owned the bytes when it was asked; ``answer`` is an object of ``lookup --json``."""

    id: int
    run: int
    at: datetime
    complete: bool
    notes: tuple[str, ...]
    answer: dict[str, Any]


class Event(Struct, frozen=True, kw_only=True):
    """A step came into a state; ``number`` counts the events of a step from 0."""

    number: int
    state: State
    run: int
    at: datetime
    detail: dict[str, Any]


class Step(Struct, frozen=True, kw_only=True):
    """A step of a plan with its history.

    ``number`` counts the steps of a plan from 0, in the order in which they are to be taken.
    ``failure`` is the one that the step deals with, None if it deals with all of the plan's.
    ``state`` is that of its last event, and ``attempts`` counts how often it was started.
    """

    id: int
    plan: int
    number: int
    kind: str
    failure: int | None
    parameters: dict[str, Any]
    state: State
    attempts: int
    events: tuple[Event, ...]


class Plan(Struct, frozen=True, kw_only=True):
    """What is to be done about some failures."""

    id: int
    run: int
    at: datetime
    options: dict[str, Any]
    failures: tuple[int, ...]
    steps: tuple[Step, ...]


class PlannedStep(Struct, frozen=True):
    """A step that is to be journaled: what kind of act, and all that is needed to repeat it.

    ``parameters`` are what JSON can hold.
    """

    kind: str
    parameters: dict[str, Any]
    failure: int | None = None


class NewReport(Struct, frozen=True, kw_only=True):
    """A report that is to be journaled.

    ``source`` is who noticed (``dmesg``, ``sysfs``, a person), ``origin`` where that was read: file
    and line.  ``at`` is when it was noticed, None for now.  ``key`` names the event itself within
    its source on this host, such as a cursor of its log: a report with a key is journaled once,
    however often the source is read, even after the failure was closed.  ``detail`` is what JSON
    can hold.
    """

    source: str
    origin: str = ""
    at: datetime | None = None
    key: str | None = None
    detail: dict[str, Any] = field(default_factory=dict)


class Noted(NamedTuple):
    """What became of a report: which failure it is of, and what of it was new."""

    failure: int
    new_failure: bool
    new_report: bool


class Overview(Struct, frozen=True, kw_only=True):
    """One failure in a few words.

    ``states`` counts the steps that deal with it, by state.  ``owners`` counts the rows of its last
    finding, by kind, and ``path`` is the first path there, of ``paths``; ``complete`` is None if
    nobody has looked yet.
    """

    failure: Entry
    reports: int
    states: dict[State, int]
    complete: bool | None
    owners: dict[str, int]
    path: str | None
    paths: int


class History(Struct, frozen=True, kw_only=True):
    """Everything about one failure; ``runs`` are all that are named in it."""

    failure: Entry
    reports: tuple[Report, ...]
    findings: tuple[Finding, ...]
    plans: tuple[Plan, ...]
    runs: tuple[RunRecord, ...]


class Filter(Struct, frozen=True, kw_only=True):
    """Which failures are wanted: those for which all that is given here is true.

    ``device`` is the name of the device, its identity, or the target as it was named.  ``file`` is
    a path of any owner, from the root of its filesystem or as it was mounted.  ``since`` (included)
    and ``until`` (left out) are when somebody reported it, and since ``closed_since`` (included) it
    is closed.  ``state`` is that of any of its steps.  ``overlapping`` is a range that it has a
    byte of.
    """

    device: str | None = None
    file: str | None = None
    since: datetime | None = None
    until: datetime | None = None
    state: State | None = None
    host: str | None = None
    open: bool | None = None
    overlapping: ByteRange | None = None
    closed_since: datetime | None = None
