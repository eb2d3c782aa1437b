"""Running a program of the policy's, which gets a finding."""

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
from whoseblock.journal import Entry

__all__ = ["run_program"]

#: So much of what a program says is kept: the end, where the error is.
_SAID: Final = 2000
#: As much as a pipe holds.
_PIECE: Final = 1 << 16
#: It is nobody's business to tell systemd that we are well but ours.
_OURS: Final = ("NOTIFY_SOCKET", "WATCHDOG_USEC", "WATCHDOG_PID")


def run_program(how: Mapping[str, Any], failure: Entry, answer: Mapping[str, Any]) -> str:
    """Run a program, with what is known on its standard input; give the end of what it says.

    Raises `LeftUndoneError` if it fails, or takes too long: it is then ended, together with what
    it started; and OSError if it cannot be started.
    """
    about = {
        "failure": failure.id,
        "device": failure.device,
        "start": failure.start,
        "length": failure.length,
        "rule": how["rule"],
        "answer": answer,
    }
    environment = {name: value for name, value in os.environ.items() if name not in _OURS} | {
        "WHOSEBLOCK_FAILURE": str(failure.id),
        "WHOSEBLOCK_DEVICE": failure.device,
        "WHOSEBLOCK_START": str(failure.start),
        "WHOSEBLOCK_LENGTH": str(failure.length),
    }
    name, seconds = how["command"][0], how["timeout"]
    # A file, not a pipe: nobody waits for a program that does not read.
    with open(os.memfd_create("finding"), "w+b") as given:  # noqa: PTH123 - it has no path
        given.write(encode_json(about))
        given.seek(0)
        program = subprocess.Popen(  # noqa: S603 - a list of words from a file of root's, and no shell
            how["command"],
            stdin=given,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            env=environment,
            start_new_session=True,  # its processes are a group, to be ended together
        )
    assert program.stdout is not None  # noqa: S101 - for the type checker: it was asked for
    try:
        said = _listen(program, program.stdout.fileno(), time.monotonic() + seconds)
        status = program.poll()
    finally:
        if program.returncode is None:
            with suppress(ProcessLookupError):
                os.killpg(program.pid, signal.SIGKILL)
            program.wait()
        program.stdout.close()
    words = said.decode(errors="replace").strip()
    if status == 0:
        return words
    how_it_ended = (
        f"timed out after {seconds} seconds, and was ended" if status is None else f"gave {status}"
    )
    raise LeftUndoneError(f"{name} {how_it_ended}{f': {words}' if words else ''}")


def _listen(program: "subprocess.Popen[bytes]", output: int, deadline: float) -> bytes:
    """Take in what a program says until it ends, or has to; give the end of it.

    It ends when its process does.  What it left running may hold its output open for ever.
    """
    os.set_blocking(output, False)
    said = b""
    ended = os.pidfd_open(program.pid)
    try:
        waiting = [ended, output]
        while program.poll() is None and (left := deadline - time.monotonic()) > 0:
            ready, _, _ = select.select(waiting, [], [], left)
            if output in ready:
                piece = _piece(output)
                said = (said + piece)[-_SAID:]
                if not piece:
                    waiting.remove(output)
    finally:
        os.close(ended)
    # What it said last is in the pipe; a pipe's fill, for others may go on to write.
    return (said + _piece(output))[-_SAID:]


def _piece(output: int) -> bytes:
    with suppress(BlockingIOError):
        return os.read(output, _PIECE)
    return b""
