"""Thaw a frozen filesystem whatever becomes of the parent process.

This is a program.  Its arguments are the numbers of two inherited descriptors (a socket to the
parent, and one on the filesystem), the parent's pid, and two limits in seconds.  It freezes and
thaws on behalf of the parent:

- the parent ends, or closes the socket: thaw;
- the parent takes longer than the first limit: kill it, wait until it and its pending writes have
  ended, and thaw; after the second limit, thaw in any case.

It leaves the cgroup of its parent, so that cgroup.kill of that one does not end it, too.  While a
filesystem is frozen, a note in `NOTES` has the boot, and is locked: if the guard is killed as well,
the next run finds the note unlocked, and thaws.

It uses only the standard library, and imports nothing after its start: a module's file may be on
the frozen filesystem.
"""

import contextlib
import errno
import fcntl
import os
import select
import signal
import socket
import sys
import time
from pathlib import Path

__all__ = ["FREEZE", "NOTES", "THAW", "remove_note", "thaw_left"]

_FIFREEZE, _FITHAW = 0xC0045877, 0xC0045878  # linux/fs.h
_ORDER_BYTES = 1
FREEZE, THAW = b"F", b"T"
#: Every reply is an errno, 0 for success.
_REPLY_BYTES = 2
#: The folder of notes of what is frozen, in memory: it is not on a frozen filesystem.
NOTES = "/run/whoseblock"
_CGROUP = "whoseblock-guard-"
#: The kind of a mount in /proc/mounts (proc_pid_mounts(5)).
_KIND = 2


class Note:
    """A note that a filesystem is frozen; ``descriptor`` is locked, and -1 if there is none.

    Raises `BlockingIOError` if another process has it locked.
    """

    def __init__(self, place: int, *, create: bool) -> None:
        device = os.fstat(place).st_dev
        self._path = Path(NOTES, f"frozen-{os.major(device)}:{os.minor(device)}")
        self.descriptor = -1
        try:
            if create:
                Path(NOTES).mkdir(0o700, exist_ok=True)
            status = Path(NOTES).lstat()
            if status.st_uid != os.geteuid() or status.st_mode & 0o022:
                return
            flags = os.O_RDWR | os.O_NOFOLLOW | os.O_CLOEXEC | (os.O_CREAT if create else 0)
            self.descriptor = os.open(self._path, flags, 0o600)
        except OSError:
            return
        try:
            fcntl.flock(self.descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            self.close()
            raise

    def is_left(self) -> bool:
        """Return whether a process that was killed since the machine started wrote it."""
        return self.descriptor >= 0 and os.pread(self.descriptor, 64, 0) == _boot()

    def write(self) -> None:
        """Write the boot into it: the filesystem is about to be frozen."""
        if self.descriptor >= 0:
            os.pwrite(self.descriptor, _boot(), 0)

    def remove(self) -> None:
        """Remove the note: the filesystem is not frozen."""
        if self.descriptor >= 0:
            with contextlib.suppress(OSError):
                self._path.unlink()
            self.close()

    def close(self) -> None:
        """Unlock the note, and leave it."""
        if self.descriptor >= 0:
            os.close(self.descriptor)
            self.descriptor = -1


def _boot() -> bytes:
    return Path("/proc/sys/kernel/random/boot_id").read_bytes()


def thaw_left(place: int) -> bool:
    """Thaw a filesystem that a killed guard left frozen; return whether there was one."""
    try:
        note = Note(place, create=False)
    except BlockingIOError:
        return False
    left = note.is_left()
    if left:
        _try(place, _FITHAW)
    note.remove()
    return left


def remove_note(place: int) -> None:
    """Remove the note of a filesystem that was thawed for a guard that was killed."""
    with contextlib.suppress(BlockingIOError):
        Note(place, create=False).remove()


def _leave_cgroup() -> "Path | None":
    """Move to a cgroup of this process alone, and return it; None where that is not possible."""
    try:
        fields = [line.split() for line in Path("/proc/self/mounts").read_text().splitlines()]
        root = next(Path(one[1]) for one in fields if one[_KIND] == "cgroup2")
        for left in root.glob(f"{_CGROUP}*"):
            # That of a guard which was killed; the others are in use.
            with contextlib.suppress(OSError):
                left.rmdir()
        cgroup = root / f"{_CGROUP}{os.getpid()}"
        cgroup.mkdir()
        _join(cgroup)
    except (OSError, StopIteration):
        return None
    return cgroup


def _join(cgroup: Path) -> None:
    (cgroup / "cgroup.procs").write_text("0")


def _remove_cgroup(cgroup: Path) -> None:
    with contextlib.suppress(OSError):
        _join(cgroup.parent)
        cgroup.rmdir()


def _main(channel: socket.socket, place: int, parent: int, limit_s: float, hard_s: float) -> None:
    # A signal to the parent's process group must not end the guard, too.
    os.setsid()
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGPIPE, signal.SIGQUIT):
        signal.signal(number, signal.SIG_IGN)
    watched = os.pidfd_open(parent)
    cgroup = _leave_cgroup()
    thaw_left(place)
    channel.send(bytes(_REPLY_BYTES))
    _serve(channel, place, watched, limit_s, hard_s)
    if cgroup is not None:
        _remove_cgroup(cgroup)


def _serve(channel: socket.socket, place: int, watched: int, limit_s: float, hard_s: float) -> None:
    """Freeze and thaw as the parent orders; thaw at the end, whatever becomes of the parent."""
    note: Note | None = None
    deadline: float | None = None
    while True:
        wait = None if deadline is None else max(deadline - time.monotonic(), 0)
        if not _ready(channel.fileno(), wait):
            _end(watched, hard_s - limit_s)
            break
        try:
            order = channel.recv(_ORDER_BYTES)
        except OSError:
            break
        if order == FREEZE and note is None:
            failed, note = _freeze(place)
            deadline = time.monotonic() + limit_s
        elif order == THAW and note is not None:
            failed = _try(place, _FITHAW)
            if failed == 0:
                note.remove()
                note, deadline = None, None
        else:
            break
        try:
            channel.send(failed.to_bytes(_REPLY_BYTES, "big"))
        except OSError:
            break
    if note is not None:
        _try(place, _FITHAW)
        note.remove()


def _freeze(place: int) -> "tuple[int, Note | None]":
    try:
        note = Note(place, create=True)
    except BlockingIOError:
        return errno.EBUSY, None
    note.write()
    failed = _try(place, _FIFREEZE)
    if failed:
        note.remove()
        return failed, None
    return 0, note


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
