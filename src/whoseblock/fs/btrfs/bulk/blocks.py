"""Many tree blocks read in the order of their places, those next to each other at once."""

from collections.abc import Iterator, Sequence
from typing import Final, NamedTuple

import numpy as np
from numpy.typing import NDArray

from whoseblock.errors import BlockError
from whoseblock.fs.btrfs.chunks import Place
from whoseblock.fs.btrfs.format.checksum import checksum_matches
from whoseblock.fs.btrfs.trees import LeafPointer
from whoseblock.fs.btrfs.volume import Volume

__all__ = ["Blocks", "read_blocks"]

#: So many bytes are read at once.
_AT_ONCE: Final = 4 << 20
#: Blocks that are at most so far apart are read with those between them.
_GAP: Final = 8
_ITEM_SIZE: Final = 25
_HEADER: Final = np.dtype(
    [
        *(("checksum", "V32"), ("uuid", "V16"), ("address", "<u8"), ("flags", "<u8")),
        *(("chunk_uuid", "V16"), ("generation", "<u8"), ("owner", "<u8"), ("items", "<u4")),
        ("level", "u1"),
    ]
)


class Blocks(NamedTuple):
    """Leaves that verify, one after the other in ``raw``, with the number of items of each."""

    pointers: list[LeafPointer]
    raw: NDArray[np.uint8]
    counts: NDArray[np.int64]


def read_blocks(volume: Volume, tree: int, pointers: Sequence[LeafPointer]) -> Iterator[Blocks]:
    """Yield the leaves whose first copy verifies and belongs to ``tree``, in any order."""
    size = volume.node_size
    placed = sorted(_places(volume, pointers), key=lambda one: one[0])
    run: list[tuple[Place, LeafPointer]] = []
    for one in placed:
        if run and not _is_near(run[0][0], run[-1][0], one[0], size):
            yield from _read_run(volume, tree, run)
            run = []
        run.append(one)
    if run:
        yield from _read_run(volume, tree, run)


def _is_near(first: Place, last: Place, place: Place, size: int) -> bool:
    """Return whether a block is read together with those from ``first`` to ``last``."""
    return (
        place.device == first.device
        and place.start - last.start <= _GAP * size
        and place.start + size - first.start <= _AT_ONCE
        and (place.start - first.start) % size == 0
    )


def _read_run(
    volume: Volume, tree: int, run: Sequence[tuple[Place, LeafPointer]]
) -> Iterator[Blocks]:
    size = volume.node_size
    first = run[0][0].start
    raw = _read(volume, run[0][0], run[-1][0].start + size - first)
    if raw:
        numbers = [(place.start - first) // size for place, _ in run]
        found = _verified(volume, tree, [pointer for _, pointer in run], raw, numbers)
        if found.pointers:
            yield found
    elif len(run) > 1:
        # One bad sector must not hide the others.
        for one in run:
            yield from _read_run(volume, tree, [one])


def _places(volume: Volume, pointers: Sequence[LeafPointer]) -> Iterator[tuple[Place, LeafPointer]]:
    """Yield where the first copy of each leaf lies in one piece."""
    size = volume.node_size
    chunk = None
    for one in sorted(pointers, key=lambda one: one.address):
        if chunk is None or not chunk.start <= one.address < chunk.end:
            chunk = volume.chunks.find(one.address)
        if chunk is None or one.address % volume.sector_size or one.address + size > chunk.end:
            continue
        room, (place, *_) = chunk.places(one.address)
        if room >= size:
            yield place, one


def _read(volume: Volume, place: Place, length: int) -> bytes:
    """Return bytes of a device, none if they cannot be read."""
    media = volume.devices.get(place.device)
    if media is None or place.start + length > media.size:
        return b""
    try:
        return media.pread(place.start, length)
    except BlockError:
        return b""


def _verified(
    volume: Volume, tree: int, pointers: list[LeafPointer], raw: bytes, numbers: list[int]
) -> Blocks:
    """Return the leaves with the header that is expected, and the right checksum.

    ``numbers`` are their places among the blocks of ``raw``.
    """
    size = volume.node_size
    blocks = np.frombuffer(raw, np.uint8).reshape(-1, size)[numbers]
    headers = np.ascontiguousarray(blocks[:, : _HEADER.itemsize]).view(_HEADER).reshape(-1)
    address = np.array([one.address for one in pointers], np.uint64)
    generation = np.array([one.generation for one in pointers], np.uint64)
    room = (size - _HEADER.itemsize) // _ITEM_SIZE
    good = (headers["address"] == address) & (headers["generation"] == generation)
    good &= (headers["owner"] == tree) & (headers["level"] == 0)
    good &= headers["uuid"] == np.frombuffer(volume.sb.uuid, "V16")
    good &= (headers["items"] > 0) & (headers["items"] <= room)
    view = memoryview(raw)
    kind = volume.sb.checksum
    for index in np.flatnonzero(good).tolist():
        at = numbers[index] * size
        good[index] = checksum_matches(kind, view[at : at + size])
    kept = [one for one, is_good in zip(pointers, good.tolist(), strict=True) if is_good]
    counts = headers["items"][good].astype(np.int64)
    return Blocks(kept, blocks[good].reshape(-1), counts)
