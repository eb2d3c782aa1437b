"""The wrong answers that nothing on the disk could have prevented, with the reasons.

docs/internals/xfs.md describes what a lookup compares, and why it cannot detect these.
"""

import struct
from collections import defaultdict
from typing import NamedTuple

from tools.adversary.bases import Base
from tools.adversary.verdicts import Verdict
from tools.adversary.wounds import Wounds

__all__ = ["inherent_reason"]

#: An old one of these may name an inode that the true directory does not, and has its own index.
_NAMES = {"dir block", "inode", "inode cluster"}
_INODES = {"inode", "inode cluster"}
#: Where the extents of an inode stand.
_EXTENTS = {"inode", "inode cluster", "bmbt"}
#: Level, number of records and inode of a block of an extent map.
_MAP_HEADER = struct.Struct(">4xHH48xQ8x")


def inherent_reason(base: Base, wounds: Wounds, verdict: Verdict) -> str:
    """Return why a wrong answer is inherent, or "" if it is a defect of the program."""
    if verdict.fault.startswith(("form", "exception", "memory", "single and bulk")):
        return ""
    if wounds.kind == "claim":
        return _of_claims(wounds, verdict)
    if wounds.kind in {"one lie", "lies"} or base.geometry.version4:
        return _of_lies(wounds, verdict)
    if not wounds.kind.startswith("stale"):
        return ""
    if verdict.fault in {"wrong path", "path missing"}:
        return _of_old_names(base, wounds, verdict)
    return _of_old_leaf(base, wounds, verdict) or _of_old_groups(base, wounds, verdict)


def _of_lies(wounds: Wounds, verdict: Verdict) -> str:
    """Excuse what an adversary can do who writes blocks with right checksums.

    A lie may give a wrong owner.  It must not make used space free as long as it is one lie,
    because the reverse map and the free-space btrees are separate structures.
    """
    if len(wounds.units) > 1:
        return "several sealed lies may agree with each other"
    if wounds.units[0].kind == "superblock":
        return "a sealed superblock is the only word about the geometry"
    if verdict.fault.startswith("free"):
        return ""
    return "a forged record with a right checksum is indistinguishable from a true one"


def _of_claims(wounds: Wounds, verdict: Verdict) -> str:
    """Excuse what a forged structure says of its own file only, not what it says of others' blocks.

    Two structures contradict each other where one file claims the blocks of another.
    """
    if verdict.fault in {"wrong path", "path missing", "path of no file"}:
        return "a forged directory is the only word about its names"
    if verdict.fault == "wrong place" and wounds.units[0].kind in _EXTENTS:
        return "a forged extent is the only word about the place in its file"
    return ""


def _of_old_names(base: Base, wounds: Wounds, verdict: Verdict) -> str:
    """Excuse names that only a search of every directory would tell."""
    kinds = {unit.kind for unit in wounds.units}
    if not base.geometry.parent:
        if kinds & _NAMES:
            return "without parent pointers, an old directory or link count is the only word"
        if "dir data" in kinds:
            return "the hash index does not have the inode that a name belongs to"
    if verdict.fault == "path missing" and kinds & _INODES:
        return "an inode from before a further link has as many pointers as links"
    if verdict.fault == "wrong path" and "inode cluster" in kinds:
        return "a file and the directory that it was moved out of are old together"
    return ""


class _MapLeaf(NamedTuple):
    """A leaf of an extent map: its inode, the first block of the file, and the runs of blocks."""

    level: int
    inode: int
    first: int
    runs: list[tuple[int, int]]


def _map_leaf(data: bytes) -> _MapLeaf:
    """Decode a block of an extent map of version 5."""
    level, count, inode = _MAP_HEADER.unpack_from(data)
    words = struct.unpack_from(f">{2 * count}Q", data, _MAP_HEADER.size)
    runs = [
        ((high & 0x1FF) << 43 | low >> 21, low & 0x1FFFFF)
        for high, low in zip(words[::2], words[1::2], strict=True)
    ]
    return _MapLeaf(level, inode, words[0] >> 9 & (1 << 54) - 1, runs)


def _of_old_leaf(base: Base, wounds: Wounds, verdict: Verdict) -> str:
    """Excuse an old leaf of the file's map that has the same blocks at other offsets.

    Its parent has the first offset, and a reverse map would have all of them.
    """
    if base.geometry.rmapbt or verdict.fault not in {"wrong place", "wrong flag"}:
        return ""
    for unit, data, _ in wounds.replaced:
        if unit.kind != "bmbt":
            continue
        old = _map_leaf(data)
        is_same = not old.level and old == _map_leaf(base.read(unit))
        if is_same and f", {old.inode}, 'data', " in verdict.actual:
            return "an old leaf of an extent map has the same blocks elsewhere in the file"
    return ""


def _of_old_groups(base: Base, wounds: Wounds, verdict: Verdict) -> str:
    """Excuse old structures of one group that agree with each other.

    An old AGF is excused only together with an old superblock, whose counters would tell.
    """
    by_group: dict[int, set[str]] = defaultdict(set)
    for unit in wounds.units:
        by_group[unit.start // base.truth.superblock.group_size].add(unit.kind)
    anywhere = {unit.kind for unit in wounds.units}
    is_old_clone = bool(anywhere & _EXTENTS) and "refcountbt" in anywhere
    if is_old_clone and verdict.fault == "owner missing" and not base.geometry.rmapbt:
        return "the extents of the inode and the reference counts are old together"
    for kinds in by_group.values():
        header = "agf" in kinds and "superblock" in anywhere
        old_map, old_counts = header or "rmapbt" in kinds, header or "refcountbt" in kinds
        if verdict.fault.startswith("free"):
            if old_map and (header or kinds >= {"bnobt", "cntbt"}):
                return "the reverse map and both free-space btrees are old together"
            continue
        if verdict.fault == "owner missing" and old_map and old_counts:
            return "the reverse map and the reference counts are old together"
        if old_map and anywhere & _EXTENTS:
            return "the reverse map and the extents of the inode are old together"
        if old_map and "('metadata'" in verdict.actual:
            return "only the tree itself points to the blocks of a group's btrees"
    return ""
