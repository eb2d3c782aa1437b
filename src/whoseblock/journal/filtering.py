"""The conditions of queries: which failures a filter matches, and which steps count."""

from datetime import datetime
from typing import Any, Final

from sqlalchemy import ColumnElement, Connection, Select, exists, func, or_, select

from whoseblock.journal.columns import path_digest
from whoseblock.journal.records import Filter, State
from whoseblock.journal.schema import (
    failures,
    findings,
    hosts,
    owner_paths,
    plan_failures,
    reports,
    step_events,
    steps,
)

__all__ = ["COUNTS", "DEALS_WITH", "IS_LAST", "conditions_of", "find"]

_later: Final = step_events.alias("later")
#: The last event of each step.
IS_LAST: Final = step_events.c.number == (
    select(func.max(_later.c.number))
    .where(_later.c.step == step_events.c.step)
    .correlate(step_events)
    .scalar_subquery()
)
#: A step deals with one failure of its plan, or with all of them.
DEALS_WITH: Final = (steps.c.plan == plan_failures.c.plan) & (
    func.coalesce(steps.c.failure, plan_failures.c.failure) == plan_failures.c.failure
)
_newer: Final = plan_failures.alias("newer")
_other: Final = steps.alias("other")
_begun: Final = step_events.alias("begun")
#: A later plan of the failure replaces a plan of which no step was begun, such as a dry run's.
_IS_REPLACED: Final = (
    exists()
    .where(_newer.c.failure == plan_failures.c.failure, _newer.c.plan > plan_failures.c.plan)
    .correlate(plan_failures)
) & ~(
    exists()
    .where(
        _other.c.plan == plan_failures.c.plan,
        _begun.c.step == _other.c.id,
        _begun.c.state != State.PLANNED.value,
    )
    .correlate(plan_failures)
)
#: A planned step that will not be taken does not count.
COUNTS: Final = (step_events.c.state != State.PLANNED.value) | (
    failures.c.closed.is_(None) & ~_IS_REPLACED
)


def find(connection: Connection, wanted: Filter, after: int, limit: int) -> list[int]:
    """Return the next failures that match, by number, at most ``limit``."""
    query = (
        select(failures.c.id)
        .join(hosts, hosts.c.id == failures.c.host)
        .where(failures.c.id > after, *conditions_of(wanted))
        .order_by(failures.c.id)
        .limit(limit)
    )
    return list(connection.scalars(query))


def conditions_of(wanted: Filter) -> list[ColumnElement[bool]]:
    """Return the conditions of a filter on `failures` joined with `hosts`."""
    conditions: list[ColumnElement[bool]] = []
    if wanted.device is not None:
        # Users name a device with /dev/, the kernel without.
        named = failures.c.device == wanted.device.removeprefix("/dev/")
        others = (failures.c.device, failures.c.identity, failures.c.target)
        conditions.append(or_(named, *(name == wanted.device for name in others)))
    if wanted.host is not None:
        conditions.append(hosts.c.name == wanted.host)
    if wanted.open is not None:
        conditions.append(failures.c.closed.is_(None) == wanted.open)
    if wanted.closed_since is not None:
        conditions.append(failures.c.closed >= wanted.closed_since)
    if wanted.overlapping is not None:
        start, end = wanted.overlapping.start, wanted.overlapping.end
        conditions.append(failures.c.start < end)
        conditions.append(failures.c.start + failures.c.length > start)
    if wanted.file is not None:
        conditions.append(failures.c.id.in_(_owned_by(wanted.file)))
    if wanted.since is not None or wanted.until is not None:
        conditions.append(failures.c.id.in_(_reported(wanted.since, wanted.until)))
    if wanted.state is not None:
        conditions.append(
            exists()
            .where(
                plan_failures.c.failure == failures.c.id,
                DEALS_WITH,
                step_events.c.step == steps.c.id,
                IS_LAST,
                COUNTS,
                step_events.c.state == wanted.state.value,
            )
            .correlate(failures)
        )
    return conditions


def _reported(since: datetime | None, until: datetime | None) -> Select[Any]:
    reported = select(reports.c.failure)
    if since is not None:
        reported = reported.where(reports.c.at >= since)
    if until is not None:
        reported = reported.where(reports.c.at < until)
    return reported


def _owned_by(path: str) -> Select[Any]:
    return (
        select(findings.c.failure)
        .join(owner_paths, owner_paths.c.finding == findings.c.id)
        .where(owner_paths.c.digest == path_digest(path), owner_paths.c.path == path)
    )
