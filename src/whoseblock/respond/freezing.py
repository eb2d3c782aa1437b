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
from whoseblock.respond.reasons import NotNowError, UnguardedError

__all__ = ["Frozen", "frozen"]

#: How long a filesystem may stay frozen before its guard ends us, and before it waits no longer for
#: a write that hangs in a device.  Disks give up on a sector within half a minute.
LIMIT_S: Final = 20.0
HARD_LIMIT_S: Final = 90.0
#: So long the guard has to thaw, before it is taken for stopped, and we do it.
PATIENCE_S: Final = 10.0
#: So long before the limit nothing more is begun.
_MARGIN_S: Final = 5.0
_FITHAW: Final = 0xC0045878  # linux/fs.h
_NOT_FROZEN: Final = "somebody else thawed the filesystem: what was zeroed may be in use by now"


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
    is frozen already, and `UnguardedError` after the block if something was wrong with the freeze.
    """
    # Python would write what it compiled beside a module that is imported now.
    writes_bytecode, sys.dont_write_bytecode = sys.dont_write_bytecode, True
    keeper = _Guard(place, limit_s)
    try:
        begun = time.monotonic()
        keeper.freeze()
        yield Frozen(begun + limit_s)
        keeper.thaw()
    finally:
        keeper.close()
        sys.dont_write_bytecode = writes_bytecode
    if keeper.trouble:
        raise UnguardedError(keeper.trouble)


class _Guard:
    """The process that freezes and thaws for us; ``trouble`` is what went wrong with the freeze."""

    def __init__(self, place: int, limit_s: float) -> None:
        self.trouble = ""
        self._place = place
        self._hard_s = max(HARD_LIMIT_S, limit_s)
        # Whether it was, or may have been, frozen for us, and is not known to be thawed.
        self._to_thaw = False
        # Whether it was told to, and may have done it; and whether it gave no answer.
        self._thawing = False
        self._silent = False
        self._ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        with theirs:
            self._process = _start_guard(theirs, place, limit_s, self._hard_s)

    def freeze(self) -> None:
        """Have it frozen; raises `NotNowError`."""
        failed = self._reply(self._hard_s)
        if failed == 0:
            self._to_thaw = True
            failed = self._order(guard.FREEZE, self._hard_s)
        if failed is None:
            raise NotNowError("it cannot be frozen: its guard does not answer")
        self._to_thaw = failed == 0
        if failed == errno.EBUSY:
            raise NotNowError("it cannot be frozen: somebody else has it frozen")
        if failed:
            raise NotNowError(f"it cannot be frozen: {os.strerror(failed)}")

    def thaw(self) -> None:
        """Have it thawed."""
        failed = self._order(guard.THAW, PATIENCE_S)
        self._to_thaw = failed is None
        if failed:
            self.trouble = _NOT_FROZEN

    def close(self) -> None:
        """End the guard, which thaws if it did not yet; after that, do what it did not."""
        self._ours.close()
        try:
            self._process.wait(0 if self._silent else PATIENCE_S)
        except subprocess.TimeoutExpired:
            # A call to the kernel that it has begun, it ends with.
            self._process.kill()
            self._process.wait()
        if self._to_thaw and self._process.returncode:
            self.trouble = "the guard of the frozen filesystem was gone, or stopped: thawed by us"
            try:
                fcntl.ioctl(self._place, _FITHAW, 0)
            except OSError:
                if not self._thawing:
                    self.trouble = _NOT_FROZEN

    def _order(self, order: bytes, patience_s: float) -> int | None:
        try:
            self._ours.send(order)
        except OSError:
            return None
        self._thawing = order == guard.THAW
        return self._reply(patience_s)

    def _reply(self, patience_s: float) -> int | None:
        """Give the number of an error, 0 for done, and None if there is no answer."""
        self._ours.settimeout(patience_s)
        try:
            answer = self._ours.recv(16)
        except OSError:
            answer = b""
        self._silent = not answer
        return int.from_bytes(answer, "big") if answer else None


def _start_guard(
    theirs: socket.socket, place: int, limit_s: float, hard_s: float
) -> "subprocess.Popen[bytes]":
    numbers = [theirs.fileno(), place, os.getpid(), limit_s, hard_s]
    return subprocess.Popen(  # noqa: S603 - our own program, and numbers
        [sys.executable, "-I", "-S", Path(guard.__file__), *map(str, numbers)],
        stdin=subprocess.DEVNULL,
        pass_fds=(theirs.fileno(), place),
    )
