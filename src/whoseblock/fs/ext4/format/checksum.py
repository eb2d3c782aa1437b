"""The checksums of ext4 metadata (fs/ext4: ``ext4_chksum``, ``crc16``)."""

from struct import Struct
from typing import Final

from fastcrc.crc16 import modbus
from fastcrc.crc32 import iscsi

__all__ = ["LE32", "LE64", "crc16", "crc32c"]

LE32: Final = Struct("<I")
LE64: Final = Struct("<Q")
_INVERT: Final = 0xFFFFFFFF


def crc32c(seed: int, data: bytes | memoryview) -> int:
    """Return the CRC-32C of ``data`` from ``seed``, neither of them inverted."""
    return iscsi(data, seed ^ _INVERT) ^ _INVERT


def crc16(seed: int, data: bytes | memoryview) -> int:
    """Return the CRC-16 of ``data`` from ``seed``: the checksum of descriptors with uninit_bg."""
    return modbus(data, seed)
