"""Recognise what a partition usually begins with.

Offsets and magic numbers as in libblkid (util-linux).
"""

from typing import Final

from whoseblock.errors import BlockError
from whoseblock.media.base import Media

__all__ = ["begins_with_signature"]

#: Offset from the start and magic number of what partitions contain: volumes, and filesystems that
#: have no driver.
_SIGNATURES: Final = (
    (0, b"LUKS\xba\xbe"),
    (3, b"NTFS    "),
    (3, b"EXFAT   "),
    (0x36, b"FAT1"),
    (0x52, b"FAT32   "),
    (0x400, b"\x10\x20\xf5\xf2"),
    (0x438, b"\x53\xef"),
    (0xFF6, b"SWAPSPACE2"),
    (0x1018, b"\xc6\x85\x73\xf6\x4e\x1a\x45\xca"),  # bcache
    (0x1000, b"\xfc\x4e\x2b\xa9"),  # md 1.2
    (0, b"\xfc\x4e\x2b\xa9"),  # md 1.1
    (0x10040, b"_BHRfS_M"),
    *((sector * 512, b"LABELONE") for sector in range(4)),  # LVM2
)
_HEAD: Final = 4096


def begins_with_signature(media: Media) -> bool:
    """Return whether a medium begins with a well-known filesystem, volume or array."""
    head = _read_or_empty(media, 0, min(_HEAD, media.size))
    for offset, magic in _SIGNATURES:
        if offset + len(magic) > _HEAD:
            found = _read_or_empty(media, offset, len(magic)) == magic
        else:
            found = head.startswith(magic, offset)
        if found:
            return True
    return False


def _read_or_empty(media: Media, start: int, length: int) -> bytes:
    if start < 0 or start + length > media.size:
        return b""
    try:
        return media.pread(start, length)
    except BlockError:
        return b""
