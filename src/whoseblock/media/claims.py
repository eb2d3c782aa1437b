"""Exclusive use of a device or an image while it is written.

The users of an image may be in other mount namespaces: a loop device, a virtual machine, a server
of FUSE, an iSCSI target.  None of them is found by the name of the image.
"""

import errno
import fcntl
import os
import signal
import stat
import struct
from typing import Final

from whoseblock.errors import PrivilegeError, TargetError
from whoseblock.media.loops import loops_beside
from whoseblock.media.mounts import readers

__all__ = ["check_unused", "claim"]

_FLAGS: Final = os.O_CLOEXEC | os.O_NONBLOCK
#: ``struct flock`` of fcntl(2) for a write lock on the whole file; open file description locks
#: have no process.
_WHOLE: Final = struct.pack("hhqqi4x", fcntl.F_WRLCK, os.SEEK_SET, 0, 0, 0)
_HELD: Final = {errno.EAGAIN, errno.EACCES}


def claim(path: str | os.PathLike[str]) -> int:
    """Open a device or an image exclusively; return the descriptor, which holds it until closed.

    A device must be neither mounted nor part of a volume.  An image must not be behind a loop
    device, open for writing, or locked by flock(2) or fcntl(2).  Use the descriptor for all access:
    another file may have the name by now.  Raises `TargetError`, and `PrivilegeError` without
    permission.
    """
    name = os.fspath(path)
    try:
        # All checks are of the one file that has the name now.
        node = os.open(path, os.O_PATH | os.O_CLOEXEC)
        try:
            return _claim(node, name)
        finally:
            os.close(node)
    except OSError as error:
        message = f"cannot open {name!r} exclusively: {error.strerror}"
        if isinstance(error, PermissionError) and os.geteuid():
            raise PrivilegeError(message) from error
        raise TargetError(message) from error


def _claim(node: int, name: str) -> int:
    here = f"/proc/self/fd/{node}"
    check_unused(node, name)
    if stat.S_ISBLK(os.fstat(node).st_mode):
        # Without O_CREAT, and of a block device: EBUSY if anything has it in use (open(2)).
        return os.open(here, os.O_RDONLY | os.O_EXCL | _FLAGS)
    _check_writers(here, name)
    descriptor = os.open(here, os.O_RDWR | _FLAGS)
    try:
        _lock(descriptor, name)
        # One may have been made meanwhile.
        check_unused(node, name)
    except BaseException:
        os.close(descriptor)
        raise
    return descriptor


def check_unused(descriptor: int, name: str) -> None:
    """Raise `TargetError` if an open image is behind a loop device, which respects no lock.

    If it is itself a loop device, its file must not be behind another one.
    """
    status = os.fstat(descriptor)
    if stat.S_ISBLK(status.st_mode):
        used = loops_beside(status.st_rdev)
    else:
        used = [reader.name for reader in readers(f"/proc/self/fd/{descriptor}")]
    if used:
        raise TargetError(f"{name!r} is in use by /dev/{used[0]}")


def _check_writers(path: str, name: str) -> None:
    """Raise `TargetError` if a process, or the kernel itself, has the image open for writing.

    A read lease is granted only if that is not so (fcntl(2), F_SETLEASE).  It needs the file's
    owner or CAP_LEASE, and support by the filesystem; otherwise nothing is known.
    """
    descriptor = os.open(path, os.O_RDONLY | _FLAGS)
    try:
        # The kernel asks for a lease back by a signal; this one is ignored by default.
        fcntl.fcntl(descriptor, fcntl.F_SETSIG, signal.SIGURG)
        fcntl.fcntl(descriptor, fcntl.F_SETLEASE, fcntl.F_RDLCK)
    except OSError as error:
        if error.errno == errno.EAGAIN:
            raise TargetError(f"{name!r} is open for writing elsewhere") from error
    finally:
        # The lease ends with it.
        os.close(descriptor)


def _lock(descriptor: int, name: str) -> None:
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        fcntl.fcntl(descriptor, fcntl.F_OFD_SETLK, _WHOLE)
    except OSError as error:
        if error.errno in _HELD:
            raise TargetError(f"another process has {name!r} locked") from error
        raise TargetError(f"cannot lock {name!r}: {error.strerror}") from error
