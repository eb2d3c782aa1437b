"""Parse the headers of LUKS1 and LUKS2, the formats of encrypted devices.

Sources: "LUKS1 On-Disk Format Specification", version 1.2.3, and "LUKS2 On-Disk Format
Specification", version 1.1.1. Only what says where the encrypted data is becomes a record; no key
is read.
"""

import hashlib
import json
from struct import Struct
from typing import Any, Final, NamedTuple

from whoseblock.errors import BlockError
from whoseblock.media.base import Media

__all__ = ["LuksHeader", "read_luks_header"]

_SECTOR: Final = 512
_MAGIC: Final = b"LUKS\xba\xbe"
_SECOND_MAGIC: Final = b"SKUL\xba\xbe"
#: Magic number and version of both formats.
_PREFIX: Final = Struct(">6sH")
#: LUKS1: cipher, its mode, hash, first sector of the data, bytes of the key.
_LUKS1: Final = Struct(">8x32s32s32sII")
#: LUKS2: size with the JSON, sequence number, label, checksum's hash, salt, UUID, own offset.
_LUKS2: Final = Struct(">8xQQ48s32s64s40s48xQ")
_LUKS2_BYTES: Final = 4096
_CHECKSUM: Final = slice(448, 512)
#: The permitted sizes of a header of LUKS2, after which the second one begins.
_SIZES: Final = tuple(0x4000 << shift for shift in range(9))
#: The hashes that cryptsetup accepts for the checksum, by Python's names.
_HASHES: Final = {"sha1", "sha256", "sha512", "sha224", "sha384"}
_MAX_DIGITS: Final = 19


class LuksHeader(NamedTuple):
    """A header; offsets and sizes are bytes of the encrypted device.

    ``start`` is where the encrypted data begins, and ``size`` its length, None up to the end of the
    device. A byte there is at the same distance in the opened volume. ``sector`` is the unit of
    encryption. ``unsupported`` is the reason why this is not so, or is not known, else "".
    """

    version: int
    cipher: str
    start: int
    size: int | None
    sector: int
    unsupported: str = ""


def read_luks_header(media: Media) -> LuksHeader | None:
    """Read the header of an encrypted device; return None if none begins there.

    Of two headers of LUKS2 that verify, the one with the larger sequence number counts. The second
    one alone may be a leftover, and does not.
    """
    head = _read_or_empty(media, 0, _LUKS2_BYTES)
    if not head.startswith(_MAGIC):
        return None
    _, version = _PREFIX.unpack_from(head)
    if version == 1:
        return _parse_luks1(head)
    if version != 2:  # noqa: PLR2004 - the other version that there is
        return LuksHeader(version, "", 0, None, _SECTOR, "its version is unknown")
    found = [one for size in (0, *_SIZES) if (one := _read_luks2(media, size)) is not None]
    if not found:
        return LuksHeader(2, "", 0, None, _SECTOR, "its header does not verify")
    _, text = max(found, key=lambda one: one[0])
    return _parse_segments(text)


def _read_or_empty(media: Media, start: int, size: int) -> bytes:
    if start + size > media.size:
        return b""
    try:
        return media.pread(start, size)
    except BlockError:
        return b""


def _parse_luks1(head: bytes) -> LuksHeader:
    name, mode, _, first, _ = _LUKS1.unpack_from(head)
    cipher = f"{_text(name)}-{_text(mode)}"
    unsupported = "" if first else "its data is on another device"
    return LuksHeader(1, cipher, first * _SECTOR, None, _SECTOR, unsupported)


def _text(field: bytes) -> str:
    return field.partition(b"\0")[0].decode("ascii", "replace")


def _read_luks2(media: Media, start: int) -> tuple[int, bytes] | None:
    """Return the sequence number and the JSON of the header at ``start``, None if it is invalid."""
    head = _read_or_empty(media, start, _LUKS2_BYTES)
    if head[:6] != (_SECOND_MAGIC if start else _MAGIC):
        return None
    size, sequence, _, algorithm, _, _, own = _LUKS2.unpack_from(head)
    if own != start or size not in _SIZES or start not in (0, size):
        return None
    area = bytearray(_read_or_empty(media, start, size))
    name = _text(algorithm)
    if not area or name not in _HASHES:
        return None
    checksum = bytes(area[_CHECKSUM])
    area[_CHECKSUM] = bytes(len(checksum))
    digest = hashlib.new(name, area, usedforsecurity=False).digest()
    if checksum[: len(digest)] != digest:
        return None
    return sequence, bytes(area[_LUKS2_BYTES:]).partition(b"\0")[0]


def _parse_segments(text: bytes) -> LuksHeader:
    """Read the segments of data in the JSON of a header."""
    try:
        segments = json.loads(text)["segments"]
        kinds = [segments[number]["type"] for number in segments]
    except (ValueError, KeyError, TypeError, RecursionError):
        return LuksHeader(2, "", 0, None, _SECTOR, "its list of segments is invalid")
    if kinds != ["crypt"] or "0" not in segments:
        # During reencryption there are several, or some are not encrypted yet.
        return LuksHeader(2, "", 0, None, _SECTOR, "it is being encrypted anew")
    return _parse_segment(segments["0"])


def _parse_segment(segment: dict[str, Any]) -> LuksHeader:
    cipher = segment.get("encryption")
    start, size = _number(segment.get("offset")), segment.get("size")
    sector = segment.get("sector_size")
    length = None if size == "dynamic" else _number(size)
    if (
        not isinstance(cipher, str)
        or not isinstance(sector, int)
        or sector not in (512, 1024, 2048, 4096)
        or start is None
        or (length is None and size != "dynamic")
    ):
        return LuksHeader(2, "", 0, None, _SECTOR, "its list of segments is invalid")
    unsupported = ""
    if "integrity" in segment:
        unsupported = "it has checksums between its sectors (dm-integrity)"
    elif not start:
        unsupported = "its data is on another device"
    return LuksHeader(2, cipher, start, length, sector, unsupported)


def _number(value: object) -> int | None:
    """Return a decimal number, which JSON has as a string; None if it is none, or no sector."""
    if not isinstance(value, str) or not value.isascii() or not value.isdecimal():
        return None
    if len(value) > _MAX_DIGITS or int(value) % _SECTOR:
        return None
    return int(value)
