"""Questions to the kernel about a mounted btrfs: one function each, errors as `OSError`.

`PrivilegeError` names the capability that is missing; nothing here writes anything.
"""

import ctypes
import errno
import fcntl
import os
from functools import cache
from pathlib import Path
from typing import Final
from uuid import UUID

from whoseblock.fs.base import FileId
from whoseblock.fs.btrfs.format.keys import EXTENT_DATA, FIRST_FREE, FS_TREE
from whoseblock.fs.btrfs.mounted.format import (
    BTRFS_IOC_FS_INFO,
    BTRFS_IOC_INO_PATHS,
    BTRFS_IOC_LOGICAL_INO_V2,
    BTRFS_IOC_TREE_SEARCH_V2,
    FilesystemState,
    Reference,
    filesystem_request,
    inode_handle,
    logical_request,
    paths_request,
    read_filesystem,
    read_handle,
    read_item,
    read_paths,
    read_references,
    search_request,
)
from whoseblock.fs.mounted.format import file_handle
from whoseblock.fs.mounted.kernel import READ_DIRECTORY, needing, open_handle

__all__ = [
    "file_extent",
    "filesystem_state",
    "identify",
    "open_inode",
    "open_root",
    "paths_within",
    "references",
    "reserved_bytes",
]

_SYS: Final = Path("/sys/fs/btrfs")
#: The first answer has room for so many bytes, and none for more than the kernel writes.
_FEW_BYTES, _MOST_BYTES = 1 << 12, 16 << 20
#: The kernel writes no more paths than these bytes have room for.
_PATHS_BYTES: Final = 4096
#: A file extent that is not inline.
_EXTENT_BYTES: Final = 53
_ITEM_ROOM: Final = 32 + _EXTENT_BYTES
_AT_EMPTY_PATH: Final = 0x1000
#: MAX_HANDLE_SZ
_HANDLE_ROOM: Final = 128


@cache
def _libc() -> ctypes.CDLL:
    return ctypes.CDLL(None, use_errno=True)


def filesystem_state(fd: int) -> FilesystemState:
    """Return the UUID, the number of devices and the generation of a filesystem."""
    answer = filesystem_request()
    fcntl.ioctl(fd, BTRFS_IOC_FS_INFO, answer)
    return read_filesystem(answer)


def reserved_bytes(uuid: bytes) -> int | None:
    """Return how many bytes are allocated for writes that no tree has yet; None if unknown."""
    folder = _SYS / str(UUID(bytes=uuid)) / "allocation"
    try:
        found = [
            int((one / "bytes_reserved").read_text()) for one in folder.iterdir() if one.is_dir()
        ]
    except (OSError, ValueError):
        return None
    return sum(found) if found else None


def references(fd: int, logical: int, *, ignore_offset: bool = True) -> list[Reference] | None:
    """Return the file extents that refer to an extent, or to one byte of it.

    None if there is no extent of data.
    """
    size = _FEW_BYTES
    while True:
        buffer = ctypes.create_string_buffer(size)
        request = logical_request(
            logical, size, ctypes.addressof(buffer), ignore_offset=ignore_offset
        )
        try:
            with needing("CAP_SYS_ADMIN"):
                fcntl.ioctl(fd, BTRFS_IOC_LOGICAL_INO_V2, request)
        except OSError as error:
            if error.errno == errno.ENOENT:
                return None
            raise
        found, missing = read_references(buffer.raw)
        if not missing:
            return found
        if size == _MOST_BYTES:
            raise OSError(errno.EOVERFLOW, "the kernel cannot list so many references")
        size = min(size + 2 * missing, _MOST_BYTES)


def file_extent(fd: int, reference: Reference) -> bytes | None:
    """Return the file extent item that a reference names, None if it is gone."""
    key = reference.inode, EXTENT_DATA, reference.file_offset
    request = search_request(reference.subvolume, key, _ITEM_ROOM)
    try:
        with needing("CAP_SYS_ADMIN"):
            fcntl.ioctl(fd, BTRFS_IOC_TREE_SEARCH_V2, request)
    except OSError as error:
        # The subvolume is gone, or the item is longer: inline data, or another one.
        if error.errno in (errno.ENOENT, errno.EOVERFLOW):
            return None
        raise
    return read_item(request, key)


def open_inode(fd: int, file: FileId, generation: int, flags: int) -> int:
    """Open a file by its identity; generation 0 is any.  Raises FileNotFoundError."""
    return open_handle(fd, inode_handle(file, generation), flags)


def open_root(fd: int) -> int:
    """Open the directory of the top-level subvolume, whichever is mounted."""
    return open_inode(fd, FileId(FS_TREE, FIRST_FREE), 0, READ_DIRECTORY)


def identify(fd: int) -> tuple[FileId, int] | None:
    """Return the identity of an open file and its generation; None if it is not on a btrfs."""
    buffer = ctypes.create_string_buffer(file_handle(0, bytes(_HANDLE_ROOM)), 8 + _HANDLE_ROOM)
    mount = ctypes.c_int()
    flags = _AT_EMPTY_PATH
    if _libc().name_to_handle_at(fd, b"", buffer, ctypes.byref(mount), flags) < 0:
        number = ctypes.get_errno()
        raise OSError(number, os.strerror(number))
    return read_handle(buffer.raw)


def paths_within(directory: int, inode: int) -> list[bytes]:
    """Return paths of an inode from the root of the subvolume that a descriptor is in.

    There may be more than the kernel has room for.
    """
    buffer = ctypes.create_string_buffer(_PATHS_BYTES)
    request = paths_request(inode, _PATHS_BYTES, ctypes.addressof(buffer))
    with needing("CAP_DAC_READ_SEARCH"):
        fcntl.ioctl(directory, BTRFS_IOC_INO_PATHS, request)
    return read_paths(buffer.raw)
