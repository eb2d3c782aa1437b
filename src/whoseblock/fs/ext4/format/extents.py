"""Extent trees and indirect maps: the blocks of a file.

Extents: ``struct ext4_extent_header``, ``ext4_extent``, ``ext4_extent_idx`` (ext4_extents.h).
"""

from struct import Struct, unpack_from
from typing import Final, NamedTuple

from whoseblock.fs.ext4.format.checksum import LE32, crc32c

__all__ = [
    "EXT4_EXT_MAGIC",
    "EXT_INIT_MAX_LEN",
    "EXT_MAX_DEPTH",
    "MAX_LOGICAL",
    "Extent",
    "Index",
    "block_matches",
    "nodes_below",
    "parse_extents",
    "pointers",
    "root_extents",
]

EXT4_EXT_MAGIC: Final = 0xF30A
#: An extent of more blocks than this is unwritten.
EXT_INIT_MAX_LEN: Final = 32768
EXT_MAX_DEPTH: Final = 5
MAX_LOGICAL: Final = 1 << 32
_HEADER: Final = Struct("<HHHH4x")
_ENTRY: Final = 12
_LEAF: Final = Struct("<IHHI")
_INDEX: Final = Struct("<IIHxx")
#: The header and all entries of a root, which is in an inode.
_ROOT_ENTRIES: Final = 4
_ROOT: Final = Struct("<4H4x" + "IHHI" * _ROOT_ENTRIES)


class Extent(NamedTuple):
    """``length`` blocks of a file from ``logical``, at ``start`` of the filesystem."""

    logical: int
    length: int
    start: int
    unwritten: bool


class Index(NamedTuple):
    """The block of a lower node, whose extents begin at ``logical`` or later."""

    logical: int
    block: int


def parse_extents(
    raw: bytes, depth: int | None, low: int = 0, high: int = MAX_LOGICAL
) -> tuple[int, list[Extent], list[Index]] | str:
    """Decode a node of an extent tree: its depth, and its extents or the nodes below.

    ``depth`` is what the node above demands, None for the root.  Extents must be in order, and
    from block ``low`` to before ``high`` of the file.  Returns a string that names the fault.
    """
    magic, entries, most, found = _HEADER.unpack_from(raw)
    if magic != EXT4_EXT_MAGIC:
        return "wrong magic number"
    if entries > most or _ENTRY * (most + 1) > len(raw):
        return "wrong number of entries"
    if found > EXT_MAX_DEPTH or (depth is not None and found != depth):
        return "wrong depth"
    extents: list[Extent] = []
    below: list[Index] = []
    at = low
    for number in range(entries):
        place = _ENTRY * (number + 1)
        if found:
            logical, lo, hi = _INDEX.unpack_from(raw, place)
            if logical < at or logical >= high:
                return "indexes out of order"
            at = logical + 1
            below.append(Index(logical, lo | hi << 32))
            continue
        logical, length, hi, lo = _LEAF.unpack_from(raw, place)
        unwritten = length > EXT_INIT_MAX_LEN
        length -= EXT_INIT_MAX_LEN if unwritten else 0
        if logical < at or length == 0 or logical + length > high:
            return "extents out of order"
        at = logical + length
        extents.append(Extent(logical, length, lo | hi << 32, unwritten))
    return found, extents, below


def root_extents(root: bytes) -> list[tuple[int, int, int, bool]] | None:
    """Decode the extents in an inode, the fast way: ``(start, length, logical, unwritten)``.

    Returns None for a root with nodes below, or with a fault, which `parse_extents` names.
    """
    values = _ROOT.unpack(root)
    magic, entries, most, depth = values[:4]
    if magic != EXT4_EXT_MAGIC or depth or not entries <= most <= _ROOT_ENTRIES:
        return None
    found = []
    at = 0
    for place in range(4, 4 + 4 * entries, 4):
        logical, length, hi, lo = values[place : place + 4]
        unwritten = length > EXT_INIT_MAX_LEN
        if unwritten:
            length -= EXT_INIT_MAX_LEN
        if logical < at or length == 0:
            return None
        at = logical + length
        found.append((lo | hi << 32, length, logical, unwritten))
    return None if at > MAX_LOGICAL else found


def nodes_below(root: bytes) -> list[int]:
    """Return the blocks of the nodes right below a root, which is not verified."""
    parsed = parse_extents(root, None)
    return [] if isinstance(parsed, str) else [index.block for index in parsed[2]]


def block_matches(seed: int, block: bytes) -> bool:
    """Return whether the checksum of an extent block is right; ``seed`` is that of its inode."""
    most = _HEADER.unpack_from(block)[2]
    at = _ENTRY * (most + 1)
    if at + LE32.size > len(block):
        return False
    stored: int = LE32.unpack_from(block, at)[0]
    return crc32c(seed, block[:at]) == stored


def pointers(block: bytes) -> tuple[int, ...]:
    """Decode the block numbers of an indirect block; 0 is a hole."""
    return unpack_from(f"<{len(block) // 4}I", block)
