"""Forge structures that contradict others, with right checksums.

Random numbers in random places seldom make a structure that is sound by itself.  These do: a file
that claims the blocks of another, a map or a directory that leads back to itself, a btree that
says otherwise than the inodes.  Offsets are those of the format's documentation.
"""

import random
import struct
from collections.abc import Callable, Iterator
from typing import Final, NamedTuple

from tools.adversary.bases import Base
from tools.adversary.units import Unit

__all__ = ["Forged", "forge"]

_SHORT, _LONG = (16, 56), (24, 72)  # headers of btree blocks: of version 4, of version 5
_DIRECTORY_HEADER = (16, 64)
_EXTENT: Final = struct.Struct(">QQ")
_COUNT_MASK: Final = (1 << 21) - 1
#: The numbers of the formats of forks.
_EXTENTS, _BTREE = 2, 3
_TRIES: Final = 40


class Forged(NamedTuple):
    """The new bytes of a unit, a description, and the ranges of the device that it claims."""

    unit: Unit
    data: bytes
    how: str
    claimed: tuple[tuple[int, int], ...] = ()


class _Extents(NamedTuple):
    """The extents of a unit: where its records begin, and how many there are."""

    unit: Unit
    data: bytes
    at: int
    total: int

    def record(self, index: int) -> tuple[int, int, int]:
        """Return the offset with its flag, the start and the length of an extent."""
        high, low = _EXTENT.unpack_from(self.data, self.at + index * _EXTENT.size)
        return high >> 9, (high & 0x1FF) << 43 | low >> 21, low & _COUNT_MASK

    def replaced(self, index: int, start: int, count: int) -> bytes:
        """Return the unit with another start and length of an extent."""
        offset, _, _ = self.record(index)
        raw = _EXTENT.pack(offset << 9 | start >> 43, (start << 21 | count) & (1 << 64) - 1)
        at = self.at + index * _EXTENT.size
        return self.data[:at] + raw + self.data[at + _EXTENT.size :]


def forge(base: Base, rng: random.Random) -> Forged | None:
    """Forge one structure; None if the image has none of the kind that was drawn."""
    kinds: list[Callable[[Base, random.Random], Forged | None]] = [
        *(_claimed_blocks, _claimed_blocks, _claimed_blocks, _looping_map, _looping_folder),
        *(_chunk, _counts, _free_space),
    ]
    kind = rng.choice(kinds)
    for _ in range(_TRIES):
        if (forged := kind(base, rng)) is not None:
            data = base.reseal(forged.unit, forged.data)
            if data != base.read(forged.unit):
                return forged._replace(data=data)
    return None


def _drawn(base: Base, rng: random.Random, *kinds: str) -> Unit | None:
    units = [unit for kind in kinds for unit in base.by_kind.get(kind, ())]
    return rng.choice(units) if units else None


def _header(base: Base, sizes: tuple[int, int]) -> int:
    return sizes[not base.geometry.version4]


def _extents(base: Base, rng: random.Random) -> _Extents | None:
    """Draw an inode or a leaf of a map that has extents."""
    unit = _drawn(base, rng, *rng.choice((["inode"], ["bmbt"])))
    if unit is None:
        return None
    data = base.read(unit)
    if unit.kind == "bmbt":
        at, count = _header(base, _LONG), int.from_bytes(data[6:8], "big")
        return _Extents(unit, data, at, count) if data[4:6] == bytes(2) else None
    at, form, count = _data_fork(data)
    return _Extents(unit, data, at, count) if form == _EXTENTS and 0 < count < 1000 else None


def _data_fork(inode: bytes) -> tuple[int, int, int]:
    """Return where the data fork of an inode begins, its format, and its number of extents."""
    at = 176 if inode[4] == 3 else 100
    wide = at == 176 and inode[127] & 1 << 4
    count = inode[24:32] if wide else inode[76:80]
    return at, inode[5], int.from_bytes(count, "big")


def _claimed_blocks(base: Base, rng: random.Random) -> Forged | None:
    """Make a file claim blocks of another in place of its own, as many as before."""
    one, other = _extents(base, rng), _extents(base, rng)
    if one is None or other is None or one.unit == other.unit:
        return None
    index = rng.randrange(one.total)
    _, old, count = one.record(index)
    _, start, length = other.record(rng.randrange(other.total))
    if length < count:
        return None
    start += rng.randint(0, length - count)
    how = f"extent {index} claims {count} blocks from {start}"
    claimed = (_range(base, start, count), _range(base, old, count))
    return Forged(one.unit, one.replaced(index, start, count), how, claimed)


def _range(base: Base, fsbno: int, count: int) -> tuple[int, int]:
    block = base.truth.superblock
    group, within = fsbno >> block.block_log, fsbno & (1 << block.block_log) - 1
    return group * block.group_size + within * block.block, count * block.block


def _looping_map(base: Base, rng: random.Random) -> Forged | None:
    """Make a pointer of a map name a block of this or of another map."""
    unit, twin = _drawn(base, rng, "bmbt", "inode"), _drawn(base, rng, "bmbt")
    if unit is None or twin is None:
        return None
    data = base.read(unit)
    if unit.kind == "bmbt":
        header, level = _header(base, _LONG), int.from_bytes(data[4:6], "big")
        at = header + (len(data) - header) // 16 * 8
        count = int.from_bytes(data[6:8], "big")
    else:
        begin, form, _ = _data_fork(data)
        size = data[82] * 8 or len(data) - begin
        level = int.from_bytes(data[begin : begin + 2], "big") if form == _BTREE else 0
        at = begin + 4 + (size - 4) // 16 * 8
        count = int.from_bytes(data[begin + 2 : begin + 4], "big")
    if not level or not count:
        return None
    at += rng.randrange(count) * 8
    block = base.truth.superblock
    target = rng.choice((unit if unit.kind == "bmbt" else twin, twin)).start
    group, within = divmod(target, block.group_size)
    fsbno = group << block.block_log | within // block.block
    forged = data[:at] + fsbno.to_bytes(8, "big") + data[at + 8 :]
    return Forged(unit, forged, f"a pointer names block {fsbno}")


def _looping_folder(base: Base, rng: random.Random) -> Forged | None:
    """Make an entry of a directory name another directory, the root perhaps."""
    unit = _drawn(base, rng, "dir block", "dir data")
    if unit is None:
        return None
    data = base.read(unit)
    at = _header(base, _DIRECTORY_HEADER)
    places = []
    folders = {number for number, inode in base.truth.inodes.items() if inode.mode >> 12 == 4}
    while at + 16 <= len(data):
        if data[at : at + 2] == b"\xff\xff":
            at += max(int.from_bytes(data[at + 2 : at + 4], "big"), 8)
            continue
        if int.from_bytes(data[at : at + 8], "big") in base.truth.inodes:
            places.append(at)
        at += -(-(8 + 1 + data[at + 8] + base.geometry.ftype + 2) // 8) * 8
    if not places:
        return None
    at, number = rng.choice(places), rng.choice(sorted(folders))
    forged = data[:at] + number.to_bytes(8, "big") + data[at + 8 :]
    return Forged(unit, forged, f"an entry names directory {number}")


def _records(base: Base, data: bytes, size: int) -> Iterator[int]:
    """Yield where the records of a leaf are."""
    if data[4:6] == bytes(2):
        begin = _header(base, _SHORT)
        for index in range(int.from_bytes(data[6:8], "big")):
            yield begin + index * size


def _chunk(base: Base, rng: random.Random) -> Forged | None:
    """Make an inode btree say that a used inode is free, or a free one used."""
    unit = _drawn(base, rng, "inobt", "finobt")
    if unit is None:
        return None
    data = bytearray(base.read(unit))
    places = list(_records(base, bytes(data), 16))
    if not places:
        return None
    at, bit = rng.choice(places), rng.randrange(64)
    size = base.truth.superblock.group_size
    chunk = int.from_bytes(data[at : at + 4], "big")
    inode = base.truth.superblock.inode_at(unit.start // size * size) + chunk + bit
    owned = [(row.start, row.length) for row in base.truth.rows if row.inode == inode]
    mask = int.from_bytes(data[at + 8 : at + 16], "big") ^ 1 << bit
    data[at + 8 : at + 16] = mask.to_bytes(8, "big")
    if rng.random() < 0.7:
        more = 1 if mask >> bit & 1 else -1
        data[at + 7] = (data[at + 7] + more) % 256
    how = f"inode {inode} is {'free' if mask >> bit & 1 else 'used'}"
    return Forged(unit, bytes(data), how, tuple(owned[:4]))


def _counts(base: Base, rng: random.Random) -> Forged | None:
    """Make the refcount btree count another number of owners, or of blocks."""
    unit = _drawn(base, rng, "refcountbt")
    if unit is None:
        return None
    return _changed(base, rng, unit, 12, (4, 8))


def _free_space(base: Base, rng: random.Random) -> Forged | None:
    """Make a free-space btree have more or fewer blocks than are free."""
    unit = _drawn(base, rng, "bnobt", "cntbt")
    return None if unit is None else _changed(base, rng, unit, 8, (0, 4))


def _changed(
    base: Base, rng: random.Random, unit: Unit, size: int, fields: tuple[int, ...]
) -> Forged | None:
    """Change a field of a record a little, or leave the last record out."""
    data = bytearray(base.read(unit))
    places = list(_records(base, bytes(data), size))
    if not places:
        return None
    group = unit.start // base.truth.superblock.group_size * base.truth.superblock.group_size
    block = base.truth.superblock.block
    at = rng.choice(places)
    if rng.random() < 0.2:
        data[6:8] = (len(places) - 1).to_bytes(2, "big")
        at, how = places[-1], "the last record is missing"
    else:
        field = at + rng.choice(fields)
        number = int.from_bytes(data[field : field + 4], "big") + rng.choice((-1, 1, 1, 2, 7))
        data[field : field + 4] = (number % (1 << 32)).to_bytes(4, "big")
        how = f"record at {at}: {number} at {field - at}"
    first, count = struct.unpack_from(">II", data, at)
    first &= (1 << 31) - 1
    claimed = (group + first * block, max(count, 1) * block)
    if sum(claimed) > base.truth.superblock.size:
        return Forged(unit, bytes(data), how)
    return Forged(unit, bytes(data), how, (claimed,))
