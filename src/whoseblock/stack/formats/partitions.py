"""Parse partition tables: GPT with its backup, and MBR with logical partitions.

GPT as in the UEFI specification 2.10, chapter 5, MBR as in 5.2. The chain of extended boot records
is followed as Linux does (block/partitions/msdos.c). A GPT is accepted if both of its checksums
are right. An MBR has no checksum: it is accepted if its flags are valid and a partition begins on
the disk. Each entry of a table stands for itself: one that does not fit does not void the others.
"""

import zlib
from collections.abc import Iterable, Iterator, Sequence
from struct import Struct
from typing import Final, NamedTuple
from uuid import UUID

from whoseblock.errors import BlockError
from whoseblock.media.base import Media
from whoseblock.ranges import ByteRange, subtract

__all__ = [
    "SECTOR_SIZES",
    "Partition",
    "PartitionTable",
    "Structure",
    "read_partition_table",
    "read_partition_tables",
]

#: The sizes of sectors that tables count in.
SECTOR_SIZES: Final = (512, 4096)

_MBR_SIGNATURE: Final = b"\x55\xaa"
_MBR_ENTRIES_AT, _MBR_ENTRY_SIZE, _MBR_ENTRIES = 446, 16, 4
#: boot flag, CHS, type, CHS, first sector, sectors
_MBR_ENTRY: Final = Struct("<B3xB3xII")
_PROTECTIVE: Final = 0xEE
_EXTENDED: Final = frozenset({0x05, 0x0F, 0x85})
#: Linux reads at most 256 partitions of a disk (DISK_MAX_PARTS).
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

#: Signatures of FAT, exFAT and NTFS, whose boot sector ends like an MBR.
_BOOT_SECTORS: Final = ((3, b"NTFS    "), (3, b"EXFAT   "), (54, b"FAT"), (82, b"FAT32"))


class Partition(NamedTuple):
    """A partition; ``start`` and ``length`` are bytes of the disk.

    ``type`` is a GUID, or ``0x83`` in an MBR; ``name`` is the label in a GPT. ``doubt`` is the
    reason why its bytes may not be those of this partition, "" if there is none.
    """

    number: int
    start: int
    length: int
    type: str
    name: str = ""
    doubt: str = ""


class Structure(NamedTuple):
    """A range of the disk outside of all partitions: ``length`` bytes from byte ``start``.

    If ``certain`` is false, partitions may be there whose record is lost.
    """

    start: int
    length: int
    what: str
    certain: bool = True


class PartitionTable(NamedTuple):
    """A valid partition table; ``kind`` is ``gpt`` or ``mbr``, ``sector`` its unit in bytes.

    ``doubts`` are reasons why it may nevertheless be a leftover. ``fits`` is false if a partition
    does not end on the disk.
    """

    kind: str
    partitions: tuple[Partition, ...]
    structures: tuple[Structure, ...]
    notes: tuple[str, ...] = ()
    doubts: tuple[str, ...] = ()
    sector: int = SECTOR_SIZES[0]
    fits: bool = True


def read_partition_table(media: Media, sector: int | None = None) -> PartitionTable | None:
    """Read the partition table of a disk; return None if there is no valid one.

    ``sector`` is the sector size of the disk, None if it is unknown.
    """
    return next(iter(read_partition_tables(media, sector)), None)


def read_partition_tables(media: Media, sector: int | None = None) -> list[PartitionTable]:
    """Read the partition table of a disk, once for each sector size that it may count in.

    Only an MBR does not record its unit. The reading in sectors of 512 bytes comes first.
    """
    sizes = SECTOR_SIZES if sector is None else (sector,)
    for size in sizes:
        if table := _read_gpt(media, size):
            return [table]
    tables = (_read_mbr(media, size) for size in sizes)
    return [table for table in tables if table is not None]


def _read_or_empty(media: Media, start: int, length: int) -> bytes:
    """Read bytes; return b"" if they are unreadable or out of range."""
    if start < 0 or length <= 0 or start + length > media.size:
        return b""
    try:
        return media.pread(start, length)
    except BlockError:
        return b""


# ------------------------------------------------------------------ GPT


class _GptHeader(NamedTuple):
    """A valid GPT header with its entries; LBAs count ``sector`` bytes."""

    at: int
    sector: int
    alternate: int
    entries_at: int
    entries: bytes
    entry_size: int


def _read_gpt_header(  # noqa: PLR0911 - a return for each check that may fail
    media: Media, lba: int, sector: int
) -> _GptHeader | None:
    """Read a header and its entries; return None if a checksum or its own location is wrong."""
    raw = _read_or_empty(media, lba * sector, sector)
    if raw[:8] != _GPT_SIGNATURE:
        return None
    fields = _GPT_HEADER.unpack_from(raw)
    _, _, size, crc, _, own, alternate, _, _, _, entries_lba, count, entry_size, entries_crc = (
        fields
    )
    if not _MIN_HEADER <= size <= min(_MAX_HEADER, sector) or own != lba:
        return None
    if zlib.crc32(raw[:_GPT_CRC_AT] + bytes(4) + raw[_GPT_CRC_AT + 4 : size]) != crc:
        return None
    # The specification allows 128 times any power of two.
    if not _MIN_ENTRY_SIZE <= entry_size <= _MAX_ENTRY_SIZE or entry_size & (entry_size - 1):
        return None
    if not 0 < count <= _MAX_ENTRIES:
        return None
    entries = _read_or_empty(media, entries_lba * sector, count * entry_size)
    if not entries or zlib.crc32(entries) != entries_crc:
        return None
    return _GptHeader(lba, sector, alternate, entries_lba, entries, entry_size)


def _read_gpt(media: Media, sector: int) -> PartitionTable | None:
    last = media.size // sector - 1
    primary = _read_gpt_header(media, 1, sector)
    # The primary header names the location of the backup; without it, the last sector.
    backup = _read_gpt_header(media, primary.alternate if primary else last, sector)
    header = primary or backup
    if header is None:
        return None
    # A disk with another use now may still have an old backup at its end.
    head = _read_or_empty(media, 0, 512)
    if primary is None and any(head) and not _is_protective(head):
        return None
    doubts = []
    if primary is None and not any(head):
        doubts.append(
            "no first sector and no primary GPT: if the backup GPT is a leftover of an earlier use,"
            " these partitions do not exist"
        )
    notes = []
    if primary is None:
        notes.append("the primary GPT is invalid: the backup is used")
    elif backup is None:
        notes.append("the backup GPT is invalid")
    elif backup.entries != primary.entries:
        notes.append("the backup GPT differs from the primary, which is used")
    partitions, fits = _place(_parse_gpt_entries(header), media.size, notes)
    structures = [Structure(0, 512, "protective MBR")]
    for found, word in ((primary, "primary GPT"), (backup, "backup GPT")):
        if found is not None:
            structures.append(Structure(found.at * sector, sector, f"{word} header"))
            at = found.entries_at * sector
            structures.append(Structure(at, len(found.entries), f"{word} entries"))
    partitions = _doubt_overlaps(partitions, structures)
    said = (tuple(notes), tuple(doubts))
    return PartitionTable("gpt", partitions, tuple(structures), *said, sector, fits)


def _is_protective(raw: bytes) -> bool:
    """Return whether an MBR is the protective MBR of a GPT."""
    return raw[510:512] == _MBR_SIGNATURE and any(
        entry.type == _PROTECTIVE for entry in _parse_mbr_entries(raw)
    )


def _parse_gpt_entries(header: _GptHeader) -> Iterator[Partition]:
    for index in range(len(header.entries) // header.entry_size):
        raw = _GPT_ENTRY.unpack_from(header.entries, index * header.entry_size)
        kind, _, first, last, _, name = raw
        if kind == _UNUSED or last < first:
            continue
        start, length = first * header.sector, (last - first + 1) * header.sector
        label = name.decode("utf-16-le", "replace").partition("\0")[0]
        yield Partition(index + 1, start, length, str(UUID(bytes_le=kind)), label)


# ------------------------------------------------------------------ MBR


class _MbrEntry(NamedTuple):
    """An entry of an MBR or of an extended boot record; numbers are in sectors."""

    boot: int
    type: int
    first: int
    sectors: int


def _parse_mbr_entries(raw: bytes) -> list[_MbrEntry]:
    places = range(_MBR_ENTRIES_AT, _MBR_ENTRIES_AT + _MBR_ENTRIES * _MBR_ENTRY_SIZE, 16)
    return [_MbrEntry(*_MBR_ENTRY.unpack_from(raw, place)) for place in places]


def _read_mbr(media: Media, sector: int) -> PartitionTable | None:
    raw = _read_or_empty(media, 0, 512)
    if raw[510:512] != _MBR_SIGNATURE:
        return None
    if any(raw[at : at + len(magic)] == magic for at, magic in _BOOT_SECTORS):
        return None
    entries = _parse_mbr_entries(raw)
    if any(entry.boot not in (0, 0x80) for entry in entries):
        return None
    # As in Linux, an entry without sectors is unused, whatever its type; one of type 0 is used.
    used = [(number, entry) for number, entry in enumerate(entries, 1) if entry.sectors]
    if any(entry.type == _PROTECTIVE for _, entry in used):
        return None
    if not any(entry.first * sector < media.size for _, entry in used):
        return None
    reader = _MbrReader(media, sector)
    for number, entry in used:
        if entry.type not in _EXTENDED:
            reader.partitions.append(_mbr_partition(number, entry, 0, sector))
        elif entry.first * sector < media.size:
            reader.follow(entry)
    partitions, fits = _place(sorted(reader.partitions), media.size, reader.notes)
    structures = (Structure(0, 512, "MBR"), *reader.structures)
    partitions = _doubt_overlaps(partitions, reader.structures)
    notes = tuple(reader.notes)
    return PartitionTable("mbr", partitions, structures, notes, (), sector, fits)


def _mbr_partition(number: int, entry: _MbrEntry, base: int, sector: int) -> Partition:
    start = (base + entry.first) * sector
    return Partition(number, start, entry.sectors * sector, f"0x{entry.type:02x}")


class _MbrReader:
    """The partitions of an MBR and of its chains of extended boot records."""

    def __init__(self, media: Media, sector: int) -> None:
        self.partitions: list[Partition] = []
        self.structures: list[Structure] = []
        self.notes: list[str] = []
        self._media = media
        self._sector = sector
        self._number = _FIRST_LOGICAL

    def follow(self, extended: _MbrEntry) -> None:
        """Follow the chain of boot records within an extended partition.

        In each record, one entry is a partition, relative to the record. Another one is the next
        record, relative to the extended partition.
        """
        end = extended.first + extended.sectors
        seen: set[int] = set()
        at: int | None = extended.first
        while at is not None:
            if at in seen or not extended.first <= at < end or len(seen) >= _MAX_LOGICAL:
                self._end_chain(extended, "is out of range or repeated", at)
                return
            seen.add(at)
            raw = _read_or_empty(self._media, at * self._sector, 512)
            if raw[510:512] != _MBR_SIGNATURE:
                self._end_chain(extended, "is invalid", at)
                return
            self.structures.append(Structure(at * self._sector, 512, "extended boot record"))
            following = None
            for entry in _parse_mbr_entries(raw):
                if entry.type in _EXTENDED and entry.sectors and following is None:
                    following = extended.first + entry.first
                elif entry.sectors and entry.type not in _EXTENDED:
                    if not entry.first or at + entry.first + entry.sectors > end:
                        self._end_chain(extended, "has an implausible entry", at)
                        return
                    self.partitions.append(_mbr_partition(self._number, entry, at, self._sector))
                    self._number += 1
            at = following

    def _end_chain(self, extended: _MbrEntry, why: str, at: int) -> None:
        """Add a note and mark the rest of an extended partition as unknown."""
        self.notes.append(
            f"the extended boot record at byte {at * self._sector} {why}: logical partitions from"
            f" number {self._number} on are unknown"
        )
        rest = [ByteRange(extended.first * self._sector, extended.sectors * self._sector)]
        known = [ByteRange(part.start, part.length) for part in self.partitions]
        known += [ByteRange(part.start, part.length) for part in self.structures]
        for one in known:
            rest = subtract(rest, one)
        what = "extended partition, of which a boot record is lost"
        self.structures += [Structure(*part, what, certain=False) for part in rest]


# ------------------------------------------------------------------ both

#: Notes about single partitions that are shown; more are counted.
_MAX_NOTES: Final = 4


def _place(
    partitions: Iterable[Partition], size: int, notes: list[str]
) -> tuple[tuple[Partition, ...], bool]:
    """Return the partitions that begin on a disk of ``size`` bytes, and whether all end there.

    Add a note for each of the others.
    """
    inside, said = [], []
    for part in partitions:
        end = part.start + part.length
        if part.start >= size:
            said.append(f"partition {part.number} begins past the end, at byte {part.start}")
            continue
        if end > size:
            said.append(f"partition {part.number} ends {end - size} bytes past the end")
        inside.append(part)
    notes += said[:_MAX_NOTES]
    if len(said) > _MAX_NOTES:
        notes.append(f"{len(said) - _MAX_NOTES} more partitions do not end on the disk")
    return tuple(inside), not said


def _doubt_overlaps(
    partitions: Sequence[Partition], structures: Iterable[Structure]
) -> tuple[Partition, ...]:
    """Add a doubt to each partition that overlaps another one or a structure of the table."""
    # Sorted by start, a range overlaps an earlier one if it begins before the largest end so far.
    ranges = [(part.start, part.start + part.length, part.number) for part in partitions]
    ranges += [(one.start, one.start + one.length, 0) for one in structures if one.certain]
    ranges.sort()
    doubts: dict[int, str] = {}
    reach, last = 0, 0
    for start, end, number in ranges:
        if start < reach:
            for one, other in ((number, last), (last, number)):
                if one:
                    with_what = f"partition {other}" if other else "the partition table"
                    doubts.setdefault(one, f"partition {one} overlaps {with_what}")
        if end > reach:
            reach, last = end, number
    return tuple(part._replace(doubt=doubts.get(part.number, "")) for part in partitions)
