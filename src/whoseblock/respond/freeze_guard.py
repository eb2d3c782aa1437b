"""Thaw a frozen filesystem whatever becomes of the parent process.

This is a program.  Its arguments are the numbers of two inherited descriptors (a socket to the
parent, and one on the filesystem), the parent's pid, and two limits in seconds.  It freezes and
thaws on behalf of the parent:

- the parent ends, or closes the socket: thaw;
- the parent takes longer than the first limit: kill it, wait until it and its pending writes have
  ended, and thaw; after the second limit, thaw in any case.

It uses only the standard library, and imports nothing after its start: a module's file may be on
the frozen filesystem.
"""

import fcntl
import os
import select
import signal
import socket
import sys
import time

__all__: list[str] = []

_FIFREEZE, _FITHAW = 0xC0045877, 0xC0045878  # linux/fs.h
_ORDER_BYTES = 1
FREEZE, THAW = b"F", b"T"
#: Every reply is an errno, 0 for success.
_REPLY_BYTES = 2


def _main(channel: socket.socket, place: int, parent: int, limit_s: float, hard_s: float) -> None:
    # A signal to the parent's process group must not end the guard, too.
    os.setsid()
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGPIPE, signal.SIGQUIT):
        signal.signal(number, signal.SIG_IGN)
    watched = os.pidfd_open(parent)
    frozen = False
    deadline: float | None = None
    channel.send(bytes(_REPLY_BYTES))
    while True:
        wait = None if deadline is None else max(deadline - time.monotonic(), 0)
        if not _ready(channel.fileno(), wait):
            _end(watched, hard_s - limit_s)
            break
        try:
            order = channel.recv(_ORDER_BYTES)
        except OSError:
            break
        if order == FREEZE:
            failed = _try(place, _FIFREEZE)
            frozen = failed == 0
            deadline = time.monotonic() + limit_s
        elif order == THAW and frozen:
            failed = _try(place, _FITHAW)
            frozen, deadline = failed != 0, None
        else:
            break
        try:
            channel.send(failed.to_bytes(_REPLY_BYTES, "big"))
        except OSError:
            break
    if frozen:
        _try(place, _FITHAW)


def _try(place: int, request: int) -> int:
    try:
        fcntl.ioctl(place, request, 0)
    except OSError as error:
        return error.errno or -1
    return 0


def _end(watched: int, patience_s: float) -> None:
    """Kill the parent, and wait until its pending writes have ended."""
    try:
        signal.pidfd_send_signal(watched, signal.SIGKILL)
    except OSError:
        return
    # A pidfd becomes readable when the process has ended, not when it is merely killed.
    _ready(watched, patience_s)


def _ready(fd: int, wait_s: float | None) -> bool:
    """Wait until a descriptor is readable; None waits without a limit."""
    # Not select(2), which takes no descriptor above 1023: the numbers are those of the parent.
    waiting = select.poll()
    waiting.register(fd, select.POLLIN)
    return bool(waiting.poll(None if wait_s is None else wait_s * 1000))


if __name__ == "__main__":
    numbers = sys.argv[1:]
    _main(
        socket.socket(fileno=int(numbers[0])),
        int(numbers[1]),
        int(numbers[2]),
        float(numbers[3]),
        float(numbers[4]),
    )
