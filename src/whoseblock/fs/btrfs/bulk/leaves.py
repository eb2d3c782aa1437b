"""Leaves of trees as arrays of items; a leaf that does not verify is left out."""

from collections.abc import Iterator, Sequence
from typing import Final, NamedTuple

import numpy as np
from numpy.typing import NDArray

from whoseblock.fs.btrfs.bulk.blocks import Blocks, read_blocks
from whoseblock.fs.btrfs.format.keys import BEYOND, Key
from whoseblock.fs.btrfs.format.node import HEADER_SIZE
from whoseblock.fs.btrfs.trees import LeafPointer
from whoseblock.fs.btrfs.volume import Volume

__all__ = ["Items", "read_leaves"]

#: So many leaves are decoded together.
_TOGETHER: Final = 256
_KEY: Final = (("objectid", "<u8"), ("type", "u1"), ("offset", "<u8"))
_ITEM: Final = np.dtype([*_KEY, ("at", "<u4"), ("size", "<u4")])


class Items(NamedTuple):
    """The items of some leaves, in the order of the leaves and of their keys.

    ``begin`` is where the content of an item begins in ``raw``, and ``after`` the object of the
    item that follows.
    """

    raw: NDArray[np.uint8]
    objectid: NDArray[np.uint64]
    type: NDArray[np.uint8]
    offset: NDArray[np.uint64]
    begin: NDArray[np.int64]
    size: NDArray[np.uint32]
    after: NDArray[np.uint64]

    def content(self, chosen: NDArray[np.bool_], form: np.dtype[np.void]) -> NDArray[np.void]:
        """Return the beginning of the content of the chosen items, decoded."""
        places = self.begin[chosen][:, None] + np.arange(form.itemsize)
        return np.ascontiguousarray(self.raw[places]).reshape(-1).view(form)


def read_leaves(volume: Volume, tree: int, pointers: Sequence[LeafPointer]) -> Iterator[Items]:
    """Yield the items of leaves of a tree, in any order of the leaves."""
    held: list[Blocks] = []
    for blocks in read_blocks(volume, tree, pointers):
        held.append(blocks)
        if sum(len(one.pointers) for one in held) >= _TOGETHER:
            yield _decode(_joined(held), volume.node_size)
            held = []
    if held:
        yield _decode(_joined(held), volume.node_size)


def _joined(held: Sequence[Blocks]) -> Blocks:
    pointers = [pointer for one in held for pointer in one.pointers]
    raw = np.concatenate([one.raw for one in held])
    return Blocks(pointers, raw, np.concatenate([one.counts for one in held]))


def _decode(blocks: Blocks, size: int) -> Items:
    """Decode the items of leaves, without those whose items are out of order or misplaced."""
    pointers, raw, counts = blocks
    ends = np.cumsum(counts)
    firsts = ends - counts
    leaf = np.repeat(np.arange(len(pointers)), counts)
    number = np.arange(ends[-1]) - firsts[leaf]
    places = leaf * size + HEADER_SIZE + number * _ITEM.itemsize
    items = raw[places[:, None] + np.arange(_ITEM.itemsize)].reshape(-1).view(_ITEM)
    objectid, kind, offset = (np.ascontiguousarray(items[name]) for name, _ in _KEY)
    at, length = items["at"].astype(np.int64), items["size"].astype(np.int64)
    top = np.roll(at, 1)
    top[firsts] = size - HEADER_SIZE
    ascending = (objectid[1:] > objectid[:-1]) | (
        (objectid[1:] == objectid[:-1])
        & ((kind[1:] > kind[:-1]) | ((kind[1:] == kind[:-1]) & (offset[1:] > offset[:-1])))
    )
    bad = at + length != top
    bad[1:] |= ~ascending & (leaf[1:] == leaf[:-1])
    bad[ends - 1] |= at[ends - 1] < counts * _ITEM.itemsize
    for index, pointer in enumerate(pointers):
        low, high = int(firsts[index]), int(ends[index]) - 1
        first: Key = (int(objectid[low]), int(kind[low]), int(offset[low]))
        last: Key = (int(objectid[high]), int(kind[high]), int(offset[high]))
        bad[low] |= (pointer.first is not None and first != pointer.first) or last >= pointer.end
    is_good = np.ones(len(pointers), bool)
    is_good[leaf[bad]] = False
    kept = is_good[leaf]
    after = np.roll(objectid, -1)
    # The last item of the last leaf is followed by none.
    top_object = BEYOND[0] - 1
    after[ends - 1] = np.array([min(one.end[0], top_object) for one in pointers], np.uint64)
    begin = leaf * size + HEADER_SIZE + at
    return Items(
        raw,
        objectid[kept],
        kind[kept],
        offset[kept],
        begin[kept],
        items["size"][kept],
        after[kept],
    )
