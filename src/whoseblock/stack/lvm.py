"""LVM2 physical volumes, and what their metadata says of the volume group.

``struct label_header`` and ``struct pv_header`` in lvm2's lib/label/label.h and
lib/format_text/layout.h, ``struct mda_header`` there too; the text as `lvm_text` reads it.
"""

import zlib
from collections.abc import Iterator
from itertools import pairwise
from struct import Struct
from typing import Final, NamedTuple

from whoseblock.errors import BlockError
from whoseblock.media.base import Media
from whoseblock.stack.lvm_text import Section, Value, parse_text

__all__ = [
    "LogicalVolume",
    "LvSegment",
    "PhysicalVolume",
    "PvOfGroup",
    "VolumeGroup",
    "read_physical_volume",
]

_SECTOR: Final = 512
#: The label is in one of the first sectors (LABEL_SCAN_SECTORS).
_LABEL_SECTORS: Final = 4
#: id, sector, CRC, offset of the header behind it, type
_LABEL: Final = Struct("<8sQII8s")
_LABEL_ID, _LABEL_TYPE = b"LABELONE", b"LVM2 001"
_LABEL_CRC_FROM: Final = 20
_PV: Final = Struct("<32sQ")
_AREA: Final = Struct("<QQ")
_MOST_AREAS: Final = 16

#: CRC, magic, version, start, size; then places of texts: offset, size, CRC, flags.
_MDA: Final = Struct("<I16sIQQ")
_MDA_MAGIC: Final = b" LVM2 x[5A%r0N*>"
_MDA_SIZE: Final = 512
_PLACE: Final = Struct("<QQII")
_IGNORED: Final = 1
#: LVM itself stops at 4 GiB; a text of a thousand volumes has half a megabyte.
_MOST_TEXT: Final = 64 << 20

_INITIAL_CRC: Final = 0xF597A6CF


class PvOfGroup(NamedTuple):
    """A physical volume of a group: extent 0 is at byte ``start`` of it."""

    name: str
    uuid: str
    start: int
    extents: int


class LvSegment(NamedTuple):
    """``extents`` extents of a volume from ``first`` on.

    ``stripes`` are pairs of a name and the first extent on it: of a physical volume, or for kinds
    other than ``striped`` of another logical volume.  ``stripe_size`` is bytes.
    """

    first: int
    extents: int
    kind: str
    stripe_size: int
    stripes: tuple[tuple[str, int], ...]


class LogicalVolume(NamedTuple):
    """A logical volume; one that is not ``visible`` is a part of another."""

    name: str
    visible: bool
    segments: tuple[LvSegment, ...]


class VolumeGroup(NamedTuple):
    """What a volume group's metadata says; the highest ``seqno`` is the newest."""

    name: str
    uuid: str
    seqno: int
    extent_size: int
    volumes: tuple[PvOfGroup, ...]
    logical: tuple[LogicalVolume, ...]


class PhysicalVolume(NamedTuple):
    """A physical volume: its UUID, its metadata if it has any, and where that lies.

    ``areas`` are the start and length of the metadata areas.  ``faults`` say what is wrong with
    metadata that could not be read.
    """

    uuid: str
    group: VolumeGroup | None
    areas: tuple[tuple[int, int], ...]
    faults: tuple[str, ...]


def _crc(data: bytes) -> int:
    """Checksum as LVM does: CRC-32 with its own start, and no inversion at either end."""
    return zlib.crc32(data, _INITIAL_CRC ^ 0xFFFFFFFF) ^ 0xFFFFFFFF


def read_physical_volume(media: Media) -> PhysicalVolume | None:
    """Read the label of a physical volume and its metadata; None if there is no label."""
    for sector in range(_LABEL_SECTORS):
        try:
            raw = media.pread(sector * _SECTOR, _SECTOR)
        except BlockError:
            continue
        if raw[:8] == _LABEL_ID and (found := _parse_label(raw, sector)):
            return _with_metadata(media, *found)
    return None


def _parse_label(raw: bytes, sector: int) -> tuple[str, tuple[tuple[int, int], ...]] | None:
    """Give the UUID and the metadata areas that a label names; None if it does not verify."""
    _, own, crc, offset, kind = _LABEL.unpack_from(raw)
    if own != sector or kind != _LABEL_TYPE or crc != _crc(raw[_LABEL_CRC_FROM:]):
        return None
    if not _LABEL.size <= offset <= _SECTOR - _PV.size:
        return None
    uuid, _ = _PV.unpack_from(raw, offset)
    lists: list[list[tuple[int, int]]] = [[], []]
    at = offset + _PV.size
    # Two lists, each ended by an area of nothing: data, then metadata.
    for areas in lists:
        while at + _AREA.size <= _SECTOR and len(areas) < _MOST_AREAS:
            area = _AREA.unpack_from(raw, at)
            at += _AREA.size
            if not any(area):
                break
            areas.append(area)
    return _uuid(uuid.decode("ascii", "replace")), tuple(lists[1])


def _uuid(text: str) -> str:
    """Write a UUID with the dashes that LVM's text has."""
    edges = (0, 6, 10, 14, 18, 22, 26, 32)
    return "-".join(text[start:end] for start, end in pairwise(edges))


def _with_metadata(media: Media, uuid: str, areas: tuple[tuple[int, int], ...]) -> PhysicalVolume:
    groups = []
    faults = []
    for start, size in areas:
        try:
            group = _read_area(media, start, size)
        except (BlockError, ValueError, KeyError, TypeError) as error:
            faults.append(f"LVM's metadata at byte {start} cannot be read: {error}")
            continue
        if group is not None:
            groups.append(group)
    newest = max(groups, key=lambda group: group.seqno, default=None)
    return PhysicalVolume(uuid, newest, areas, tuple(faults))


def _read_area(media: Media, start: int, size: int) -> VolumeGroup | None:
    """Read the newest text of a metadata area; None if it holds none.

    Raises `BlockError`, or ValueError, KeyError or TypeError for what makes no sense.
    """
    raw = media.pread(start, _MDA_SIZE)
    crc, magic, version, own, length = _MDA.unpack_from(raw)
    if magic != _MDA_MAGIC or version != 1 or own != start or length != size:
        raise ValueError("it does not begin as it should")
    if crc != _crc(raw[4:]):
        raise ValueError("its checksum is wrong")
    offset, text_size, text_crc, flags = _PLACE.unpack_from(raw, _MDA.size)
    if not offset or flags & _IGNORED:
        return None
    if not _MDA_SIZE <= offset < size or not 0 < text_size <= min(size - _MDA_SIZE, _MOST_TEXT):
        raise ValueError("its text is not within it")
    # The texts follow one another in a ring behind the header.
    before_end = min(text_size, size - offset)
    text = media.pread(start + offset, before_end)
    if before_end < text_size:
        text += media.pread(start + _MDA_SIZE, text_size - before_end)
    if _crc(text) != text_crc:
        raise ValueError("the checksum of its text is wrong")
    return _group(parse_text(text.rstrip(b"\0").decode("utf-8", "replace")))


# ------------------------------------------------------------------ from text to records


def _group(text: Section) -> VolumeGroup:
    for name, section in text.items():
        if isinstance(section, dict):
            extent_size = _number(section["extent_size"]) * _SECTOR
            if extent_size <= 0:
                raise ValueError("extents of no size")
            return VolumeGroup(
                name,
                _text(section["id"]),
                _number(section["seqno"]),
                extent_size,
                tuple(_physical(*one) for one in _sections(section, "physical_volumes")),
                tuple(_logical(*one) for one in _sections(section, "logical_volumes")),
            )
    raise ValueError("it names no volume group")


def _sections(section: Section, name: str) -> Iterator[tuple[str, Section]]:
    inside = section.get(name, {})
    if not isinstance(inside, dict):
        raise TypeError(f"{name} is no section")
    for key, value in inside.items():
        if isinstance(value, dict):
            yield key, value


def _number(value: Value | Section) -> int:
    if not isinstance(value, int):
        raise TypeError(f"{value!r} is no number")
    return value


def _text(value: Value | Section) -> str:
    if not isinstance(value, str):
        raise TypeError(f"{value!r} is no text")
    return value


def _physical(name: str, section: Section) -> PvOfGroup:
    start, extents = _number(section["pe_start"]) * _SECTOR, _number(section["pe_count"])
    return PvOfGroup(name, _text(section["id"]), start, extents)


def _logical(name: str, section: Section) -> LogicalVolume:
    status = section.get("status", [])
    visible = "VISIBLE" in status if isinstance(status, list) else True
    segments = [
        _segment(one)
        for key, one in section.items()
        if key.startswith("segment") and isinstance(one, dict)
    ]
    return LogicalVolume(name, visible, tuple(sorted(segments)))


#: Where kinds of segments name the volumes that they are made of.
_PARTS: Final = ("stripes", "mirrors", "raids", "raid0_lvs")
_PART_NAMES: Final = (
    "thin_pool", "metadata", "pool", "origin", "cow_store", "cache_pool", "data", "merging_store",
    "writecache", "external_origin", "integrity_meta_dev", "vdo_pool", "cachevol", "cache_lv",
)  # fmt: skip


def _segment(section: Section) -> LvSegment:
    first, extents = _number(section["start_extent"]), _number(section["extent_count"])
    if first < 0 or extents <= 0:
        raise ValueError("a segment of no extents")
    stripes: list[tuple[str, int]] = []
    for key in _PARTS:
        parts = section.get(key, [])
        if isinstance(parts, list):
            # Pairs of a name and an extent; raids have names of two volumes each.
            for name, after in pairwise([*parts, 0]):
                if isinstance(name, str):
                    stripes.append((name, after if isinstance(after, int) else 0))
    named = (section.get(key) for key in _PART_NAMES)
    stripes += [(name, 0) for name in named if isinstance(name, str)]
    stripe_size = section.get("stripe_size", 0)
    size = stripe_size * _SECTOR if isinstance(stripe_size, int) else 0
    return LvSegment(first, extents, _text(section["type"]), size, tuple(stripes))
