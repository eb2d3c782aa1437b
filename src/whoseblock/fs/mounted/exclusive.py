"""One repair of a mounted filesystem at a time, from any mount and any mount namespace.

There are two locks of flock(2), which the kernel drops when their process ends:

- on the node of the device in devtmpfs, of which a kernel has only one.  Only root and the group of
  disks may open it.
- on the root directory, for containers that have a /dev of their own.  Any user may lock that, to
  hinder a repair.  So where the first lock exists, the second one counts only if a live process of
  root or of our own user has it.
"""

import fcntl
import os
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Final, NamedTuple

from whoseblock.closing import Closing
from whoseblock.fs.driver import MountedVolume
from whoseblock.media.mounts import device_node, mount_kind

__all__ = ["RepairLock"]

_LOCKS: Final = Path("/proc/locks")


class _Holder(NamedTuple):
    """A live process that took a lock, by its real user and its name."""

    pid: int
    user: int
    name: str

    def __str__(self) -> str:
        return f"process {self.pid} ({self.name}, user {self.user})"


class RepairLock(Closing):
    """The lock of a mounted filesystem, held from a successful `acquire` until it is closed."""

    def __init__(self, fs: MountedVolume) -> None:
        self._devices = fs.devices
        self._root: int | None = None
        self._node = _open_node(fs.devices)
        if fs.root_fd is not None:
            flags = os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC
            self._root = os.open(".", flags, dir_fd=fs.root_fd)

    def acquire(self) -> str:
        """Try to acquire the lock; return "" with it, or else which process holds it."""
        if self._node is not None and not _try_lock(self._node):
            return _describe(_holders(self._node, [os.fstat(self._node).st_dev]))
        if self._root is None or _try_lock(self._root):
            return ""
        holders = list(_holders(self._root, self._devices))
        if self._node is not None:
            if not {0, os.getuid()} & {holder.user for holder in holders}:
                return ""
            fcntl.flock(self._node, fcntl.LOCK_UN)
        return _describe(holders)

    def close(self) -> None:
        """Release the lock; a second time has no effect."""
        descriptors = self._root, self._node
        self._root = self._node = None
        for descriptor in descriptors:
            if descriptor is not None:
                # A child process may have inherited the descriptor.
                fcntl.flock(descriptor, fcntl.LOCK_UN)
                os.close(descriptor)


def _open_node(devices: Iterable[int]) -> int | None:
    """Open the node of a device of a filesystem; None unless it is the same for every process."""
    node = next(filter(None, map(device_node, sorted(devices))), None)
    if node is None:
        return None
    try:
        descriptor = os.open(node, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK)
    except OSError:
        return None
    if mount_kind(os.fstat(descriptor).st_dev) == "devtmpfs":
        return descriptor
    os.close(descriptor)
    return None


def _try_lock(descriptor: int) -> bool:
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True


def _holders(descriptor: int, devices: Iterable[int]) -> Iterator[_Holder]:
    """Yield the live processes that locked a file, as far as they are visible (proc_locks(5))."""
    inode = os.fstat(descriptor).st_ino
    files = {f"{os.major(one):02x}:{os.minor(one):02x}:{inode}" for one in devices}
    for line in _LOCKS.read_text().splitlines():
        _, kind, *rest = line.split()
        # A line of a process that waits has an arrow in the place of the kind.
        if kind == "FLOCK" and rest[3] in files and (holder := _process(int(rest[2]))):
            yield holder


def _process(pid: int) -> _Holder | None:
    try:
        lines = Path(f"/proc/{pid}/status").read_text(errors="replace").splitlines()
    except OSError:
        return None
    fields = dict(line.split(":\t", 1) for line in lines if ":\t" in line)
    # The real user: a program with the setuid bit keeps the locks of its caller.
    return _Holder(pid, int(fields["Uid"].split()[0]), fields["Name"])


def _describe(holders: Iterable[_Holder]) -> str:
    return ", ".join(map(str, holders)) or "a process that is not visible here"
