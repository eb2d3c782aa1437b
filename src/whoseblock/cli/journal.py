"""``whoseblock journal``: show the failures, owners, plans and outcomes; discard forged plans."""

import re
import sys
from collections.abc import Callable, Iterable, Iterator, Mapping
from datetime import UTC, datetime, timedelta
from typing import Any, Final, TypeVar

import click

from whoseblock.cli.command import Command, is_given
from whoseblock.cli.presentation.notices import report
from whoseblock.cli.presentation.output import write_lines
from whoseblock.encode import encode_json
from whoseblock.errors import LeftUndoneError
from whoseblock.journal import Filter, State, open_journal

__all__ = ["journal"]

_Command = TypeVar("_Command", bound=Callable[..., Any])
_Record = TypeVar("_Record")

_UNITS: Final = {"s": "seconds", "m": "minutes", "h": "hours", "d": "days", "w": "weeks"}


def _moment(text: str) -> datetime:
    """Parse a time: ISO 8601, local time unless it has a zone, or an age such as ``2h``."""
    try:
        if ago := re.fullmatch(r"([0-9]{1,9})([smhdw])", text):
            return datetime.now(UTC) - timedelta(**{_UNITS[ago[2]]: int(ago[1])})
        return datetime.fromisoformat(text).astimezone(UTC)
    except (ValueError, OverflowError):
        form = "write 2026-11-25, 2026-11-25T18:00, or an age: 2h, 3d"
        raise click.BadParameter(f"{text!r} is not a time: {form}.") from None


_JOURNAL: Final = click.option(
    "--journal",
    "url",
    metavar="URL",
    help="Journal to use: a file, or postgresql://USER@HOST/DATABASE.  [default:"
    " $WHOSEBLOCK_JOURNAL, or the file in the state folder]",
)

_FILTERS: Final = (
    _JOURNAL,
    click.option(
        "--device", metavar="NAME", help="Only failures of this device, or of this target."
    ),
    click.option(
        "--file",
        metavar="PATH",
        help="Only failures that this file owned: its path from the root of the filesystem, or"
        " as it was mounted.",
    ),
    click.option(
        "--since",
        type=_moment,
        metavar="TIME",
        help="Only failures reported at this time or later.",
    ),
    click.option(
        "--until", type=_moment, metavar="TIME", help="Only failures reported before this time."
    ),
    click.option(
        "--state",
        type=click.Choice([state.value for state in State]),
        help="Only failures with a step in this state.",
    ),
    click.option("--host", metavar="NAME", help="Only failures of this host."),
    click.option("--open", "still_open", is_flag=True, help="Only failures that are not closed."),
)

_SELECTING: Final = frozenset({"device", "file", "since", "until", "state", "host", "still_open"})


def _filtered(command: _Command) -> _Command:
    for option in reversed(_FILTERS):
        command = option(command)
    return command


def _filter_of(options: Mapping[str, Any]) -> Filter:
    return Filter(
        device=options["device"],
        file=options["file"],
        since=options["since"],
        until=options["until"],
        state=None if options["state"] is None else State(options["state"]),
        host=options["host"],
        open=True if options["still_open"] else None,
    )


@click.group()
def journal() -> None:
    """Show failures, their owners, and repairs.

    None of these commands creates a journal, and only discard writes to it.
    """


def _reported(found: Iterable[_Record]) -> Iterator[_Record]:
    """Yield the failures found; report on standard error if there are none."""
    empty = True
    for failure in found:
        empty = False
        yield failure
    if empty:
        words = _filter_words()
        report([f"no failures match {words}" if words else "the journal has no failures"])


def _filter_words() -> str:
    """Return the options of the command line that select failures."""
    context = click.get_current_context()
    words = []
    for option in context.command.params:
        name = option.name or ""
        if name not in _SELECTING or not is_given(context, name):
            continue
        value = context.params[name]
        words.append(option.opts[0] if value is True else f"{option.opts[0]} {_shown(value)}")
    return " ".join(words)


def _shown(value: object) -> str:
    return value.strftime("%Y-%m-%dT%H:%M:%SZ") if isinstance(value, datetime) else str(value)


@journal.command(
    name="list",
    cls=Command,
    epilog="""\b
TIME is ISO 8601, local time unless it has a zone, or an age:
30m, 2h, 3d, 1w.

\b
Examples:
  whoseblock journal list                     all failures, oldest first
  whoseblock journal list --since 3d --open   open failures of three days
  whoseblock journal list --file /srv/db/wal  failures of this file
  whoseblock journal list --state failed      failures with a failed step
  whoseblock journal list --journal postgresql://reader@db/fleet --host node7""",
)
@_filtered
@click.option(
    "--json", "as_json", is_flag=True, help="Write JSON Lines, one object for each failure."
)
def list_failures(url: str | None, as_json: bool, **options: Any) -> None:  # noqa: ANN401 - click's
    """List failures with their steps and owners."""
    with open_journal(url, write=False) as opened:
        found = _reported(opened.failures(_filter_of(options)))
        if as_json:
            write_lines(map(encode_json, found))
            return
        from whoseblock.cli.presentation.history import overview_lines

        _write_text(overview_lines(found))


@journal.command(
    cls=Command,
    epilog="""\b
Examples:
  whoseblock journal show 7
  whoseblock journal show 7 --json | jq .plans""",
)
@click.argument("failure", metavar="ID", type=click.IntRange(1, (1 << 63) - 1))
@_JOURNAL
@click.option("--json", "as_json", is_flag=True, help="Write one JSON object.")
def show(failure: int, url: str | None, as_json: bool) -> None:
    """Show the whole history of failure ID.

    Prints its reports, owners and plans, and the states of each step.
    """
    with open_journal(url, write=False) as opened:
        found, here = opened.history(failure), opened.host
    if as_json:
        write_lines([encode_json(found)])
        return
    from whoseblock.cli.presentation.history import history_lines

    _write_text(history_lines(found, here))


@journal.command(
    cls=Command,
    epilog="""\b
JSON has one line for each failure, an object as in show --json.
CSV has a line for each owner in the last answer.  No cell of it is a formula
in a spreadsheet.

\b
Examples:
  whoseblock journal export > journal.jsonl
  whoseblock journal export --format csv --since 2026-11-01 > november.csv""",
)
@_filtered
@click.option(
    "--format",
    "form",
    type=click.Choice(["json", "csv"]),
    default="json",
    show_default=True,
    help="Format of the output.",
)
def export(url: str | None, form: str, **options: Any) -> None:  # noqa: ANN401 - click's
    """Export failures for other programs.

    Each has its reports, owners, plans, and the states of each step.
    """
    with open_journal(url, write=False) as opened:
        found = _reported(opened.histories(_filter_of(options)))
        if form == "json":
            write_lines(map(encode_json, found))
            return
        from whoseblock.cli.presentation.history import csv_lines

        _write_text(csv_lines(found))


@journal.command(
    name="report",
    cls=Command,
    epilog="""\b
The page has maps of the devices, the files in the last findings, and the
failures with the states of their repair.  It needs no network.

\b
Examples:
  whoseblock journal report failures.html
  whoseblock journal report open.html --open --since 3d""",
)
@click.argument("output", metavar="FILE", type=click.Path(dir_okay=False, readable=False))
@_filtered
def write_report(output: str, url: str | None, **options: Any) -> None:  # noqa: ANN401 - click's
    """Write a report for people to FILE, a page of HTML."""
    from whoseblock.cli.presentation.report import write_journal_report

    with open_journal(url, write=False) as opened:
        write_journal_report(output, _reported(opened.histories(_filter_of(options))))


@journal.command(
    cls=Command,
    epilog="""\b
Examples:
  whoseblock journal discard 12               show plan 12, and ask
  whoseblock journal discard 12 --yes""",
)
@click.argument("plan", metavar="PLAN", type=click.IntRange(1, (1 << 63) - 1))
@_JOURNAL
@click.option("--yes", is_flag=True, help="Do not ask for confirmation.")
def discard(plan: int, url: str | None, yes: bool) -> None:
    """Discard a plan that another program wrote or changed.

    respond --resume reports such a plan each time, and never carries it out.  This shows it and
    marks its steps as skipped.  It stays in the journal.
    """
    from whoseblock import __version__
    from whoseblock.cli.presentation.history import plan_lines
    from whoseblock.journal.authentication import check_discardable

    with open_journal(url, write=False) as opened:
        found = opened.plan(plan)
        check_discardable(found)
    _write_text(plan_lines(found))
    if not yes:
        if not sys.stdin.isatty():
            raise click.UsageError("not a terminal; pass --yes to confirm")
        if not click.confirm("Discard this plan?", err=True):
            raise LeftUndoneError("declined: nothing was changed")
    with open_journal(url) as writable, writable.begin_run(sys.argv, __version__) as run:
        run.discard(plan)
    click.echo(f"plan {plan} discarded: it is no longer reported", err=True)


@journal.command(
    cls=Command,
    epilog="""\b
Examples:
  whoseblock journal grants | psql fleet""",
)
def grants() -> None:
    """Print SQL for a PostgreSQL database of many hosts.

    It creates the tables, and roles that may only add rows of their own host.
    """
    from whoseblock.extras import import_extra

    import_extra("journal")
    from whoseblock.journal.grants import grants as lines

    _write_text(lines())


def _write_text(lines: Iterable[str]) -> None:
    write_lines(line.encode(errors="backslashreplace") for line in lines)
