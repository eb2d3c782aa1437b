"""Freeze a mounted filesystem for a moment, with a guard process that thaws it in any case."""

import contextlib
import errno
import fcntl
import os
import shlex
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Final, NamedTuple

from whoseblock.respond import freeze_guard
from whoseblock.respond.exceptions import NotNowError, UnguardedError

__all__ = ["FreezeLimits", "Frozen", "check_not_frozen", "frozen"]

_FITHAW: Final = 0xC0045878  # linux/fs.h
_NOT_FROZEN: Final = (
    "another process thawed the filesystem: the zeroed blocks may have been in use by then"
)


#: A process that creates a file waits so long for a thaw; then the filesystem counts as frozen.
_PROBE_S: Final = 5.0
_PROBE: Final = "import os, sys; os.open('.', os.O_TMPFILE | os.O_WRONLY, dir_fd=int(sys.argv[1]))"


def check_not_frozen(folder: int) -> None:
    """Raise `NotNowError` if the filesystem of a folder seems to be frozen.

    The kernel does not report it; a process that creates a file waits, and cannot be killed.
    """
    command = [sys.executable, "-I", "-S", "-c", _PROBE, str(folder)]
    probe = subprocess.Popen(  # noqa: S603 - a program of this module, and a number
        command,
        stdin=subprocess.DEVNULL,
        # A reader of our output is not to wait for it.
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        pass_fds=(folder,),
    )
    try:
        probe.wait(_PROBE_S)
    except subprocess.TimeoutExpired:
        # It ends when the filesystem is thawed.
        probe.kill()
        raise NotNowError(_frozen_by_others(folder)) from None


def _frozen_by_others(place: int) -> str:
    # It may be for a snapshot that is being taken, or of a process that was killed.
    point = shlex.quote(str(Path(f"/proc/self/fd/{place}").readlink()))
    return (
        "cannot freeze the filesystem: another process has frozen it; wait until it has"
        f" thawed it, or if it has ended, run: fsfreeze --unfreeze {point}"
    )


class FreezeLimits(NamedTuple):
    """The limits of a freeze, in seconds.

    The guard kills its parent after ``longest_s``, and thaws after ``hard_s`` even if a write still
    hangs in the device: disks give up on a sector within half a minute.  The parent thaws if the
    guard has not done so after ``guard_s``.  No write begins in the last ``margin_s``.
    """

    longest_s: float = 20.0
    hard_s: float = 90.0
    guard_s: float = 10.0
    margin_s: float = 5.0


USUAL_LIMITS: Final = FreezeLimits()


class Frozen:
    """A frozen filesystem, and the time after which no write begins."""

    def __init__(self, last_write: float) -> None:
        self._last_write = last_write

    def check(self) -> None:
        """Raise `NotNowError` if there is no time left to begin another write."""
        if time.monotonic() > self._last_write:
            raise NotNowError("the filesystem was frozen for too long")


@contextlib.contextmanager
def frozen(place: int, limits: FreezeLimits = USUAL_LIMITS) -> Iterator[Frozen]:
    """Freeze the filesystem that a descriptor is on, until the block ends.

    The kernel writes out everything first, and then blocks every write to a file on it, including
    those of this process.  Raises `NotNowError` if it cannot be frozen, for example because it is
    frozen already, and `UnguardedError` after the block if it may have been thawed meanwhile.
    """
    # An import would write bytecode, perhaps to the frozen filesystem.
    writes_bytecode, sys.dont_write_bytecode = sys.dont_write_bytecode, True
    keeper = _Guard(place, limits)
    try:
        begun = time.monotonic()
        keeper.freeze()
        yield Frozen(begun + limits.longest_s - limits.margin_s)
        keeper.thaw()
    finally:
        keeper.close()
        sys.dont_write_bytecode = writes_bytecode
    if keeper.trouble:
        raise UnguardedError(keeper.trouble)


class _Guard:
    """The process that freezes and thaws; ``trouble`` is what went wrong with the freeze."""

    def __init__(self, place: int, limits: FreezeLimits) -> None:
        self.trouble = ""
        self._place = place
        self._hard_s = max(limits.hard_s, limits.longest_s)
        self._guard_s = limits.guard_s
        # Whether the guard froze it, or may have, and is not known to have thawed it.
        self._to_thaw = False
        # Whether a request to thaw was sent to the guard; and whether it did not answer.
        self._thawing = False
        self._silent = False
        self._ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        with theirs:
            self._process = _start_guard(theirs, place, limits.longest_s, self._hard_s)

    def freeze(self) -> None:
        """Freeze the filesystem; raise `NotNowError`."""
        failed = self._reply(self._hard_s)
        if failed == 0:
            self._to_thaw = True
            failed = self._order(freeze_guard.FREEZE, self._hard_s)
        if failed is None:
            raise NotNowError("cannot freeze the filesystem: its guard process does not answer")
        self._to_thaw = failed == 0
        if failed == errno.EBUSY:
            raise NotNowError(_frozen_by_others(self._place))
        if failed:
            raise NotNowError(f"cannot freeze the filesystem: {os.strerror(failed)}")

    def thaw(self) -> None:
        """Thaw the filesystem."""
        failed = self._order(freeze_guard.THAW, self._guard_s)
        self._to_thaw = failed is None
        if failed:
            self.trouble = _NOT_FROZEN

    def close(self) -> None:
        """End the guard, which thaws if it has not yet; thaw here if it could not."""
        self._ours.close()
        try:
            self._process.wait(0 if self._silent else self._guard_s)
        except subprocess.TimeoutExpired:
            # A killed process still completes the system call that it is in.
            self._process.kill()
            self._process.wait()
        if self._to_thaw and self._process.returncode:
            self.trouble = (
                "the guard process of the frozen filesystem was gone or stopped: thawed without it"
            )
            try:
                fcntl.ioctl(self._place, _FITHAW, 0)
            except OSError:
                if not self._thawing:
                    self.trouble = _NOT_FROZEN
            freeze_guard.remove_note(self._place)

    def _order(self, order: bytes, patience_s: float) -> int | None:
        try:
            self._ours.send(order)
        except OSError:
            return None
        self._thawing = order == freeze_guard.THAW
        return self._reply(patience_s)

    def _reply(self, patience_s: float) -> int | None:
        """Return the errno of the guard's reply, 0 for success, None if there is no reply."""
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
    return subprocess.Popen(  # noqa: S603 - a program of this package, and numbers
        [sys.executable, "-I", "-S", Path(freeze_guard.__file__), *map(str, numbers)],
        stdin=subprocess.DEVNULL,
        pass_fds=(theirs.fileno(), place),
    )
