"""Run a program of the policy, with the finding on its standard input."""

import os
import select
import signal
import subprocess
import time
from collections.abc import Mapping
from contextlib import suppress
from typing import Any, Final

from whoseblock.encode import encode_json
from whoseblock.errors import LeftUndoneError
from whoseblock.journal import RecordedFailure

__all__ = ["run_program"]

#: The last bytes of a program's output that are kept: errors come last.
_MAX_OUTPUT: Final = 2000
#: The capacity of a pipe.
_PIECE: Final = 1 << 16
#: Only the daemon itself may feed the watchdog of systemd.
_DAEMON_ONLY: Final = ("NOTIFY_SOCKET", "WATCHDOG_USEC", "WATCHDOG_PID")


def run_program(how: Mapping[str, Any], failure: RecordedFailure, answer: Mapping[str, Any]) -> str:
    """Run a program with the finding on standard input; return the end of its output.

    Raises `LeftUndoneError` if it fails or takes too long, in which case it is killed with its
    process group; and OSError if it cannot be started.
    """
    about = {
        "failure": failure.id,
        "device": failure.device,
        "start": failure.start,
        "length": failure.length,
        "rule": how["rule"],
        "answer": answer,
    }
    environment = {
        name: value for name, value in os.environ.items() if name not in _DAEMON_ONLY
    } | {
        "WHOSEBLOCK_FAILURE": str(failure.id),
        "WHOSEBLOCK_DEVICE": failure.device,
        "WHOSEBLOCK_START": str(failure.start),
        "WHOSEBLOCK_LENGTH": str(failure.length),
    }
    name, seconds = how["command"][0], how["timeout"]
    # A file, not a pipe: a program that does not read must not block the daemon.
    with open(os.memfd_create("finding"), "w+b") as given:  # noqa: PTH123 - it has no path
        given.write(encode_json(about))
        given.seek(0)
        program = subprocess.Popen(  # noqa: S603 - a list of words from a file of root's, and no shell
            how["command"],
            stdin=given,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            env=environment,
            start_new_session=True,  # a process group of its own, to be killed as a whole
        )
    assert program.stdout is not None  # noqa: S101 - for the type checker: it was asked for
    try:
        output_end = _read_output(program, program.stdout.fileno(), time.monotonic() + seconds)
        status = program.poll()
    finally:
        if program.returncode is None:
            with suppress(ProcessLookupError):
                os.killpg(program.pid, signal.SIGKILL)
            program.wait()
        program.stdout.close()
    words = output_end.decode(errors="replace").strip()
    if status == 0:
        return words
    how_it_ended = (
        f"timed out after {seconds} seconds and was killed"
        if status is None
        else f"exited with status {status}"
    )
    raise LeftUndoneError(f"{name} {how_it_ended}{f': {words}' if words else ''}")


def _read_output(program: "subprocess.Popen[bytes]", output: int, deadline: float) -> bytes:
    """Read a program's output until the program ends or times out; return the end of it.

    The end of the process counts. What it left in the background may hold its output open for ever.
    """
    os.set_blocking(output, False)
    output_end = b""
    ended = os.pidfd_open(program.pid)
    try:
        # select(2) takes no descriptor from 1024 on.
        waiting = select.poll()
        for descriptor in (ended, output):
            waiting.register(descriptor, select.POLLIN)
        while program.poll() is None and (left := deadline - time.monotonic()) > 0:
            if any(ready == output for ready, _ in waiting.poll(left * 1000)):
                piece = _read_chunk(output)
                output_end = (output_end + piece)[-_MAX_OUTPUT:]
                if not piece:
                    waiting.unregister(output)
    finally:
        os.close(ended)
    # The last output is still in the pipe. Read at most its capacity: others may go on writing.
    return (output_end + _read_chunk(output))[-_MAX_OUTPUT:]


def _read_chunk(output: int) -> bytes:
    with suppress(BlockingIOError):
        return os.read(output, _PIECE)
    return b""
