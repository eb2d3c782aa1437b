"""``whoseblock status``: the state of the daemon."""

from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import click

from whoseblock.cli.command import Command
from whoseblock.encode import encode_json
from whoseblock.printable import printable

__all__ = ["status"]


@click.command(cls=Command)
@click.option("--json", "as_json", is_flag=True, help="Write one JSON object.")
@click.option(
    "--state",
    type=click.Path(file_okay=False, path_type=Path),
    metavar="DIR",
    help="State folder of the daemon.  [default: /var/lib/whoseblock/watch; without root, a folder"
    " in the user's state folder]",
)
def status(as_json: bool, state: Path | None) -> None:
    """Show the state of the daemon.

    The state lists its sources, the backlog, and counts of failures.  If no daemon runs, the last
    saved state is shown, and the exit code is 3.
    """
    from whoseblock.watch.status.query import not_running, read_status
    from whoseblock.watch.store.state import usual_state_folder

    folder = state or usual_state_folder()
    status = read_status(folder)
    if as_json:
        click.echo(encode_json(status))
    else:
        for line in _lines(status):
            click.echo(line)
    if status["state"] != "running":
        raise not_running(folder)


def _lines(status: dict[str, Any]) -> Iterator[str]:
    counts = status["counts"]
    state = {
        "running": f"running, process {status['pid']}",
        "stopped": "not running; this was its state at the end",
        "killed": "not running; it was killed, and this was its state at the start",
    }[status["state"]]
    yield f"daemon     {state}, since {_time(status['started'])}"
    policy = status["policy"]
    rules = f"{printable(policy)}, {status['rules']} rules" if policy else "none: journal and log"
    yield f"policy     {rules}"
    if status["policy_fault"]:
        yield f"           the file is invalid now: {printable(status['policy_fault'])}"
    for name, source in sorted(status["sources"].items()):
        word = "watched" if source["watched"] else "not watched"
        yield f"source     {name}: {word}; {printable(source['health'])}"
    waiting = f"{status['backlog']} batches wait"
    if status["backlog"]:
        waiting += f", the oldest for {status['backlog_seconds']:.0f} s"
    if status["worker_failures"]:
        waiting += f"; the worker failed {status['worker_failures']} times in a row: see the log"
    yield f"backlog    {waiting}"
    if (actor := status["actor"]) is not None:
        since = _time(actor["since"])
        yield f"acts       process {actor['pid']} carries out plans, since {since}"
    new, reports = sum(counts["failures"].values()), sum(counts["reports"].values())
    yield f"failures   {new} new, of {reports} reports; {counts['healed']} healed"
    if counts["unhealed"]:
        ranges, size = counts["unhealed"]
        yield f"open       {ranges} failures, of {size} bytes"
    for name, number in sorted(counts["lost"].items()):
        yield f"lost       {number} events of {name}"
    for name, number in sorted(counts["actions"].items()):
        yield f"actions    {name}: {number}"


def _time(seconds: float) -> str:
    return datetime.fromtimestamp(seconds, UTC).isoformat(timespec="seconds")
