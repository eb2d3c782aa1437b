"""Structures of the ioctls of btrfs, in the byte order of the machine.

Source: ``linux/btrfs.h``, and fs/btrfs/export.h for file handles.
"""

from struct import Struct
from typing import Final, NamedTuple

from whoseblock.fs.base import FileId
from whoseblock.fs.btrfs.format.keys import Key
from whoseblock.fs.mounted.format import file_handle

__all__ = [
    "BTRFS_IOC_FS_INFO",
    "BTRFS_IOC_INO_PATHS",
    "BTRFS_IOC_LOGICAL_INO_V2",
    "BTRFS_IOC_TREE_SEARCH_V2",
    "FilesystemState",
    "Reference",
    "filesystem_request",
    "inode_handle",
    "logical_request",
    "paths_request",
    "read_filesystem",
    "read_handle",
    "read_item",
    "read_paths",
    "read_references",
    "search_request",
]

BTRFS_IOC_TREE_SEARCH_V2: Final = 0xC0709411
BTRFS_IOC_FS_INFO: Final = 0x8400941F
BTRFS_IOC_INO_PATHS: Final = 0xC0389423
BTRFS_IOC_LOGICAL_INO_V2: Final = 0xC038943B

_FS_INFO_BYTES: Final = 1024
#: max_id, num_devices, fsid, nodesize, sectorsize, clone_alignment, csum_type, csum_size, flags,
#: generation
_FS_INFO: Final = Struct("=QQ16sIIIHHQQ")
_FLAGS_AT: Final = 48
_FLAG_GENERATION: Final = 1 << 1
#: logical or inode, size, reserved, flags, address of the container
_BACKREF: Final = Struct("=QQ24sQQ")
#: bytes_left, bytes_missing, elem_cnt, elem_missed
_CONTAINER: Final = Struct("=IIII")
_REFERENCE: Final = Struct("=QQQ")
_IGNORE_OFFSET: Final = 1
#: tree_id, min and max objectid, offset and transid, min and max type, nr_items; last buf_size
_SEARCH: Final = Struct("=7Q4I4QQ")
#: transid, objectid, offset, type, len
_FOUND: Final = Struct("=QQQII")
_TOP: Final = (1 << 64) - 1
#: The kernel writes as much as a request says that there is room for.
assert _SEARCH.size == BTRFS_IOC_TREE_SEARCH_V2 >> 16 & 0x3FFF  # noqa: S101 - the ioctl's number has the size

#: FILEID_BTRFS_WITHOUT_PARENT: objectid, root_objectid, gen
_FILEID: Final = 0x4D
_HANDLE: Final = Struct("=QQI")
_HANDLE_HEAD: Final = Struct("=Ii")


class FilesystemState(NamedTuple):
    """The state of a filesystem by the kernel.

    ``generation`` is that of the last transaction that was begun, None before Linux 5.10.
    """

    uuid: bytes
    devices: int
    highest_device: int
    generation: int | None


class Reference(NamedTuple):
    """A file extent item: its file and its key, with the place in the file where it begins."""

    inode: int
    file_offset: int
    subvolume: int


def filesystem_request() -> bytearray:
    """Make the ``struct btrfs_ioctl_fs_info_args`` that asks for the generation, too."""
    request = bytearray(_FS_INFO_BYTES)
    request[_FLAGS_AT : _FLAGS_AT + 8] = _FLAG_GENERATION.to_bytes(8, "little")
    return request


def read_filesystem(answer: bytearray) -> FilesystemState:
    """Return what the kernel says of a filesystem."""
    highest, devices, uuid, *_, flags, generation = _FS_INFO.unpack_from(answer)
    return FilesystemState(uuid, devices, highest, generation if flags & _FLAG_GENERATION else None)


def logical_request(logical: int, size: int, address: int, *, ignore_offset: bool) -> bytearray:
    """Make a ``struct btrfs_ioctl_logical_ino_args`` with ``size`` bytes for the answer.

    They begin at ``address`` of the memory.  With ``ignore_offset`` it asks for the references to
    any byte of the extent.
    """
    flags = _IGNORE_OFFSET if ignore_offset else 0
    return bytearray(_BACKREF.pack(logical, size, b"", flags, address))


def read_references(answer: bytes) -> tuple[list[Reference], int]:
    """Return the references of an answer, and how many bytes it had no room for."""
    _, missing, count, _ = _CONTAINER.unpack_from(answer)
    end = _CONTAINER.size + count * 8
    found = _REFERENCE.iter_unpack(answer[_CONTAINER.size : end])
    return list(map(Reference._make, found)), missing


def paths_request(inode: int, size: int, address: int) -> bytearray:
    """Make a ``struct btrfs_ioctl_ino_path_args`` with ``size`` bytes of memory at ``address``."""
    return bytearray(_BACKREF.pack(inode, size, b"", 0, address))


def read_paths(answer: bytes) -> list[bytes]:
    """Return the paths of an answer, from the root of the subvolume."""
    _, _, count, _ = _CONTAINER.unpack_from(answer)
    found = []
    for number in range(count):
        at = _CONTAINER.size + int.from_bytes(
            answer[_CONTAINER.size + number * 8 : _CONTAINER.size + number * 8 + 8], "little"
        )
        found.append(answer[at : answer.index(b"\0", at)])
    return found


def search_request(tree: int, key: Key, room: int) -> bytearray:
    """Make the ``struct btrfs_ioctl_search_args_v2`` for one item, of up to ``room`` bytes."""
    inode, kind, offset = key
    request = _SEARCH.pack(
        tree, inode, inode, offset, offset, 0, _TOP, kind, kind, 1, 0, 0, 0, 0, 0, room
    )
    return bytearray(request + bytes(room))


def read_item(answer: bytearray, key: Key) -> bytes | None:
    """Return the content of the item of a key, None if it was not found."""
    if not _SEARCH.unpack_from(answer)[9]:
        return None
    _, inode, offset, kind, length = _FOUND.unpack_from(answer, _SEARCH.size)
    if (inode, kind, offset) != key:
        return None
    begin = _SEARCH.size + _FOUND.size
    return bytes(answer[begin : begin + length])


def inode_handle(file: FileId, generation: int) -> bytes:
    """Make the ``struct file_handle`` of an inode; generation 0 is any."""
    return file_handle(_FILEID, _HANDLE.pack(file.inode, file.subvolume, generation & 0xFFFFFFFF))


def read_handle(handle: bytes) -> tuple[FileId, int] | None:
    """Return the file of a ``struct file_handle``, and its generation; None for another kind."""
    size, kind = _HANDLE_HEAD.unpack_from(handle)
    if kind != _FILEID or size < _HANDLE.size:
        return None
    inode, subvolume, generation = _HANDLE.unpack_from(handle, _HANDLE_HEAD.size)
    return FileId(subvolume, inode), generation
