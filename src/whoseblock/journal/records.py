"""The states of a step, and the records that are read from the journal.

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
    "Event",
    "FailureReport",
    "Filter",
    "Finding",
    "History",
    "NewReport",
    "Overview",
    "Plan",
    "PlannedStep",
    "RecordedFailure",
    "ReportOutcome",
    "RunRecord",
    "State",
    "Step",
]


class State(StrEnum):
    """The state of a step, that of its last event."""

    PLANNED = "planned"
    STARTED = "started"
    DONE = "done"
    VERIFIED = "verified"
    FAILED = "failed"
    SKIPPED = "skipped"


#: The states that may follow a state.  A step is started again after it failed, or after its run
#: was killed; done becomes failed if the device does not read back what was written.
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

#: The states that end a step; a step in another one is unfinished.
FINAL: Final = frozenset(state for state, following in NEXT.items() if not following)


class RunRecord(Struct, frozen=True, kw_only=True):
    """One run of whoseblock that wrote to the journal.

    ``process`` identifies the process (boot, pid namespace, start time); ``pid`` does only while it
    lives.  ``ended`` is None while it runs, and stays None if it was killed.  ``sudo_user`` is the
    user who became ``user`` with sudo, "" without sudo.
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
        """Return whether the run still lives, or may: ``here`` cannot see runs of other hosts."""
        if self.ended is not None:
            return False
        there = Host(self.host, self.machine_id)
        return there != here or lives(Process(self.pid, self.process))


class RecordedFailure(Struct, frozen=True, kw_only=True):
    """A failure: ``length`` bytes from ``start`` of ``device`` on ``host``.

    ``identity`` is a stable name of the device (a serial number, a UUID), "" if it is unknown.
    ``target`` is what the user named, if anything, and ``first_seen`` the time of the first report.
    While ``closed`` is None, a report of the same bytes is one of this failure.
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


class FailureReport(Struct, frozen=True, kw_only=True):
    """A report of a failure: ``source`` noticed it, ``origin`` is where that was read."""

    id: int
    run: int
    at: datetime
    source: str
    origin: str
    detail: dict[str, Any]


class Finding(Struct, frozen=True, kw_only=True):
    """The owners of the bytes at that time; ``answer`` is an object of ``lookup --json``.

    ``authentic`` is as in `Plan`.
    """

    id: int
    run: int
    at: datetime
    complete: bool
    notes: tuple[str, ...]
    answer: dict[str, Any]
    authentic: bool | None = None


class Event(Struct, frozen=True, kw_only=True):
    """A change of a step's state; ``number`` counts the events of a step from 0."""

    number: int
    state: State
    run: int
    at: datetime
    detail: dict[str, Any]


class Step(Struct, frozen=True, kw_only=True):
    """A step of a plan with its history.

    ``number`` counts the steps of a plan from 0, in the order in which they are taken.
    ``failure`` is the failure that the step deals with, None for all failures of the plan.
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
    """The steps planned for one or more failures.

    ``authentic`` is whether this user wrote all of it on this host: the plan, its steps, their
    events, and the failures.  None if only another user or host can check that.
    """

    id: int
    run: int
    at: datetime
    options: dict[str, Any]
    failures: tuple[int, ...]
    steps: tuple[Step, ...]
    authentic: bool | None = None


class PlannedStep(Struct, frozen=True):
    """A step to journal: its kind, and the parameters that it takes to repeat it, as JSON."""

    kind: str
    parameters: dict[str, Any]
    failure: int | None = None


class NewReport(Struct, frozen=True, kw_only=True):
    """A report to journal.

    ``source`` noticed the failure (``dmesg``, ``sysfs``, a person); ``origin`` is the file and line
    where that was read.  ``at`` is when it was noticed, None for now.  ``key`` identifies the event
    within its source on this host, such as a cursor of its log: a report with a key is journaled
    once, even after the failure was closed.  ``detail`` is JSON.
    """

    source: str
    origin: str = ""
    at: datetime | None = None
    key: str | None = None
    detail: dict[str, Any] = field(default_factory=dict)


class ReportOutcome(NamedTuple):
    """The result of a report: its failure, and whether the failure and the report are new."""

    failure: int
    new_failure: bool
    new_report: bool


class Overview(Struct, frozen=True, kw_only=True):
    """One failure as a summary.

    ``states`` counts the steps that deal with it, by state, without those planned that will not be
    taken: the failure is closed, or a later plan replaced a dry run.  ``owners`` counts the rows of
    its last finding, by kind, and ``path`` is the first path there, of ``paths``; ``complete`` is
    None without a finding.
    """

    failure: RecordedFailure
    reports: int
    states: dict[State, int]
    complete: bool | None
    owners: dict[str, int]
    path: str | None
    paths: int


class History(Struct, frozen=True, kw_only=True):
    """Everything about one failure; ``runs`` are all that are named in it."""

    failure: RecordedFailure
    reports: tuple[FailureReport, ...]
    findings: tuple[Finding, ...]
    plans: tuple[Plan, ...]
    runs: tuple[RunRecord, ...]


class Filter(Struct, frozen=True, kw_only=True):
    """The failures that match every field that is set.

    ``device`` is the name of the device, its identity, or the target as it was named.  ``file`` is
    a path of any owner, from the root of its filesystem or as it was mounted.  ``since``
    (inclusive) and ``until`` (exclusive) bound the time of a report, ``closed_since`` (inclusive)
    that of its closing.  ``state`` is that of any step that an `Overview` counts.
    ``overlapping`` is a range that shares a byte with it.
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
