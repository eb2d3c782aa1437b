"""One run of whoseblock, and everything that it writes to the journal."""

import os
from collections.abc import Iterable, Mapping, Sequence
from contextlib import nullcontext, suppress
from datetime import UTC, datetime
from types import TracebackType
from typing import Any, Final

import msgspec
from sqlalchemy import Connection, bindparam, insert, select, update

from whoseblock.closing import Closing
from whoseblock.errors import JournalError
from whoseblock.fs.base import Answer, FileOwner, Owner
from whoseblock.journal import reading
from whoseblock.journal.authentication import Authenticator, check_discardable
from whoseblock.journal.columns import path_digest
from whoseblock.journal.database import Database
from whoseblock.journal.host import Host, this_process, without_passwords
from whoseblock.journal.records import (
    NEXT,
    Event,
    Finding,
    NewReport,
    Plan,
    PlannedStep,
    RecordedFailure,
    ReportOutcome,
    State,
    Step,
)
from whoseblock.journal.schema import (
    failures,
    findings,
    hosts,
    owner_paths,
    owners,
    plan_failures,
    plans,
    reports,
    runs,
    step_events,
    steps,
)
from whoseblock.media.trusted_files import user_name
from whoseblock.ranges import ByteRange

__all__ = ["Run"]

_NOTHING: Final[Mapping[str, Any]] = {}
_DISCARDED: Final = "the user discarded the plan, which is not authentic"
#: So many rows are inserted at a time.
_BATCH: Final = 4096
# Made once: of many failures that come at once, most of the time would go into making them.
_REPORT_OF: Final = select(reports.c.failure).where(reports.c.event == bindparam("event"))
_FAILURE: Final = select(failures).where(failures.c.id == bindparam("failure"))
_OPEN: Final = (
    select(failures.c.id, failures.c.device, failures.c.identity)
    .where(
        failures.c.host == bindparam("host"),
        failures.c.start == bindparam("start"),
        failures.c.length == bindparam("length"),
        failures.c.closed.is_(None),
    )
    .order_by(failures.c.id)
)


class Run(Closing):
    """A run; `whoseblock.journal.journal.Journal.begin_run` begins it, and closing it ends it.

    What a method writes is durable when it returns.  If it raises `JournalError`, nothing of it was
    written, unless the connection was lost during the commit; the caller must not act then.
    """

    def __init__(
        self,
        database: Database,
        auth: Authenticator,
        host: Host,
        command: Sequence[str],
        version: str,
    ) -> None:
        self._database = database
        self._auth = auth
        self._host = host
        process = this_process()
        uid = os.geteuid()
        with database.writing(lock=["host", *host]) as connection:
            self._host_id = _host_id(connection, host)
            values = {
                "host": self._host_id,
                "uid": uid,
                "user_name": user_name(uid),
                "sudo_user": os.environ.get("SUDO_USER", ""),
                "pid": process.pid,
                "process": process.name,
                "command": without_passwords(command),
                "version": version,
                "started": _now(),
            }
            self.id = _added(connection, runs, values)

    def close(self) -> None:
        """Record the end of the run."""
        with self._database.writing() as connection:
            connection.execute(
                update(runs)
                .where(runs.c.id == self.id, runs.c.ended.is_(None))
                .values(ended=_now())
            )

    def __exit__(
        self,
        kind: type[BaseException] | None,
        value: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        # An error of the run must not be hidden by one of the journal.
        with nullcontext() if kind is None else suppress(JournalError):
            self.close()

    # -------------------------------------------------------------- failures

    def record_failure(
        self,
        device: str,
        where: ByteRange,
        report: NewReport,
        *,
        identity: str = "",
        target: str = "",
    ) -> ReportOutcome:
        """Record a report that ``where`` of ``device`` of this host failed.

        If an open failure has the same bytes of the same device, the report is of that one.  A
        device is the same if its ``identity`` is, or, where one of the two is unknown, its name.
        An event with a ``key`` is recorded once: the result then names the failure of the first
        report, which may be closed by now.
        """
        report = _dated(report)
        # The lock makes the search and the insert atomic.
        with self._database.writing(lock=["failures", *self._host]) as connection:
            event, known = self._known_event(connection, report)
            if known is not None:
                return known
            failure = self._open_failure(connection, device, where, identity)
            new = failure is None
            if failure is None:
                values = {
                    "host": self._host_id,
                    "device": device,
                    "identity": identity,
                    "start": where.start,
                    "length": where.length,
                    "target": target,
                    "first_seen": report.at,
                    "run": self.id,
                }
                failure = _added(connection, failures, values)
            self._add_report(connection, failure, report, event)
        return ReportOutcome(failure, new_failure=new, new_report=True)

    def record_report(self, failure: int, report: NewReport, seen: datetime) -> ReportOutcome:
        """Record another report of a failure that was open when the caller read it.

        If it was closed since, and the event was last ``seen`` after that, this records a failure
        of the same bytes as `record_failure` does.
        """
        report = _dated(report)
        with self._database.writing(lock=["failures", *self._host]) as connection:
            event, known = self._known_event(connection, report)
            if known is not None:
                return known
            row = connection.execute(_FAILURE, {"failure": failure}).one()
            if row.closed is None or seen <= row.closed:
                self._add_report(connection, failure, report, event)
                return ReportOutcome(failure, new_failure=False, new_report=True)
        where = ByteRange(row.start, row.length)
        return self.record_failure(
            row.device, where, report, identity=row.identity, target=row.target
        )

    def _known_event(
        self, connection: Connection, report: NewReport
    ) -> tuple[bytes | None, ReportOutcome | None]:
        """Return the digest of an event with a key, and its failure if it is recorded already."""
        if report.key is None:
            return None, None
        event = self._auth.code_key(report.source, report.key)
        known = connection.scalar(_REPORT_OF, {"event": event})
        noted = None if known is None else ReportOutcome(known, new_failure=False, new_report=False)
        return event, noted

    def _add_report(
        self, connection: Connection, failure: int, report: NewReport, event: bytes | None
    ) -> None:
        told = {
            "failure": failure,
            "run": self.id,
            "at": report.at,
            "source": report.source,
            "origin": report.origin,
            "event": event,
            "detail": report.detail,
        }
        connection.execute(insert(reports), told)

    def _open_failure(
        self, connection: Connection, device: str, where: ByteRange, identity: str
    ) -> int | None:
        asked = {"host": self._host_id, "start": where.start, "length": where.length}
        for row in connection.execute(_OPEN, asked):
            same = row.identity == identity if row.identity and identity else row.device == device
            if same:
                return int(row.id)
        return None

    def record_finding(self, failure: int, answer: Answer) -> int:
        """Record the present owners of a failure; return the number of the finding."""
        rows: list[dict[str, Any]] = []
        paths: list[dict[str, Any]] = []
        for number, owner in enumerate(answer):
            rows.append(_owner_row(number, owner))
            if isinstance(owner, FileOwner):
                paths += _path_rows(number, owner)
        made = self._finding(answer)
        with self._database.writing() as connection:
            about = reading.recorded_failures(connection, failures.c.id == failure)
            if not about:
                raise JournalError(f"the journal has no failure {failure}")
            values = self._finding_row(made, about[0])
            finding = _added(connection, findings, values)
            for table, all_rows in ((owners, rows), (owner_paths, paths)):
                for at in range(0, len(all_rows), _BATCH):
                    part = all_rows[at : at + _BATCH]
                    connection.execute(insert(table), [row | {"finding": finding} for row in part])
        return finding

    def complete_finding(self, finding: int, failure: int, answer: Answer) -> None:
        """Replace the answer of a finding by the same owners with more about them.

        Owners are recorded as soon as they are known, and the processes that use them later. In a
        database of many hosts, where no role may change a finding, this records another one.
        """
        made = self._finding(answer)
        with self._database.writing() as connection:
            about = reading.recorded_failures(connection, failures.c.id == failure)
            if about and connection.dialect.name == "sqlite":
                mine = (findings.c.id == finding) & (findings.c.failure == failure)
                values = self._finding_row(made, about[0])
                if connection.execute(update(findings).where(mine).values(values)).rowcount:
                    return
        self.record_finding(failure, answer)

    def _finding(self, answer: Answer) -> Finding:
        return Finding(
            id=0,
            run=self.id,
            at=_now(),
            complete=answer.complete,
            notes=answer.notes,
            answer=msgspec.to_builtins(answer),
        )

    def _finding_row(self, made: Finding, failure: RecordedFailure) -> dict[str, Any]:
        return {
            "failure": failure.id,
            "run": made.run,
            "at": made.at,
            "complete": made.complete,
            "notes": list(made.notes),
            "answer": made.answer,
            "mac": self._auth.code_finding(made, failure),
        }

    def close_failure(self, failure: int, because: str) -> None:
        """Close a failure; if the bytes fail again, that is a new one.

        A failure that is closed already is not changed.
        """
        with self._database.writing() as connection:
            self._close_failure(connection, failure, because)

    def _close_failure(self, connection: Connection, failure: int, because: str) -> None:
        connection.execute(
            update(failures)
            .where(failures.c.id == failure, failures.c.closed.is_(None))
            .values(closed=_now(), closed_by=self.id, closed_because=because)
        )

    # -------------------------------------------------------------- plans

    def plan(
        self,
        planned: Iterable[PlannedStep],
        concerned: Iterable[int],
        options: Mapping[str, Any] = _NOTHING,
    ) -> Plan:
        """Record the planned steps, in this order, for one or more failures.

        ``options`` are what the user passed, as JSON.
        """
        planned, about = list(planned), sorted(set(concerned))
        stray = {step.failure for step in planned} - {None, *about}
        if not about or stray:
            raise JournalError("a plan concerns one failure or more, and its steps only those")
        now = _now()
        with self._database.writing() as connection:
            values = {"run": self.id, "at": now, "options": dict(options)}
            number = _added(connection, plans, values)
            links = [{"plan": number, "failure": failure} for failure in about]
            connection.execute(insert(plan_failures), links)
            taken = tuple(
                self._add_step(connection, number, order, step)
                for order, step in enumerate(planned)
            )
            made = Plan(
                id=number,
                run=self.id,
                at=now,
                options=dict(options),
                failures=tuple(about),
                steps=taken,
            )
            known = reading.failures_of(connection, {number})
            digest = self._auth.digest_plan(made, [known[failure] for failure in about])
            for step in taken:
                self._append(connection, step.id, (0, State.PLANNED, {}), digest)
            stored = reading.plan(connection, self._auth, number)
        assert stored is not None  # noqa: S101 - for the type checker: it was just written
        return stored

    def _add_step(
        self, connection: Connection, plan: int, number: int, planned: PlannedStep
    ) -> Step:
        row: dict[str, Any] = {
            "plan": plan,
            "number": number,
            "kind": planned.kind,
            "failure": planned.failure,
            "parameters": planned.parameters,
        }
        added = _added(connection, steps, row)
        return Step(**row, id=added, state=State.PLANNED, attempts=0, events=())

    def started(self, step: int, detail: Mapping[str, Any] = _NOTHING) -> Event:
        """Record that a step begins, for the first time, after it failed, or after an interruption.

        A step that was started, or done and not yet verified, by a run that may still live is
        refused.
        """
        return self._advance(step, State.STARTED, detail)

    def done(self, step: int, detail: Mapping[str, Any] = _NOTHING) -> Event:
        """Record that a started step is done."""
        return self._advance(step, State.DONE, detail)

    def verified(
        self,
        step: int,
        detail: Mapping[str, Any] = _NOTHING,
        *,
        closes: tuple[int, str] | None = None,
    ) -> Event:
        """Record that the result of a step was verified.

        ``closes`` is a failure and a reason: it is closed in the same transaction.
        """
        return self._advance(step, State.VERIFIED, detail, closes)

    def failed(self, step: int, because: str, detail: Mapping[str, Any] = _NOTHING) -> Event:
        """Record that a started or done step failed; it can be started again."""
        return self._advance(step, State.FAILED, {"because": because, **detail})

    def skipped(self, step: int, because: str, detail: Mapping[str, Any] = _NOTHING) -> Event:
        """Record that an unfinished step is not taken, and why."""
        return self._advance(step, State.SKIPPED, {"because": because, **detail})

    def discard(self, number: int) -> None:
        """End all steps of a plan that is not authentic, so that it is no longer reported.

        Nothing of it is carried out, and it stays marked as not authentic.  Raises `JournalError`
        for any other plan: only the user and host that made a plan can tell.
        """
        with self._database.writing(lock=["plan", number]) as connection:
            found = reading.plan(connection, self._auth, number)
            if found is None:
                raise JournalError(f"the journal has no plan {number}")
            check_discardable(found)
            for step in found.steps:
                last = reading.last_event(connection, step.id)
                if last is not None:
                    event, code = last
                    made = (event.number + 1, State.SKIPPED, {"because": _DISCARDED})
                    # Its code covers that of the event before it, whether that is right or not.
                    self._append(connection, step.id, made, code)

    def _advance(
        self,
        step: int,
        state: State,
        detail: Mapping[str, Any],
        closes: tuple[int, str] | None = None,
    ) -> Event:
        with self._database.writing(lock=["step", step]) as connection:
            found = reading.last_event(connection, step)
            if found is None:
                raise JournalError(f"the journal has no step {step}")
            last, code = found
            if state not in NEXT[last.state]:
                raise JournalError(
                    f"step {step} is {last.state}, and does not become {state} from that",
                    hint="whoseblock journal show shows its history",
                )
            if last.state in (State.STARTED, State.DONE) and last.run != self.id:
                self._check_abandoned(connection, step, last.run)
            if closes is not None:
                self._close_failure(connection, *closes)
            return self._append(connection, step, (last.number + 1, state, detail), code)

    def _check_abandoned(self, connection: Connection, step: int, number: int) -> None:
        other = reading.run_record(connection, number)
        if other is not None and other.may_live(self._host):
            raise JournalError(
                f"step {step} is being done by run {other.id}, process {other.pid} on {other.host}",
                hint="wait until that has ended",
            )

    def _append(
        self,
        connection: Connection,
        step: int,
        made: tuple[int, State, Mapping[str, Any]],
        before: bytes,
    ) -> Event:
        """Append an event to a step: its number, state and detail."""
        number, state, detail = made
        event = Event(number=number, state=state, run=self.id, at=_now(), detail=dict(detail))
        values = {
            "step": step,
            "number": number,
            "state": state.value,
            "run": self.id,
            "at": event.at,
            "detail": event.detail,
            "mac": self._auth.code_event(step, event, before),
        }
        connection.execute(insert(step_events), values)
        return event


def _now() -> datetime:
    return datetime.now(UTC)


def _dated(report: NewReport) -> NewReport:
    return report if report.at else msgspec.structs.replace(report, at=_now())


def _added(connection: Connection, table: Any, values: Mapping[str, Any]) -> int:  # noqa: ANN401 - a table of any kind
    key = connection.execute(insert(table), dict(values)).inserted_primary_key
    assert key is not None  # noqa: S101 - for the type checker: one row was inserted
    return int(key[0])


def _host_id(connection: Connection, host: Host) -> int:
    query = select(hosts.c.id).where(
        hosts.c.name == host.name, hosts.c.machine_id == host.machine_id
    )
    known = connection.scalar(query)
    return _added(connection, hosts, host._asdict()) if known is None else known


def _owner_row(number: int, owner: Owner) -> dict[str, Any]:
    row: dict[str, Any] = {"number": number, "kind": owner.kind}
    row |= {"start": owner.start, "length": owner.length}
    for name in ("what", "inode", "generation", "file_offset"):
        value = getattr(owner, name, None)
        row[name] = None if value is msgspec.UNSET else value
    row["subvolume"] = owner.file.subvolume if isinstance(owner, FileOwner) else None
    return row


def _path_rows(number: int, owner: FileOwner) -> Iterable[dict[str, Any]]:
    for mounted, paths in ((False, owner.paths), (True, owner.mounted_at)):
        if isinstance(paths, tuple):
            for order, path in enumerate(paths):
                row = {"owner": number, "mounted": mounted, "number": order, "path": path}
                yield row | {"digest": path_digest(path)}
