"""Run a program of the policy, with the finding on its standard input."""

from collections.abc import Mapping
from typing import Any, Final

from whoseblock.encode import encode_json
from whoseblock.errors import LeftUndoneError
from whoseblock.journal import RecordedFailure
from whoseblock.respond.commands import Output, run_with_finding

__all__ = ["run_program"]

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
        "WHOSEBLOCK_FAILURE": str(failure.id),
        "WHOSEBLOCK_DEVICE": failure.device,
        "WHOSEBLOCK_START": str(failure.start),
        "WHOSEBLOCK_LENGTH": str(failure.length),
    }
    name, seconds = how["command"][0], how["timeout"]
    status, output, _ = run_with_finding(
        how["command"],
        encode_json(about),
        seconds=seconds,
        output=Output.LAST,
        environment=environment,
        removed=_DAEMON_ONLY,
    )
    words = output.decode(errors="replace").strip()
    if status == 0:
        return words
    how_it_ended = (
        f"timed out after {seconds} seconds and was killed"
        if status is None
        else f"exited with status {status}"
    )
    raise LeftUndoneError(f"{name} {how_it_ended}{f': {words}' if words else ''}")
