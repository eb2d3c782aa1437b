"""Read what the page cache still has of a file, without a read of the device.

After a failed read or writeback, memory may have what the device lost, or newer data than it.
"""

import ctypes
import errno
import mmap
import os
from collections.abc import Iterator
from functools import cache
from typing import Final

from whoseblock.errors import MediaError
from whoseblock.media.direct import DirectMedia
from whoseblock.ranges import ByteRange

__all__ = ["cached_pieces", "has_unwritten"]

#: cachestat(2), since Linux 6.5: the same number on all architectures but alpha.
_CACHESTAT: Final = 451
_PAGE: Final = mmap.PAGESIZE
#: The page cache drops whole folios.  The largest is PMD_SIZE (2 MiB with pages of 4 KiB), and at
#: most 2048 pages (MAX_PAGECACHE_ORDER, linux/pagemap.h).
_FOLIO: Final = _PAGE * min(_PAGE // 8, 2048)
#: The page is not up to date, or an access control of the filesystem forbids the call.
_NOT_CACHED: Final = {errno.EAGAIN, errno.EIO, errno.EOPNOTSUPP, errno.EINVAL}


class _Range(ctypes.Structure):
    # struct cachestat_range (linux/mman.h)
    _fields_ = (("off", ctypes.c_uint64), ("len", ctypes.c_uint64))


class _Counts(ctypes.Structure):
    # struct cachestat (linux/mman.h): the pages of a range.
    _fields_ = (
        ("cached", ctypes.c_uint64),
        ("dirty", ctypes.c_uint64),
        ("writeback", ctypes.c_uint64),
        ("evicted", ctypes.c_uint64),
        ("recently_evicted", ctypes.c_uint64),
    )


def cached_pieces(fd: int, start: int, length: int, block: int) -> Iterator[tuple[int, bytes]]:
    """Yield the cached parts of a range of an open file, with their offsets in the file.

    Each piece is one page, or one filesystem block of ``block`` bytes if these are smaller.  The
    descriptor must be readable and without O_DIRECT.  A DAX file has no page cache.
    """
    end = min(start + length, os.fstat(fd).st_size)
    if start >= end or _has_none(fd, start, end - start):
        return
    # Where the kernel does not say what is cached, a miss reads this page, and no others.
    os.posix_fadvise(fd, 0, 0, os.POSIX_FADV_RANDOM)
    unit = min(block, _PAGE)
    for page in range(start // _PAGE * _PAGE, end, _PAGE):
        low, high = max(page, start), min(page + _PAGE, end)
        if _has_none(fd, low, high - low):
            continue
        if data := _read_cached(fd, low, high - low):
            yield low, data
            continue
        # A page may be up to date in part.
        for at in range(low // unit * unit, high, unit) if unit < _PAGE else ():
            first, last = max(at, low), min(at + unit, high)
            if data := _read_cached(fd, first, last - first):
                yield first, data


def has_unwritten(fd: int, part: ByteRange, block: int) -> bool:
    """Return whether the cache has data around a part of a file that the device does not have.

    A direct write to the part drops all folios from the cache that overlap it.
    """
    start = max(part.start - _FOLIO, 0)
    with DirectMedia(fd) as media:
        for at, data in cached_pieces(fd, start, part.end + _FOLIO - start, block):
            if part.start <= at < part.end:
                continue
            try:
                if media.pread(at, len(data)) != data:
                    return True
            except MediaError:
                return True
    return False


def _read_cached(fd: int, start: int, length: int) -> bytes:
    """Return a part of a file if all of it is cached, b"" if not."""
    buffer = bytearray(length)
    try:
        count = os.preadv(fd, [buffer], start, os.RWF_NOWAIT)
    except OSError as error:
        if error.errno not in _NOT_CACHED:
            raise
        return b""
    return bytes(buffer) if count == length else b""


def _has_none(fd: int, start: int, length: int) -> bool:
    """Return whether the page cache has no page of a range; False if that is unknown."""
    counts = _Counts()
    asked = _Range(start, length)
    if _libc().syscall(_CACHESTAT, fd, ctypes.byref(asked), ctypes.byref(counts), 0) != 0:
        return False
    return bool(counts.cached == 0)


@cache
def _libc() -> ctypes.CDLL:
    libc = ctypes.CDLL(None, use_errno=True)
    libc.syscall.restype = ctypes.c_long
    return libc
