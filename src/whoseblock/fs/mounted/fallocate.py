"""Allocate, free and shift the blocks of a file: fallocate(2), ``linux/falloc.h``."""

import ctypes
import os
from functools import cache
from typing import Final

__all__ = ["allocate", "collapse_range", "punch_hole"]

_KEEP_SIZE: Final = 0x01
_PUNCH_HOLE: Final = 0x02
_COLLAPSE_RANGE: Final = 0x08


@cache
def _libc() -> ctypes.CDLL:
    libc = ctypes.CDLL(None, use_errno=True)
    libc.fallocate64.argtypes = (ctypes.c_int, ctypes.c_int, ctypes.c_int64, ctypes.c_int64)
    return libc


def _fallocate(file: int, mode: int, start: int, length: int) -> None:
    if _libc().fallocate64(file, mode, start, length) != 0:
        number = ctypes.get_errno()
        raise OSError(number, os.strerror(number))


def allocate(file: int, start: int, length: int) -> None:
    """Allocate blocks for a range of a file without writing them; its size stays."""
    _fallocate(file, _KEEP_SIZE, start, length)


def punch_hole(file: int, start: int, length: int) -> None:
    """Free the blocks that a file has in a range."""
    _fallocate(file, _PUNCH_HOLE | _KEEP_SIZE, start, length)


def collapse_range(file: int, start: int, length: int) -> None:
    """Remove a range of a file; what follows it moves down."""
    _fallocate(file, _COLLAPSE_RANGE, start, length)
