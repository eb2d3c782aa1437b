"""Find the units of metadata of an image: whatever has a checksum of its own.

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
#: Blocks of a directory or of attributes whose magic number stands behind two siblings.
_LINKED = {
    b"\x3d\xf1": "dir leaf",
    b"\x3d\xff": "dir leaf",
    b"\x3e\xbe": "da node",
    b"\x3b\xee": "attr leaf",
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
    """Find every unit whose checksum is right, ascending; holes of the file are skipped."""
    found: list[Unit] = []
    with image.open("rb") as file:
        head = file.read(512)
        _, block, sector, inode = SUPERBLOCK.unpack_from(head)
        directory = block << head[192]
        size = image.stat().st_size
        for start, end in _data(file.fileno(), size):
            for at in range(start // block * block, end, block):
                magic = os.pread(file.fileno(), 16, at)
                for unit in _candidates(
                    file.fileno(), magic, at, (block, sector, inode, directory)
                ):
                    data = os.pread(file.fileno(), unit.length, unit.start)
                    if len(data) == unit.length and verifies(unit.kind, data):
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
            kind = _SECTORS.get(os.pread(file, 4, place))
            if kind:
                yield Unit(kind, place, sector)
    elif magic[:2] == b"IN":
        # The others of a chunk are inodes that are not in use.
        yield from (
            Unit("inode", place, inode)
            for place in range(at, at + block, inode)
            if os.pread(file, 2, place) == b"IN"
        )
    elif magic[:4] in _BLOCKS:
        yield Unit(_BLOCKS[magic[:4]], at, block)
    elif magic[:4] in _DIRECTORY:
        yield Unit(_DIRECTORY[magic[:4]], at, directory)
    elif magic[8:10] in _LINKED:
        kind = _LINKED[magic[8:10]]
        # Nodes of directories and of attributes have the same magic number.
        lengths = {"da node": {directory, block}, "attr leaf": {block}}.get(kind, {directory})
        yield from (Unit(kind, at, length) for length in lengths)
