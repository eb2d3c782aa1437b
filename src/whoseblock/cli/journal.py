"""``whoseblock journal``: what failed, who owned it, and what was done about it."""

import re
from collections.abc import Callable, Iterable, Mapping
from datetime import UTC, datetime, timedelta
from typing import Any, Final, TypeVar

import click

from whoseblock.cli.command import Command
from whoseblock.cli.output import write_lines
from whoseblock.encode import encode_json
from whoseblock.journal import Filter, State, open_journal

__all__ = ["journal"]

_Command = TypeVar("_Command", bound=Callable[..., Any])

_UNITS: Final = {"s": "seconds", "m": "minutes", "h": "hours", "d": "days", "w": "weeks"}


def _moment(text: str) -> datetime:
    """Read a moment: ISO 8601, in local time unless it says more, or how long ago that was."""
    try:
        if ago := re.fullmatch(r"([0-9]{1,9})([smhdw])", text):
            return datetime.now(UTC) - timedelta(**{_UNITS[ago[2]]: int(ago[1])})
        return datetime.fromisoformat(text).astimezone(UTC)
    except (ValueError, OverflowError):
        form = "write 2026-11-25, 2026-11-25T18:00, or how long ago: 2h, 3d"
        raise click.BadParameter(f"{text!r} is no time: {form}.") from None


_JOURNAL: Final = click.option(
    "--journal",
    "url",
    metavar="URL",
    help="The journal: a file, or postgresql://USER@HOST/DATABASE.  By default $WHOSEBLOCK_JOURNAL,"
    " or else the file in the state folder.",
)

_FILTERS: Final = (
    _JOURNAL,
    click.option(
        "--device", metavar="NAME", help="Only failures of this device, or of this target."
    ),
    click.option(
        "--file",
        metavar="PATH",
        help="Only failures of which this file was an owner: its path from the root of the"
        " filesystem, or where it was mounted.",
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
    """Show what failed, who owned it at that time, and what was done about it.

    Nothing here writes: the journal is opened for reading, and never made.
    """


@journal.command(
    name="list",
    cls=Command,
    epilog="""\b
TIME is ISO 8601, in local time unless it says otherwise, or how long ago: 30m, 2h, 3d, 1w.

\b
Examples:
  whoseblock journal list                      every failure, the oldest first
  whoseblock journal list --since 3d --open    of the last three days, not dealt with
  whoseblock journal list --file /srv/db/wal   those that had a part of this file
  whoseblock journal list --state failed       those with a step that failed
  whoseblock journal list --journal postgresql://reader@db/fleet --host node7 --json""",
)
@_filtered
@click.option("--json", "as_json", is_flag=True, help="Write JSON Lines, one object a failure.")
def list_failures(url: str | None, as_json: bool, **options: Any) -> None:  # noqa: ANN401 - click's
    """List failures: where, in what state, and who owned them."""
    with open_journal(url, write=False) as opened:
        found = opened.failures(_filter_of(options))
        if as_json:
            write_lines(map(encode_json, found))
            return
        from whoseblock.cli.history import overview_lines

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
    """Show everything about failure ID: reports, owners, plans, and the history of each step."""
    with open_journal(url, write=False) as opened:
        found = opened.history(failure)
    if as_json:
        write_lines([encode_json(found)])
        return
    from whoseblock.cli.history import history_lines

    _write_text(history_lines(found))


@journal.command(
    cls=Command,
    epilog="""\b
JSON is one object a line for each failure, as show --json writes it.  CSV has a line for each
owner in the last answer, and no cell that a spreadsheet takes for a formula.

\b
Examples:
  whoseblock journal export > journal.jsonl
  whoseblock journal export --format csv --since 2026-11-01 > november.csv""",
)
@_filtered
@click.option(
    "--format", "form", type=click.Choice(["json", "csv"]), default="json", show_default=True
)
def export(url: str | None, form: str, **options: Any) -> None:  # noqa: ANN401 - click's
    """Write failures with all that is known of them, for other programs."""
    with open_journal(url, write=False) as opened:
        wanted = _filter_of(options)
        if form == "json":
            write_lines(map(encode_json, opened.histories(wanted)))
            return
        from whoseblock.cli.history import csv_lines

        _write_text(csv_lines(opened.histories(wanted)))


def _write_text(lines: Iterable[str]) -> None:
    write_lines(line.encode(errors="backslashreplace") for line in lines)
