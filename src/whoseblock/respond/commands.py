"""Running a command of the user's: a line for the shell, which gets a finding."""

import contextlib
import os
import signal
import subprocess
from collections.abc import Mapping
from typing import Final

__all__ = ["CommandError", "run_shell"]

#: As much of its output as is looked at.
_MOST_OUTPUT: Final = 1 << 16
_STDERR: Final = 2


class CommandError(Exception):
    """The command failed; the message says how."""


def run_shell(
    command: str,
    given: bytes,
    *,
    seconds: float,
    environment: Mapping[str, str] | None = None,
    capture: bool = False,
) -> bytes:
    """Have ``sh`` run a command with ``given`` on its standard input.

    Gives the first 64 KiB of its standard output if ``capture``; otherwise that goes where our
    errors go.  After ``seconds`` it is ended, together with what it started.  Raises
    `CommandError` if it is, if it cannot be started, or if it says that it failed.
    """
    # Files, not pipes: nobody waits for a command that does not read, or for one that leaves
    # something running which could still write.
    with (
        open(os.memfd_create("finding"), "w+b") as source,  # noqa: PTH123 - it has no path
        open(os.memfd_create("output"), "w+b") as output,  # noqa: PTH123 - as above
    ):
        source.write(given)
        source.seek(0)
        try:
            child = subprocess.Popen(  # noqa: S603 - the user's own line, for a shell
                ["/bin/sh", "-c", command],
                stdin=source,
                stdout=output if capture else _STDERR,
                env={**os.environ, **(environment or {})},
                start_new_session=True,  # its processes are a group, to be ended together
            )
        except (OSError, ValueError) as error:
            raise CommandError(f"the command cannot be started: {error}") from error
        try:
            status = child.wait(seconds)
        except subprocess.TimeoutExpired:
            raise CommandError(f"the command took longer than {seconds:g} seconds") from None
        finally:
            if child.returncode is None:
                with contextlib.suppress(ProcessLookupError):
                    os.killpg(child.pid, signal.SIGKILL)
                child.wait()
        if status:
            raise CommandError(f"the command {_meaning(status)}")
        # The child has moved the offset that both share.
        output.seek(0)
        return output.read(_MOST_OUTPUT)


def _meaning(status: int) -> str:
    if status > 0:
        return f"failed with status {status}"
    try:
        return f"was ended by {signal.Signals(-status).name}"
    except ValueError:
        return f"was ended by signal {-status}"
