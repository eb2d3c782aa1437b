"""Send a service's state to systemd (sd_notify(3)), and take its sockets (sd_listen_fds(3))."""

import os
import socket
from collections.abc import Mapping, MutableMapping
from contextlib import suppress
from typing import Final

__all__ = ["notify", "take_descriptors", "watchdog_seconds"]

_MICRO: Final = 10**6
#: The first descriptor that is passed.
_FIRST: Final = 3


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


def take_descriptors(environment: MutableMapping[str, str] = os.environ) -> dict[str, int]:
    """Return the open descriptors that systemd passed to this process, by their names.

    Programs that this process starts inherit neither the descriptors nor the variables.
    """
    count = environment.pop("LISTEN_FDS", "")
    pid = environment.pop("LISTEN_PID", "")
    names = environment.pop("LISTEN_FDNAMES", "").split(":")
    taken: dict[str, int] = {}
    if pid != str(os.getpid()) or not (count.isascii() and count.isdecimal()):
        return taken
    for descriptor, name in enumerate(names[: int(count)], _FIRST):
        with suppress(OSError):
            os.set_inheritable(descriptor, False)  # noqa: FBT003 - it takes no keyword
            taken[name] = descriptor
    return taken
