"""The journal: every failure, its owners, what was planned, and the outcome of each step.

::

    from whoseblock.journal import PlannedStep, open_journal

    with open_journal() as journal, journal.begin_run(sys.argv, __version__) as run:
        report = NewReport(source="sysfs")
        noted = run.record_failure("pmem0", ByteRange(1257472, 4096), report)
        run.record_finding(noted.failure, answer)
        plan = run.plan([PlannedStep("zero", {"start": 0, "length": 4096})], [noted.failure])
        for step in plan.steps:
            run.started(step.id)  # raises JournalError: then nothing is written to the device
            ...
            run.done(step.id)
            run.verified(step.id)

Every writing call is durable when it returns.  A journal is one SQLite file for a machine, or one
PostgreSQL database for many; docs/internals/journal.md describes the schema.
"""

from typing import TYPE_CHECKING

from whoseblock.extras import import_extra
from whoseblock.journal.host import Host
from whoseblock.journal.limits import USUAL_LIMITS, Limits
from whoseblock.journal.records import (
    FINAL,
    NEXT,
    Event,
    FailureReport,
    Filter,
    Finding,
    History,
    NewReport,
    Overview,
    Plan,
    PlannedStep,
    RecordedFailure,
    ReportOutcome,
    RunRecord,
    State,
    Step,
)

if TYPE_CHECKING:
    from whoseblock.journal.journal import Journal

__all__ = [
    "FINAL",
    "NEXT",
    "Event",
    "FailureReport",
    "Filter",
    "Finding",
    "History",
    "Host",
    "Limits",
    "NewReport",
    "Overview",
    "Plan",
    "PlannedStep",
    "RecordedFailure",
    "ReportOutcome",
    "RunRecord",
    "State",
    "Step",
    "open_journal",
]


def open_journal(
    url: str | None = None,
    *,
    write: bool = True,
    host: Host | None = None,
    limits: Limits = USUAL_LIMITS,
) -> "Journal":
    """Open the journal at ``url``, a path or the URL of a database.

    None is $WHOSEBLOCK_JOURNAL, or else ``journal.sqlite`` in the state folder: that of the machine
    for root, that of the user otherwise.  With ``write`` it is created if it does not exist;
    without, it must exist.  ``host`` is the machine that the journal is written for, by default
    this one.  Raises `JournalError`, and `MissingExtraError` without SQLAlchemy.
    """
    # SQLAlchemy is an extra, and slow to import.
    import_extra("journal")
    from whoseblock.journal.journal import Journal

    return Journal(url, write=write, host=host, limits=limits)
