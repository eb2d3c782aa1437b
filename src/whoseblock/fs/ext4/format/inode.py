"""Inodes (``struct ext4_inode``)."""

import stat
from struct import Struct
from typing import Final, NamedTuple

from whoseblock.fs.ext4.format.checksum import LE32, crc32c
from whoseblock.fs.ext4.format.superblock import Superblock

__all__ = ["INODE", "Inode", "checksum_seed", "inode_matches", "parse_inode", "type_fault"]

EXT4_INDEX_FL: Final = 0x1000
EXT4_ENCRYPT_FL: Final = 0x800
EXT4_EXTENTS_FL: Final = 0x80000
EXT4_EA_INODE_FL: Final = 0x200000
EXT4_INLINE_DATA_FL: Final = 0x10000000
EXT4_CASEFOLD_FL: Final = 0x40000000
EXT4_IMMUTABLE_FL: Final = 0x10
EXT4_APPEND_FL: Final = 0x20
_GOOD_OLD_SIZE: Final = 128
_CHECKSUM_LO: Final = 0x7C
_CHECKSUM_HI: Final = 0x82
_EXTRA_AT: Final = 0x80
#: Bytes of extra_isize with which an inode has the high half of its checksum.
_EXTRA_FOR_HIGH: Final = 4
#: A symbolic link shorter than its map lies in its place.
_FAST_SYMLINK: Final = 60

#: mode, size_lo, dtime, links, blocks, flags, i_block, generation, file_acl_lo, size_hi, acl_hi.
INODE: Final = Struct("<H2xI12xI2xHII4x60sIII6xH8x")


class Inode(NamedTuple):
    """``struct ext4_inode``, the fields that are read, in the order of `INODE`."""

    mode: int
    size_lo: int
    dtime: int
    links: int
    blocks: int
    flags: int
    i_block: bytes
    generation: int
    acl_lo: int
    size_hi: int
    acl_hi: int

    @property
    def size(self) -> int:
        """The size in bytes."""
        return self.size_lo | self.size_hi << 32

    @property
    def acl_block(self) -> int:
        """The block with its attributes, 0 if there is none."""
        return self.acl_lo | self.acl_hi << 32

    @property
    def is_dir(self) -> bool:
        """Whether it is a directory."""
        return stat.S_ISDIR(self.mode)

    @property
    def has_extents(self) -> bool:
        """Whether its map is an extent tree."""
        return bool(self.flags & EXT4_EXTENTS_FL)

    @property
    def is_inline(self) -> bool:
        """Whether its data is in the inode."""
        return bool(self.flags & EXT4_INLINE_DATA_FL)

    @property
    def has_map(self) -> bool:
        """Whether it has a map of blocks: not a device, an inline file or a short link."""
        if self.is_inline:
            return False
        if stat.S_ISLNK(self.mode):
            return self.has_extents or self.size >= _FAST_SYMLINK
        # Mode 0: the bad-blocks inode, the journal and others may have none.
        return stat.S_ISREG(self.mode) or self.is_dir or stat.S_IFMT(self.mode) == 0


def parse_inode(raw: bytes | memoryview) -> Inode:
    """Decode an inode."""
    return Inode._make(INODE.unpack_from(raw))


def checksum_seed(seed: int, number: int, generation: int) -> int:
    """Return the seed of the checksums of what belongs to an inode."""
    return crc32c(seed, LE32.pack(number) + LE32.pack(generation))


def inode_matches(sb: Superblock, seed: int, number: int, raw: bytes) -> bool:
    """Return whether the checksum of an inode is right, or it has none.

    ``seed`` is that of the superblock.
    """
    if not sb.has_checksums:
        return True
    low = raw[_CHECKSUM_LO] | raw[_CHECKSUM_LO + 1] << 8
    head = LE32.pack(number) + raw[0x64:0x68]
    if len(raw) == _GOOD_OLD_SIZE:
        data = head + raw[:_CHECKSUM_LO] + b"\0\0" + raw[_CHECKSUM_LO + 2 :]
        return crc32c(seed, data) & 0xFFFF == low or not any(raw)
    if raw[_EXTRA_AT] | raw[_EXTRA_AT + 1] << 8 >= _EXTRA_FOR_HIGH:
        middle, tail = raw[_CHECKSUM_LO + 2 : _CHECKSUM_HI], raw[_CHECKSUM_HI + 2 :]
        data = b"".join((head, raw[:_CHECKSUM_LO], b"\0\0", middle, b"\0\0", tail))
        wanted = low | raw[_CHECKSUM_HI] << 16 | raw[_CHECKSUM_HI + 1] << 24
        return crc32c(seed, data) == wanted or not any(raw)
    data = head + raw[:_CHECKSUM_LO] + b"\0\0" + raw[_CHECKSUM_LO + 2 :]
    return crc32c(seed, data) & 0xFFFF == low or not any(raw)


def type_fault(sb: Superblock, number: int, inode: Inode) -> str:
    """Return why an inode cannot be of its type, "" if it can."""
    if not stat.S_IFMT(inode.mode) and number >= sb.first_ino:
        return "no type"
    if stat.S_ISLNK(inode.mode) and inode.size > sb.block_size:
        return "a symbolic link that is too long"
    if inode.is_dir and not inode.is_inline and inode.size % sb.block_size:
        return "a directory of no whole blocks"
    return ""
