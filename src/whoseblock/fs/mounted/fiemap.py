"""The extents of a file, as its filesystem reports them: FS_IOC_FIEMAP.

Sources: Documentation/filesystems/fiemap.rst, include/uapi/linux/fiemap.h.
"""

import fcntl
import os
from collections.abc import Iterator
from struct import Struct
from typing import Final, NamedTuple

from whoseblock.ranges import ByteRange

__all__ = ["Extent", "extents_of", "file_extents", "maps_run"]

_FS_IOC_FIEMAP: Final = 0xC020660B
#: start, length, flags, mapped extents, room for extents
_FIEMAP: Final = Struct("<QQIII4x")
#: logical, physical, length, flags
_EXTENT: Final = Struct("<QQQ16xI12x")
_ROOM: Final = 512
_LAST: Final = 0x1
#: Extents that have no place of their own: unknown, delayed, encoded, not aligned, inline.
_NO_PLACE: Final = 0x2 | 0x4 | 0x8 | 0x80 | 0x100 | 0x200
_UNWRITTEN: Final = 0x800


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
        return self.has_place and not self.flags & _UNWRITTEN


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
        if not count:
            return


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
