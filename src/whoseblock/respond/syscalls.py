"""System calls that change which blocks a file has, and leave its content.

Sources: ``linux/fs.h`` (FICLONERANGE, FS_IOC_FSSETXATTR), ``linux/falloc.h``, and ``xfs_fs.h`` of
Linux 6.10 and later (exchange and commit of ranges).
"""

import contextlib
import ctypes
import errno
import fcntl
import os
import signal
from collections.abc import Iterator
from functools import cache
from struct import Struct
from typing import Final

from whoseblock.respond.exceptions import ChangedError, NotNowError

__all__ = [
    "BusyError",
    "check_lease",
    "clone_range",
    "commit_range",
    "keeping_attributes",
    "punch_hole",
    "sample",
    "set_immutable",
    "sync_filesystem",
    "write_lease",
]

_FICLONERANGE: Final = 0x4020940D
_CLONE_RANGE: Final = Struct("=q3Q")
_PUNCH_HOLE: Final = 0x02 | 0x01  # FALLOC_FL_PUNCH_HOLE | FALLOC_FL_KEEP_SIZE
_FS_IOC_FSGETXATTR, _FS_IOC_FSSETXATTR = 0x801C581F, 0x401C5820
#: ``struct fsxattr``, of which only the flags are changed.
_FSXATTR_BYTES, _FSX_XFLAGS = 28, Struct("=I")
_FS_XFLAG_IMMUTABLE: Final = 0x8
_XFS_IOC_START_COMMIT, _XFS_IOC_COMMIT_RANGE = 0x80585882, 0x40585883
#: ``struct xfs_commit_range``: fd, offset in it, offset in the file changed, length, flags; the
#: kernel's own notes of what the file was like when they were taken.
_COMMIT: Final = Struct("=i4x4Q")
_COMMIT_BYTES: Final = 88
_XFS_EXCHANGE_RANGE_DSYNC: Final = 1 << 1
_CAPABILITY: Final = "security.capability"


@cache
def _libc() -> ctypes.CDLL:
    libc = ctypes.CDLL(None, use_errno=True)
    libc.fallocate.argtypes = (ctypes.c_int, ctypes.c_int, ctypes.c_longlong, ctypes.c_longlong)
    return libc


def _check(result: int) -> None:
    if result != 0:
        number = ctypes.get_errno()
        raise OSError(number, os.strerror(number))


def clone_range(source: int, start: int, length: int, target: int, to: int) -> None:
    """Make ``target`` share ``length`` bytes of ``source``; neither is read."""
    fcntl.ioctl(target, _FICLONERANGE, _CLONE_RANGE.pack(source, start, length, to))


def punch_hole(file: int, start: int, length: int) -> None:
    """Free the blocks that a file has in a range."""
    _check(_libc().fallocate(file, _PUNCH_HOLE, start, length))


def sync_filesystem(fd: int) -> None:
    """Write all of a filesystem to its device."""
    # The kernel reports an earlier write error of any file once to each descriptor.
    if _libc().syncfs(fd) != 0:
        _check(_libc().syncfs(fd))


def set_immutable(file: int) -> None:
    """Make a file immutable."""
    attributes = bytearray(_FSXATTR_BYTES)
    fcntl.ioctl(file, _FS_IOC_FSGETXATTR, attributes)
    (flags,) = _FSX_XFLAGS.unpack_from(attributes)
    _FSX_XFLAGS.pack_into(attributes, 0, flags | _FS_XFLAG_IMMUTABLE)
    fcntl.ioctl(file, _FS_IOC_FSSETXATTR, attributes)


def sample(file: int) -> bytearray | None:
    """Sample the present state of a file for `commit_range`.

    Returns None if the kernel or the filesystem does not support it.
    """
    request = bytearray(_COMMIT_BYTES)
    try:
        fcntl.ioctl(file, _XFS_IOC_START_COMMIT, request)
    except OSError as error:
        if error.errno in (errno.ENOTTY, errno.EOPNOTSUPP, errno.EINVAL):
            return None
        raise
    return request


class BusyError(ChangedError):
    """The file was changed between `sample` and `commit_range`, perhaps in another part."""


def commit_range(file: int, start: int, length: int, other: int, noted: bytearray) -> bool:
    """Exchange blocks of ``file`` with those that ``other`` has from its byte 0 on.

    The exchange is atomic.  Raises `BusyError` if the file has changed since `sample`.  Returns
    False if the filesystem was made without that feature.
    """
    _COMMIT.pack_into(noted, 0, other, 0, start, length, _XFS_EXCHANGE_RANGE_DSYNC)
    try:
        fcntl.ioctl(file, _XFS_IOC_COMMIT_RANGE, noted)
    except OSError as error:
        if error.errno == errno.EBUSY:
            raise BusyError("another process is writing to it") from error
        # The kernel samples files also where it cannot exchange their ranges.
        if error.errno == errno.EOPNOTSUPP:
            return False
        raise
    return True


@contextlib.contextmanager
def write_lease(file: int) -> Iterator[None]:
    """Keep other processes from opening a file that none of them has open.

    They wait until the block ends.  Raises `NotNowError` if another process has it open, or if the
    lease is not permitted.
    """
    # SIGIO, by which the kernel asks for the lease back, would end the process.  It stays ignored:
    # nothing else here uses it, and only the main thread can set it.
    with contextlib.suppress(ValueError):
        signal.signal(signal.SIGIO, signal.SIG_IGN)
    try:
        fcntl.fcntl(file, fcntl.F_SETLEASE, fcntl.F_WRLCK)
    except OSError as error:
        if error.errno == errno.EACCES:
            raise NotNowError("a lease on a file of another user needs CAP_LEASE") from error
        raise NotNowError("another process has it open") from error
    try:
        yield
    finally:
        # The kernel has broken the lease if another process waited too long.
        with contextlib.suppress(OSError):
            fcntl.fcntl(file, fcntl.F_SETLEASE, fcntl.F_UNLCK)


def check_lease(file: int) -> None:
    """Raise `NotNowError` if another process waits for the lease: the kernel breaks it soon."""
    if fcntl.fcntl(file, fcntl.F_GETLEASE) != fcntl.F_WRLCK:
        raise NotNowError("another process waits for it")


@contextlib.contextmanager
def keeping_attributes(file: int) -> Iterator[None]:
    """Restore a file's times, mode and capabilities after its blocks are changed."""
    status = os.fstat(file)
    try:
        capability = os.getxattr(file, _CAPABILITY)
    except OSError:
        capability = None
    # After an error another process changed the file, and the times are its own.
    yield
    if os.fstat(file).st_mode != status.st_mode:
        os.fchmod(file, status.st_mode & 0o7777)
    if capability is not None:
        os.setxattr(file, _CAPABILITY, capability)
    os.utime(file, ns=(status.st_atime_ns, status.st_mtime_ns))
