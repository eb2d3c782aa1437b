"""Asking the kernel: one function for each question, errors as `OSError`.

What only some kernels can, or some filesystems, is found out by trying.  `PrivilegeError` names the
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
from whoseblock.fs.live.format import (
    FMR_OF_ATTR_FORK,
    FMR_OF_EXTENT_MAP,
    FMR_OF_LAST,
    FMR_OF_SPECIAL_OWNER,
    FS_IOC_GETFSMAP,
    FSID_BYTES,
    GEOMETRY_BYTES,
    XFS_BULK_IREQ_SPECIAL,
    XFS_BULK_IREQ_SPECIAL_ROOT,
    XFS_DEV_DATA,
    XFS_HANDLE_BYTES,
    XFS_IOC_BULKSTAT,
    XFS_IOC_FD_TO_HANDLE,
    XFS_IOC_FSGEOMETRY,
    XFS_IOC_GETPARENTS_BY_HANDLE,
    Entry,
    Fsmap,
    Geometry,
    InodeFacts,
    Parent,
    bulkstat_request,
    file_handle,
    fsmap_request,
    handle_request,
    open_how,
    parents_request,
    read_bulkstat,
    read_entries,
    read_fsmap,
    read_geometry,
    read_parents,
)

__all__ = [
    "bulkstat",
    "clone_mount",
    "data_device",
    "entries",
    "filesystem_id",
    "fsmap",
    "geometry",
    "inode_facts",
    "open_beneath",
    "open_inode",
    "parents",
    "root_facts",
]

#: Records asked for at once: few of a failed page, many of all that a disk has lost.
#: Not more than 2048: XFS goes on by itself after so many, less carefully than `fsmap`.
_FIRST_ROOM, _MORE_ROOM = 64, 2048
#: Whose blocks are of nobody else.
_NEVER_SHARED: Final = FMR_OF_SPECIAL_OWNER | FMR_OF_ATTR_FORK | FMR_OF_EXTENT_MAP
_DIRECTORY_BYTES: Final = 1 << 16
_PARENTS_BYTES: Final = 1 << 16
_FEW: Final = 16
#: These have the same number on every architecture but Alpha.
_SYS_OPEN_TREE, _SYS_OPENAT2 = 428, 437
_OPEN_TREE_CLONE, _AT_EMPTY_PATH = 0x1, 0x1000
_RESOLVE_NO_XDEV, _RESOLVE_NO_SYMLINKS, _RESOLVE_BENEATH = 0x01, 0x04, 0x08


@cache
def _libc() -> ctypes.CDLL:
    return ctypes.CDLL(None, use_errno=True)


def _checked(result: int) -> int:
    if result < 0:
        number = ctypes.get_errno()
        raise OSError(number, os.strerror(number))
    return result


@contextlib.contextmanager
def _needing(capability: str) -> Iterator[None]:
    try:
        yield
    except PermissionError as error:
        raise PrivilegeError(
            f"the kernel reports owners only to a process with {capability}",
            hint="try as root, outside of containers; --offline reads the device itself",
        ) from error


# ---------------------------------------------------------------------- who owns what


def data_device(fd: int) -> int:
    """Give the name of a filesystem's data device in GETFSMAP; raises OSError without GETFSMAP."""
    number = os.fstat(fd).st_dev
    major, minor = os.major(number), os.minor(number)
    encoded = minor & 0xFF | major << 8 | (minor & ~0xFF) << 12  # new_encode_dev() in kdev_t.h
    try:
        fcntl.ioctl(fd, FS_IOC_GETFSMAP, fsmap_request(0, encoded, 0, 1, None))
    except OSError as error:
        if error.errno != errno.EINVAL:
            raise
        # A filesystem with an internal realtime section has no number for it.
        return XFS_DEV_DATA
    return encoded


def fsmap(fd: int, device: int, start: int, end: int) -> Iterator[Fsmap]:
    """Give the records of a device that touch the bytes from ``start`` to before ``end``.

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
            # Asked to go on after a record, XFS leaves out all others in which the same file has
            # the same block. So go on after the file before, and pass over what was given.
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


# ---------------------------------------------------------------------- XFS


def geometry(fd: int) -> Geometry | None:
    """Give the geometry of an XFS filesystem; None if it is another kind."""
    answer = bytearray(GEOMETRY_BYTES)
    try:
        fcntl.ioctl(fd, XFS_IOC_FSGEOMETRY, answer)
    except OSError as error:
        if error.errno in (errno.ENOTTY, errno.EOPNOTSUPP):
            return None
        raise
    return read_geometry(answer)


def bulkstat(fd: int, first: int, room: int, flags: int = 0) -> list[InodeFacts]:
    """Give up to ``room`` inodes of an XFS that are in use, from number ``first`` on.

    Also those that were unlinked and are still open.
    """
    request = bulkstat_request(first, room, flags)
    with _needing("CAP_SYS_ADMIN"):
        fcntl.ioctl(fd, XFS_IOC_BULKSTAT, request)
    return list(read_bulkstat(request))


def inode_facts(fd: int, number: int) -> InodeFacts | None:
    """Give what is known of one inode of an XFS; None if there is none, or none for us to see."""
    try:
        found = bulkstat(fd, number, 1)
    except OSError as error:
        if error.errno in (errno.EINVAL, errno.ENOENT):
            return None
        raise
    return found[0] if found and found[0].number == number else None


def root_facts(fd: int) -> InodeFacts:
    """Give what is known of the root directory of an XFS."""
    (root,) = bulkstat(fd, XFS_BULK_IREQ_SPECIAL_ROOT, 1, XFS_BULK_IREQ_SPECIAL)
    return root


def filesystem_id(fd: int) -> bytes:
    """Give the part that the handles of all inodes of an XFS have in common."""
    handle = ctypes.create_string_buffer(XFS_HANDLE_BYTES)
    length = ctypes.c_uint32(0)
    request = handle_request(fd, ctypes.addressof(handle), ctypes.addressof(length))
    with _needing("CAP_SYS_ADMIN"):
        fcntl.ioctl(fd, XFS_IOC_FD_TO_HANDLE, request)
    return handle.raw[:FSID_BYTES]


def parents(fd: int, fsid: bytes, inode: int, generation: int) -> list[Parent]:
    """Give the parent pointers of an inode; raises OSError where there are none to be had."""
    buffer = ctypes.create_string_buffer(_PARENTS_BYTES)
    address = ctypes.addressof(buffer)
    found: list[Parent] = []
    cursor, last = bytes(16), False
    while not last:
        request = parents_request(fsid, inode, generation, cursor, address, _PARENTS_BYTES)
        fcntl.ioctl(fd, XFS_IOC_GETPARENTS_BY_HANDLE, request)
        some, cursor, last = read_parents(request, buffer.raw)
        found += some
        if not some:
            break
    return found


#: To read a directory without a trace.
_READ_DIRECTORY: Final = os.O_RDONLY | os.O_DIRECTORY | os.O_NOATIME


def open_inode(mount: int, inode: int, generation: int, flags: int = _READ_DIRECTORY) -> int:
    """Open an inode of an XFS by its number, wherever it is; ``mount`` is a mount of it.

    ``flags`` are those of open(2).  Raises FileNotFoundError if it is gone.
    """
    handle = ctypes.create_string_buffer(file_handle(inode, generation))
    flags |= os.O_CLOEXEC | os.O_NONBLOCK
    with _needing("CAP_DAC_READ_SEARCH"):
        try:
            return _checked(_libc().open_by_handle_at(mount, handle, flags))
        except OSError as error:
            if error.errno == errno.ESTALE:
                raise FileNotFoundError(errno.ENOENT, os.strerror(errno.ENOENT)) from error
            raise


# ---------------------------------------------------------------------- names


def entries(directory: int, wanted: Collection[int] | None = None) -> Iterator[Entry]:
    """Give what a directory holds, with the numbers that it has itself: mounts do not show.

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
    """Give a mount of our own of a directory, on which nothing is mounted.

    It is in no mount namespace, and ends with its descriptor, which is good for naming only.
    """
    flags = _OPEN_TREE_CLONE | _AT_EMPTY_PATH | os.O_CLOEXEC
    with _needing("CAP_SYS_ADMIN"):
        return _checked(_libc().syscall(_SYS_OPEN_TREE, directory, b"", flags))


def open_beneath(directory: int, path: bytes, flags: int) -> int:
    """Open what a relative path leads to, through no symbolic link and into no other mount."""
    resolve = _RESOLVE_NO_XDEV | _RESOLVE_NO_SYMLINKS | _RESOLVE_BENEATH
    how = open_how(flags | os.O_CLOEXEC, resolve)
    return _checked(_libc().syscall(_SYS_OPENAT2, directory, path, how, ctypes.c_size_t(len(how))))
