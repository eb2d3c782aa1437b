"""Telling others of a finding: a command of the user's, and processes that have the loss mapped."""

import os
import signal
from collections.abc import Iterable
from typing import Final

from whoseblock.encode import encode_json
from whoseblock.fs.base import Answer, Process
from whoseblock.process_stat import started_at
from whoseblock.respond.commands import CommandError, run_shell

__all__ = [
    "SENT",
    "NotifyError",
    "run_command",
    "send_signal",
    "signal_number",
    "signal_processes",
]

#: Seconds that a command has.
_PATIENCE: Final = 60.0

#: What became of a signal.
SENT: Final = "sent"
_GONE: Final = "gone"


class NotifyError(Exception):
    """The command failed; the message says how."""


def run_command(command: str, answer: Answer, *, seconds: float = _PATIENCE) -> None:
    """Have a command told of a finding: one line of JSON on its standard input.

    What it prints goes where our errors go.  Raises `NotifyError` if it fails, or takes longer
    than ``seconds``: it is then ended, together with what it started.
    """
    try:
        run_shell(command, encode_json(answer) + b"\n", seconds=seconds)
    except CommandError as error:
        raise NotifyError(str(error)) from error


def signal_number(name: str) -> signal.Signals:
    """Find a signal by its name, with or without SIG; raises `ValueError` with all the names."""
    wanted = "SIG" + name.upper().removeprefix("SIG")
    if wanted in signal.Signals.__members__:
        return signal.Signals[wanted]
    known = ", ".join(one.name.removeprefix("SIG") for one in signal.Signals)
    raise ValueError(f"{name!r} is no signal; there are {known}")


def signal_processes(name: str, processes: Iterable[Process]) -> list[tuple[int, str]]:
    """Send a signal to those processes that have the lost part of a file mapped.

    Gives what was done for each, in order, by its number, as `send_signal` does.  Each gets it
    once.  Raises `ValueError` if there is no such signal.
    """
    number = signal_number(name)
    mapping = {(one.pid, one.start_time) for one in processes if one.mappings}
    return [(pid, send_signal(number, pid, start_time)) for pid, start_time in sorted(mapping)]


def send_signal(number: signal.Signals, pid: int, start_time: int) -> str:
    """Send a signal to a process that began then; say what became of it.

    That is `SENT`, ``gone`` if the process has ended, whoever has its number now, or
    ``refused: …`` with the reason.  Never do we ourselves get it, who started us, or the process
    that all others hang on.
    """
    if pid in (1, os.getpid(), os.getppid()):
        return "refused: it is the first process, whoseblock itself, or who started it"
    try:
        # It goes on meaning the same process; only then can be asked which one that is.
        handle = os.pidfd_open(pid)
        try:
            if started_at(pid) != start_time:
                return _GONE
            signal.pidfd_send_signal(handle, number)
        finally:
            os.close(handle)
    except ProcessLookupError:
        return _GONE
    except OSError as error:
        return f"refused: {(error.strerror or str(error)).lower()}"
    return SENT
