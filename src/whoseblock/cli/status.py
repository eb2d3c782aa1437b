"""``whoseblock status``: the state of the daemon."""

import errno
import json
import os
import socket
import sys
import time
from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import click

from whoseblock.cli.command import Command
from whoseblock.cli.presentation.terminal import printable
from whoseblock.errors import PrivilegeError, TargetError

__all__ = ["status"]

_PIECE = 1 << 16
#: The daemon answers at once, with some kilobytes.
_PATIENCE_S = 10.0
_MAX_STATUS = 1 << 20


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
    from whoseblock.watch.store.state import usual_state_folder

    folder = state or usual_state_folder()
    data = _ask(folder)
    try:
        status = json.loads(data)
    except ValueError as error:
        raise TargetError(f"the status of the daemon of {str(folder)!r} is damaged") from error
    if as_json:
        sys.stdout.buffer.write(data.strip() + b"\n")
    else:
        for line in _lines(status):
            click.echo(line)
    if status["state"] != "running":
        raise _none(folder)


def _none(folder: Path) -> TargetError:
    return TargetError(
        f"no daemon runs with the state folder {str(folder)!r}",
        hint="whoseblock watch starts one; name its folder with --state",
    )


def _ask(folder: Path) -> bytes:
    """Query the daemon for its status, or read the status that the last daemon saved."""
    try:
        with socket.socket(socket.AF_UNIX) as peer:
            peer.settimeout(_PATIENCE_S)
            peer.connect(str(folder / "socket"))
            return _receive(peer)
    except TimeoutError as error:
        raise TargetError(f"the daemon of {str(folder)!r} does not answer") from error
    except (FileNotFoundError, ConnectionRefusedError):
        pass
    except OSError as error:
        why = error.strerror or str(error)
        message = f"the daemon of {str(folder)!r} cannot be queried: {why}"
        if isinstance(error, PermissionError):
            raise PrivilegeError(message) from error
        raise TargetError(message) from error
    try:
        # Not one that waits for a writer.
        saved = os.open(folder / "status.json", os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
        with os.fdopen(saved, "rb") as file:
            return file.read(_MAX_STATUS)
    except OSError as error:
        raise _none(folder) from error


def _receive(peer: socket.socket) -> bytes:
    """Return what a daemon sends; raises `TimeoutError`, and `OSError` if it sends too much."""
    deadline = time.monotonic() + _PATIENCE_S
    pieces, size = [], 0
    while piece := peer.recv(_PIECE):
        pieces.append(piece)
        size += len(piece)
        if size > _MAX_STATUS:
            raise OSError(errno.EMSGSIZE, "its status is too long")
        left = deadline - time.monotonic()
        if left <= 0:
            raise TimeoutError
        peer.settimeout(left)
    return b"".join(pieces)


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
