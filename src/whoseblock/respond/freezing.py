"""Freezing a mounted filesystem for a moment, with a guard that thaws it in any case."""

import contextlib
import errno
import fcntl
import os
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Final

from whoseblock.respond import guard
from whoseblock.respond.reasons import NotNowError

__all__ = ["Frozen", "frozen"]

#: How long a filesystem may stay frozen before its guard ends us, and before it waits no longer for
#: a write that hangs in a device.  Disks give up on a sector within half a minute.
LIMIT_S: Final = 20.0
HARD_LIMIT_S: Final = 90.0
#: So long before the limit nothing more is begun.
_MARGIN_S: Final = 5.0
_FITHAW: Final = 0xC0045878  # linux/fs.h


class Frozen:
    """A filesystem that is frozen now, and how long it may stay so."""

    def __init__(self, until: float) -> None:
        self._until = until

    def check(self) -> None:
        """Raise `NotNowError` if there is no time left to begin another write."""
        if time.monotonic() > self._until - _MARGIN_S:
            raise NotNowError("the filesystem was frozen for too long")


@contextlib.contextmanager
def frozen(place: int, limit_s: float = LIMIT_S) -> Iterator[Frozen]:
    """Freeze the filesystem that a descriptor is on, until the block ends.

    All that was written before is on the disk then, and nobody writes until it is thawed: not even
    we may, to any file on it.  Raises `NotNowError` if it cannot be frozen, for example because it
    is frozen already.
    """
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    # Python would write what it compiled beside a module that is imported now.
    writes_bytecode, sys.dont_write_bytecode = sys.dont_write_bytecode, True
    with ours, theirs:
        keeper = _start_guard(theirs, place, limit_s)
        theirs.close()
        thawed = False
        try:
            _reply(ours)
            begun = time.monotonic()
            _order(ours, guard.FREEZE, "it cannot be frozen")
            try:
                yield Frozen(begun + limit_s)
            finally:
                thawed = _thaw(ours, place)
        finally:
            sys.dont_write_bytecode = writes_bytecode
            ours.close()
            keeper.wait()
        if not thawed:
            raise NotNowError("the guard of the frozen filesystem is gone")


def _start_guard(theirs: socket.socket, place: int, limit_s: float) -> "subprocess.Popen[bytes]":
    hard_s = max(HARD_LIMIT_S, limit_s)
    numbers = [theirs.fileno(), place, os.getpid(), limit_s, hard_s]
    return subprocess.Popen(  # noqa: S603 - our own program, and numbers
        [sys.executable, "-I", "-S", Path(guard.__file__), *map(str, numbers)],
        stdin=subprocess.DEVNULL,
        pass_fds=(theirs.fileno(), place),
    )


def _order(ours: socket.socket, order: bytes, why: str) -> None:
    try:
        ours.send(order)
        failed = _reply(ours)
    except OSError as error:
        raise NotNowError(f"{why}: its guard does not answer") from error
    if failed == errno.EBUSY:
        raise NotNowError(f"{why}: somebody else has it frozen")
    if failed:
        raise NotNowError(f"{why}: {os.strerror(failed)}")


def _reply(ours: socket.socket) -> int:
    answer = ours.recv(16)
    if not answer:
        raise BrokenPipeError(errno.EPIPE, os.strerror(errno.EPIPE))
    return int.from_bytes(answer, "big")


def _thaw(ours: socket.socket, place: int) -> bool:
    """Have the filesystem thawed; by ourselves if there is no guard any more."""
    try:
        _order(ours, guard.THAW, "it cannot be thawed")
    except NotNowError:
        with contextlib.suppress(OSError):
            fcntl.ioctl(place, _FITHAW, 0)
        return False
    return True
