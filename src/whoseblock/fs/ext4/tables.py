"""Whole parts of inode tables with NumPy: checksums and extents of all inodes at once.

Inodes that are plain, with their extents in the root, are decoded here.  Others are named, for
`InodeScan` to decode one by one: so only one module describes faults.
"""

import stat
from typing import TYPE_CHECKING, Final, NamedTuple

import numpy as np
from fastcrc.crc32 import iscsi

from whoseblock.fs.ext4.format.extents import EXT4_EXT_MAGIC, EXT_INIT_MAX_LEN, MAX_LOGICAL
from whoseblock.fs.ext4.format.inode import (
    EXT4_EA_INODE_FL,
    EXT4_EXTENTS_FL,
    EXT4_INLINE_DATA_FL,
)
from whoseblock.fs.pieces import ATTR, DATA, DIRECTORY, FILE_DATA, SYMLINK, XATTR
from whoseblock.fs.scan.bulk import ExtentArrays
from whoseblock.fs.scan.engine import UNWRITTEN

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from whoseblock.fs.ext4.static import FixedMetadata
    from whoseblock.fs.ext4.volume import Volume

    Ints = NDArray[np.int64]
    Bools = NDArray[np.bool_]
    Words = NDArray[np.uint32]

__all__ = ["DecodedPart", "TableDecoder"]

#: Words of 32 bits of ``struct ext4_inode``.
_MODE, _SIZE, _DTIME, _LINKS, _FLAGS = 0, 1, 5, 6, 8
_ENTRIES, _DEPTH, _EXTENT = 10, 11, 13
_GENERATION, _ACL, _SIZE_HIGH, _ACL_HIGH, _CHECKSUM, _EXTRA = 25, 26, 27, 29, 31, 32
_ROOT_ENTRIES: Final = 4
_EACH: Final = 3
_HALF: Final = 16
_LOW: Final = (1 << _HALF) - 1
_GOOD_OLD_SIZE: Final = 128
_CHECKSUM_AT: Final = 0x7C
_CHECKSUM_HIGH_AT: Final = 0x82
_EXTRA_FOR_HIGH: Final = 4
_FAST_SYMLINK: Final = 60
_INVERT: Final = 0xFFFFFFFF
#: Up to this number, inodes are the filesystem's own, with maps of their own kinds.
_RESERVED: Final = 10


#: Inodes that are verified together, if all are right.
_TOGETHER: Final = 256


def _crc(data: memoryview) -> int:
    """Return the register of a CRC-32C that begins with 0."""
    return iscsi(data, _INVERT) ^ _INVERT


class DecodedPart(NamedTuple):
    """The extents of plain inodes, and the places of the others, in the order of the table.

    ``odd`` are in use, and verify; ``corrupt`` are in use, and do not; ``stray`` have links, and
    are free by the bitmap.
    """

    extents: ExtentArrays
    odd: list[int]
    corrupt: list[int]
    stray: list[int]


class TableDecoder:
    """Decodes parts of the inode tables of a volume."""

    def __init__(self, volume: "Volume", fixed: "FixedMetadata") -> None:
        self.volume = volume
        self._fixed_starts = np.array(fixed.starts, np.int64)
        ends = [run.start + run.length for run in fixed.runs]
        self._fixed_ends = np.array(ends, np.int64)

    def decode(self, first: int, data: bytes, bits: str) -> DecodedPart:
        """Decode the inodes from ``first`` on; ``bits`` has "1" for those that are in use."""
        words = np.frombuffer(data, "<u4").reshape(-1, self.volume.sb.inode_size // 4)
        used = np.frombuffer(bits.encode(), np.uint8)[: len(words)] == ord("1")
        modes = words[:, _MODE] & _LOW
        links = words[:, _LINKS] >> _HALF
        stray = ~used & (links != 0) & (modes != 0) & (words[:, _DTIME] == 0)
        places = np.flatnonzero(used)
        # The matrix of those in use: most of a table that was read is.
        table = words[places]
        right = np.ones(len(table), np.bool_)
        if self.volume.sb.has_checksums:
            right = self._verify(first + places, table)
        corrupt = places[~right]
        places, table = places[right], table[right]
        extents, odd = self._extents(first + places, table)
        return DecodedPart(
            extents, places[odd].tolist(), corrupt.tolist(), np.flatnonzero(stray).tolist()
        )

    def _verify(self, numbers: "Ints", table: "Words") -> "Bools":
        """Return whether the checksum of each inode is right, as `inode_matches`.

        The register of a CRC becomes 0 if the checksum follows the data.  So one call verifies many
        inodes, each with its checksum: if the register is 0 finally, all of them are right, with
        the certainty that 32 bits give.  The seed is in the first word, which has the same effect.
        """
        size = self.volume.sb.inode_size
        text = np.empty((len(table), size // 4 + 3), "<u4")
        text[:, 0] = numbers ^ self.volume.seed
        text[:, 1] = table[:, _GENERATION]
        text[:, 2:-1] = table
        stored = text[:, -1]
        stored[:] = table[:, _CHECKSUM] & _LOW
        raw = text.view(np.uint8)
        raw[:, 8 + _CHECKSUM_AT : 8 + _CHECKSUM_AT + 2] = 0
        wide = np.zeros(len(table), np.bool_)
        if size > _GOOD_OLD_SIZE:
            wide = table[:, _EXTRA] & _LOW >= _EXTRA_FOR_HIGH
            raw[wide, 8 + _CHECKSUM_HIGH_AT : 8 + _CHECKSUM_HIGH_AT + 2] = 0
            stored[wide] |= table[wide, _EXTRA] & ~np.uint32(_LOW)
        right = np.ones(len(table), np.bool_)
        view, width = raw.reshape(-1).data, raw.shape[1]
        for begin in range(0, len(table), _TOGETHER):
            end = min(begin + _TOGETHER, len(table))
            if wide[begin:end].all() and not _crc(view[begin * width : end * width]):
                continue
            rows = range(begin * width, end * width, width)
            found = np.array([_crc(view[at : at + width - 4]) for at in rows], np.uint32)
            mask = np.where(wide[begin:end], np.uint32(_INVERT), np.uint32(_LOW))
            right[begin:end] = found & mask == stored[begin:end]
        # An inode of zeros is valid.
        wrong = np.flatnonzero(~right)
        right[wrong] = ~table[wrong].any(axis=1)
        return right

    def _extents(self, numbers: "Ints", table: "Words") -> "tuple[ExtentArrays, Bools]":
        """Return the extents of plain inodes, and which inodes are not plain."""
        modes, flags = table[:, _MODE] & _LOW, table[:, _FLAGS]
        kinds = modes & 0xF000
        has_extents = flags & EXT4_EXTENTS_FL != 0
        inline = flags & EXT4_INLINE_DATA_FL != 0
        long = has_extents | (table[:, _SIZE] >= _FAST_SYMLINK) | (table[:, _ACL + 1] != 0)
        has_map = (kinds == stat.S_IFREG) | (kinds == stat.S_IFDIR) | (kinds == 0)
        has_map = (has_map | ((kinds == stat.S_IFLNK) & long)) & ~inline
        heads, depths = table[:, _ENTRIES], table[:, _DEPTH]
        counts = (heads >> _HALF).astype(np.int64)
        most = depths & _LOW
        plain = has_extents & (heads & _LOW == EXT4_EXT_MAGIC) & (depths >> _HALF == 0)
        plain &= (counts <= most) & (most <= _ROOT_ENTRIES) & (flags & EXT4_EA_INODE_FL == 0)
        sizes = table[:, _SIZE] | table[:, _SIZE_HIGH].astype(np.int64) << 32
        odd = (has_map & ~plain) | (numbers <= _RESERVED)
        # As `type_fault`.
        odd |= has_map & (kinds == 0)
        odd |= (kinds == stat.S_IFLNK) & (sizes > self.volume.block_size)
        odd |= (kinds == stat.S_IFDIR) & (sizes % self.volume.block_size != 0)
        counts[~has_map | odd] = 0
        whats = np.full(len(table), FILE_DATA, np.int64)
        whats[kinds == stat.S_IFDIR] = DIRECTORY
        whats[kinds == stat.S_IFLNK] = SYMLINK
        parts = [self._attributes(numbers, table, odd)]
        reached = np.zeros(len(table), np.int64)
        for place in range(int(counts.max(initial=0))):
            rows = np.flatnonzero(counts > place)
            logical, second, third = (
                table[rows, _EXTENT + _EACH * place + part].astype(np.int64)
                for part in range(_EACH)
            )
            lengths = second & _LOW
            unwritten = lengths > EXT_INIT_MAX_LEN
            lengths[unwritten] -= EXT_INIT_MAX_LEN
            starts = third | second >> _HALF << 32
            wrong = (logical < reached[rows]) | (lengths == 0)
            wrong |= (logical + lengths > MAX_LOGICAL) | self._is_wrong(starts, lengths)
            wrong |= (starts - logical) % self.volume.ratio != 0
            odd[rows[wrong]] = True
            reached[rows] = logical + lengths
            marks = whats[rows] << 1 | np.where(unwritten, UNWRITTEN, 0)
            forks = np.full(len(rows), DATA)
            parts.append(ExtentArrays(starts, lengths, numbers[rows], forks, logical, marks))
        joined = ExtentArrays.join(parts)
        if odd.any():
            joined = joined.pick(~np.isin(joined.inodes, numbers[odd]))
        return joined, odd

    def _attributes(self, numbers: "Ints", table: "Words", odd: "Bools") -> ExtentArrays:
        """Return the attribute blocks; inodes whose block cannot be one become ``odd``."""
        blocks = table[:, _ACL].astype(np.int64)
        blocks |= (table[:, _ACL_HIGH] >> _HALF).astype(np.int64) << 32
        rows = np.flatnonzero(blocks)
        starts, ones = blocks[rows], np.ones(len(rows), np.int64)
        odd[rows[self._is_wrong(starts, ones)]] = True
        zeros = np.zeros(len(rows), np.int64)
        return ExtentArrays(starts, ones, numbers[rows], zeros + ATTR, zeros, zeros + (XATTR << 1))

    def _is_wrong(self, starts: "Ints", lengths: "Ints") -> "Bools":
        """Return which blocks no inode can have: outside, or fixed metadata."""
        ends = starts + lengths
        wrong: Bools = (starts < self.volume.first) | (ends > self.volume.blocks)
        at = np.searchsorted(self._fixed_starts, ends - 1, "right") - 1
        wrong |= (at >= 0) & (self._fixed_ends[at] > starts)
        return wrong
