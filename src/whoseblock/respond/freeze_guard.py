"""Thaw a frozen filesystem whatever becomes of the parent process.

This is a program.  Its arguments are the numbers of two inherited descriptors (a socket to the
parent, and one on the filesystem), the parent's pid, and two limits in seconds.  It freezes and
thaws on behalf of the parent:

- the parent ends, or closes the socket: thaw;
- the parent takes longer than the first limit: kill it, wait until it and its pending writes have
  ended, and thaw; after the second limit, thaw in any case.

Where possible it is in another cgroup than its parent, so that cgroup.kill of that one does not end
it, too.  The last argument is 1 if systemd put it into a scope; otherwise it makes a cgroup.

While the filesystem is frozen, a thread of the guard, the *witness*, waits in a system call that
would write to it.  No signal ends such a wait.  If the guard is killed, the thread remains until
the filesystem is thawed, by any process.  So a later run sees whether the filesystem is still
frozen by this guard, or by another process since (`whoseblock.respond.freezing`).

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
import threading
import time
from pathlib import Path
from typing import NamedTuple

__all__ = ["FREEZE", "THAW", "WITNESS"]

_FIFREEZE, _FITHAW = 0xC0045877, 0xC0045878  # linux/fs.h
_ORDER_BYTES = 1
FREEZE, THAW = b"F", b"T"
#: Every reply is an errno, 0 for success.
_REPLY_BYTES = 2
_CGROUP = "whoseblock-guard-"
#: The name of the witness in /proc, of at most 15 bytes.
WITNESS = "wb-frozen"
#: An attribute that no file has: to remove it changes nothing.
_NO_ATTRIBUTE = "trusted.whoseblock-none"
#: The guard waits so long until its witness waits for the thaw.
_PATIENCE_S = 5.0
#: The kind of a mount in /proc/mounts (proc_pid_mounts(5)).
_KIND = 2


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


class Witness(threading.Thread):
    """A thread that waits for the thaw of a filesystem as soon as that is frozen.

    It does not wait where the filesystem is mounted read-only.
    """

    def __init__(self, place: int) -> None:
        super().__init__(daemon=True)
        self._place = place
        self._ends = False

    def run(self) -> None:
        """Ask to remove an attribute that does not exist, again and again until one call waits."""
        while not self._ends:
            try:
                os.removexattr(self._place, _NO_ATTRIBUTE)
            except OSError as error:
                if error.errno != errno.ENODATA:
                    return

    def name_in_proc(self, name: str) -> None:
        """Set the name under which /proc shows it."""
        with contextlib.suppress(OSError):
            Path(f"/proc/self/task/{self.native_id}/comm").write_text(name, "ascii")

    def wait_until_it_waits(self) -> None:
        """Return once it waits for the thaw; the filesystem is frozen."""
        self._ends = True
        state = Path(f"/proc/self/task/{self.native_id}/stat")
        deadline = time.monotonic() + _PATIENCE_S
        with contextlib.suppress(OSError):
            while self.is_alive() and time.monotonic() < deadline:
                if state.read_text("ascii", "replace").rpartition(")")[2].split()[0] == "D":
                    return

    def end(self) -> None:
        """End it: the filesystem is not frozen, or by another process."""
        self.name_in_proc("wb-ended")
        self._ends = True


class _Work(NamedTuple):
    """The arguments of the guard: descriptors, and the limits in seconds."""

    channel: socket.socket
    place: int
    parent: int
    limit_s: float
    hard_s: float
    in_scope: bool


def _main(work: _Work) -> None:
    # A signal to the parent's process group must not end the guard, too.
    os.setsid()
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGPIPE, signal.SIGQUIT):
        signal.signal(number, signal.SIG_IGN)
    watched = os.pidfd_open(work.parent)
    cgroup = None if work.in_scope else _leave_cgroup()
    work.channel.send(bytes(_REPLY_BYTES))
    _serve(work, watched)
    if cgroup is not None:
        _remove_cgroup(cgroup)


def _serve(work: _Work, watched: int) -> None:
    """Freeze and thaw as the parent orders; thaw at the end, whatever becomes of the parent."""
    channel, place = work.channel, work.place
    witness: Witness | None = None
    deadline: float | None = None
    while True:
        wait = None if deadline is None else max(deadline - time.monotonic(), 0)
        if not _ready(channel.fileno(), wait):
            _end(watched, work.hard_s - work.limit_s)
            break
        try:
            order = channel.recv(_ORDER_BYTES)
        except OSError:
            break
        if order == FREEZE and witness is None:
            failed, witness = _freeze(place)
            deadline = time.monotonic() + work.limit_s
        elif order == THAW and witness is not None:
            failed = _try(place, _FITHAW)
            if failed == 0:
                witness.end()
                witness, deadline = None, None
        else:
            break
        try:
            channel.send(failed.to_bytes(_REPLY_BYTES, "big"))
        except OSError:
            break
    if witness is not None:
        _try(place, _FITHAW)
        witness.end()


def _freeze(place: int) -> "tuple[int, Witness | None]":
    witness = Witness(place)
    # It waits as soon as the kernel lets no more writes begin, long before the freeze is complete.
    witness.start()
    witness.name_in_proc(WITNESS)
    failed = _try(place, _FIFREEZE)
    if failed:
        witness.end()
        return failed, None
    witness.wait_until_it_waits()
    return 0, witness


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
    descriptor, place, parent, limit_s, hard_s, in_scope = sys.argv[1:]
    _main(
        _Work(
            socket.socket(fileno=int(descriptor)),
            int(place),
            int(parent),
            float(limit_s),
            float(hard_s),
            in_scope == "1",
        )
    )
