"""Know since when each disk has its name: another may have had it when a failure was logged.

The kernel counts the disks that it has attached (``diskseq`` in sysfs, Linux 5.15): the number of a
name changes if another disk, or another file of a loop device, gets the name. It does not record
when. So the numbers are read when the kernel announces a change (NETLINK_KOBJECT_UEVENT), and at
each sweep.  systemd may pass the socket of the announcements: see ``whoseblock-watch.socket``.
"""

import os
import socket
import time
from collections.abc import Callable, Iterable
from contextlib import suppress
from typing import Final, NamedTuple

from whoseblock.stack.kernel.host import Host

__all__ = ["DiskNumbers", "Tenure", "adopt_socket"]

_PIECE: Final = 1 << 13
_UEVENTS: Final = 15  # NETLINK_KOBJECT_UEVENT in linux/netlink.h
_GROUP: Final = 1  # of the kernel itself; those of udev come later
#: The kernel counts a disk some moments before it announces it.
_DELAY_S: Final = 1.0
#: The number of events read before the sources get their turn.
_MOST: Final = 1024


class Tenure(NamedTuple):
    """The number of the disk that has a name, and when it got the name: between two moments.

    Both are of the monotonic clock, in seconds. ``number`` is 0 if no disk has the name now.
    ``before`` is the last disk that had it, 0 if that is unknown, and ``vacant`` is true if no disk
    had it just before.
    """

    number: int
    earliest: float
    latest: float
    before: int
    vacant: bool


class DiskNumbers:
    """The disks by their names, and since when they have them; ``clock`` is the monotonic one.

    ``announcements`` is a socket from `adopt_socket`, which may hold old ones; by default a new one
    is opened. ``fileno`` becomes readable if disks have come or gone; it is -1 where that cannot be
    watched.
    """

    def __init__(
        self,
        host: Host,
        clock: Callable[[], float] = time.monotonic,
        announcements: socket.socket | None = None,
    ) -> None:
        self._host = host
        self._clock = clock
        self._socket = announcements
        if announcements is None and host.live:
            self._socket = _open_socket()
        #: When the numbers were as they are known.
        self._true_at = clock()
        # These may have been there for long.
        ever = float("-inf")
        self._known = {
            name: Tenure(number, ever, ever, 0, vacant=True)
            for name, number in self._read_numbers().items()
        }

    def fileno(self) -> int:
        """Return the descriptor of the announcements, -1 if there is none."""
        return -1 if self._socket is None else self._socket.fileno()

    def read(self) -> None:
        """Read the announcements, and the numbers if disks have changed."""
        if self._socket is None:
            return
        changed = emptied = False
        now = self._clock()
        for _ in range(_MOST):
            try:
                changed |= b"SUBSYSTEM=block" in self._socket.recv(_PIECE)
            except BlockingIOError:
                emptied = True
                break
            except OSError:
                # Announcements were dropped (ENOBUFS).
                changed = True
        if changed:
            self.refresh()
        elif emptied:
            # Else a disk may be announced in what is not read yet.
            self._true_at = max(self._true_at, now - _DELAY_S)

    def refresh(self) -> None:
        """Read the numbers of all disks."""
        earliest, started = self._true_at, self._clock()
        numbers = self._read_numbers()
        for name in self._known.keys() | numbers.keys():
            number, known = numbers.get(name, 0), self._known.get(name)
            if known is None:
                self._known[name] = Tenure(number, earliest, self._clock(), 0, vacant=True)
            elif number != known.number:
                before = known.number or known.before
                vacant = not known.number
                self._known[name] = Tenure(number, earliest, self._clock(), before, vacant)
        self._true_at = started

    def tenure(self, device: str) -> Tenure | None:
        """Return which disk has the name of a device or of a partition; None if it is unknown."""
        disk, number = self._host.find_disk_number(device)
        known = self._known.get(disk)
        if number != (0 if known is None else known.number):
            self.refresh()
            known = self._known.get(disk)
        return known

    def _read_numbers(self) -> dict[str, int]:
        found = {}
        with suppress(OSError):
            for entry in (self._host.root / "sys/block").iterdir():
                number = self._host.read_number(entry / "diskseq")
                # A loop device without a file keeps its name, and has no size.
                if number and self._host.read_number(entry / "size"):
                    found[entry.name] = number
        return found

    def close(self) -> None:
        """Close the socket."""
        if self._socket is not None:
            self._socket.close()


def adopt_socket(descriptors: Iterable[int]) -> socket.socket | None:
    """Return the socket of announcements among passed descriptors; close all others."""
    found: socket.socket | None = None
    for descriptor in descriptors:
        try:
            passed = socket.socket(fileno=descriptor)
        except OSError:
            os.close(descriptor)
            continue
        if found is None and _announces(passed):
            found = passed
            found.settimeout(0)
        else:
            passed.close()
    return found


def _announces(passed: socket.socket) -> bool:
    """Return whether a socket is one of the kernel's announcements."""
    is_netlink = (passed.family, passed.proto) == (socket.AF_NETLINK, _UEVENTS)
    return is_netlink and bool(passed.getsockname()[1] & _GROUP)


def _open_socket() -> socket.socket | None:
    flags = socket.SOCK_DGRAM | socket.SOCK_NONBLOCK | socket.SOCK_CLOEXEC
    try:
        opened = socket.socket(socket.AF_NETLINK, flags, _UEVENTS)
    except (OSError, AttributeError):
        return None
    try:
        opened.bind((0, _GROUP))
    except OSError:
        opened.close()
        return None
    return opened
