"""``whoseblock status``: how the daemon is."""

import json
import socket
import sys
from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import click

from whoseblock.cli.command import Command
from whoseblock.cli.terminal import printable
from whoseblock.errors import PrivilegeError, TargetError

__all__ = ["status"]

_PIECE = 1 << 16
_PATIENCE_S = 10


@click.command(cls=Command)
@click.option("--json", "as_json", is_flag=True, help="Write one JSON object.")
@click.option(
    "--state",
    type=click.Path(file_okay=False, path_type=Path),
    metavar="FOLDER",
    help="The state folder of the daemon.  [default: /var/lib/whoseblock/watch, for others than"
    " root in their own state folder]",
)
def status(as_json: bool, state: Path | None) -> None:
    """Say how the daemon is: its sources, what waits, what it has found.

    Asks the daemon; if none runs, says how the last one ended, and the exit code is 3.
    """
    from whoseblock.watch.store.state import usual_state_folder

    folder = state or usual_state_folder()
    data = _ask(folder)
    told = json.loads(data)
    if as_json:
        sys.stdout.buffer.write(data.strip() + b"\n")
    else:
        for line in _lines(told):
            click.echo(line)
    if told["state"] != "running":
        raise _none(folder)


def _none(folder: Path) -> TargetError:
    return TargetError(
        f"no daemon runs with the state folder {str(folder)!r}",
        hint="whoseblock watch starts one; name its folder with --state",
    )


def _ask(folder: Path) -> bytes:
    """Get the status from the daemon, or what the last one left."""
    try:
        with socket.socket(socket.AF_UNIX) as peer:
            peer.settimeout(_PATIENCE_S)
            peer.connect(str(folder / "socket"))
            return b"".join(iter(lambda: peer.recv(_PIECE), b""))
    except TimeoutError as error:
        raise TargetError(f"the daemon of {str(folder)!r} does not answer") from error
    except (FileNotFoundError, ConnectionRefusedError):
        pass
    except OSError as error:
        why = error.strerror or str(error)
        message = f"the daemon of {str(folder)!r} cannot be asked: {why}"
        if isinstance(error, PermissionError):
            raise PrivilegeError(message) from error
        raise TargetError(message) from error
    try:
        return (folder / "status.json").read_bytes()
    except OSError as error:
        raise _none(folder) from error


def _lines(told: dict[str, Any]) -> Iterator[str]:
    counts = told["counts"]
    state = {
        "running": f"running, process {told['pid']}",
        "stopped": "not running; this was its state in the end",
        "killed": "not running, and it was killed; this was its state in the beginning",
    }[told["state"]]
    yield f"daemon     {state}, since {_time(told['started'])}"
    policy = told["policy"]
    rules = f"{printable(policy)}, {told['rules']} rules" if policy else "none: journal and log"
    yield f"policy     {rules}"
    if told["policy_fault"]:
        yield f"           the file as it is now is wrong: {printable(told['policy_fault'])}"
    for name, source in sorted(told["sources"].items()):
        word = "watched" if source["watched"] else "not watched"
        yield f"source     {name}: {word}; {printable(source['health'])}"
    waiting = f"{told['backlog']} batches wait"
    if told["backlog"]:
        waiting += f", the oldest for {told['backlog_seconds']:.0f} s"
    if told["worker_failures"]:
        waiting += f"; the worker failed {told['worker_failures']} times in a row: see the log"
    yield f"backlog    {waiting}"
    if (actor := told["actor"]) is not None:
        since = _time(actor["since"])
        yield f"acts       process {actor['pid']} does what is planned, since {since}"
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
