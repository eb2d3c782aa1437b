"""Directories: entries in the inode (short form) and in directory blocks (xfs_da_format.h).

Only the part of a directory below 32 GiB holds entries; above lie its hash index, which confirms
them, and its index of free room, which is not read.
"""

import stat
import struct
from collections.abc import Iterator
from typing import Final, NamedTuple

from whoseblock.errors import CorruptError
from whoseblock.fs.layout import Be32, Be64, Bytes4, Layout, Uuid

__all__ = [
    "DIR_BLOCK",
    "FILE_TYPES",
    "DirBlockHeader",
    "Entry",
    "block_entries",
    "has_index",
    "hash_of_name",
    "is_name",
    "short_entries",
]

#: Version 4 has these, and ``struct xfs_dir2_data_hdr``: the magic number and the hints.
XFS_DIR2_BLOCK_MAGIC: Final = 0x58443242  # "XD2B"
XFS_DIR2_DATA_MAGIC: Final = 0x58443244  # "XD2D"
XFS_DIR2_LEAF1_MAGIC: Final = 0xD2F1
XFS_DIR2_LEAFN_MAGIC: Final = 0xD2FF
XFS_DIR3_BLOCK_MAGIC: Final = 0x58444233  # "XDB3": the whole directory in one block
XFS_DIR3_DATA_MAGIC: Final = 0x58444433  # "XDD3": one of several
XFS_DIR3_DATA_CRC_OFF: Final = 4
XFS_DIR3_LEAF1_MAGIC: Final = 0x3DF1
XFS_DIR3_LEAFN_MAGIC: Final = 0x3DFF
#: Where the hash index begins, in bytes of the directory, and where that of free room does.
XFS_DIR2_LEAF_OFFSET: Final = 1 << 35
XFS_DIR2_FREE_OFFSET: Final = 1 << 36
#: ``struct xfs_dir3_data_hdr``: the block header, three free-space hints, padding.
_DATA_HDR_SIZE = 64
_DATA_HDR_SIZE_2 = 16
_WITH_INDEX = (
    XFS_DIR2_BLOCK_MAGIC.to_bytes(4, "big"),
    XFS_DIR3_BLOCK_MAGIC.to_bytes(4, "big"),
)
_DATA_FREE_TAG = b"\xff\xff"
_ALIGN = 8
#: inumber, namelen, one byte of name, ftype, tag: nothing shorter is an entry.
_MIN_ENTRY = 16

_ENTRY_HEAD = struct.Struct(">QB")
_UNUSED_HEAD = struct.Struct(">2xH")
_BLOCK_TAIL = struct.Struct(">II")


#: XFS_DIR3_FT_*: what a directory says of the type of a file, by the type bits of modes.
FILE_TYPES: Final = {
    stat.S_IFREG: 1,
    stat.S_IFDIR: 2,
    stat.S_IFCHR: 3,
    stat.S_IFBLK: 4,
    stat.S_IFIFO: 5,
    stat.S_IFSOCK: 6,
    stat.S_IFLNK: 7,
}


class DirBlockHeader(NamedTuple):
    """``struct xfs_dir3_blk_hdr``."""

    magic: Be32
    crc: Bytes4
    blkno: Be64
    lsn: Be64
    uuid: Uuid
    owner: Be64


DIR_BLOCK: Final = Layout(DirBlockHeader)


def is_name(name: bytes) -> bool:
    """Return whether the kernel could have given a file this name."""
    return name not in {b"", b".", b".."} and b"/" not in name and b"\0" not in name


def hash_of_name(name: bytes) -> int:
    """Return the hash of a name in the index of a directory (``xfs_da_hashname``)."""
    value = 0
    for byte in name:
        value = (value << 7 & 0xFFFFFFFF | value >> 25) ^ byte
    return value


class Entry(NamedTuple):
    """One name; ``ftype`` is a number of `FILE_TYPES`, or -1 if the directory has none.

    ``at`` is the byte of its block at which it begins.
    """

    inumber: int
    name: bytes
    ftype: int
    at: int = 0


def short_entries(fork: bytes, start: int, *, typed: bool = True) -> tuple[int, list[Entry]]:
    """Decode a short-form directory: its parent, and its entries (without ``.`` and ``..``).

    Entries have the type of the file if they are ``typed``.
    ``start`` is the byte that the fork begins at, for the message of `CorruptError`.
    """
    if len(fork) < 2:  # noqa: PLR2004 - count and i8count
        raise CorruptError("short-form directory", start, "the fork is too small")
    count, i8count = fork[0], fork[1]
    width = 8 if i8count else 4
    at = 2 + width
    parent = int.from_bytes(fork[2:at], "big")
    entries = []
    for _ in range(count):
        name_at = at + 3
        end = name_at + (fork[at] if at < len(fork) else len(fork))
        after = end + typed
        if after + width > len(fork) or end == name_at:
            raise CorruptError("short-form directory", start, "an entry ends past the fork")
        inumber = int.from_bytes(fork[after : after + width], "big")
        entries.append(Entry(inumber, fork[name_at:end], fork[end] if typed else -1))
        at = after + width
    return parent, entries


def has_index(block: bytes) -> bool:
    """Return whether a block is a whole directory, with the hash index behind the entries."""
    return block[:4] in _WITH_INDEX


def block_entries(block: bytes, start: int, *, typed: bool = True) -> Iterator[Entry]:
    """Decode the entries of a directory block, ``.`` and ``..`` among them.

    Entries have the type of the file if they are ``typed``.
    The header has been verified; ``start`` is for the message of `CorruptError`, which is raised
    when an entry does not fit, after those before it were given.
    """
    end = len(block)
    if has_index(block):
        count, _stale = _BLOCK_TAIL.unpack_from(block, end - _BLOCK_TAIL.size)
        end -= _BLOCK_TAIL.size + count * 8
    at = _DATA_HDR_SIZE if block[:3] != b"XD2" else _DATA_HDR_SIZE_2
    while at < end:
        if block[at : at + 2] == _DATA_FREE_TAG:
            (size,) = _UNUSED_HEAD.unpack_from(block, at)
            if size < _ALIGN or size % _ALIGN or at + size > end:
                raise CorruptError("directory block", start, f"bad free space at {at}")
            at += size
            continue
        if at + _MIN_ENTRY > end:
            raise CorruptError("directory block", start, f"no room for an entry at {at}")
        inumber, namelen = _ENTRY_HEAD.unpack_from(block, at)
        # inumber, namelen, the name, ftype, padding, and the tag that repeats the offset.
        size = -(-(_ENTRY_HEAD.size + namelen + typed + 2) // _ALIGN) * _ALIGN
        if namelen == 0 or at + size > end:
            raise CorruptError("directory block", start, f"bad entry at {at}")
        name_at = at + _ENTRY_HEAD.size
        type_at = name_at + namelen
        yield Entry(inumber, block[name_at:type_at], block[type_at] if typed else -1, at)
        at += size
    if at != end:
        raise CorruptError("directory block", start, "entries end past the hash index")
