"""The extents of a file, as its filesystem reports them: FS_IOC_FIEMAP.

Sources: Documentation/filesystems/fiemap.rst, include/uapi/linux/fiemap.h.
"""

import fcntl
import os
import sys
from collections.abc import Iterator
from struct import Struct
from typing import Final, NamedTuple

from whoseblock.ranges import ByteRange

__all__ = ["Extent", "all_extents", "extents_of", "file_extents", "is_realtime", "maps_run"]

_FS_IOC_FIEMAP: Final = 0xC020660B
#: start, length, flags, mapped extents, room for extents
_FIEMAP: Final = Struct("<QQIII4x")
#: logical, physical, length, flags
_EXTENT: Final = Struct("<QQQ16xI12x")
_ROOM: Final = 512
_LAST: Final = 0x1
#: Extents that have no place of their own: unknown, delayed, encoded, not aligned, inline.
_NO_PLACE: Final = 0x2 | 0x4 | 0x8 | 0x80 | 0x100 | 0x200
_UNKNOWN, _DELAYED, _ENCODED, _ENCRYPTED, _INLINE = 0x2, 0x4, 0x8, 0x80, 0x200
_UNWRITTEN, _SHARED = 0x800, 0x2000
#: The largest size of a file.
_NO_END: Final = (1 << 63) - 1

_FS_IOC_FSGETXATTR: Final = 0x801C581F
#: struct fsxattr (linux/fs.h); its first field has the flags.
_FSXATTR_SIZE: Final = 28
_FS_XFLAG_REALTIME: Final = 0x1


class Extent(NamedTuple):
    """Bytes of a file from ``logical`` on, which lie from ``physical`` on, if they lie anywhere."""

    logical: int
    physical: int
    length: int
    flags: int

    @property
    def end(self) -> int:
        """The first byte of the file after it."""
        return self.logical + self.length

    @property
    def has_place(self) -> bool:
        """Whether ``physical`` means anything."""
        return not self.flags & _NO_PLACE

    @property
    def is_written(self) -> bool:
        """Whether these bytes of the device are those of the file."""
        return self.has_place and not self.is_unwritten

    @property
    def is_unwritten(self) -> bool:
        """Whether the blocks are allocated, and were never written."""
        return bool(self.flags & _UNWRITTEN)

    @property
    def is_shared(self) -> bool:
        """Whether another file, or another part of this one, may have the same blocks."""
        return bool(self.flags & _SHARED)

    @property
    def is_delayed(self) -> bool:
        """Whether the bytes are in memory only, and have no blocks yet."""
        return bool(self.flags & _DELAYED)

    @property
    def is_inline(self) -> bool:
        """Whether the bytes are inside a block of metadata, which begins or lies there."""
        return bool(self.flags & _INLINE)

    @property
    def is_located(self) -> bool:
        """Whether ``physical`` is a place of the bytes, in whatever form they are there."""
        return not self.flags & (_UNKNOWN | _DELAYED)

    @property
    def encoding(self) -> str:
        """The encoding of the bytes, ``encrypted`` or ``compressed``; "" if there is none."""
        if self.flags & _ENCRYPTED:
            return "encrypted"
        return "compressed" if self.flags & _ENCODED else ""


def file_extents(path: str, start: int, length: int) -> Iterator[Extent]:
    """Yield the extents of a part of the file at a path, as `extents_of` does."""
    descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK)
    try:
        yield from extents_of(descriptor, start, length)
    finally:
        os.close(descriptor)


def extents_of(descriptor: int, start: int, length: int) -> Iterator[Extent]:
    """Yield the extents of a part of an open file; the first and the last may go beyond it.

    Raises OSError.
    """
    end = start + length
    while start < end:
        asked = start
        buffer = bytearray(_FIEMAP.size + _ROOM * _EXTENT.size)
        _FIEMAP.pack_into(buffer, 0, start, end - start, 0, 0, _ROOM)
        fcntl.ioctl(descriptor, _FS_IOC_FIEMAP, buffer)
        count = _FIEMAP.unpack_from(buffer)[3]
        for number in range(count):
            place = _FIEMAP.size + number * _EXTENT.size
            extent = Extent(*_EXTENT.unpack_from(buffer, place))
            yield extent
            start = max(start, extent.logical + extent.length)
            if extent.flags & _LAST:
                return
        if not count or start == asked:
            return


def all_extents(descriptor: int) -> Iterator[Extent]:
    """Yield all extents of an open file; raises OSError."""
    return extents_of(descriptor, 0, _NO_END)


def is_realtime(descriptor: int) -> bool:
    """Return whether the data of an open file are in a realtime section."""
    buffer = bytearray(_FSXATTR_SIZE)
    try:
        fcntl.ioctl(descriptor, _FS_IOC_FSGETXATTR, buffer)
    except OSError:
        # Most filesystems have neither the question nor such a section.
        return False
    return bool(int.from_bytes(buffer[:4], sys.byteorder) & _FS_XFLAG_REALTIME)


def maps_run(descriptor: int, offset: int, run: ByteRange) -> bool:
    """Return whether an open file has all of ``run`` of the device as written data at an offset.

    Raises OSError.
    """
    at, end = offset, offset + run.length
    distance = run.start - at
    for extent in extents_of(descriptor, at, run.length):
        if (
            extent.logical > at
            or not extent.is_written
            or extent.physical - extent.logical != distance
        ):
            return False
        at = extent.logical + extent.length
        if at >= end:
            return True
    return False
