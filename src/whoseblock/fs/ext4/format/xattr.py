"""Extended attributes in inodes and in blocks (fs/ext4/xattr.h)."""

from struct import Struct
from typing import Final, NamedTuple

from whoseblock.fs.ext4.format.checksum import LE32, LE64, crc32c

__all__ = ["Attribute", "block_attributes", "inode_attributes", "refcount", "xattr_block_matches"]

EXT4_XATTR_MAGIC: Final = 0xEA020000
EXT4_XATTR_INDEX_SYSTEM: Final = 7
_HEADER_SIZE: Final = 32
_CHECKSUM_AT: Final = 0x10
#: name_len, name_index, value_offs, value_inum, value_size, hash
_ENTRY: Final = Struct("<BBHIII")
_ALIGN: Final = 4


class Attribute(NamedTuple):
    """One attribute: the number of its prefix, its name, the inode of its value or 0, its value.

    The value is None if it is in another inode, or not within the block.
    """

    prefix: int
    name: bytes
    value_inode: int
    value: bytes | None


def xattr_block_matches(seed: int, number: int, block: bytes) -> bool:
    """Return whether the checksum of an attribute block, the block ``number``, is right."""
    data = block[:_CHECKSUM_AT] + bytes(4) + block[_CHECKSUM_AT + 4 :]
    stored: int = LE32.unpack_from(block, _CHECKSUM_AT)[0]
    return crc32c(crc32c(seed, LE64.pack(number)), data) == stored


def refcount(block: bytes) -> int | None:
    """Return how many inodes refer to an attribute block; None if it is none."""
    if LE32.unpack_from(block)[0] != EXT4_XATTR_MAGIC:
        return None
    return int(LE32.unpack_from(block, 4)[0])


def block_attributes(block: bytes) -> list[Attribute] | None:
    """Decode the attributes of a block; None if it is not well formed."""
    if refcount(block) is None:
        return None
    return _entries(block, _HEADER_SIZE, 0)


def inode_attributes(raw: bytes) -> list[Attribute] | None:
    """Decode the attributes within an inode; None if they are not well formed."""
    if len(raw) <= 0x82:  # noqa: PLR2004 - an inode of 128 bytes has no room for any
        return []
    start = 0x80 + int.from_bytes(raw[0x80:0x82], "little")
    if start + LE32.size > len(raw) or start % _ALIGN:
        return [] if start + LE32.size > len(raw) else None
    if LE32.unpack_from(raw, start)[0] != EXT4_XATTR_MAGIC:
        return []
    first = start + LE32.size
    return _entries(raw, first, first)


def _entries(raw: bytes, at: int, base: int) -> list[Attribute] | None:
    """Decode entries from ``at``; values are counted from ``base``."""
    found: list[Attribute] = []
    while True:
        if at + LE32.size > len(raw):
            return None
        if not any(raw[at : at + LE32.size]):
            return found
        if at + _ENTRY.size > len(raw):
            return None
        length, index, offset, inode, size, _ = _ENTRY.unpack_from(raw, at)
        name = raw[at + _ENTRY.size : at + _ENTRY.size + length]
        if len(name) < length:
            return None
        value = None
        if not inode:
            value = raw[base + offset : base + offset + size]
            if len(value) < size:
                return None
        found.append(Attribute(index, name, inode, value))
        at += -(-(_ENTRY.size + length) // _ALIGN) * _ALIGN
