"""A mounted btrfs by the kernel alone: LOGICAL_INO_V2, and FIEMAP of every file."""

import ctypes
import fcntl
import os
import stat
import struct
from collections import defaultdict
from pathlib import Path
from typing import NamedTuple

from whoseblock.fs.base import FileId
from whoseblock.fs.mounted.fiemap import file_extents

__all__ = ["FilePlace", "logical_owners", "mapped_sectors"]

_LOGICAL_INO_V2 = 0xC038943B  # linux/btrfs.h
_INO_LOOKUP = 0xD0009412
_ROOM = 1 << 20
_SECTOR = 4096
_STUB = 2
_MOST = (1 << 63) - 1


class FilePlace(NamedTuple):
    """A byte of a file."""

    file: FileId
    offset: int


def logical_owners(folder: bytes, logical: int) -> set[FilePlace]:
    """Return the files that have the byte at a logical address, by LOGICAL_INO_V2."""
    answer = ctypes.create_string_buffer(_ROOM)
    request = struct.pack("=QQ24xQQ", logical, _ROOM, 0, ctypes.addressof(answer))
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        fcntl.ioctl(descriptor, _LOGICAL_INO_V2, request)
    finally:
        os.close(descriptor)
    _, missing, count, _ = struct.unpack_from("=IIII", answer)
    assert not missing
    numbers = struct.unpack_from(f"={count}Q", answer, 16)
    triples = zip(numbers[::3], numbers[1::3], numbers[2::3], strict=True)
    return {FilePlace(FileId(root, inode), offset) for inode, offset, root in triples}


def mapped_sectors(folder: bytes) -> tuple[dict[int, set[FilePlace]], set[int]]:
    """Return the owners of each sector of uncompressed data, by logical address, and by FIEMAP.

    With the subvolumes that were found below the folder.
    """
    found: dict[int, set[FilePlace]] = defaultdict(set)
    subvolumes: set[int] = set()
    for path, _, names in os.walk(os.fsdecode(folder)):
        if Path(path).lstat().st_ino == _STUB:
            # What a snapshot has in the place of a nested subvolume.
            continue
        subvolume = _subvolume_of(path)
        subvolumes.add(subvolume)
        for name in names:
            place = Path(path) / name
            status = place.lstat()
            if not stat.S_ISREG(status.st_mode):
                continue
            file = FileId(subvolume, status.st_ino)
            for extent in file_extents(str(place), 0, _MOST):
                if extent.has_place:
                    for at in range(0, extent.length, _SECTOR):
                        one = FilePlace(file, extent.logical + at)
                        found[extent.physical + at].add(one)
    return found, subvolumes


def _subvolume_of(path: str) -> int:
    raw = bytearray(struct.pack("=QQ", 0, 256) + bytes(4080))
    descriptor = os.open(path, os.O_RDONLY)
    try:
        fcntl.ioctl(descriptor, _INO_LOOKUP, raw)
    finally:
        os.close(descriptor)
    subvolume: int = struct.unpack_from("=Q", raw)[0]
    return subvolume
