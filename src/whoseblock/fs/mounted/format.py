"""Structures of ioctl(2) and of system calls that any mounted filesystem may support.

Unlike structures on disks they are in the byte order of the machine.  Sources: ``linux/fsmap.h``,
open_by_handle_at(2), getdents64(2), openat2(2).
"""

from collections.abc import Iterator
from struct import Struct
from typing import Final, NamedTuple

__all__ = [
    "Entry",
    "Fsmap",
    "InodeFacts",
    "Parent",
    "file_handle",
    "fsmap_request",
    "open_how",
    "read_entries",
    "read_fsmap",
]

FS_IOC_GETFSMAP: Final = 0xC0C0583B
FMR_OF_PREALLOC: Final = 0x1
FMR_OF_ATTR_FORK: Final = 0x2
FMR_OF_EXTENT_MAP: Final = 0x4
FMR_OF_SPECIAL_OWNER: Final = 0x10
FMR_OF_LAST: Final = 0x20
#: The owner of free space, with `FMR_OF_SPECIAL_OWNER`.
FMR_OWN_FREE: Final = 1
#: Devices are numbered by their dev_t, and not by their role in the filesystem.
FMH_OF_DEV_T: Final = 0x1

_FSMAP_HEAD: Final = Struct("=4I48x")
_FSMAP: Final = Struct("=2I4Q24x")
_FSMAP_KEYS: Final = 2 * _FSMAP.size
_MOST32, _MOST64 = 2**32 - 1, 2**64 - 1


class Fsmap(NamedTuple):
    """``struct fsmap``: who has ``length`` bytes from ``physical`` of a device.

    ``offset`` is the place in the owner, in bytes.
    """

    device: int
    flags: int
    physical: int
    owner: int
    offset: int
    length: int

    @property
    def is_free(self) -> bool:
        """Whether the kernel would allocate it."""
        return bool(self.flags & FMR_OF_SPECIAL_OWNER) and self.owner == FMR_OWN_FREE


def fsmap_request(room: int, device: int, start: int, end: int, after: Fsmap | None) -> bytearray:
    """Make the ``struct fsmap_head`` that asks for the records from ``start`` to before ``end``.

    ``after`` is the last record that one has already; ``room`` is for so many more.
    """
    low = after or Fsmap(device, 0, start, 0, 0, 0)
    high = Fsmap(device, _MOST32, end - 1, _MOST64, _MOST64, 0)
    head = _FSMAP_HEAD.pack(0, 0, room, 0) + _FSMAP.pack(*low) + _FSMAP.pack(*high)
    return bytearray(head + bytes(room * _FSMAP.size))


def read_fsmap(answer: bytearray) -> tuple[int, list[Fsmap]]:
    """Return the flags and the records of an answer."""
    _, flags, _, entries = _FSMAP_HEAD.unpack_from(answer)
    begin = _FSMAP_HEAD.size + _FSMAP_KEYS
    records = memoryview(answer)[begin : begin + entries * _FSMAP.size]
    return flags, list(map(Fsmap._make, _FSMAP.iter_unpack(records)))


#: Of `InodeFacts.xflags` (linux/fs.h).
FS_XFLAG_REALTIME, FS_XFLAG_IMMUTABLE, FS_XFLAG_APPEND = 0x1, 0x8, 0x10


class InodeFacts(NamedTuple):
    """The state of an inode; ``size`` is in bytes, ``xflags`` are the FS_XFLAG_… of linux/fs.h."""

    number: int
    size: int
    xflags: int
    generation: int
    links: int
    mode: int

    @property
    def immutable(self) -> bool:
        """Whether the file may not be changed at all."""
        return bool(self.xflags & FS_XFLAG_IMMUTABLE)

    @property
    def append_only(self) -> bool:
        """Whether the file may only be appended to."""
        return bool(self.xflags & FS_XFLAG_APPEND)


class Parent(NamedTuple):
    """One name of an inode: the directory that has it, and the name there."""

    inode: int
    generation: int
    name: bytes


_FILE_HANDLE: Final = Struct("=Ii")


def file_handle(kind: int, identifier: bytes) -> bytes:
    """Pack the ``struct file_handle`` of open_by_handle_at(2), of a FILEID_… type."""
    return _FILE_HANDLE.pack(len(identifier), kind) + identifier


# ---------------------------------------------------------------------- directories

#: ``struct linux_dirent64`` before the name: d_ino, d_off, d_reclen, d_type
_DIRENT64: Final = Struct("=QqHB")
DT_UNKNOWN, DT_DIR = 0, 4


class Entry(NamedTuple):
    """A name in a directory; ``kind`` is a DT_… of readdir(3)."""

    inode: int
    kind: int
    name: bytes


def read_entries(buffer: bytes) -> Iterator[Entry]:
    """Return the entries that getdents64(2) wrote."""
    at, end = 0, len(buffer)
    header = _DIRENT64.size
    unpack = _DIRENT64.unpack_from
    while at < end:
        inode, _, size, kind = unpack(buffer, at)
        yield Entry(inode, kind, buffer[at + header : buffer.index(0, at + header)])
        at += size


_OPEN_HOW: Final = Struct("=3Q")


def open_how(flags: int, resolve: int) -> bytes:
    """Make the ``struct open_how`` of openat2(2)."""
    return _OPEN_HOW.pack(flags, 0, resolve)
