"""Images with something wrong: where their metadata lies, and how to spoil it.

A medium is never written: an `Overlay` shows an image with a few ranges replaced.
"""

import contextlib
import signal
import struct
from collections import defaultdict
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

from fastcrc.crc32 import iscsi

from whoseblock.media import Media

__all__ = ["Block", "Overlay", "crc_offset", "find_metadata", "limited", "overwrite", "seal"]

# Magic numbers and the place of the checksum, as the format's documentation has them; not taken
# from the program, which is what is tested.
_SECTORS = {
    b"XFSB": ("superblock", 224),
    b"XAGF": ("agf", 216),
    b"XAGI": ("agi", 312),
    b"XAFL": ("agfl", 32),
}
_BLOCKS = {
    b"AB3B": ("bnobt", 52),
    b"AB3C": ("cntbt", 52),
    b"IAB3": ("inobt", 52),
    b"FIB3": ("finobt", 52),
    b"RMB3": ("rmapbt", 52),
    b"R3FC": ("refcountbt", 52),
    b"BMA3": ("bmbt", 64),
    b"XARM": ("remote value", 12),
    b"XSLM": ("symlink", 12),
}
_DIRECTORY_BLOCKS = {b"XDB3": ("directory", 4), b"XDD3": ("directory", 4)}
_ATTRIBUTE_BLOCKS = {b"\x3b\xee": ("attr leaf", 12), b"\x3e\xbe": ("attr node", 12)}
_INODE = ("inode", 100)
_FORMATS = dict([*_SECTORS.values(), *_BLOCKS.values(), *_DIRECTORY_BLOCKS.values()])
_FORMATS |= dict([*_ATTRIBUTE_BLOCKS.values(), _INODE])


class Block(NamedTuple):
    """One unit of metadata that has a checksum of its own."""

    kind: str
    start: int
    data: bytes


def crc_offset(kind: str) -> int:
    """Return the place of the checksum in a unit of metadata."""
    return _FORMATS[kind]


def seal(kind: str, data: bytes) -> bytes:
    """Make the checksum right, whatever the rest says."""
    at = crc_offset(kind)
    crc = iscsi(data[:at] + bytes(4) + data[at + 4 :])
    return data[:at] + crc.to_bytes(4, "little") + data[at + 4 :]


def overwrite(data: bytes, offset: int, new: bytes) -> bytes:
    """Replace some bytes of a unit."""
    return data[:offset] + new + data[offset + len(new) :]


def find_metadata(image: Path) -> dict[str, list[Block]]:
    """Find all metadata whose checksum is right, by its magic numbers, in ascending order."""
    raw = image.read_bytes()
    block_size, sector_size, inode_size = struct.unpack_from(">4xI92x2x2H", raw)[:3]
    directory_size = block_size << raw[192]
    found: dict[str, list[Block]] = defaultdict(list)
    empty = bytes(block_size)
    for start in range(0, len(raw) - block_size + 1, block_size):
        block = raw[start : start + block_size]
        if block == empty:
            continue
        for offset, size, kind in _candidates(block, sector_size, inode_size, directory_size):
            data = raw[start + offset : start + offset + size]
            if len(data) == size and seal(kind, data) == data:
                found[kind].append(Block(kind, start + offset, data))
    return dict(found)


def _candidates(
    block: bytes, sector_size: int, inode_size: int, directory_size: int
) -> Iterator[tuple[int, int, str]]:
    """Yield offset, size and kind of what may be metadata in a block, by its magic numbers."""
    for at in range(0, len(block), sector_size):
        if block[at : at + 4] in _SECTORS:
            yield at, sector_size, _SECTORS[block[at : at + 4]][0]
    if block[:4] in _BLOCKS:
        yield 0, len(block), _BLOCKS[block[:4]][0]
    elif block[:4] in _DIRECTORY_BLOCKS:
        yield 0, directory_size, _DIRECTORY_BLOCKS[block[:4]][0]
    elif block[8:10] in _ATTRIBUTE_BLOCKS:
        yield 0, len(block), _ATTRIBUTE_BLOCKS[block[8:10]][0]
    elif block[:2] == b"IN":
        for at in range(0, len(block), inode_size):
            # The rest of a chunk are unused inodes.
            if block[at : at + 4] != b"IN\0\0":
                yield at, inode_size, "inode"


class Overlay:
    """An image with some ranges replaced; a `Media`."""

    def __init__(self, base: Media, patches: dict[int, bytes]) -> None:
        self._base = base
        self._patches = patches
        # No file has this name, hence none is mounted.
        self.name = "/nowhere/damaged.img"
        self.size = base.size

    def pread(self, offset: int, length: int) -> bytes:
        data = self._base.pread(offset, length)
        for start, patch in self._patches.items():
            first, after = max(start, offset), min(start + len(patch), offset + length)
            if first < after:
                data = overwrite(data, first - offset, patch[first - start : after - start])
        return data

    def close(self) -> None:
        """Leave the base open: it serves many."""


@contextlib.contextmanager
def limited(seconds: float) -> Iterator[None]:
    """Raise `TimeoutError` in what takes too long, even where it never comes back."""

    def stop(_signal: int, _frame: object) -> None:
        raise TimeoutError(f"not done within {seconds} seconds")

    before = signal.signal(signal.SIGALRM, stop)
    signal.setitimer(signal.ITIMER_REAL, seconds)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)
