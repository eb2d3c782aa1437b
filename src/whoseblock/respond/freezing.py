"""Freeze a mounted filesystem for a moment, with a guard process that thaws it in any case."""

import contextlib
import errno
import fcntl
import os
import shlex
import shutil
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Final, NamedTuple

import msgspec

from whoseblock.respond import freeze_guard
from whoseblock.respond.exceptions import NotNowError, UnguardedError

__all__ = [
    "USUAL_LIMITS",
    "FreezeJournal",
    "FreezeLimits",
    "FreezeRecord",
    "Frozen",
    "check_not_frozen",
    "frozen",
]

_FITHAW: Final = 0xC0045878  # linux/fs.h
#: This folder exists where systemd runs (sd_booted(3)).
_SYSTEMD: Final = "/run/systemd/system"
#: How often to look whether the guard has ended.
_POLL_S: Final = 0.005
_NO_ANSWER: Final = "cannot freeze the filesystem: its guard process does not answer"
_NOT_FROZEN: Final = (
    "another process thawed the filesystem: the zeroed blocks may have been in use by then"
)

#: A process that creates a file waits so long for a thaw; then the filesystem counts as frozen.
_PROBE_S: Final = 5.0
#: It has so long for all of it, on a machine that is busy or slow.
_PROBE_IN_ALL_S: Final = 60.0
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
    if not _ends_without_waiting(probe):
        # It ends when the filesystem is thawed.
        probe.kill()
        _reap_later(probe)
        raise NotNowError(_frozen_by_others(folder))


def _ends_without_waiting(process: "subprocess.Popen[bytes]") -> bool:
    """Wait for the end of a process, unless it is seen to wait in the kernel all the time."""
    begun = active = time.monotonic()
    while process.poll() is None:
        now = time.monotonic()
        # How long its program takes to start says nothing.
        found = _process_of(process.pid)
        active = active if found is not None and found.state == _WAITS else now
        if now - active > _PROBE_S or now - begun > _PROBE_IN_ALL_S:
            return False
        time.sleep(_POLL_S)
    return True


def _reap_later(process: "subprocess.Popen[bytes]") -> None:
    """Reap a process that ends only when another one thaws the filesystem."""
    threading.Thread(target=process.wait, daemon=True).start()


def _frozen_by_others(place: int) -> str:
    # It may be for a snapshot that is being taken, or of a process that was killed.
    point = shlex.quote(str(Path(f"/proc/self/fd/{place}").readlink()))
    return (
        "cannot freeze the filesystem: another process has frozen it; wait until it has"
        " thawed it; if it was a repair that was killed, run: whoseblock respond --resume; if it"
        f" was another program that has ended, run: fsfreeze --unfreeze {point}"
    )


class FreezeRecord(msgspec.Struct, frozen=True, kw_only=True):
    """The guard of a freeze: who freezes which filesystem.

    ``boot`` is the identity of the boot, ``device`` the ``st_dev`` of the filesystem's files,
    ``pid`` and ``started`` are the guard's, the latter in ticks since the boot (proc_pid_stat(5)).
    """

    boot: str
    device: int
    pid: int
    started: int

    @classmethod
    def of(cls, place: int, pid: int) -> "FreezeRecord":
        """Return the record of a guard that lives."""
        process = _process_of(pid)
        started = -1 if process is None else process.started
        return cls(boot=_boot(), device=os.fstat(place).st_dev, pid=pid, started=started)

    def is_of(self, place: int) -> bool:
        """Return whether it is of a filesystem, and of this boot."""
        return (self.boot, self.device) == (_boot(), os.fstat(place).st_dev)

    def has_ended(self) -> bool:
        """Return whether the guard has ended, but for its witness; one that lives may thaw yet."""
        process = _process_of(self.pid)
        return process is None or process.started != self.started or process.state == _ZOMBIE

    def witness_waits(self) -> bool:
        """Return whether the filesystem is still frozen by this guard, which has ended."""
        process = _process_of(self.pid)
        if process is None or process.started != self.started:
            return False
        return _Thread(freeze_guard.WITNESS, _WAITS) in _threads_of(self.pid)


class FreezeJournal:
    """The freeze that a step began and is not known to have ended, as the journal has it.

    ``note`` records one durably, and None when it has ended.
    """

    def __init__(
        self, left: FreezeRecord | None, note: Callable[[FreezeRecord | None], None]
    ) -> None:
        self.left = left
        self.note = note

    def thaw_left(self, place: int, *, read_only: bool = False) -> bool:
        """Thaw a filesystem that a killed run left frozen; return whether one did.

        While the witness of that run waits, no other process can have frozen the filesystem since.
        Nothing waits where it is mounted ``read_only``: there the record decides alone.
        """
        left, self.left = self.left, None
        if left is None or not left.is_of(place):
            return False
        deadline = time.monotonic() + _PROBE_S
        while not left.has_ended():
            if time.monotonic() > deadline:
                return False
            time.sleep(_POLL_S)
        if not (left.witness_waits() or read_only):
            return False
        try:
            fcntl.ioctl(place, _FITHAW, 0)
        except OSError:
            return False
        self.note(None)
        return True


class _Process(NamedTuple):
    """The state of a process, by its letter, and its start in ticks since the boot."""

    state: str
    started: int


class _Thread(NamedTuple):
    """The name of a thread, and its state."""

    name: str
    state: str


#: The fields of proc_pid_stat(5) after the name in parentheses.
_STATE, _STARTED = 0, 19
#: A process that has ended, and a thread in a wait that no signal ends.
_ZOMBIE, _WAITS = "Z", "D"


def _process_of(pid: int) -> _Process | None:
    words = _stat(Path(f"/proc/{pid}/stat"))
    return _Process(words[_STATE], int(words[_STARTED])) if words else None


def _threads_of(pid: int) -> Iterator[_Thread]:
    with contextlib.suppress(OSError):
        for folder in Path(f"/proc/{pid}/task").iterdir():
            name = (folder / "comm").read_text("ascii", "replace").strip()
            for state in _stat(folder / "stat")[:1]:
                yield _Thread(name, state)


def _stat(file: Path) -> list[str]:
    try:
        return file.read_text("ascii", "replace").rpartition(")")[2].split()
    except OSError:
        return []


def _boot() -> str:
    return Path("/proc/sys/kernel/random/boot_id").read_text("ascii").strip()


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


def _unrecorded(_: FreezeRecord | None) -> None:
    """Record no freeze."""


@contextlib.contextmanager
def frozen(
    place: int,
    limits: FreezeLimits = USUAL_LIMITS,
    note: Callable[[FreezeRecord | None], None] = _unrecorded,
) -> Iterator[Frozen]:
    """Freeze the filesystem that a descriptor is on, until the block ends.

    The kernel writes out everything first, and then blocks every write to a file on it, including
    those of this process.  ``note`` is called before with the record of the freeze, and with None
    after the thaw.  Raises `NotNowError` if it cannot be frozen, for example because it is frozen
    already, and `UnguardedError` after the block if it may have been thawed meanwhile.
    """
    # An import would write bytecode, perhaps to the frozen filesystem.
    writes_bytecode, sys.dont_write_bytecode = sys.dont_write_bytecode, True
    guard = _Guard(place, limits)
    recorded = False
    try:
        guard.start()
        note(FreezeRecord.of(place, guard.pid))
        recorded = True
        begun = time.monotonic()
        guard.freeze()
        yield Frozen(begun + limits.longest_s - limits.margin_s)
        guard.thaw()
    finally:
        guard.close()
        sys.dont_write_bytecode = writes_bytecode
        if recorded:
            note(None)
    if guard.trouble:
        raise UnguardedError(guard.trouble)


class _Guard:
    """The process that freezes and thaws; ``trouble`` is what went wrong with the freeze."""

    def __init__(self, place: int, limits: FreezeLimits) -> None:
        self.trouble = ""
        self._place = place
        self._limits = limits._replace(hard_s=max(limits.hard_s, limits.longest_s))
        # Whether the guard froze it, or may have, and is not known to have thawed it.
        self._to_thaw = False
        # Whether a request to thaw was sent to the guard; and whether it did not answer.
        self._thawing = False
        self._silent = False
        self._launch(_scope())

    @property
    def pid(self) -> int:
        """The process id."""
        return self._process.pid

    def _launch(self, scope: list[str]) -> None:
        self._in_scope = bool(scope)
        self._ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        with theirs:
            self._process = _start_guard(theirs, self._place, self._limits, scope)

    def start(self) -> None:
        """Wait until the guard is ready; start another one if systemd makes no scope for it."""
        ready = self._reply(self._limits.guard_s if self._in_scope else self._limits.hard_s)
        if ready is None and self._in_scope:
            self.close()
            self._launch([])
            ready = self._reply(self._limits.hard_s)
        if ready is None:
            raise NotNowError(_NO_ANSWER)

    def freeze(self) -> None:
        """Freeze the filesystem; raise `NotNowError`."""
        self._to_thaw = True
        failed = self._order(freeze_guard.FREEZE, self._limits.hard_s)
        if failed is None:
            raise NotNowError(_NO_ANSWER)
        self._to_thaw = failed == 0
        if failed == errno.EBUSY:
            raise NotNowError(_frozen_by_others(self._place))
        if failed:
            raise NotNowError(f"cannot freeze the filesystem: {os.strerror(failed)}")

    def thaw(self) -> None:
        """Thaw the filesystem."""
        failed = self._order(freeze_guard.THAW, self._limits.guard_s)
        self._to_thaw = failed is None
        if failed:
            self.trouble = _NOT_FROZEN

    def close(self) -> None:
        """End the guard, which thaws if it has not yet; thaw here if it could not."""
        self._ours.close()
        patience_s = 0 if self._silent else self._limits.guard_s
        if not self._ended(time.monotonic() + patience_s):
            # A killed process still completes the system call that it is in.
            self._process.kill()
            self._ended(None)
        if self._to_thaw and self._process.returncode != 0:
            self.trouble = (
                "the guard process of the frozen filesystem was gone or stopped: thawed without it"
            )
            try:
                fcntl.ioctl(self._place, _FITHAW, 0)
            except OSError:
                if not self._thawing:
                    self.trouble = _NOT_FROZEN
        if self._process.returncode is None:
            _reap_later(self._process)

    def _ended(self, deadline: float | None) -> bool:
        """Wait until the guard has ended, but for a witness that waits for a thaw."""
        while not self._has_ended():
            if deadline is not None and time.monotonic() > deadline:
                return False
            time.sleep(_POLL_S)
        return True

    def _has_ended(self) -> bool:
        waits = (one.state == _WAITS for one in _threads_of(self._process.pid))
        return self._process.poll() is not None or (self._is_dead() and any(waits))

    def _is_dead(self) -> bool:
        """Return whether the guard does nothing any more; its witness may wait."""
        process = _process_of(self._process.pid)
        return process is None or process.state == _ZOMBIE

    def _order(self, order: bytes, patience_s: float) -> int | None:
        try:
            # While a witness waits, the socket remains.
            if self._is_dead():
                return None
            self._ours.send(order)
        except OSError:
            return None
        self._thawing = order == freeze_guard.THAW
        return self._reply(patience_s)

    def _reply(self, patience_s: float) -> int | None:
        """Return the errno of the guard's reply, 0 for success, None if there is no reply."""
        deadline = time.monotonic() + patience_s
        self._ours.settimeout(_POLL_S)
        answer = b""
        while time.monotonic() < deadline:
            # A witness that waits keeps the guard's end of the socket open.
            ended = self._has_ended()
            try:
                answer = self._ours.recv(16)
                break
            except TimeoutError:
                if ended:
                    break
            except OSError:
                break
        self._silent = not answer
        return int.from_bytes(answer, "big") if answer else None


def _scope() -> list[str]:
    """Return the command that starts another one in a scope of its own; [] without systemd.

    A unit's cgroups may be read-only to it (ProtectControlGroups=), and are systemd's to change.
    """
    program = shutil.which("systemd-run") if Path(_SYSTEMD).is_dir() else None
    if program is None:
        return []
    about = "--description=whoseblock: thaw a frozen filesystem"
    return [program, "--scope", "--collect", "--quiet", about, "--"]


def _start_guard(
    theirs: socket.socket, place: int, limits: FreezeLimits, scope: list[str]
) -> "subprocess.Popen[bytes]":
    numbers = [theirs.fileno(), place, os.getpid(), limits.longest_s, limits.hard_s]
    program = [sys.executable, "-I", "-S", freeze_guard.__file__, *map(str, numbers)]
    return subprocess.Popen(  # noqa: S603 - a program of this package, and numbers
        [*scope, *program, str(int(bool(scope)))],
        stdin=subprocess.DEVNULL,
        # Without a scope it is started again.
        stderr=subprocess.DEVNULL if scope else None,
        pass_fds=(theirs.fileno(), place),
    )
