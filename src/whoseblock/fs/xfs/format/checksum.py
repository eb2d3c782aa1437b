"""The checksum of XFS metadata: CRC32C over the block, its own field taken as zeros."""

from fastcrc.crc32 import iscsi

__all__ = ["crc_matches"]

_ZEROS = bytes(4)


def crc_matches(block: bytes | memoryview, crc_offset: int) -> bool:
    """Return whether the little-endian checksum at ``crc_offset`` is that of ``block``."""
    view = memoryview(block)
    after = crc_offset + 4
    crc = iscsi(view[after:], iscsi(_ZEROS, iscsi(view[:crc_offset])))
    return crc.to_bytes(4, "little") == view[crc_offset:after]
