"""Partition tables: GPT with its backup, and MBR with logical partitions.

GPT as in the UEFI specification 2.10, chapter 5; MBR as there in 5.2, its chain of extended boot
records as Linux reads it (block/partitions/msdos.c).  Nothing is believed that does not verify: a
GPT by its two checksums, an MBR, which has none, by its entries all making sense.
"""

import zlib
from collections.abc import Iterator
from itertools import pairwise
from struct import Struct
from typing import Final, NamedTuple
from uuid import UUID

from whoseblock.errors import BlockError
from whoseblock.media.base import Media
from whoseblock.ranges import ByteRange, subtract

__all__ = ["Partition", "Structure", "Table", "read_partitions"]

_SECTOR_SIZES: Final = (512, 4096)

_MBR_SIGNATURE: Final = b"\x55\xaa"
_MBR_ENTRIES_AT, _MBR_ENTRY_SIZE, _MBR_ENTRIES = 446, 16, 4
#: boot flag, CHS, type, CHS, first sector, sectors
_MBR_ENTRY: Final = Struct("<B3xB3xII")
_PROTECTIVE: Final = 0xEE
_EXTENDED: Final = frozenset({0x05, 0x0F, 0x85})
#: Linux stops at 256 partitions of a disk (DISK_MAX_PARTS).
_MAX_LOGICAL: Final = 252
_FIRST_LOGICAL: Final = 5

_GPT_SIGNATURE: Final = b"EFI PART"
#: signature, revision, header size, header CRC, reserved, my LBA, alternate LBA, first usable,
#: last usable, disk GUID, entries LBA, number of entries, size of an entry, CRC of the entries
_GPT_HEADER: Final = Struct("<8sIIIIQQQQ16sQIII")
_GPT_CRC_AT: Final = 16
_MIN_HEADER, _MAX_HEADER = 92, 512
#: type GUID, unique GUID, first LBA, last LBA, attributes, name in UTF-16
_GPT_ENTRY: Final = Struct("<16s16sQQQ72s")
_MIN_ENTRY_SIZE, _MAX_ENTRY_SIZE = 128, 4096
_MAX_ENTRIES: Final = 16 * 1024
_UNUSED: Final = bytes(16)

#: What begins a FAT, an exFAT or an NTFS filesystem: its boot sector ends like an MBR.
_BOOT_SECTORS: Final = ((3, b"NTFS    "), (3, b"EXFAT   "), (54, b"FAT"), (82, b"FAT32"))


class Partition(NamedTuple):
    """One partition; ``start`` and ``length`` are bytes of the disk, ``type`` a GUID or ``0x83``.

    ``name`` is the label that a GPT gives it.
    """

    number: int
    start: int
    length: int
    type: str
    name: str = ""


class Structure(NamedTuple):
    """A part of the disk that is no partition: ``length`` bytes from byte ``start``.

    Not ``certain``: partitions may be there, but the record that would name them is lost.
    """

    start: int
    length: int
    what: str
    certain: bool = True


class Table(NamedTuple):
    """A partition table that verified; ``kind`` is ``gpt`` or ``mbr``.

    ``doubts`` say why it may be another's all the same.
    """

    kind: str
    partitions: tuple[Partition, ...]
    structures: tuple[Structure, ...]
    notes: tuple[str, ...] = ()
    doubts: tuple[str, ...] = ()


def read_partitions(media: Media) -> Table | None:
    """Read the partition table of a disk; None if there is none that can be believed."""
    for sector in _SECTOR_SIZES:
        if table := _read_gpt(media, sector):
            return table
    return _read_mbr(media)


def _try_read(media: Media, start: int, length: int) -> bytes:
    """Read, giving "" for what cannot be had."""
    if start < 0 or length <= 0 or start + length > media.size:
        return b""
    try:
        return media.pread(start, length)
    except BlockError:
        return b""


# ------------------------------------------------------------------ GPT


class _Header(NamedTuple):
    """A GPT header that verified, with its entries; LBAs count ``sector`` bytes."""

    at: int
    sector: int
    other: int
    entries_at: int
    entries: bytes
    entry_size: int


def _read_header(  # noqa: PLR0911 - one for each thing that may be wrong
    media: Media, lba: int, sector: int
) -> _Header | None:
    """Read a header and its entries; None unless both checksums and its own place are right."""
    raw = _try_read(media, lba * sector, sector)
    if raw[:8] != _GPT_SIGNATURE:
        return None
    fields = _GPT_HEADER.unpack_from(raw)
    _, _, size, crc, _, own, other, _, _, _, entries_lba, count, entry_size, entries_crc = fields
    if not _MIN_HEADER <= size <= min(_MAX_HEADER, sector) or own != lba:
        return None
    if zlib.crc32(raw[:_GPT_CRC_AT] + bytes(4) + raw[_GPT_CRC_AT + 4 : size]) != crc:
        return None
    # The specification allows 128 times any power of two.
    if not _MIN_ENTRY_SIZE <= entry_size <= _MAX_ENTRY_SIZE or entry_size & (entry_size - 1):
        return None
    if not 0 < count <= _MAX_ENTRIES:
        return None
    entries = _try_read(media, entries_lba * sector, count * entry_size)
    if not entries or zlib.crc32(entries) != entries_crc:
        return None
    return _Header(lba, sector, other, entries_lba, entries, entry_size)


def _read_gpt(media: Media, sector: int) -> Table | None:
    last = media.size // sector - 1
    primary = _read_header(media, 1, sector)
    # Where the primary says, or at the end of the disk.
    backup = _read_header(media, primary.other if primary else last, sector)
    header = primary or backup
    if header is None:
        return None
    # A disk that was put to another use later may keep its old backup at the end.
    head = _try_read(media, 0, 512)
    if primary is None and any(head) and not _is_protective(head):
        return None
    doubts = []
    if primary is None and not any(head):
        doubts.append(
            "its first sector and its primary GPT are lost, or never were: if the backup GPT is a"
            " leftover, its partitions are not there"
        )
    notes = []
    if primary is None:
        notes.append("its primary GPT does not verify: the backup is used")
    elif backup is None:
        notes.append("its backup GPT does not verify")
    elif backup.entries != primary.entries:
        notes.append("its backup GPT says otherwise than the primary, which is used")
    partitions = tuple(_gpt_partitions(header))
    structures = [Structure(0, 512, "protective MBR")]
    for found, word in ((primary, "primary GPT"), (backup, "backup GPT")):
        if found is not None:
            structures.append(Structure(found.at * sector, sector, f"{word} header"))
            at = found.entries_at * sector
            structures.append(Structure(at, len(found.entries), f"{word} entries"))
    return Table("gpt", partitions, tuple(structures), tuple(notes), tuple(doubts))


def _is_protective(raw: bytes) -> bool:
    """Tell whether an MBR says that there is a GPT."""
    return raw[510:512] == _MBR_SIGNATURE and any(
        entry.type == _PROTECTIVE for entry in _mbr_entries(raw)
    )


def _gpt_partitions(header: _Header) -> Iterator[Partition]:
    for index in range(len(header.entries) // header.entry_size):
        raw = _GPT_ENTRY.unpack_from(header.entries, index * header.entry_size)
        kind, _, first, last, _, name = raw
        if kind == _UNUSED or last < first:
            continue
        start, length = first * header.sector, (last - first + 1) * header.sector
        label = name.decode("utf-16-le", "replace").partition("\0")[0]
        yield Partition(index + 1, start, length, str(UUID(bytes_le=kind)), label)


# ------------------------------------------------------------------ MBR


class _Entry(NamedTuple):
    """An entry of an MBR or of an extended boot record; in sectors."""

    boot: int
    type: int
    first: int
    sectors: int


def _mbr_entries(raw: bytes) -> list[_Entry]:
    places = range(_MBR_ENTRIES_AT, _MBR_ENTRIES_AT + _MBR_ENTRIES * _MBR_ENTRY_SIZE, 16)
    return [_Entry(*_MBR_ENTRY.unpack_from(raw, place)) for place in places]


def _read_mbr(media: Media) -> Table | None:  # noqa: PLR0911 - as above
    raw = _try_read(media, 0, 512)
    if raw[510:512] != _MBR_SIGNATURE:
        return None
    if any(raw[at : at + len(magic)] == magic for at, magic in _BOOT_SECTORS):
        return None
    # Linux takes the numbers for the disk's logical sectors; an image does not say their size.
    sector = 512
    entries = _mbr_entries(raw)
    if any(entry.boot not in (0, 0x80) for entry in entries):
        return None
    used = [(number, entry) for number, entry in enumerate(entries, 1) if entry.type]
    if not used or any(entry.type == _PROTECTIVE for _, entry in used):
        return None
    places = sorted((entry.first, entry.first + entry.sectors) for _, entry in used)
    if any(entry.sectors == 0 or entry.first == 0 for _, entry in used):
        return None
    if places[-1][1] * sector > media.size or _overlap(places):
        return None
    chain = _Chain(media, sector)
    for number, entry in used:
        if entry.type in _EXTENDED:
            chain.follow(entry)
        else:
            chain.partitions.append(_mbr_partition(number, entry, 0, sector))
    structures = (Structure(0, 512, "MBR"), *chain.structures)
    return Table("mbr", tuple(sorted(chain.partitions)), structures, tuple(chain.notes))


def _overlap(places: list[tuple[int, int]]) -> bool:
    """Tell whether any of the ranges, in order, begins before the one before has ended."""
    return any(end > start for (_, end), (start, _) in pairwise(places))


def _mbr_partition(number: int, entry: _Entry, base: int, sector: int) -> Partition:
    start = (base + entry.first) * sector
    return Partition(number, start, entry.sectors * sector, f"0x{entry.type:02x}")


class _Chain:
    """The partitions of an MBR, and the chains of its extended boot records."""

    def __init__(self, media: Media, sector: int) -> None:
        self.partitions: list[Partition] = []
        self.structures: list[Structure] = []
        self.notes: list[str] = []
        self._media = media
        self._sector = sector
        self._number = _FIRST_LOGICAL

    def follow(self, extended: _Entry) -> None:
        """Follow the chain within an extended partition.

        In each record, one entry is a partition, relative to the record, and one the next record,
        relative to the extended partition.
        """
        end = extended.first + extended.sectors
        seen: set[int] = set()
        at: int | None = extended.first
        while at is not None:
            if at in seen or not extended.first <= at < end or len(seen) >= _MAX_LOGICAL:
                self._give_up(extended, "leads astray", at)
                return
            seen.add(at)
            raw = _try_read(self._media, at * self._sector, 512)
            if raw[510:512] != _MBR_SIGNATURE:
                self._give_up(extended, "does not verify", at)
                return
            self.structures.append(Structure(at * self._sector, 512, "extended boot record"))
            following = None
            for entry in _mbr_entries(raw):
                if entry.type in _EXTENDED and entry.sectors and following is None:
                    following = extended.first + entry.first
                elif entry.type and entry.sectors and entry.type not in _EXTENDED:
                    if not entry.first or at + entry.first + entry.sectors > end:
                        self._give_up(extended, "makes no sense", at)
                        return
                    self.partitions.append(_mbr_partition(self._number, entry, at, self._sector))
                    self._number += 1
            at = following

    def _give_up(self, extended: _Entry, why: str, at: int) -> None:
        """Say that partitions may be anywhere in the rest of an extended partition."""
        self.notes.append(
            f"its extended boot record at byte {at * self._sector} {why}: logical partitions from"
            f" number {self._number} on are not known"
        )
        rest = [ByteRange(extended.first * self._sector, extended.sectors * self._sector)]
        known = [ByteRange(part.start, part.length) for part in self.partitions]
        known += [ByteRange(part.start, part.length) for part in self.structures]
        for one in known:
            rest = subtract(rest, one)
        what = "extended partition, of which a boot record is lost"
        self.structures += [Structure(*part, what, certain=False) for part in rest]
