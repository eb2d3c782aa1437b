"""The owners of many ranges as columns, without paths."""

from collections.abc import Callable, Sequence

import numpy as np
from numpy.typing import NDArray

from whoseblock.fs.arrays import FORKS, KINDS, WHATS, OwnerArrays, as_columns, row_dtype
from whoseblock.fs.base import Answer, FileOwner, MetadataOwner, Outside, Owner
from whoseblock.fs.btrfs.bulk.device import find_on_device
from whoseblock.fs.btrfs.volume import Volume
from whoseblock.fs.pieces import DATA, FILE, FILE_DATA, NO_FORK, NOTHING

__all__ = ["owners_as_columns"]


def owners_as_columns(
    volume: Volume,
    device: int,
    ranges: tuple[NDArray[np.int64], NDArray[np.int64]],
    answer: Callable[[int, int], Answer],
    doubts: Sequence[str],
) -> OwnerArrays:
    """Return the owners of ranges of a device; ``answer`` answers those with several rows."""
    start, length = ranges
    owners = find_on_device(volume, device, start, length).owners
    found = owners.is_found
    rows = np.zeros(int(found.sum()), row_dtype())
    rows["question"] = np.flatnonzero(found)
    rows["start"], rows["length"] = start[found], length[found]
    rows["kind"], rows["what"], rows["fork"] = FILE, FILE_DATA, DATA
    for name in ("inode", "file_offset", "unwritten", "subvolume"):
        rows[name] = getattr(owners, name)[found]
    parts = [rows]
    notes: dict[int, tuple[str, ...]] = {}
    complete = np.full(len(start), not doubts)
    others = np.flatnonzero(~found)
    # Those near each other need the same leaves.
    for number in others[np.argsort(start[others], kind="stable")].tolist():
        one = answer(int(start[number]), int(length[number]))
        more = [(number, *_numbers(row)) for row in one]
        parts.append(np.array(more, row_dtype()))
        complete[number] = one.complete
        if said := tuple(note for note in one.notes if note not in doubts):
            notes[number] = said
    joined = np.concatenate(parts)
    joined = joined[np.argsort(joined["question"], kind="stable")]
    return as_columns(joined, complete, notes)


def _numbers(row: Owner) -> tuple[int | bool, ...]:
    """Return the fields of a row in the order of `row_dtype`, without the question."""
    kind = KINDS.index(row.kind)
    if isinstance(row, FileOwner):
        what, fork = WHATS.index(row.what), FORKS.index(row.fork)
        offset = -1 if row.file_offset is None else row.file_offset
        place = (row.inode, offset, row.unwritten, row.shared, row.file.subvolume)
        return (row.start, row.length, kind, what, fork, *place)
    what = NOTHING
    if isinstance(row, MetadataOwner | Outside) and row.what in WHATS:
        what = WHATS.index(row.what)
    return row.start, row.length, kind, what, NO_FORK, 0, -1, False, False, 0
