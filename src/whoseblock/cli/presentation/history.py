"""The content of the journal as text for people and as CSV."""

import csv
import io
import json
import shlex
from collections.abc import Iterable, Iterator, Mapping
from datetime import datetime
from itertools import islice
from typing import Any, Final

from whoseblock.cli.presentation.summary import cell, quoted
from whoseblock.cli.presentation.table import table_lines
from whoseblock.journal import (
    History,
    Host,
    Overview,
    Plan,
    RecordedFailure,
    RunRecord,
    State,
    Step,
)
from whoseblock.journal.stored_json import answer_of
from whoseblock.printable import printable

__all__ = [
    "csv_lines",
    "history_lines",
    "overview_lines",
    "owners_text",
    "plan_lines",
    "states_of",
    "states_text",
]

#: Columns are as wide as so many failures need; later ones push them wider.
_SAMPLE: Final = 256
_HEADINGS: Final = ("ID", "TIME", "HOST", "DEVICE", "RANGE", "STATE", "OWNERS", "PATH")


def overview_lines(found: Iterable[Overview]) -> Iterator[str]:
    """Yield the lines of a table, one for each failure, as they arrive."""
    waiting = iter(found)
    widths = [len(heading) for heading in _HEADINGS]
    headings = [_HEADINGS]
    while batch := list(islice(waiting, _SAMPLE)):
        rows = [_overview(one) for one in batch]
        for row in rows:
            widths = [max(width, len(text)) for width, text in zip(widths, row, strict=True)]
        for row in (*headings, *rows):
            texts = (text.ljust(width) for text, width in zip(row[:-1], widths, strict=False))
            yield "  ".join([*texts, row[-1]]).rstrip()
        headings = []


def _overview(one: Overview) -> tuple[str, ...]:
    failure = one.failure
    owners = owners_text(one.complete, one.owners)
    path = "" if one.path is None else printable(one.path)
    return (
        str(failure.id),
        _time(failure.first_seen),
        printable(failure.host),
        printable(failure.device),
        str(failure.range),
        states_text(failure, one.states),
        printable(owners),
        f"{path}  (and {one.paths - 1} more)" if one.paths > 1 else path,
    )


def states_text(failure: RecordedFailure, states: Mapping[State, int]) -> str:
    """Return the states of a failure's steps in words."""
    closed = [] if failure.closed is None else ["closed"]
    return ", ".join([*closed, *(f"{count} {state}" for state, count in states.items())]) or (
        "no plan"
    )


def owners_text(complete: bool | None, owners: Mapping[str, int]) -> str:
    """Return the owners in a failure's last finding in words; ``complete`` is None without one."""
    if complete is None:
        return "not looked up"
    words = [f"{count} {kind}" for kind, count in owners.items()]
    return ", ".join([*words, *([] if complete else ["incomplete"])])


# ------------------------------------------------------------------ one failure


def history_lines(history: History, here: Host) -> Iterator[str]:
    """Yield the lines that describe everything about one failure, as seen from ``here``."""
    failure = history.failure
    yield f"failure {failure.id}: {failure.range} of {printable(failure.device)}"
    yield f"  host        {printable(failure.host)}"
    if failure.identity:
        yield f"  identity    {printable(failure.identity)}"
    if failure.target:
        yield f"  target      {printable(failure.target)}"
    yield f"  first seen  {_time(failure.first_seen)}"
    if failure.closed is not None:
        why = printable(failure.closed_because or "")
        yield f"  closed      {_time(failure.closed)}, run {failure.closed_by}: {why}"
    for report in history.reports:
        origin = f": {printable(report.origin)}" if report.origin else ""
        detail = _detail(report.detail)
        who = f"run {report.run}, {printable(report.source)}{origin}{detail}"
        yield f"  reported    {_time(report.at)}, {who}"
    for finding in history.findings:
        yield ""
        mark = ", not authentic" if finding.authentic is False else ""
        yield f"owners at {_time(finding.at)}, run {finding.run}{mark}"
        answer = answer_of(finding)
        yield from (f"  {line}" for line in table_lines([answer]))
    for plan in history.plans:
        yield ""
        yield from plan_lines(plan, history)
    yield ""
    yield from (_run_line(run, here) for run in history.runs)


def _why_moot(history: History, plan: Plan) -> str:
    """Return why the planned steps of a plan will not be taken, "" if they may be."""
    if history.failure.closed is not None:
        return "the failure is closed"
    begun = any(step.state is not State.PLANNED for step in plan.steps)
    return "" if begun or plan is history.plans[-1] else "a later plan replaced it"


def plan_lines(plan: Plan, history: History | None = None) -> Iterator[str]:
    """Yield the lines that describe a plan, within the history of one of its failures if any."""
    moot = "" if history is None else _why_moot(history, plan)
    mark = ", not authentic, never carried out" if plan.authentic is False else ""
    yield f"plan {plan.id} of {_time(plan.at)}, run {plan.run}{mark}{_detail(plan.options)}"
    for step in plan.steps:
        times = f", attempt {step.attempts}" if step.attempts > 1 else ""
        about = "" if step.failure is None else f" of failure {step.failure}"
        kind = printable(step.kind)
        mine = history is not None and step.failure in {None, history.failure.id}
        why = f", not taken: {moot}" if moot and mine and step.state is State.PLANNED else ""
        yield f"  step {step.id}: {kind}{about}: {step.state}{why}{times}{_detail(step.parameters)}"
        yield from _event_lines(step)


def _event_lines(step: Step) -> Iterator[str]:
    for event in step.events:
        state = event.state.ljust(8)
        yield f"    {_time(event.at)}  {state}  run {event.run}{_detail(event.detail)}"


def _run_line(run: RunRecord, here: Host) -> str:
    if run.ended is not None:
        ended = f"to {_time(run.ended)}"
    elif not run.may_live(here):
        ended = "its end was not journaled"
    elif Host(run.host, run.machine_id) == here:
        ended = "still running"
    else:
        ended = "end not journaled so far"
    who = printable(run.user) + (f" by sudo of {printable(run.sudo_user)}" if run.sudo_user else "")
    where = f"process {run.pid} on {printable(run.host)}, whoseblock {printable(run.version)}"
    command = printable(shlex.join(run.command))
    return f"run {run.id}: {_time(run.started)} {ended}, {who}, {where}: {command}"


def _detail(detail: Mapping[str, Any]) -> str:
    """Return further details as JSON on one line of ASCII, with a separator in front."""
    return f"  {json.dumps(detail)}" if detail else ""


def _time(moment: datetime) -> str:
    return moment.strftime("%Y-%m-%dT%H:%M:%SZ")


# ------------------------------------------------------------------ for spreadsheets

_COLUMNS: Final = (
    "id first_seen host device identity start length target closed reports complete states"
    " kind owner_start owner_length inode what file_offset path other_paths subvolume"
).split()


def csv_lines(histories: Iterable[History]) -> Iterator[str]:
    """Yield a line of CSV for each owner in the last finding of each failure.

    A failure without owners has one line.
    """
    yield _csv_line(_COLUMNS)
    for history in histories:
        common = _common(history)
        last = history.findings[-1].answer["owners"] if history.findings else []
        for owner in last or [{}]:
            paths = owner.get("paths") or [""]
            # No line of a journal may end inside of a cell; and words of a shell are safe to paste.
            others = " ".join(map(quoted, paths[1:]))
            facts = (owner.get(name) for name in "kind start length inode what file_offset".split())
            last_cells = (paths[0], others, owner.get("subvolume"))
            yield _csv_line(map(cell, (*common, *facts, *last_cells)))


def _common(history: History) -> tuple[object, ...]:
    failure = history.failure
    states = states_of(history)
    return (
        failure.id,
        failure.first_seen.isoformat(),
        failure.host,
        failure.device,
        failure.identity,
        failure.start,
        failure.length,
        failure.target,
        "" if failure.closed is None else failure.closed.isoformat(),
        len(history.reports),
        history.findings[-1].complete if history.findings else None,
        " ".join(f"{state}={count}" for state, count in states.items()),
    )


def states_of(history: History) -> dict[State, int]:
    """Count the steps of a failure by state, as in an `Overview`."""
    states: dict[State, int] = {}
    for plan in history.plans:
        moot = _why_moot(history, plan)
        for step in plan.steps:
            mine = step.failure in {None, history.failure.id}
            if mine and not (moot and step.state is State.PLANNED):
                states[step.state] = states.get(step.state, 0) + 1
    return states


def _csv_line(cells: Iterable[object]) -> str:
    text = io.StringIO()
    csv.writer(text, lineterminator="").writerow(list(cells))
    return text.getvalue()
