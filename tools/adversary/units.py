"""Find the units of metadata of an image: whatever has a checksum of its own.

On version 4 there are no checksums; the same units are found by their magic numbers.

The magic numbers and the places of the checksums are those of the format's documentation, not
taken from the program under test.
"""

import os
import struct
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

from fastcrc.crc32 import iscsi

__all__ = ["CRC_AT", "SUPERBLOCK", "Unit", "find_units", "reseal", "verifies"]

_SECTORS = {b"XFSB": "superblock", b"XAGF": "agf", b"XAGI": "agi", b"XAFL": "agfl"}
_BLOCKS = {
    b"AB3B": "bnobt",
    b"AB3C": "cntbt",
    b"IAB3": "inobt",
    b"FIB3": "finobt",
    b"RMB3": "rmapbt",
    b"R3FC": "refcountbt",
    b"BMA3": "bmbt",
    b"XARM": "attr remote",
    b"XSLM": "symlink",
}
#: Blocks of a directory that begin with a magic number.
_DIRECTORY = {b"XDB3": "dir block", b"XDD3": "dir data", b"XDF3": "dir free"}
#: The same of version 4.
_OLD_BLOCKS = {
    b"ABTB": "bnobt",
    b"ABTC": "cntbt",
    b"IABT": "inobt",
    b"BMAP": "bmbt",
}
_OLD_DIRECTORY = {b"XD2B": "dir block", b"XD2D": "dir data", b"XD2F": "dir free"}
_BY_MAGIC = _BLOCKS | _OLD_BLOCKS
_DIRECTORY_BY_MAGIC = _DIRECTORY | _OLD_DIRECTORY
#: Blocks of a directory or of attributes whose magic number stands behind two siblings.
_LINKED = {
    b"\x3d\xf1": "dir leaf",
    b"\x3d\xff": "dir leaf",
    b"\x3e\xbe": "da node",
    b"\x3b\xee": "attr leaf",
    b"\xd2\xf1": "dir leaf",
    b"\xd2\xff": "dir leaf",
    b"\xfe\xbe": "da node",
    b"\xfb\xee": "attr leaf",
}

CRC_AT = {
    "superblock": 224,
    "agf": 216,
    "agi": 312,
    "agfl": 32,
    **dict.fromkeys(["bnobt", "cntbt", "inobt", "finobt", "rmapbt", "refcountbt"], 52),
    "bmbt": 64,
    **dict.fromkeys(["attr remote", "symlink", "dir leaf", "da node", "attr leaf"], 12),
    **dict.fromkeys(["dir block", "dir data", "dir free"], 4),
    "inode": 100,
}

#: Magic number, block size, sector and inode size of a superblock.
SUPERBLOCK = struct.Struct(">4sI94xHH")
_VERSION_5 = 5


class Unit(NamedTuple):
    """One unit of metadata: its kind, its first byte on the device, its length in bytes."""

    kind: str
    start: int
    length: int


def verifies(kind: str, data: bytes) -> bool:
    """Return whether the checksum is right."""
    at = CRC_AT[kind]
    return iscsi(data[:at] + bytes(4) + data[at + 4 :]).to_bytes(4, "little") == data[at : at + 4]


def reseal(kind: str, data: bytes) -> bytes:
    """Make the checksum right."""
    at = CRC_AT[kind]
    crc = iscsi(data[:at] + bytes(4) + data[at + 4 :])
    return data[:at] + crc.to_bytes(4, "little") + data[at + 4 :]


def find_units(image: Path) -> list[Unit]:
    """Find every unit whose checksum is right, ascending; holes of the file are skipped.

    Of version 4 every unit with a magic number is found.
    """
    found: list[Unit] = []
    with image.open("rb") as file:
        head = file.read(512)
        _, block, sector, inode = SUPERBLOCK.unpack_from(head)
        directory = block << head[192]
        has_crc = head[101] & 0xF == _VERSION_5
        size = image.stat().st_size
        for start, end in _data(file.fileno(), size):
            for at in range(start // block * block, end, block):
                magic = os.pread(file.fileno(), 16, at)
                for unit in _candidates(
                    file.fileno(), magic, at, (block, sector, inode, directory)
                ):
                    data = os.pread(file.fileno(), unit.length, unit.start)
                    whole = len(data) == unit.length
                    if whole and (not has_crc or verifies(unit.kind, data)):
                        found.append(unit)
    return found


def _data(file: int, size: int) -> Iterator[tuple[int, int]]:
    """Yield the ranges of a file that are not holes."""
    at = 0
    while at < size:
        try:
            start = os.lseek(file, at, os.SEEK_DATA)
        except OSError:
            return
        at = os.lseek(file, start, os.SEEK_HOLE)
        yield start, at


def _candidates(
    file: int, magic: bytes, at: int, sizes: tuple[int, int, int, int]
) -> Iterator[Unit]:
    """Yield what a block may be, by its magic numbers."""
    block, sector, inode, directory = sizes
    if magic[:4] == b"XFSB":
        places = range(at, at + max(block, 4 * sector), sector)
        for place in places:
            # The free list of version 4 has no magic number; it is behind the other headers.
            fourth = "agfl" if place == at + 3 * sector else ""
            kind = _SECTORS.get(os.pread(file, 4, place), fourth)
            if kind:
                yield Unit(kind, place, sector)
    elif magic[:2] == b"IN":
        # The others of a chunk are inodes that are not in use.
        yield from (
            Unit("inode", place, inode)
            for place in range(at, at + block, inode)
            if os.pread(file, 2, place) == b"IN"
        )
    elif magic[:4] in _BY_MAGIC:
        yield Unit(_BY_MAGIC[magic[:4]], at, block)
    elif magic[:4] in _DIRECTORY_BY_MAGIC:
        yield Unit(_DIRECTORY_BY_MAGIC[magic[:4]], at, directory)
    elif magic[8:10] in _LINKED:
        kind = _LINKED[magic[8:10]]
        # Nodes of directories and of attributes have the same magic number.
        lengths = {"da node": {directory, block}, "attr leaf": {block}}.get(kind, {directory})
        yield from (Unit(kind, at, length) for length in lengths)
