"""The queries of a journal, each on a connection that sees one state of it."""

import os
from collections import defaultdict
from collections.abc import Collection, Iterable, Mapping, Sequence
from hmac import compare_digest
from typing import Any, TypeVar

import msgspec
from msgspec.structs import replace
from sqlalchemy import ColumnElement, Connection, Row, Select, func, select

from whoseblock.journal.authentication import Authenticator
from whoseblock.journal.filtering import COUNTS, DEALS_WITH, IS_LAST, conditions_of
from whoseblock.journal.host import Host
from whoseblock.journal.records import (
    FINAL,
    Event,
    FailureReport,
    Filter,
    Finding,
    History,
    Overview,
    Plan,
    RecordedFailure,
    RunRecord,
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
from whoseblock.journal.stored_json import as_answer, as_object, as_texts

__all__ = [
    "doubtful_plans",
    "failures_of",
    "histories",
    "last_event",
    "overviews",
    "plan",
    "recorded_failures",
    "run_record",
    "starts",
    "unfinished_plans",
]

_Record = TypeVar("_Record")

# ------------------------------------------------------------------ overviews


def count_open(connection: Connection, host: Host) -> tuple[int, int]:
    """Return the number of open failures of a host, and of their bytes."""
    query = (
        select(func.count(), func.coalesce(func.sum(failures.c.length), 0))
        .select_from(failures)
        .join(hosts, hosts.c.id == failures.c.host)
        .where(hosts.c.name == host.name, failures.c.closed.is_(None))
    )
    number, size = connection.execute(query).one()
    return int(number), int(size)


def overviews(connection: Connection, ids: Sequence[int]) -> list[Overview]:
    """Return summaries of failures, in order of their numbers."""
    found = recorded_failures(connection, failures.c.id.in_(ids))
    reported = _counts(connection, reports.c.failure, ids)
    states: dict[int, dict[State, int]] = defaultdict(dict)
    for row in connection.execute(_states(ids)):
        states[row.failure][State(row.state)] = row.number
    looks = _last_findings(connection, ids)
    kinds: dict[int, dict[str, int]] = defaultdict(dict)
    wanted = [finding for finding, _ in looks.values()]
    for row in connection.execute(_kinds(wanted)):
        kinds[row.finding][str(row.kind)] = row.number
    paths = _paths(connection, wanted)
    result = []
    for entry in found:
        finding, complete = looks.get(entry.id, (0, None))
        path, count = paths.get(finding, (None, 0))
        result.append(
            Overview(
                failure=entry,
                reports=reported.get(entry.id, 0),
                states={state: n for state in State if (n := states[entry.id].get(state, 0))},
                complete=complete,
                owners=kinds[finding],
                path=path,
                paths=count,
            )
        )
    return result


def _counts(
    connection: Connection, column: ColumnElement[int], ids: Sequence[int]
) -> dict[int, int]:
    query = select(column, func.count()).where(column.in_(ids)).group_by(column)
    return {row[0]: row[1] for row in connection.execute(query)}


def _states(ids: Sequence[int]) -> Select[Any]:
    return (
        select(plan_failures.c.failure, step_events.c.state, func.count().label("number"))
        .select_from(plan_failures)
        .join(steps, DEALS_WITH)
        .join(step_events, step_events.c.step == steps.c.id)
        .join(failures, failures.c.id == plan_failures.c.failure)
        .where(plan_failures.c.failure.in_(ids), IS_LAST, COUNTS)
        .group_by(plan_failures.c.failure, step_events.c.state)
    )


def _last_findings(connection: Connection, ids: Sequence[int]) -> dict[int, tuple[int, bool]]:
    last = select(func.max(findings.c.id)).where(findings.c.failure.in_(ids))
    query = select(findings.c.failure, findings.c.id, findings.c.complete).where(
        findings.c.id.in_(last.group_by(findings.c.failure))
    )
    return {row.failure: (row.id, row.complete) for row in connection.execute(query)}


def _kinds(wanted: Sequence[int]) -> Select[Any]:
    return (
        select(owners.c.finding, owners.c.kind, func.count().label("number"))
        .where(owners.c.finding.in_(wanted))
        .group_by(owners.c.finding, owners.c.kind)
        .order_by(owners.c.finding, owners.c.kind)
    )


def _paths(connection: Connection, wanted: Sequence[int]) -> dict[int, tuple[str, int]]:
    """Return the first path and the number of paths of each finding; a file may have many rows."""
    summed = (
        select(
            owner_paths.c.finding,
            func.min(owner_paths.c.owner).label("owner"),
            func.count(owner_paths.c.digest.distinct()).label("paths"),
        )
        .where(owner_paths.c.finding.in_(wanted), owner_paths.c.mounted.is_(False))
        .group_by(owner_paths.c.finding)
        .subquery()
    )
    query = select(summed.c.finding, owner_paths.c.path, summed.c.paths).join(
        owner_paths,
        (owner_paths.c.finding == summed.c.finding)
        & (owner_paths.c.owner == summed.c.owner)
        & owner_paths.c.mounted.is_(False)
        & (owner_paths.c.number == 0),
    )
    return {row[0]: (row[1], row[2]) for row in connection.execute(query)}


# ------------------------------------------------------------------ everything


def histories(connection: Connection, auth: Authenticator, ids: Sequence[int]) -> list[History]:
    """Return everything about failures, in order of their numbers."""
    found = recorded_failures(connection, failures.c.id.in_(ids))
    told: dict[int, list[FailureReport]] = defaultdict(list)
    query: Select[Any] = select(reports).where(reports.c.failure.in_(ids)).order_by(reports.c.id)
    for row in connection.execute(query):
        told[row.failure].append(_report(row))
    looked = _findings(connection, auth, {entry.id: entry for entry in found})
    numbers: dict[int, list[int]] = defaultdict(list)
    query = select(plan_failures).where(plan_failures.c.failure.in_(ids))
    for row in connection.execute(query.order_by(plan_failures.c.plan)):
        numbers[row.failure].append(row.plan)
    made = _plans(connection, auth, {number for several in numbers.values() for number in several})
    named = {
        entry.id: _runs_of(entry, told[entry.id], looked[entry.id], _of(made, numbers[entry.id]))
        for entry in found
    }
    known = _runs(connection, set().union(*named.values()))
    return [
        History(
            failure=entry,
            reports=tuple(told[entry.id]),
            findings=tuple(looked[entry.id]),
            plans=_of(made, numbers[entry.id]),
            runs=tuple(known[run] for run in sorted(named[entry.id]) if run in known),
        )
        for entry in found
    ]


def _checked(record: type[_Record], /, **values: object) -> _Record:
    """Make a record; raise `ValueError` for a value of another kind, as SQLite stores any."""
    return msgspec.convert(values, record)


def _report(row: Row[Any]) -> FailureReport:
    return _checked(
        FailureReport,
        id=row.id,
        run=row.run,
        at=row.at,
        source=row.source,
        origin=row.origin,
        detail=as_object(row.detail),
    )


def _findings(
    connection: Connection, auth: Authenticator, about: Mapping[int, RecordedFailure]
) -> dict[int, list[Finding]]:
    """Return the findings about failures, by the number of the failure."""
    looked: dict[int, list[Finding]] = defaultdict(list)
    query = select(findings).where(findings.c.failure.in_(about)).order_by(findings.c.id)
    rows = connection.execute(query).all()
    writers = _runs(connection, {row.run for row in rows})
    for row in rows:
        finding = _checked(
            Finding,
            id=row.id,
            run=row.run,
            at=row.at,
            complete=row.complete,
            notes=as_texts(row.notes),
            answer=as_object(row.answer),
        )
        if auth.can_check(writers[row.run]):
            code = auth.code_finding(finding, about[row.failure])
            finding = replace(finding, authentic=compare_digest(code, row.mac or b""))
        looked[row.failure].append(replace(finding, answer=as_answer(finding.answer)))
    return looked


def _of(made: Mapping[int, Plan], numbers: Iterable[int]) -> tuple[Plan, ...]:
    return tuple(made[number] for number in numbers if number in made)


def _runs_of(
    entry: RecordedFailure,
    told: Iterable[FailureReport],
    looked: Iterable[Finding],
    made: Iterable[Plan],
) -> set[int]:
    """Return the runs that a history names."""
    named = {entry.run} | {one.run for one in told} | {one.run for one in looked}
    if entry.closed_by is not None:
        named.add(entry.closed_by)
    for plan_of_it in made:
        named.add(plan_of_it.run)
        named |= {event.run for step in plan_of_it.steps for event in step.events}
    return named


def plan(connection: Connection, auth: Authenticator, number: int) -> Plan | None:
    """Return a plan with its steps and their history, None if it does not exist."""
    return _plans(connection, auth, {number}).get(number)


def failures_of(connection: Connection, numbers: Collection[int]) -> dict[int, RecordedFailure]:
    """Return the failures that plans concern, by their numbers."""
    concerned = select(plan_failures.c.failure).where(plan_failures.c.plan.in_(numbers))
    found = recorded_failures(connection, failures.c.id.in_(concerned))
    return {one.id: one for one in found}


def _plans(
    connection: Connection, auth: Authenticator, numbers: Collection[int]
) -> dict[int, Plan]:
    """Return plans by their numbers."""
    if not numbers:
        return {}
    covered: dict[int, list[int]] = defaultdict(list)
    query: Select[Any] = select(plan_failures).where(plan_failures.c.plan.in_(numbers))
    for row in connection.execute(query.order_by(plan_failures.c.failure)):
        covered[row.plan].append(row.failure)
    events: dict[int, list[Event]] = defaultdict(list)
    codes: dict[int, list[bytes]] = defaultdict(list)
    query = (
        select(step_events)
        .join(steps, steps.c.id == step_events.c.step)
        .where(steps.c.plan.in_(numbers))
        .order_by(step_events.c.step, step_events.c.number)
    )
    for row in connection.execute(query):
        events[row.step].append(_event(row))
        codes[row.step].append(row.mac or b"")
    taken: dict[int, list[Step]] = defaultdict(list)
    query = select(steps).where(steps.c.plan.in_(numbers)).order_by(steps.c.number)
    for row in connection.execute(query):
        taken[row.plan].append(_step(row, events[row.id]))
    made = [
        Plan(
            id=row.id,
            run=row.run,
            at=row.at,
            options=as_object(row.options),
            failures=tuple(covered[row.id]),
            steps=tuple(taken[row.id]),
        )
        for row in connection.execute(select(plans).where(plans.c.id.in_(numbers)))
    ]
    writers = _runs(connection, {one.run for one in made})
    ours = {one.id for one in made if one.steps and auth.can_check(writers[one.run])}
    about = failures_of(connection, ours) if ours else {}
    return {
        one.id: replace(one, authentic=_is_authentic(auth, one, about, codes))
        if one.id in ours
        else one
        for one in made
    }


def _is_authentic(
    auth: Authenticator,
    made: Plan,
    about: Mapping[int, RecordedFailure],
    codes: Mapping[int, Sequence[bytes]],
) -> bool:
    """Return whether the codes of all events of a plan are right."""
    digest = auth.digest_plan(made, [about[number] for number in made.failures])
    for step in made.steps:
        if not step.events:
            return False
        before = digest
        for number, (event, code) in enumerate(zip(step.events, codes[step.id], strict=True)):
            right = auth.code_event(step.id, event, before)
            if event.number != number or not compare_digest(right, code):
                return False
            before = code
    return True


def _step(row: Row[Any], events: list[Event]) -> Step:
    return _checked(
        Step,
        id=row.id,
        plan=row.plan,
        number=row.number,
        kind=row.kind,
        failure=row.failure,
        parameters=as_object(row.parameters),
        # Every step of ours has events; a row that another program made may have none.
        state=events[-1].state if events else State.PLANNED,
        attempts=sum(event.state is State.STARTED for event in events),
        events=tuple(events),
    )


def last_event(connection: Connection, step: int) -> tuple[Event, bytes] | None:
    """Return the last event of a step and its code; None if the step does not exist."""
    query = select(step_events).where(step_events.c.step == step)
    row = connection.execute(query.order_by(step_events.c.number.desc()).limit(1)).first()
    return None if row is None else (_event(row), row.mac or b"")


def unfinished_plans(connection: Connection, host: Host, device: str | None) -> list[int]:
    """Return the plans of a host that have unfinished steps."""
    query = (
        select(steps.c.plan)
        .join(step_events, step_events.c.step == steps.c.id)
        .join(plan_failures, plan_failures.c.plan == steps.c.plan)
        .join(failures, failures.c.id == plan_failures.c.failure)
        .join(hosts, hosts.c.id == failures.c.host)
        .where(IS_LAST, step_events.c.state.not_in([state.value for state in FINAL]))
        .where(hosts.c.name == host.name, hosts.c.machine_id == host.machine_id)
        .distinct()
        .order_by(steps.c.plan)
    )
    if device is not None:
        query = query.where(*conditions_of(Filter(device=device)))
    return list(connection.scalars(query))


def doubtful_plans(
    connection: Connection, auth: Authenticator, host: Host, after: int, limit: int
) -> tuple[dict[int, None], int | None]:
    """Return plans of this user and host that may be unauthentic although they look finished.

    Also those that are unfinished.  It reads ``limit`` steps whose last events have numbers above
    ``after``; the second value is the last of these numbers, None at the end.
    """
    before, first = step_events.alias("before"), step_events.alias("first")
    query = (
        select(step_events, steps.c.plan, before.c.mac.label("before"), first.c.mac.label("first"))
        .join(steps, steps.c.id == step_events.c.step)
        .join(plans, plans.c.id == steps.c.plan)
        .join(runs, runs.c.id == plans.c.run)
        .join(hosts, hosts.c.id == runs.c.host)
        .join(first, (first.c.step == step_events.c.step) & (first.c.number == 0))
        .outerjoin(
            before,
            (before.c.step == step_events.c.step) & (before.c.number == step_events.c.number - 1),
        )
        .where(step_events.c.id > after, IS_LAST, runs.c.uid == os.geteuid())
        .where(hosts.c.name == host.name, hosts.c.machine_id == host.machine_id)
        .order_by(step_events.c.id)
        .limit(limit)
    )
    found: dict[int, None] = {}
    rows = connection.execute(query).all()
    for row in rows:
        event = _event(row)
        code = auth.code_event(row.step, event, row.before or b"")
        # A finished step from before version 4 has no codes, and hides nothing.
        if event.state not in FINAL or (row.first and not compare_digest(code, row.mac or b"")):
            found[row.plan] = None
    return found, rows[-1].id if len(rows) == limit else None


def starts(
    connection: Connection, host: Host, kind: str, before: int | None, limit: int
) -> dict[int, Event]:
    """Return the last starts of steps of a kind on a host, at most ``limit``, the latest first.

    By numbers, which ascend; only those ``before`` one are given, if there is one.
    """
    query = (
        select(step_events)
        .join(steps, steps.c.id == step_events.c.step)
        .join(runs, runs.c.id == step_events.c.run)
        .join(hosts, hosts.c.id == runs.c.host)
        .where(steps.c.kind == kind, step_events.c.state == State.STARTED.value)
        .where(hosts.c.name == host.name, hosts.c.machine_id == host.machine_id)
        .order_by(step_events.c.id.desc())
        .limit(limit)
    )
    if before is not None:
        query = query.where(step_events.c.id < before)
    return {row.id: _event(row) for row in connection.execute(query)}


def run_record(connection: Connection, run: int) -> RunRecord | None:
    """Return one run, None if it does not exist."""
    return _runs(connection, {run}).get(run)


def _runs(connection: Connection, numbers: Collection[int]) -> dict[int, RunRecord]:
    """Return runs by their numbers."""
    query = (
        select(runs, hosts.c.name, hosts.c.machine_id)
        .join(hosts, hosts.c.id == runs.c.host)
        .where(runs.c.id.in_(numbers))
    )
    return {
        row.id: _checked(
            RunRecord,
            id=row.id,
            host=row.name,
            machine_id=row.machine_id,
            uid=row.uid,
            user=row.user_name,
            sudo_user=row.sudo_user,
            pid=row.pid,
            process=row.process,
            command=as_texts(row.command),
            version=row.version,
            started=row.started,
            ended=row.ended,
        )
        for row in connection.execute(query)
    }


def _event(row: Row[Any]) -> Event:
    return _checked(
        Event,
        number=row.number,
        state=State(row.state),
        run=row.run,
        at=row.at,
        detail=as_object(row.detail),
    )


def recorded_failures(
    connection: Connection, condition: ColumnElement[bool]
) -> list[RecordedFailure]:
    """Return the failures for which a condition on their table holds, by number."""
    query = (
        select(failures, hosts.c.name.label("host_name"), hosts.c.machine_id)
        .join(hosts, hosts.c.id == failures.c.host)
        .where(condition)
        .order_by(failures.c.id)
    )
    return [
        _checked(
            RecordedFailure,
            id=row.id,
            host=row.host_name,
            machine_id=row.machine_id,
            device=row.device,
            identity=row.identity,
            start=row.start,
            length=row.length,
            target=row.target,
            first_seen=row.first_seen,
            run=row.run,
            closed=row.closed,
            closed_by=row.closed_by,
            closed_because=row.closed_because,
        )
        for row in connection.execute(query)
    ]
