"""Group descriptors (``struct ext4_group_desc``)."""

from struct import Struct
from typing import Final, NamedTuple

from whoseblock.fs.ext4.format.checksum import LE32, crc16, crc32c
from whoseblock.fs.ext4.format.superblock import RO_COMPAT_GDT_CSUM, Superblock

__all__ = ["BLOCK_UNINIT", "INODE_UNINIT", "Descriptor", "bitmap_matches", "parse_descriptor"]

INODE_UNINIT: Final = 1
BLOCK_UNINIT: Final = 2
_LOW: Final = Struct("<III4H4x4H")
_HIGH: Final = Struct("<III4H4xHH")
_HIGH_AT: Final = 0x20
_HIGH_SIZE: Final = 0x40
_CHECKSUM_AT: Final = 0x1E


class Descriptor(NamedTuple):
    """``struct ext4_group_desc``, both halves joined.

    ``is_valid`` is whether its checksum is right, or it has none.  ``flags`` and ``itable_unused``
    are 0 where they do not count.  ``is_copy`` is for a copy, whose counts, flags and checksums of
    bitmaps may be old.
    """

    block_bitmap: int
    inode_bitmap: int
    inode_table: int
    free_clusters: int
    free_inodes: int
    flags: int
    itable_unused: int
    block_bitmap_csum: int
    inode_bitmap_csum: int
    is_valid: bool
    is_copy: bool = False


def parse_descriptor(sb: Superblock, group: int, raw: bytes) -> Descriptor:
    """Decode the descriptor of a group, of ``sb.desc_size`` bytes, and verify it."""
    low = _LOW.unpack_from(raw)
    wide = sb.desc_size >= _HIGH_SIZE
    high = _HIGH.unpack_from(raw, _HIGH_AT) if wide else (0,) * 9
    block_bitmap, inode_bitmap, table = (low[at] | high[at] << 32 for at in range(3))
    uses = sb.has_uninit
    valid = True
    if sb.has_checksums:
        crc = crc32c(sb.seed, LE32.pack(group))
        crc = crc32c(crc, raw[:_CHECKSUM_AT] + b"\0\0" + raw[_CHECKSUM_AT + 2 :])
        valid = crc & 0xFFFF == low[10]
    elif sb.ro_compat & RO_COMPAT_GDT_CSUM:
        crc = crc16(0xFFFF, sb.uuid + LE32.pack(group) + raw[:_CHECKSUM_AT])
        if wide:
            crc = crc16(crc, raw[_CHECKSUM_AT + 2 :])
        valid = crc == low[10]
    return Descriptor(
        block_bitmap,
        inode_bitmap,
        table,
        low[3] | high[3] << 16,
        low[4] | high[4] << 16,
        low[6] if uses else 0,
        low[9] | high[6] << 16 if uses else 0,
        low[7] | high[7] << 16,
        low[8] | high[8] << 16,
        valid,
    )


def bitmap_matches(sb: Superblock, bitmap: bytes, bits: int, stored: int) -> bool:
    """Return whether the checksum of a bitmap of ``bits`` bits is right, or it has none."""
    if not sb.has_checksums:
        return True
    wanted = crc32c(sb.seed, bitmap[: bits // 8])
    if sb.desc_size < _HIGH_SIZE:
        wanted &= 0xFFFF
    return wanted == stored
