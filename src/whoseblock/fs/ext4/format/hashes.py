"""The hashes of names in htrees (fs/ext4/hash.c), and the names of files without their key.

A directory is encrypted without its key: the kernel then makes a name of the hash and of the
ciphertext (``fscrypt_fname_disk_to_usr`` in fs/crypto/fname.c).
"""

import struct
from base64 import urlsafe_b64encode
from collections.abc import Callable
from hashlib import sha256
from typing import Final

__all__ = ["DX_HASH_TEA", "SIGNED_VERSIONS", "hash_of_name", "nokey_name"]

DX_HASH_LEGACY: Final = 0
DX_HASH_HALF_MD4: Final = 1
DX_HASH_TEA: Final = 2
#: The versions above are of signed characters; each has one of unsigned ones.
SIGNED_VERSIONS: Final = 3
_MASK: Final = 0xFFFFFFFF
_DELTA: Final = 0x9E3779B9
_START: Final = (0x67452301, 0xEFCDAB89, 0x98BADCFE, 0x10325476)
#: EXT4_HTREE_EOF_32BIT
_EOF: Final = 0x7FFFFFFF
#: The most bytes of a ciphertext that stand in a name themselves.
_WHOLE: Final = 149


def hash_of_name(name: bytes, version: int, seed: bytes) -> tuple[int, int] | None:
    """Return the hash and the minor hash of a name; None for a version that is unknown."""
    kind, signed = version % SIGNED_VERSIONS, version < SIGNED_VERSIONS
    if version >= 2 * SIGNED_VERSIONS:
        return None
    minor = 0
    if kind == DX_HASH_LEGACY:
        major = _legacy(name, signed=signed)
    else:
        state = struct.unpack("<4I", seed)
        buffer = list(state if any(state) else _START)
        size, transform = (8, _half_md4) if kind == DX_HASH_HALF_MD4 else (4, _tea)
        for at in range(0, len(name), size * 4):
            transform(buffer, _words(name[at:], size, signed=signed))
        major, minor = (buffer[1], buffer[2]) if size > 4 else (buffer[0], buffer[1])  # noqa: PLR2004
    major &= ~1
    if major == _EOF << 1:
        major = (_EOF - 1) << 1
    return major, minor


def _characters(name: bytes, *, signed: bool) -> list[int]:
    return [byte - 256 if signed and byte > 127 else byte for byte in name]  # noqa: PLR2004


def _legacy(name: bytes, *, signed: bool) -> int:
    first, second = 0x12A3FE2D, 0x37ABE8F9
    for character in _characters(name, signed=signed):
        value = second + (first ^ (character * 7152373 & _MASK)) & _MASK
        if value & 0x80000000:
            value = value - 0x7FFFFFFF & _MASK
        first, second = value, first
    return first << 1 & _MASK


def _words(name: bytes, count: int, *, signed: bool) -> list[int]:
    """Pack a name into words, padded with its length (``str2hashbuf``)."""
    pad = len(name) | len(name) << 8
    pad = (pad | pad << 16) & _MASK
    words: list[int] = []
    value = pad
    for index, character in enumerate(_characters(name[: count * 4], signed=signed)):
        value = character + (value << 8) & _MASK
        if index % 4 == 3:  # noqa: PLR2004
            words.append(value)
            value = pad
    if len(words) < count:
        words.append(value)
    return words + [pad] * (count - len(words))


def _rotate(value: int, count: int) -> int:
    value &= _MASK
    return (value << count | value >> (32 - count)) & _MASK


_Mix = Callable[[int, int, int], int]
#: Function, constant, order of the words, and rotations of each round.
_ROUNDS: Final[tuple[tuple[_Mix, int, tuple[int, ...], tuple[int, ...]], ...]] = (
    (lambda x, y, z: z ^ x & (y ^ z), 0, (0, 1, 2, 3, 4, 5, 6, 7), (3, 7, 11, 19)),
    (
        lambda x, y, z: (x & y) + ((x ^ y) & z),
        0x5A827999,
        (1, 3, 5, 7, 0, 2, 4, 6),
        (3, 5, 9, 13),
    ),
    (lambda x, y, z: x ^ y ^ z, 0x6ED9EBA1, (3, 7, 2, 6, 1, 5, 0, 4), (3, 9, 11, 15)),
)


def _half_md4(buffer: list[int], words: list[int]) -> None:
    a, b, c, d = buffer
    for mix, constant, order, rotations in _ROUNDS:
        for index, word in enumerate(order):
            value = a + mix(b, c, d) + words[word] + constant
            a, b, c, d = d, _rotate(value, rotations[index % 4]), b, c
    for place, value in enumerate((a, b, c, d)):
        buffer[place] = buffer[place] + value & _MASK


def _tea(buffer: list[int], words: list[int]) -> None:
    first, second = buffer[:2]
    a, b, c, d = words
    total = 0
    for _ in range(16):
        total = total + _DELTA & _MASK
        first += ((second << 4) + a) ^ (second + total) ^ ((second >> 5) + b)
        first &= _MASK
        second += ((first << 4) + c) ^ (first + total) ^ ((first >> 5) + d)
        second &= _MASK
    buffer[0], buffer[1] = buffer[0] + first & _MASK, buffer[1] + second & _MASK


def nokey_name(ciphertext: bytes, hashes: tuple[int, int]) -> bytes:
    """Return the kernel's name for an entry of an encrypted directory without its key."""
    raw = struct.pack("<II", *hashes) + ciphertext[:_WHOLE]
    if len(ciphertext) > _WHOLE:
        raw += sha256(ciphertext[_WHOLE:]).digest()
    return urlsafe_b64encode(raw).rstrip(b"=")
