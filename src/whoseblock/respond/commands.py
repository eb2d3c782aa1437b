"""Run a command of the user with a finding on its standard input.

The finding is a file without a name, so that a command need not read it. The output is read from a
pipe, and a bounded part of it is kept.
"""

import os
import select
import signal
import subprocess
import time
from collections.abc import Collection, Mapping, Sequence
from contextlib import suppress
from enum import Enum, auto
from typing import Final, NamedTuple

__all__ = ["CommandEnd", "CommandError", "Output", "run_shell", "run_with_finding"]

#: The most that a command may print that prints a result, such as a path.
_FIRST_BYTES: Final = 1 << 16
#: The last bytes of the output that are kept of a command that reports: errors come last.
_LAST_BYTES: Final = 2000
#: The capacity of a pipe.
_PIECE: Final = 1 << 16
_STDERR: Final = 2


class CommandError(Exception):
    """The command failed; the message says how it ended."""


class Output(Enum):
    """The destination of the output of a command.

    ``PASSED``: all of it goes to standard error. ``FIRST``: its standard output is kept, and the
    command is killed when it has printed more than 64 KiB. ``LAST``: the last 2,000 bytes of its
    standard output and error are kept.
    """

    PASSED = auto()
    FIRST = auto()
    LAST = auto()


class CommandEnd(NamedTuple):
    """The end of a command: its exit status, or None if it was killed after its time.

    The status is that of `subprocess.Popen`: negative for a signal. ``output`` is the kept part.
    ``printed_too_much`` tells that the command was killed for that, or ended before it was.
    """

    status: int | None
    output: bytes
    printed_too_much: bool = False


def run_with_finding(  # noqa: PLR0913 - the limits of a command
    words: Sequence[str],
    finding: bytes,
    *,
    seconds: float,
    output: Output,
    environment: Mapping[str, str] | None = None,
    removed: Collection[str] = (),
) -> CommandEnd:
    """Run a command with ``finding`` on its standard input, and wait for its end.

    The end of its process counts. Its background processes continue, without a reader of their
    output. After ``seconds`` its process group is killed. Its environment is that of this process
    without the names ``removed``, and with ``environment``. Raises `OSError` or `ValueError` if it
    cannot be started.
    """
    inherited = {name: value for name, value in os.environ.items() if name not in removed}
    with open(os.memfd_create("finding"), "w+b") as source:  # noqa: PTH123 - it has no path
        source.write(finding)
        source.seek(0)
        child = subprocess.Popen(  # noqa: S603 - the user's own words
            words,
            stdin=source,
            stdout=_STDERR if output is Output.PASSED else subprocess.PIPE,
            stderr=subprocess.STDOUT if output is Output.LAST else None,
            env={**inherited, **(environment or {})},
            start_new_session=True,  # its processes are one group, which is killed as a whole
        )
    try:
        kept = _read_output(child, output, time.monotonic() + seconds)
        status = child.poll()
    finally:
        if child.returncode is None:
            with suppress(ProcessLookupError):
                os.killpg(child.pid, signal.SIGKILL)
            child.wait()
        if child.stdout is not None:
            child.stdout.close()
    excess = output is Output.FIRST and len(kept) > _FIRST_BYTES
    return CommandEnd(status, kept[:_FIRST_BYTES], excess)


def run_shell(
    command: str,
    finding: bytes,
    *,
    seconds: float,
    environment: Mapping[str, str] | None = None,
    capture: bool = False,
) -> bytes:
    """Run a command in ``sh`` with ``finding`` on its standard input, as `run_with_finding` does.

    Returns its standard output if ``capture``; otherwise the output goes to standard error. Raises
    `CommandError` if it takes longer than ``seconds``, if it prints more than 64 KiB to return, if
    it cannot be started, or if its exit status is not 0.
    """
    try:
        status, printed, too_much = run_with_finding(
            ["/bin/sh", "-c", command],
            finding,
            seconds=seconds,
            output=Output.FIRST if capture else Output.PASSED,
            environment=environment,
        )
    except (OSError, ValueError) as error:
        raise CommandError(f"the command cannot be started: {error}") from error
    if too_much:
        raise CommandError(f"the command printed more than {_FIRST_BYTES} bytes: not used")
    if status is None:
        raise CommandError(f"the command took longer than {seconds:g} seconds")
    if status:
        raise CommandError(f"the command {_meaning(status)}")
    return printed


def _read_output(child: "subprocess.Popen[bytes]", output: Output, deadline: float) -> bytes:
    """Read a command's output until it ends or its time is over; return the part to keep.

    Its background processes may hold its output open for ever, so the end of the output does not
    count. A result that is too long ends it at once; one byte of the excess is returned.
    """
    kept = b""
    pipe = None if child.stdout is None else child.stdout.fileno()
    ended = os.pidfd_open(child.pid)
    try:
        # select(2) takes no descriptor from 1024 on.
        waiting = select.poll()
        waiting.register(ended, select.POLLIN)
        if pipe is not None:
            os.set_blocking(pipe, False)
            waiting.register(pipe, select.POLLIN)
        while child.poll() is None and (left := deadline - time.monotonic()) > 0:
            ready = [descriptor for descriptor, _ in waiting.poll(left * 1000)]
            if pipe is not None and pipe in ready:
                piece = _read_piece(pipe)
                kept = _keep(kept + piece, output)
                if output is Output.FIRST and len(kept) > _FIRST_BYTES:
                    return kept
                if not piece:
                    waiting.unregister(pipe)
    finally:
        os.close(ended)
    if pipe is None:
        return b""
    # The last output is still in the pipe. Read at most its capacity: others may go on writing.
    return _keep(kept + _read_piece(pipe), output)


def _keep(printed: bytes, output: Output) -> bytes:
    return printed[: _FIRST_BYTES + 1] if output is Output.FIRST else printed[-_LAST_BYTES:]


def _read_piece(pipe: int) -> bytes:
    with suppress(BlockingIOError):
        return os.read(pipe, _PIECE)
    return b""


def _meaning(status: int) -> str:
    if status > 0:
        return f"failed with status {status}"
    try:
        return f"was ended by {signal.Signals(-status).name}"
    except ValueError:
        return f"was ended by signal {-status}"
