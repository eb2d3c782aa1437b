"""Notify of a finding: run a command of the user, signal processes that map the lost part."""

import os
import signal
from collections.abc import Iterable
from typing import Final

from whoseblock.encode import encode_json
from whoseblock.fs.base import Answer, Process
from whoseblock.process_stat import read_start_time
from whoseblock.respond.commands import CommandError, run_shell

__all__ = [
    "SENT",
    "NotifyError",
    "run_command",
    "send_signal",
    "signal_number",
    "signal_processes",
]

#: Seconds that a command may take.
_PATIENCE: Final = 60.0

#: The results of sending a signal.
SENT: Final = "sent"
_GONE: Final = "gone"


class NotifyError(Exception):
    """The command failed; the message says how."""


def run_command(command: str, answer: Answer, *, seconds: float = _PATIENCE) -> None:
    """Run a command with a finding as one line of JSON on its standard input.

    Its output goes to standard error.  Raises `NotifyError` if it fails, or takes longer than
    ``seconds``: its process group is then killed.
    """
    try:
        run_shell(command, encode_json(answer) + b"\n", seconds=seconds)
    except CommandError as error:
        raise NotifyError(str(error)) from error


def signal_number(name: str) -> signal.Signals:
    """Return a signal by its name, with or without SIG; raise `ValueError` that lists all names."""
    wanted = "SIG" + name.upper().removeprefix("SIG")
    if wanted in signal.Signals.__members__:
        return signal.Signals[wanted]
    known = ", ".join(one.name.removeprefix("SIG") for one in signal.Signals)
    raise ValueError(f"unknown signal {name!r}; known signals: {known}")


def signal_processes(name: str, processes: Iterable[Process]) -> list[tuple[int, str]]:
    """Send a signal once to each process that maps the lost part of a file.

    Returns the pid and the result of `send_signal` for each, by ascending pid.  Raises `ValueError`
    if there is no such signal.
    """
    number = signal_number(name)
    mapping = {(one.pid, one.start_time) for one in processes if one.mappings}
    return [(pid, send_signal(number, pid, start_time)) for pid, start_time in sorted(mapping)]


def send_signal(number: signal.Signals, pid: int, start_time: int) -> str:
    """Send a signal to the process that has ``pid`` and started at ``start_time``.

    Returns `SENT`, ``gone`` if that process has ended, or ``refused: …`` with the reason.  Process
    1, this process and its parent are never signalled.
    """
    if pid in (1, os.getpid(), os.getppid()):
        return "refused: it is process 1, whoseblock itself, or its parent"
    try:
        # The pidfd pins the process, so that its start time can be checked without a race.
        handle = os.pidfd_open(pid)
        try:
            if read_start_time(pid) != start_time:
                return _GONE
            signal.pidfd_send_signal(handle, number)
        finally:
            os.close(handle)
    except ProcessLookupError:
        return _GONE
    except OSError as error:
        return f"refused: {(error.strerror or str(error)).lower()}"
    return SENT
