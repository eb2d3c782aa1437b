"""Parse LVM2 physical volumes and the metadata of their volume group.

``struct label_header`` and ``struct pv_header`` are defined in lvm2's lib/label/label.h and
lib/format_text/layout.h, ``struct mda_header`` in the latter. `lvm_text` parses the text.
"""

import re
import zlib
from collections.abc import Iterator
from itertools import pairwise
from struct import Struct
from typing import Final, NamedTuple

from whoseblock.errors import BlockError
from whoseblock.media.base import Media
from whoseblock.stack.formats.lvm_text import Section, Value, parse_text

__all__ = [
    "LogicalVolume",
    "LostMetadata",
    "LvSegment",
    "PhysicalVolume",
    "PhysicalVolumeEntry",
    "VolumeGroup",
    "read_physical_volume",
]

_SECTOR: Final = 512
#: The label is in one of the first sectors (LABEL_SCAN_SECTORS).
_LABEL_SECTORS: Final = 4
#: id, sector, CRC, offset of the header after it, type
_LABEL: Final = Struct("<8sQII8s")
_LABEL_ID, _LABEL_TYPE = b"LABELONE", b"LVM2 001"
_LABEL_CRC_FROM: Final = 20
_PV: Final = Struct("<32sQ")
_AREA: Final = Struct("<QQ")
#: version and flags of ``struct pv_header_extension``; flags are set from version 2 on.
_EXTENSION: Final = Struct("<II")
_FLAGS_SINCE, _USED = 2, 1
_MAX_AREAS: Final = 16

#: CRC, magic, version, start, size; then locations of texts: offset, size, CRC, flags.
_MDA: Final = Struct("<I16sIQQ")
_MDA_MAGIC: Final = b" LVM2 x[5A%r0N*>"
_MDA_SIZE: Final = 512
_TEXT_LOCATION: Final = Struct("<QQII")
_IGNORED: Final = 1
#: LVM's own limit is 4 GiB; the text of a thousand volumes has half a megabyte.
_MAX_TEXT: Final = 64 << 20

_INITIAL_CRC: Final = 0xF597A6CF


class PhysicalVolumeEntry(NamedTuple):
    """A physical volume in a group's metadata; extent 0 is at its byte ``start``."""

    name: str
    uuid: str
    start: int
    extents: int


class LvSegment(NamedTuple):
    """``extents`` extents of a logical volume, from extent ``first`` on.

    ``stripes`` are pairs of a name and the first extent on it. The name is that of a physical
    volume or of a logical volume. ``stripe_size`` is in bytes. ``moved`` are the extents that an
    unfinished pvmove has copied.
    """

    first: int
    extents: int
    kind: str
    stripe_size: int
    stripes: tuple[tuple[str, int], ...]
    moved: int = 0


class LogicalVolume(NamedTuple):
    """A logical volume; one that is not ``visible`` is a part of another one.

    The segments of one that ``is_move`` have the old and the new places of an unfinished pvmove.
    """

    name: str
    visible: bool
    segments: tuple[LvSegment, ...]
    is_move: bool = False


class VolumeGroup(NamedTuple):
    """The metadata of a volume group; the copy with the highest ``seqno`` is valid."""

    name: str
    uuid: str
    seqno: int
    extent_size: int
    volumes: tuple[PhysicalVolumeEntry, ...]
    logical: tuple[LogicalVolume, ...]


class LostMetadata(NamedTuple):
    """A copy of the metadata that could not be read.

    ``seqno`` is its number, None if that is lost, too.
    """

    what: str
    seqno: int | None


class PhysicalVolume(NamedTuple):
    """A physical volume, with the newest metadata of its group, None if there are none.

    ``areas`` are the (start, length) of the metadata areas, and ``lost`` those that could not be
    read. ``in_group`` is whether the label says that a volume group uses it, None if it does not
    say.
    """

    uuid: str
    group: VolumeGroup | None
    areas: tuple[tuple[int, int], ...]
    lost: tuple[LostMetadata, ...]
    in_group: bool | None


def _crc(data: bytes) -> int:
    """Return LVM's checksum: CRC-32 with its own start value and without inversion."""
    return zlib.crc32(data, _INITIAL_CRC ^ 0xFFFFFFFF) ^ 0xFFFFFFFF


def read_physical_volume(media: Media) -> PhysicalVolume | None:
    """Read the label of a physical volume and its metadata; return None without a label."""
    for sector in range(_LABEL_SECTORS):
        try:
            raw = media.pread(sector * _SECTOR, _SECTOR)
        except BlockError:
            continue
        if raw[:8] == _LABEL_ID and (found := _parse_label(raw, sector)):
            return _read_metadata(media, found)
    return None


class _Label(NamedTuple):
    """The content of a label; fields as in a `PhysicalVolume`."""

    uuid: str
    areas: tuple[tuple[int, int], ...]
    in_group: bool | None


def _parse_label(raw: bytes, sector: int) -> _Label | None:
    """Return the content of a label, None if it is invalid."""
    _, own, crc, offset, kind = _LABEL.unpack_from(raw)
    if own != sector or kind != _LABEL_TYPE or crc != _crc(raw[_LABEL_CRC_FROM:]):
        return None
    if not _LABEL.size <= offset <= _SECTOR - _PV.size:
        return None
    uuid, _ = _PV.unpack_from(raw, offset)
    lists: list[list[tuple[int, int]]] = [[], []]
    at = offset + _PV.size
    # Two lists, data and metadata, each ended by an empty area.
    for areas in lists:
        while at + _AREA.size <= _SECTOR and len(areas) < _MAX_AREAS:
            area = _AREA.unpack_from(raw, at)
            at += _AREA.size
            if not any(area):
                break
            areas.append(area)
    in_group = None
    if at + _EXTENSION.size <= _SECTOR:
        version, flags = _EXTENSION.unpack_from(raw, at)
        in_group = bool(flags & _USED) if version >= _FLAGS_SINCE else None
    return _Label(_format_uuid(uuid.decode("ascii", "replace")), tuple(lists[1]), in_group)


def _format_uuid(text: str) -> str:
    """Return a UUID with the dashes of LVM's text."""
    edges = (0, 6, 10, 14, 18, 22, 26, 32)
    return "-".join(text[start:end] for start, end in pairwise(edges))


#: The number in a text of which other parts are damaged.
_SEQNO: Final = re.compile(rb"\n\s*seqno = ([0-9]{1,18})\n")


def _read_metadata(media: Media, label: _Label) -> PhysicalVolume:
    groups = []
    lost = []
    for start, size in label.areas:
        text = b""
        try:
            text, crc = _read_area(media, start, size)
            if text:
                _check_crc(text, crc)
                groups.append(_parse_group(text))
        except (BlockError, ValueError, KeyError, TypeError) as error:
            seqno = _SEQNO.search(text)
            what = f"cannot read LVM metadata at byte {start}: {error}"
            lost.append(LostMetadata(what, int(seqno[1]) if seqno else None))
    newest = max(groups, key=lambda group: group.seqno, default=None)
    return PhysicalVolume(label.uuid, newest, label.areas, tuple(lost), label.in_group)


def _check_crc(text: bytes, crc: int) -> None:
    if _crc(text) != crc:
        raise ValueError("wrong text checksum")


def _read_area(media: Media, start: int, size: int) -> tuple[bytes, int]:
    """Read the newest text of a metadata area, and its checksum; the text is b"" if there is none.

    Raises `BlockError`, or ValueError for an invalid header.
    """
    raw = media.pread(start, _MDA_SIZE)
    crc, magic, version, own, length = _MDA.unpack_from(raw)
    if magic != _MDA_MAGIC or version != 1 or own != start or length != size:
        raise ValueError("invalid header")
    if crc != _crc(raw[4:]):
        raise ValueError("wrong header checksum")
    offset, text_size, text_crc, flags = _TEXT_LOCATION.unpack_from(raw, _MDA.size)
    if not offset or flags & _IGNORED:
        return b"", 0
    if not _MDA_SIZE <= offset < size or not 0 < text_size <= min(size - _MDA_SIZE, _MAX_TEXT):
        raise ValueError("the text is outside of the area")
    # The texts form a ring buffer after the header.
    before_end = min(text_size, size - offset)
    text = media.pread(start + offset, before_end)
    if before_end < text_size:
        text += media.pread(start + _MDA_SIZE, text_size - before_end)
    return text, text_crc


# ------------------------------------------------------------------ from text to records


def _parse_group(text: bytes) -> VolumeGroup:
    parsed = parse_text(text.rstrip(b"\0").decode("utf-8", "replace"))
    for name, section in parsed.items():
        if isinstance(section, dict):
            extent_size = _require_number(section["extent_size"]) * _SECTOR
            if extent_size <= 0:
                raise ValueError("extent size is not positive")
            return VolumeGroup(
                name,
                _require_string(section["id"]),
                _require_number(section["seqno"]),
                extent_size,
                tuple(_parse_physical(*one) for one in _subsections(section, "physical_volumes")),
                tuple(_parse_logical(*one) for one in _subsections(section, "logical_volumes")),
            )
    raise ValueError("no volume group")


def _subsections(section: Section, name: str) -> Iterator[tuple[str, Section]]:
    inside = section.get(name, {})
    if not isinstance(inside, dict):
        raise TypeError(f"{name} is not a section")
    for key, value in inside.items():
        if isinstance(value, dict):
            yield key, value


def _require_number(value: Value | Section) -> int:
    if not isinstance(value, int):
        raise TypeError(f"{value!r} is not a number")
    return value


def _require_string(value: Value | Section) -> str:
    if not isinstance(value, str):
        raise TypeError(f"{value!r} is not a string")
    return value


def _parse_physical(name: str, section: Section) -> PhysicalVolumeEntry:
    start, extents = (
        _require_number(section["pe_start"]) * _SECTOR,
        _require_number(section["pe_count"]),
    )
    return PhysicalVolumeEntry(name, _require_string(section["id"]), start, extents)


def _parse_logical(name: str, section: Section) -> LogicalVolume:
    status = section.get("status", [])
    known = status if isinstance(status, list) else ["VISIBLE"]
    segments = [
        _parse_segment(one)
        for key, one in section.items()
        if key.startswith("segment") and isinstance(one, dict)
    ]
    ordered = tuple(sorted(segments, key=lambda segment: segment.first))
    return LogicalVolume(name, "VISIBLE" in known, ordered, "PVMOVE" in known)


#: The keys under which the kinds of segments name the volumes that they are made of.
_STRIPE_KEYS: Final = ("stripes", "mirrors", "raids", "raid0_lvs")
_VOLUME_KEYS: Final = (
    "thin_pool", "metadata", "pool", "origin", "cow_store", "cache_pool", "data", "merging_store",
    "writecache", "external_origin", "integrity_meta_dev", "vdo_pool", "cachevol", "cache_lv",
)  # fmt: skip


def _parse_segment(section: Section) -> LvSegment:
    first, extents = (
        _require_number(section["start_extent"]),
        _require_number(section["extent_count"]),
    )
    if first < 0 or extents <= 0:
        raise ValueError("a segment without extents")
    stripes: list[tuple[str, int]] = []
    for key in _STRIPE_KEYS:
        parts = section.get(key, [])
        if isinstance(parts, list):
            # Pairs of a name and an extent; RAID segments have the names of two volumes each.
            for name, after in pairwise([*parts, 0]):
                if isinstance(name, str):
                    stripes.append((name, max(after, 0) if isinstance(after, int) else 0))
    named = (section.get(key) for key in _VOLUME_KEYS)
    stripes += [(name, 0) for name in named if isinstance(name, str)]
    stripe_size = section.get("stripe_size", 0)
    size = stripe_size * _SECTOR if isinstance(stripe_size, int) else 0
    kind = _require_string(section["type"])
    if "merging_store" in section:
        # The origin already has the content of the snapshot, which is being copied into it.
        kind = f"merging {kind}"
    moved = section.get("extents_moved", 0)
    done = moved if isinstance(moved, int) else 0
    return LvSegment(first, extents, kind, size, tuple(stripes), done)
