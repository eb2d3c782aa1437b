"""Questions to the kernel about any mounted filesystem: one function each, errors as `OSError`.

What only some kernels or filesystems support is found out by trying.  `PrivilegeError` names the
capability that is missing; nothing here writes anything.
"""

import contextlib
import ctypes
import errno
import fcntl
import os
import sys
from collections.abc import Collection, Iterator
from functools import cache
from typing import Final

from whoseblock.errors import PrivilegeError
from whoseblock.fs.mounted.format import (
    FMR_OF_ATTR_FORK,
    FMR_OF_EXTENT_MAP,
    FMR_OF_LAST,
    FMR_OF_SPECIAL_OWNER,
    FS_IOC_GETFSMAP,
    Entry,
    Fsmap,
    fsmap_request,
    read_entries,
    read_fsmap,
)

__all__ = [
    "READ_DIRECTORY",
    "clone_mount",
    "data_device",
    "entries",
    "fsmap",
    "needing",
    "open_handle",
]

#: Records asked for at once: few of a failed page, many of all that a disk has lost.
#: Not more than 2048: the kernel continues after so many, and may omit records that `fsmap` reads.
_FIRST_ROOM, _MORE_ROOM = 64, 2048
#: Records whose blocks no other file shares.
_NEVER_SHARED: Final = FMR_OF_SPECIAL_OWNER | FMR_OF_ATTR_FORK | FMR_OF_EXTENT_MAP
_DIRECTORY_BYTES: Final = 1 << 16
_FEW: Final = 16
#: The same number on every architecture but Alpha.
_SYS_OPEN_TREE: Final = 428
_OPEN_TREE_CLONE, _AT_EMPTY_PATH = 0x1, 0x1000
#: Read a directory without changing its access time.
READ_DIRECTORY: Final = os.O_RDONLY | os.O_DIRECTORY | os.O_NOATIME


@cache
def _libc() -> ctypes.CDLL:
    return ctypes.CDLL(None, use_errno=True)


def _checked(result: int) -> int:
    if result < 0:
        number = ctypes.get_errno()
        raise OSError(number, os.strerror(number))
    return result


@contextlib.contextmanager
def needing(capability: str) -> Iterator[None]:
    """Raise `PrivilegeError` that names a capability in the place of PermissionError."""
    try:
        yield
    except PermissionError as error:
        raise PrivilegeError(
            f"the kernel reports owners only to a process with {capability}",
            hint="try as root, outside of containers; --offline reads the device itself",
        ) from error


def data_device(fd: int, unnumbered: int | None = None) -> int:
    """Return the number of a filesystem's data device in GETFSMAP.

    ``unnumbered`` is its number where devices are not numbered by their dev_t.  Raises OSError
    without GETFSMAP.
    """
    number = os.fstat(fd).st_dev
    major, minor = os.major(number), os.minor(number)
    encoded = minor & 0xFF | major << 8 | (minor & ~0xFF) << 12  # new_encode_dev() in kdev_t.h
    try:
        fcntl.ioctl(fd, FS_IOC_GETFSMAP, fsmap_request(0, encoded, 0, 1, None))
    except OSError as error:
        if error.errno != errno.EINVAL or unnumbered is None:
            raise
        return unnumbered
    return encoded


def fsmap(fd: int, device: int, start: int, end: int) -> Iterator[Fsmap]:
    """Yield the records of a device that touch the bytes from ``start`` to before ``end``.

    They are whole, in the kernel's order.  Raises OSError, perhaps after some.
    """
    after: Fsmap | None = None
    given: set[tuple[int, int, int]] = set()
    lost: set[int] = set()
    room = _FIRST_ROOM
    while True:
        request = fsmap_request(room, device, start, end, after)
        fcntl.ioctl(fd, FS_IOC_GETFSMAP, request)
        _, records = read_fsmap(request)
        yield from (one for one in records if one[2:5] not in given)
        if len(records) < room or records[-1].flags & FMR_OF_LAST:
            break
        after = records[-1]
        given = set()
        if not after.flags & _NEVER_SHARED:
            # Continuing after a record, the kernel may omit all others in which the same file has
            # the same block. So continue after the file before, and skip what was yielded.
            physical, owner = after.physical, after.owner
            same = [one for one in records if (one.physical, one.owner) == (physical, owner)]
            if len(same) < len(records) or room < _MORE_ROOM:
                after = after._replace(owner=owner - 1)
                given = {one[2:5] for one in same}  # physical, owner, offset
            else:
                lost.add(owner)
        room = _MORE_ROOM
    if lost:
        files = ", ".join(map(str, sorted(lost)))
        raise OSError(errno.EOVERFLOW, f"a block is too often in one file, inode {files}")


def open_handle(mount: int, handle: bytes, flags: int) -> int:
    """Open a file by its ``struct file_handle``; ``mount`` is a descriptor on its filesystem.

    ``flags`` are those of open(2).  Raises FileNotFoundError if the file is gone.
    """
    buffer = ctypes.create_string_buffer(handle)
    flags |= os.O_CLOEXEC | os.O_NONBLOCK
    with needing("CAP_DAC_READ_SEARCH"):
        try:
            return _checked(_libc().open_by_handle_at(mount, buffer, flags))
        except OSError as error:
            if error.errno == errno.ESTALE:
                raise FileNotFoundError(errno.ENOENT, os.strerror(errno.ENOENT)) from error
            raise


def entries(directory: int, wanted: Collection[int] | None = None) -> Iterator[Entry]:
    """Yield the entries of a directory, with its own inode numbers: mounts do not show.

    ``wanted`` leaves out all inodes but these.
    """
    os.lseek(directory, 0, os.SEEK_SET)
    buffer = ctypes.create_string_buffer(_DIRECTORY_BYTES)
    while size := _checked(_libc().getdents64(directory, buffer, _DIRECTORY_BYTES)):
        raw = buffer.raw[:size]
        if wanted is None:
            yield from read_entries(raw)
        # Most of what a search reads is not what it looks for, and a few numbers are found quickly.
        elif len(wanted) > _FEW or any(ino.to_bytes(8, sys.byteorder) in raw for ino in wanted):
            yield from (entry for entry in read_entries(raw) if entry.inode in wanted)


def clone_mount(directory: int) -> int:
    """Return a private mount of a directory, on which nothing is mounted.

    It is in no mount namespace, and ends with its descriptor, which can only name files.
    """
    flags = _OPEN_TREE_CLONE | _AT_EMPTY_PATH | os.O_CLOEXEC
    with needing("CAP_SYS_ADMIN"):
        return _checked(_libc().syscall(_SYS_OPEN_TREE, directory, b"", flags))
