"""Send the state of a service to systemd (sd_notify(3))."""

import os
import socket
from collections.abc import Mapping
from contextlib import suppress
from typing import Final

__all__ = ["notify", "watchdog_seconds"]

_MICRO: Final = 10**6


def notify(*lines: str, environment: Mapping[str, str] = os.environ) -> bool:
    """Send ``VARIABLE=VALUE`` lines; return False if there is no listener."""
    address = environment.get("NOTIFY_SOCKET", "")
    if address[:1] not in {"/", "@"}:
        return False
    where = "\0" + address[1:] if address[0] == "@" else address
    with (
        suppress(OSError),
        socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM | socket.SOCK_CLOEXEC) as to,
    ):
        to.sendto("\n".join(lines).encode(), where)
        return True
    return False


def watchdog_seconds(environment: Mapping[str, str] = os.environ) -> float | None:
    """Return the watchdog interval that systemd expects; None if there is none."""
    microseconds = environment.get("WATCHDOG_USEC", "")
    pid = environment.get("WATCHDOG_PID", str(os.getpid()))
    if not microseconds.isdecimal() or pid != str(os.getpid()) or int(microseconds) == 0:
        return None
    return int(microseconds) / _MICRO
