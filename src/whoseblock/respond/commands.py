"""Run a shell command of the user with a finding on its standard input."""

import contextlib
import os
import signal
import subprocess
from collections.abc import Mapping
from typing import Final

__all__ = ["CommandError", "run_shell"]

#: So many bytes of the output are read.
_MOST_OUTPUT: Final = 1 << 16
_STDERR: Final = 2


class CommandError(Exception):
    """The command failed; the message says how it ended."""


def run_shell(
    command: str,
    given: bytes,
    *,
    seconds: float,
    environment: Mapping[str, str] | None = None,
    capture: bool = False,
) -> bytes:
    """Run a command in ``sh`` with ``given`` on its standard input.

    Returns the first 64 KiB of its standard output if ``capture``; otherwise the output goes to
    standard error.  After ``seconds`` its process group is killed.  Raises `CommandError` if that
    happens, if it cannot be started, or if its exit status is not 0.
    """
    # Files, not pipes: a command that does not read, or that leaves a writer running, must not
    # block this process.
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
                start_new_session=True,  # its processes are one group, which is killed as a whole
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
        # The child moved the shared file offset.
        output.seek(0)
        return output.read(_MOST_OUTPUT)


def _meaning(status: int) -> str:
    if status > 0:
        return f"failed with status {status}"
    try:
        return f"was ended by {signal.Signals(-status).name}"
    except ValueError:
        return f"was ended by signal {-status}"
