"""Read the extents of a file from the kernel with FS_IOC_FIEMAP.

Sources: Documentation/filesystems/fiemap.rst, include/uapi/linux/fiemap.h.
"""

import fcntl
import os
from collections.abc import Iterator
from struct import Struct
from typing import Final, NamedTuple

__all__ = ["FileExtent", "read_extents", "read_file_extents"]

_FS_IOC_FIEMAP: Final = 0xC020660B
#: start, length, flags, mapped extents, size of the array of extents
_FIEMAP: Final = Struct("<QQIII4x")
#: logical, physical, length, flags
_EXTENT: Final = Struct("<QQQ16xI12x")
_MAX_EXTENTS: Final = 512
_LAST: Final = 0x1
#: Extents without a location: unknown, delayed, encoded, not aligned, inline.
_NO_LOCATION: Final = 0x2 | 0x4 | 0x8 | 0x80 | 0x100 | 0x200
_UNWRITTEN: Final = 0x800


class FileExtent(NamedTuple):
    """``length`` bytes at ``logical`` of a file, stored at ``physical`` of its device."""

    logical: int
    physical: int
    length: int
    flags: int

    @property
    def has_location(self) -> bool:
        """Whether ``physical`` is valid."""
        return not self.flags & _NO_LOCATION

    @property
    def is_written(self) -> bool:
        """Whether the bytes of the device are the content of the file."""
        return self.has_location and not self.flags & _UNWRITTEN


def read_file_extents(path: str, start: int, length: int) -> Iterator[FileExtent]:
    """Yield the extents of a range of the file at a path, as `read_extents` does."""
    descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK)
    try:
        yield from read_extents(descriptor, start, length)
    finally:
        os.close(descriptor)


def read_extents(descriptor: int, start: int, length: int) -> Iterator[FileExtent]:
    """Yield the extents of a range of an open file; the first and the last may exceed it.

    Raises OSError.
    """
    end = start + length
    while start < end:
        buffer = bytearray(_FIEMAP.size + _MAX_EXTENTS * _EXTENT.size)
        _FIEMAP.pack_into(buffer, 0, start, end - start, 0, 0, _MAX_EXTENTS)
        fcntl.ioctl(descriptor, _FS_IOC_FIEMAP, buffer)
        count = _FIEMAP.unpack_from(buffer)[3]
        for number in range(count):
            at = _FIEMAP.size + number * _EXTENT.size
            extent = FileExtent(*_EXTENT.unpack_from(buffer, at))
            yield extent
            start = max(start, extent.logical + extent.length)
            if extent.flags & _LAST:
                return
        if not count:
            return
