"""System calls that Python does not offer."""

import ctypes
import fcntl
import os
import struct

__all__ = [
    "KEEP_SIZE",
    "clone_range",
    "collapse_range",
    "exchange_names",
    "fallocate",
    "insert_range",
    "punch_hole",
    "sync_filesystem",
    "zero_range",
]

_libc = ctypes.CDLL(None, use_errno=True)

KEEP_SIZE = 0x01  # linux/falloc.h
_PUNCH_HOLE = 0x02
_COLLAPSE_RANGE = 0x08
_ZERO_RANGE = 0x10
_INSERT_RANGE = 0x20
_FICLONERANGE = 0x4020940D  # linux/fs.h
_RENAME_EXCHANGE = 2
_AT_FDCWD = -100


def _check(result: int) -> None:
    if result != 0:
        number = ctypes.get_errno()
        raise OSError(number, os.strerror(number))


def fallocate(file: int, offset: int, length: int, mode: int = 0) -> None:
    """Allocate without writing: the blocks are unwritten."""
    _check(
        _libc.fallocate(
            file, ctypes.c_int(mode), ctypes.c_longlong(offset), ctypes.c_longlong(length)
        )
    )


def punch_hole(file: int, offset: int, length: int) -> None:
    """Free the blocks of a range."""
    fallocate(file, offset, length, _PUNCH_HOLE | KEEP_SIZE)


def zero_range(file: int, offset: int, length: int) -> None:
    """Make a range unwritten."""
    fallocate(file, offset, length, _ZERO_RANGE)


def collapse_range(file: int, offset: int, length: int) -> None:
    """Collapse whole blocks of a file, so that the following ones move down."""
    fallocate(file, offset, length, _COLLAPSE_RANGE)


def insert_range(file: int, offset: int, length: int) -> None:
    """Put a hole into a file, so that what follows moves up."""
    fallocate(file, offset, length, _INSERT_RANGE)


def clone_range(source: int, offset: int, length: int, target: int, to: int) -> None:
    """Share blocks of one file with another, or with another place of the same file."""
    fcntl.ioctl(target, _FICLONERANGE, struct.pack("=qQQQ", source, offset, length, to))


def exchange_names(one: bytes, other: bytes) -> None:
    """Exchange the inodes of two names."""
    _check(_libc.renameat2(_AT_FDCWD, one, _AT_FDCWD, other, _RENAME_EXCHANGE))


def sync_filesystem(file: int) -> None:
    """Sync the filesystem that holds a file."""
    _check(_libc.syncfs(file))
