"""The owners of many ranges of data that have a single owner each; others are left to `owners`.

An extent has a single owner if it has one reference, and the leaf in which its file extent lies is
in one tree, with all blocks above it.
"""

from collections.abc import Sequence
from typing import Final, NamedTuple, Self

import numpy as np
from numpy.typing import NDArray

from whoseblock.errors import BlockError
from whoseblock.fs.btrfs.bulk.extents import SingleExtents, find_extents
from whoseblock.fs.btrfs.bulk.leaves import read_leaves
from whoseblock.fs.btrfs.format.items import PREALLOCATED, REGULAR
from whoseblock.fs.btrfs.format.keys import EXTENT_DATA, is_file_tree
from whoseblock.fs.btrfs.trees import LeafPointer
from whoseblock.fs.btrfs.volume import Volume

__all__ = ["SingleOwners", "find_single_owners"]

#: Fewer extents of a subvolume are not worth reading its leaves as arrays.
_FEW: Final = 8
_PART: Final = np.dtype(
    [
        *(("generation", "<u8"), ("ram_bytes", "<u8"), ("compression", "u1")),
        *(("encryption", "u1"), ("encoding", "<u2"), ("kind", "u1"), ("address", "<u8")),
        *(("disk_length", "<u8"), ("offset", "<u8"), ("length", "<u8")),
    ]
)


class SingleOwners(NamedTuple):
    """The owner of each question, by its logical address; ``is_found`` is false for others."""

    is_found: NDArray[np.bool_]
    subvolume: NDArray[np.uint64]
    inode: NDArray[np.uint64]
    file_offset: NDArray[np.int64]
    unwritten: NDArray[np.bool_]

    @classmethod
    def empty(cls, count: int) -> Self:
        """Return as many questions without an owner that was found."""
        numbers = np.zeros(count, np.uint64)
        return cls(numbers != 0, numbers, numbers.copy(), numbers.astype(np.int64), numbers != 0)


class _Parts(NamedTuple):
    """The parts of files that extents have, by the number of the extent."""

    extent: NDArray[np.int64]
    key_offset: NDArray[np.uint64]
    item: NDArray[np.void]


def find_single_owners(
    volume: Volume,
    logical: NDArray[np.uint64],
    length: NDArray[np.uint64],
    chunk_end: NDArray[np.uint64],
) -> SingleOwners:
    """Return the owners of ranges of logical addresses, each within a chunk."""
    found = SingleOwners.empty(len(logical))
    try:
        extents = find_extents(volume, logical, are_trees=False)
    except BlockError:
        return found
    number = extents.at(logical)
    if not len(extents.start):
        return found
    inside = number >= 0
    end = (extents.start + extents.length)[number]
    inside &= (logical + length <= end) & (end <= chunk_end)
    wanted = np.unique(number[inside])
    parts = _find_parts(volume, extents, wanted)
    if not len(parts.extent):
        return found
    place = np.searchsorted(parts.extent, number)
    place[place == len(parts.extent)] = 0
    inside &= parts.extent[place] == number
    item = parts.item[place]
    begin = extents.start[number] + item["offset"]
    inside &= (begin <= logical) & (logical + length <= begin + item["length"])
    offset = parts.key_offset[place] + (logical - begin)
    inside &= offset < np.uint64(1 << 62)
    return SingleOwners(
        inside,
        np.where(inside, extents.tree[number], 0).astype(np.uint64),
        np.where(inside, extents.inode[number], 0).astype(np.uint64),
        np.where(inside, offset, 0).astype(np.int64),
        inside & (item["kind"] == PREALLOCATED),
    )


def _find_parts(volume: Volume, extents: SingleExtents, wanted: NDArray[np.int64]) -> _Parts:
    """Return the part of a file that each extent has, for those that have exactly one."""
    found: list[_Parts] = []
    trees = extents.tree[wanted]
    for tree in np.unique(trees).tolist():
        own = wanted[trees == tree]
        if is_file_tree(tree) and len(own) >= _FEW:
            try:
                found += _in_tree(volume, extents, own, tree)
            except BlockError:
                continue
    if not found:
        none = np.empty(0, np.int64)
        return _Parts(none, none.astype(np.uint64), np.empty(0, _PART))
    parts = _Parts(*map(np.concatenate, zip(*found, strict=True)))
    order = np.argsort(parts.extent, kind="stable")
    extent = parts.extent[order]
    # A second item is a reference too many.
    once = np.ones(len(extent), bool)
    once[1:] &= extent[1:] != extent[:-1]
    once[:-1] &= extent[1:] != extent[:-1]
    kept = order[once]
    item = parts.item[kept]
    valid = (item["compression"] == 0) & (item["encryption"] == 0) & (item["encoding"] == 0)
    valid &= (item["kind"] == REGULAR) | (item["kind"] == PREALLOCATED)
    room = extents.length[parts.extent[kept]]
    valid &= (item["disk_length"] == room) & (item["length"] > 0) & (item["length"] <= room)
    valid &= item["offset"] <= room - np.minimum(item["length"], room)
    kept = kept[valid]
    return _Parts(parts.extent[kept], parts.key_offset[kept], parts.item[kept])


def _in_tree(
    volume: Volume, extents: SingleExtents, own: NDArray[np.int64], tree: int
) -> list[_Parts]:
    """Return the items of one subvolume that refer to extents; raises `BlockError`."""
    pointers = list(volume.reader.leaves(volume.root(tree)))
    firsts = np.array([one.first[0] if one.first else 0 for one in pointers], np.uint64)
    inodes = np.unique(extents.inode[own])
    low = np.maximum(np.searchsorted(firsts, inodes, "left").astype(np.int64) - 1, 0)
    high = np.searchsorted(firsts, inodes, "right").astype(np.int64)
    touched = np.zeros(len(pointers) + 1, np.int64)
    np.add.at(touched, low, 1)
    np.add.at(touched, high, -1)
    chosen = [pointers[index] for index in np.flatnonzero(np.cumsum(touched)[:-1]).tolist()]
    starts = extents.start[own]
    found: list[_Parts] = []
    for items in read_leaves(volume, tree, _in_one_tree(volume, tree, chosen)):
        picked = (items.type == EXTENT_DATA) & (items.size == _PART.itemsize)
        item = items.content(picked, _PART)
        inode, offset = items.objectid[picked], items.offset[picked]
        place = np.searchsorted(starts, item["address"])
        place[place == len(starts)] = 0
        number = own[place]
        same = (starts[place] == item["address"]) & (extents.inode[number] == inode)
        same &= offset - item["offset"] == extents.offset[number]
        found.append(_Parts(number[same], offset[same], item[same]))
    return found


def _in_one_tree(volume: Volume, tree: int, pointers: Sequence[LeafPointer]) -> list[LeafPointer]:
    """Return the leaves that are in no other tree; raises `BlockError`."""
    places = {place for one in pointers for place in one.above}
    places |= {(one.address, one.generation) for one in pointers}
    addresses = np.array([address for address, _ in places], np.uint64)
    blocks = find_extents(volume, addresses, are_trees=True)
    own = zip(
        blocks.start[blocks.tree == tree].tolist(),
        blocks.generation[blocks.tree == tree].tolist(),
        strict=True,
    )
    single = places & set(own)
    return [
        one
        for one in pointers
        if (one.address, one.generation) in single and single.issuperset(one.above)
    ]
