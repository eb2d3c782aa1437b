"""Leaves of trees as arrays of items; a leaf that does not verify is left out."""

from collections.abc import Iterator, Sequence
from itertools import islice
from typing import Final, NamedTuple

import numpy as np
from numpy.typing import NDArray

from whoseblock.errors import BlockError
from whoseblock.fs.btrfs.format.checksum import checksum_matches
from whoseblock.fs.btrfs.format.keys import BEYOND, Key
from whoseblock.fs.btrfs.format.node import HEADER_SIZE, parse_header
from whoseblock.fs.btrfs.trees import LeafPointer
from whoseblock.fs.btrfs.volume import Volume

__all__ = ["Items", "read_leaves"]

#: So many leaves are decoded at once: at most 16 MiB.
_AT_ONCE: Final = 256
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
    """Yield the items of leaves of a tree."""
    remaining = iter(pointers)
    while some := list(islice(remaining, _AT_ONCE)):
        found = [(one, raw) for one in some if (raw := _read(volume, tree, one))]
        if found:
            yield _decode([one for one, _ in found], [raw for _, raw in found], volume.node_size)


def _read(volume: Volume, tree: int, pointer: LeafPointer) -> bytes | None:
    """Return the first copy of a leaf if it verifies."""
    size = volume.node_size
    chunk = volume.chunks.find(pointer.address)
    if pointer.address % volume.sector_size or chunk is None or pointer.address + size > chunk.end:
        return None
    room, (place, *_) = chunk.places(pointer.address)
    media = volume.devices.get(place.device)
    if room < size or media is None or place.start + size > media.size:
        return None
    try:
        raw = media.pread(place.start, size)
    except BlockError:
        return None
    header = parse_header(raw)
    same = (header.address, header.generation, header.uuid, header.owner, header.level)
    wanted = (pointer.address, pointer.generation, volume.sb.uuid, tree, 0)
    room = (size - HEADER_SIZE) // _ITEM.itemsize
    if same != wanted or not 0 < header.items <= room:
        return None
    return raw if checksum_matches(volume.sb.checksum, raw) else None


def _decode(pointers: Sequence[LeafPointer], blocks: Sequence[bytes], size: int) -> Items:
    """Decode the items of leaves, without those whose items are out of order or misplaced."""
    raw = np.frombuffer(b"".join(blocks), np.uint8)
    counts = np.array([parse_header(one).items for one in blocks])
    ends = np.cumsum(counts)
    firsts = ends - counts
    leaf = np.repeat(np.arange(len(blocks)), counts)
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
    is_good = np.ones(len(blocks), bool)
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
