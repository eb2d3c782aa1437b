"""System calls that change which blocks a file has, and leave its content.

Source: ``linux/fs.h`` (FICLONERANGE, FS_IOC_FSSETXATTR).
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

from whoseblock.fs.mounted.fallocate import punch_hole
from whoseblock.respond.exceptions import NotNowError

__all__ = [
    "check_lease",
    "clone_range",
    "punch_hole",
    "read_lease",
    "set_immutable",
    "sync_filesystem",
    "write_lease",
]

_FICLONERANGE: Final = 0x4020940D
_CLONE_RANGE: Final = Struct("=q3Q")
_FS_IOC_FSGETXATTR, _FS_IOC_FSSETXATTR = 0x801C581F, 0x401C5820
#: ``struct fsxattr``, of which only the flags are changed.
_FSXATTR_BYTES, _FSX_XFLAGS = 28, Struct("=I")
_FS_XFLAG_IMMUTABLE: Final = 0x8


@cache
def _libc() -> ctypes.CDLL:
    return ctypes.CDLL(None, use_errno=True)


def _check(result: int) -> None:
    if result != 0:
        number = ctypes.get_errno()
        raise OSError(number, os.strerror(number))


def clone_range(source: int, start: int, length: int, target: int, to: int) -> None:
    """Make ``target`` share ``length`` bytes of ``source``; neither is read."""
    fcntl.ioctl(target, _FICLONERANGE, _CLONE_RANGE.pack(source, start, length, to))


def sync_filesystem(fd: int) -> None:
    """Write all of a filesystem to its device."""
    # The kernel reports an earlier write error of any file once to each descriptor.
    if _libc().syncfs(fd) != 0:
        _check(_libc().syncfs(fd))


def set_immutable(file: int, *, immutable: bool = True) -> None:
    """Make a file immutable, or writable again."""
    attributes = bytearray(_FSXATTR_BYTES)
    fcntl.ioctl(file, _FS_IOC_FSGETXATTR, attributes)
    (flags,) = _FSX_XFLAGS.unpack_from(attributes)
    flags = flags | _FS_XFLAG_IMMUTABLE if immutable else flags & ~_FS_XFLAG_IMMUTABLE
    _FSX_XFLAGS.pack_into(attributes, 0, flags)
    fcntl.ioctl(file, _FS_IOC_FSSETXATTR, attributes)


@contextlib.contextmanager
def write_lease(file: int) -> Iterator[None]:
    """Keep other processes from opening a file that none of them has open.

    They wait until the block ends.  Raises `NotNowError` if another process has it open, or if the
    lease is not permitted.
    """
    with _lease(file, fcntl.F_WRLCK, "another process has it open"):
        yield


@contextlib.contextmanager
def read_lease(file: int) -> Iterator[None]:
    """Keep other processes from opening for writing a file that none of them has open so.

    ``file`` is open only for reading.  Raises `NotNowError` as `write_lease` does.
    """
    with _lease(file, fcntl.F_RDLCK, "another process has it open for writing"):
        yield


@contextlib.contextmanager
def _lease(file: int, kind: int, taken: str) -> Iterator[None]:
    # SIGIO, by which the kernel asks for the lease back, would end the process.  It stays ignored:
    # nothing else here uses it, and only the main thread can set it.
    with contextlib.suppress(ValueError):
        signal.signal(signal.SIGIO, signal.SIG_IGN)
    try:
        fcntl.fcntl(file, fcntl.F_SETLEASE, kind)
    except OSError as error:
        if error.errno == errno.EACCES:
            raise NotNowError("a lease on a file of another user needs CAP_LEASE") from error
        raise NotNowError(taken) from error
    try:
        yield
    finally:
        # The kernel has broken the lease if another process waited too long.
        with contextlib.suppress(OSError):
            fcntl.fcntl(file, fcntl.F_SETLEASE, fcntl.F_UNLCK)


def check_lease(file: int) -> None:
    """Raise `NotNowError` if another process waits for the lease: the kernel breaks it soon."""
    readable = fcntl.fcntl(file, fcntl.F_GETFL) & os.O_ACCMODE == os.O_RDONLY
    wanted = fcntl.F_RDLCK if readable else fcntl.F_WRLCK
    if fcntl.fcntl(file, fcntl.F_GETLEASE) != wanted:
        raise NotNowError("another process waits for it")
