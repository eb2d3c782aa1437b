"""The extents at many logical addresses, as far as each has a single back reference."""

from typing import Final, NamedTuple

import numpy as np
from numpy.typing import NDArray

from whoseblock.fs.btrfs.bulk.leaves import read_leaves
from whoseblock.fs.btrfs.format.keys import (
    EXTENT_DATA_REF,
    EXTENT_ITEM,
    EXTENT_TREE,
    METADATA_ITEM,
    TREE_BLOCK_REF,
)
from whoseblock.fs.btrfs.volume import Volume

__all__ = ["SingleExtents", "find_extents"]

_HEAD: Final = [("refs", "<u8"), ("generation", "<u8"), ("flags", "<u8"), ("kind", "u1")]
#: An extent of data with one EXTENT_DATA_REF inside.
_DATA: Final = np.dtype(
    [*_HEAD, ("tree", "<u8"), ("inode", "<u8"), ("offset", "<u8"), ("count", "<u4")]
)
#: A tree block with one TREE_BLOCK_REF inside.
_BLOCK: Final = np.dtype([*_HEAD, ("tree", "<u8")])
_IS_DATA, _IS_BLOCK = 1, 2


class SingleExtents(NamedTuple):
    """Extents with one reference, by their start: to ``inode`` from ``tree``, or to a tree block.

    ``offset`` is as in EXTENT_DATA_REF; for a tree block it is the level.
    """

    start: NDArray[np.uint64]
    length: NDArray[np.uint64]
    tree: NDArray[np.uint64]
    inode: NDArray[np.uint64]
    offset: NDArray[np.uint64]
    generation: NDArray[np.uint64]

    def at(self, addresses: NDArray[np.uint64]) -> NDArray[np.int64]:
        """Return the number of the last extent that begins at or before each address, or -1."""
        return np.searchsorted(self.start, addresses, "right").astype(np.int64) - 1


def find_extents(
    volume: Volume, addresses: NDArray[np.uint64], *, are_trees: bool
) -> SingleExtents:
    """Return the extents of data or of tree blocks near logical addresses; raises `BlockError`.

    Others that have no such form are left out.
    """
    pointers = list(volume.reader.leaves(volume.root(EXTENT_TREE)))
    firsts = np.array([one.first[0] if one.first else 0 for one in pointers], np.uint64)
    wanted = np.unique(np.searchsorted(firsts, addresses, "right").astype(np.int64) - 1)
    chosen = [pointers[index] for index in wanted.tolist() if index >= 0]
    form = _BLOCK if are_trees else _DATA
    item = METADATA_ITEM if are_trees else EXTENT_ITEM
    columns: list[tuple[NDArray[np.uint64], ...]] = []
    for items in read_leaves(volume, EXTENT_TREE, chosen):
        picked = (items.type == item) & (items.size == form.itemsize)
        picked &= items.after != items.objectid
        found = items.content(picked, form)
        start, offset = items.objectid[picked], items.offset[picked]
        single = found["refs"] == 1
        if are_trees:
            single &= (found["flags"] == _IS_BLOCK) & (found["kind"] == TREE_BLOCK_REF)
            length, inode = np.full_like(start, volume.node_size), np.zeros_like(start)
        else:
            single &= (found["flags"] == _IS_DATA) & (found["kind"] == EXTENT_DATA_REF)
            single &= found["count"] == 1
            length, inode, offset = offset, found["inode"], found["offset"]
            single &= ((start | length) % np.uint64(volume.sector_size) == 0) & (length > 0)
        # What follows begins past it.
        single &= start + length <= items.after[picked]
        parts = (start, length, found["tree"], inode, offset, found["generation"])
        columns.append(tuple(part[single].astype(np.uint64) for part in parts))
    if not columns:
        return SingleExtents(*(np.empty(0, np.uint64) for _ in SingleExtents._fields))
    joined = SingleExtents(*map(np.concatenate, zip(*columns, strict=True)))
    order = np.argsort(joined.start, kind="stable")
    return SingleExtents(*(column[order] for column in joined))
