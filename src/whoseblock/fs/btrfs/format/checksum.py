"""The checksums of btrfs: CRC-32C, xxHash64, SHA-256 and BLAKE2b-256.

xxHash64 is written out here: the library for it would be needed for a rarely chosen checksum only.
Source: doc/xxhash_spec.md of xxHash.
"""

from collections.abc import Callable
from hashlib import blake2b, sha256
from struct import unpack_from
from typing import Final

from fastcrc.crc32 import iscsi

__all__ = ["CHECKSUMS", "CHECKSUM_SIZE", "checksum_matches", "xxhash64"]

#: The room for a checksum at the start of a block; what a short one leaves is not checked.
CHECKSUM_SIZE: Final = 32

_MASK: Final = (1 << 64) - 1
_P1: Final = 0x9E3779B185EBCA87
_P2: Final = 0xC2B2AE3D27D4EB4F
_P3: Final = 0x165667B19E3779F9
_P4: Final = 0x85EBCA77C2B2AE63
_P5: Final = 0x27D4EB2F165667C5


def _round(lane: int, value: int) -> int:
    lane = (lane + value * _P2) & _MASK
    return ((lane << 31 | lane >> 33) * _P1) & _MASK


def _rotate(value: int, bits: int) -> int:
    return (value << bits | value >> (64 - bits)) & _MASK


def xxhash64(data: bytes | memoryview) -> int:
    """Return the xxHash64 of ``data`` with the seed 0."""
    size = len(data)
    stripes = size // 32
    if stripes:
        one, two, three, four = (_P1 + _P2) & _MASK, _P2, 0, -_P1 & _MASK
        words = unpack_from(f"<{stripes * 4}Q", data)
        for at in range(0, stripes * 4, 4):
            one = _round(one, words[at])
            two = _round(two, words[at + 1])
            three = _round(three, words[at + 2])
            four = _round(four, words[at + 3])
        found = _rotate(one, 1) + _rotate(two, 7) + _rotate(three, 12) + _rotate(four, 18)
        for lane in (one, two, three, four):
            found = ((found & _MASK ^ _round(0, lane)) * _P1 + _P4) & _MASK
    else:
        found = _P5
    found = (found + size) & _MASK
    at = stripes * 32
    while at + 8 <= size:
        found ^= _round(0, unpack_from("<Q", data, at)[0])
        found = (_rotate(found, 27) * _P1 + _P4) & _MASK
        at += 8
    if at + 4 <= size:
        found ^= unpack_from("<I", data, at)[0] * _P1 & _MASK
        found = (_rotate(found, 23) * _P2 + _P3) & _MASK
        at += 4
    for byte in data[at:]:
        found ^= byte * _P5 & _MASK
        found = _rotate(found, 11) * _P1 & _MASK
    found = (found ^ found >> 33) * _P2 & _MASK
    found = (found ^ found >> 29) * _P3 & _MASK
    return found ^ found >> 32


def _crc32c(data: bytes | memoryview) -> bytes:
    return iscsi(data).to_bytes(4, "little")


def _xxhash64(data: bytes | memoryview) -> bytes:
    return xxhash64(data).to_bytes(8, "little")


def _sha256(data: bytes | memoryview) -> bytes:
    return sha256(data).digest()


def _blake2b(data: bytes | memoryview) -> bytes:
    return blake2b(data, digest_size=32).digest()


#: The functions by the number in the superblock.
CHECKSUMS: Final[dict[int, Callable[[bytes | memoryview], bytes]]] = {
    0: _crc32c,
    1: _xxhash64,
    2: _sha256,
    3: _blake2b,
}


def checksum_matches(kind: int, block: bytes | memoryview) -> bool:
    """Return whether a block begins with the checksum of what follows `CHECKSUM_SIZE` bytes."""
    view = memoryview(block)
    found = CHECKSUMS[kind](view[CHECKSUM_SIZE:])
    return view[: len(found)] == found
