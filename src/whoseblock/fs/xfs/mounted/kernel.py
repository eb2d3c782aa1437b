"""Questions to the kernel about a mounted XFS: one function each, errors as `OSError`.

`PrivilegeError` names the capability that is missing; nothing here writes anything.
"""

import ctypes
import errno
import fcntl
import os
from collections.abc import Iterator
from typing import Final

from whoseblock.fs.mounted.format import InodeFacts, Parent
from whoseblock.fs.mounted.kernel import READ_DIRECTORY, needing, open_handle
from whoseblock.fs.xfs.format.btree import XFS_INODES_PER_CHUNK
from whoseblock.fs.xfs.mounted.format import (
    BMV_IF_ATTRFORK,
    BMV_IF_DELALLOC,
    BMV_IF_NO_HOLES,
    BMV_IF_PREALLOC,
    FSID_BYTES,
    GEOMETRY_BYTES,
    XFS_BULK_IREQ_AGNO,
    XFS_BULK_IREQ_SPECIAL,
    XFS_BULK_IREQ_SPECIAL_ROOT,
    XFS_HANDLE_BYTES,
    XFS_IOC_AG_GEOMETRY,
    XFS_IOC_BULKSTAT,
    XFS_IOC_FD_TO_HANDLE,
    XFS_IOC_FSGEOMETRY,
    XFS_IOC_GETBMAPX,
    XFS_IOC_GETPARENTS_BY_HANDLE,
    XFS_IOC_INUMBERS,
    XFS_IOC_OPEN_BY_HANDLE,
    Chunk,
    Geometry,
    InodeState,
    MapExtent,
    ag_geometry_request,
    bulkstat_request,
    handle_request,
    inode_handle,
    inumbers_request,
    map_request,
    open_request,
    parents_request,
    read_bulkstat,
    read_free_inodes,
    read_geometry,
    read_inumbers,
    read_map,
    read_parents,
    read_states,
    xfs_handle,
)

__all__ = [
    "bulkstat",
    "chunks",
    "extents",
    "filesystem_id",
    "free_inodes",
    "geometry",
    "inode_facts",
    "inode_state",
    "inode_states",
    "open_inode",
    "open_invisibly",
    "open_root",
    "parents",
    "root_facts",
]

_PARENTS_BYTES: Final = 1 << 16
#: Extents and chunks asked for at once.
_FEW_EXTENTS, _MORE_EXTENTS = 16, 4096
_CHUNKS: Final = 1024


def geometry(fd: int) -> Geometry:
    """Return the geometry of a filesystem."""
    answer = bytearray(GEOMETRY_BYTES)
    fcntl.ioctl(fd, XFS_IOC_FSGEOMETRY, answer)
    return read_geometry(answer)


def free_inodes(fd: int, group: int) -> int:
    """Return how many inodes of an allocation group are allocated on the disk, and free."""
    request = ag_geometry_request(group)
    fcntl.ioctl(fd, XFS_IOC_AG_GEOMETRY, request)
    return read_free_inodes(request)


def bulkstat(fd: int, first: int, room: int, flags: int = 0) -> list[InodeFacts]:
    """Return up to ``room`` inodes of an XFS that are in use, from number ``first`` on.

    Also those that were unlinked and are still open.
    """
    request = bulkstat_request(first, room, flags)
    with needing("CAP_SYS_ADMIN"):
        fcntl.ioctl(fd, XFS_IOC_BULKSTAT, request)
    return list(read_bulkstat(request))


def inode_facts(fd: int, number: int) -> InodeFacts | None:
    """Return what is known of one inode of an XFS; None if there is none, or none for us to see."""
    try:
        found = bulkstat(fd, number, 1)
    except OSError as error:
        if error.errno in (errno.EINVAL, errno.ENOENT):
            return None
        raise
    return found[0] if found and found[0].number == number else None


def inode_states(fd: int, group: int, first: int, room: int) -> list[InodeState]:
    """Return up to ``room`` inodes of a group that are in use, from number ``first`` on."""
    request = bulkstat_request(first, room, XFS_BULK_IREQ_AGNO, group)
    with needing("CAP_SYS_ADMIN"):
        fcntl.ioctl(fd, XFS_IOC_BULKSTAT, request)
    return list(read_states(request))


def inode_state(fd: int, number: int) -> InodeState | None:
    """Return the state of one inode; None if there is none."""
    request = bulkstat_request(number, 1)
    with needing("CAP_SYS_ADMIN"):
        fcntl.ioctl(fd, XFS_IOC_BULKSTAT, request)
    found = list(read_states(request))
    return found[0] if found and found[0].number == number else None


def chunks(fd: int, group: int, first: int, last: int) -> Iterator[Chunk]:
    """Yield the inode chunks of a group from that of inode ``first`` to that of ``last``."""
    while first <= last:
        request = inumbers_request(first, _CHUNKS, group)
        with needing("CAP_SYS_ADMIN"):
            fcntl.ioctl(fd, XFS_IOC_INUMBERS, request)
        found = read_inumbers(request)
        yield from (chunk for chunk in found if chunk.first <= last)
        if len(found) < _CHUNKS:
            return
        first = found[-1].first + XFS_INODES_PER_CHUNK


def extents(fd: int, *, attributes: bool = False, start: int = 0) -> Iterator[MapExtent]:
    """Yield the extents of a fork of an open file, from ``start`` on in units of 512 bytes.

    Those past the end of the file, too.  The kernel neither writes nor allocates anything.
    """
    flags = BMV_IF_PREALLOC | BMV_IF_DELALLOC | BMV_IF_NO_HOLES
    flags |= BMV_IF_ATTRFORK if attributes else 0
    room = _FEW_EXTENTS
    while True:
        request = map_request(start, room, flags)
        fcntl.ioctl(fd, XFS_IOC_GETBMAPX, request)
        found = read_map(request)
        yield from found
        if len(found) < room:
            return
        start = found[-1].offset + found[-1].length
        room = _MORE_EXTENTS


def root_facts(fd: int) -> InodeFacts:
    """Return what is known of the root directory of an XFS."""
    (root,) = bulkstat(fd, XFS_BULK_IREQ_SPECIAL_ROOT, 1, XFS_BULK_IREQ_SPECIAL)
    return root


def filesystem_id(fd: int) -> bytes:
    """Return the part that the handles of all inodes of an XFS have in common."""
    handle = ctypes.create_string_buffer(XFS_HANDLE_BYTES)
    length = ctypes.c_uint32(0)
    request = handle_request(fd, ctypes.addressof(handle), ctypes.addressof(length))
    with needing("CAP_SYS_ADMIN"):
        fcntl.ioctl(fd, XFS_IOC_FD_TO_HANDLE, request)
    return handle.raw[:FSID_BYTES]


def parents(fd: int, fsid: bytes, inode: int, generation: int) -> list[Parent]:
    """Return the parent pointers of an inode; raises OSError where there are none."""
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


def open_inode(mount: int, inode: int, generation: int, flags: int = READ_DIRECTORY) -> int:
    """Open an inode by its number, wherever it is; ``mount`` is a descriptor on its filesystem.

    ``flags`` are those of open(2).  Raises FileNotFoundError if it is gone.
    """
    return open_handle(mount, inode_handle(inode, generation), flags)


def open_invisibly(mount: int, fsid: bytes, inode: int, generation: int, flags: int) -> int:
    """Open a file so that neither reads nor writes change its times, as xfs_fsr(8) does.

    ``mount`` is a descriptor on its filesystem, ``flags`` are those of open(2).  The kernel sets
    FMODE_NOCMTIME for XFS_IOC_OPEN_BY_HANDLE.  Raises FileNotFoundError if the file is gone.
    """
    handle = ctypes.create_string_buffer(xfs_handle(fsid, inode, generation))
    request = open_request(ctypes.addressof(handle), flags | os.O_NONBLOCK)
    try:
        fd: int = fcntl.ioctl(mount, XFS_IOC_OPEN_BY_HANDLE, request)
    except OSError as error:
        if error.errno == errno.ESTALE:
            raise FileNotFoundError(errno.ENOENT, os.strerror(errno.ENOENT)) from error
        raise
    # The ioctl ignores O_CLOEXEC.
    os.set_inheritable(fd, False)  # noqa: FBT003 - the only argument
    return fd


def open_root(mount: int) -> int:
    """Open the root directory of a filesystem, whatever part of it is mounted."""
    root = root_facts(mount)
    return open_inode(mount, root.number, root.generation)
