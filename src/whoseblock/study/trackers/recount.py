"""The memory that trackers must need, counted from the entries of the files alone.

Nothing here is shared with the trackers but the sizes of structures: a tracker that keeps what it
should have given back, or counts what it does not have, differs.
"""

from typing import TYPE_CHECKING

import numpy as np

from whoseblock.study.sizes import ADDRESS_SPACE, RB_ROOT_CACHED, SHARED_FILE

if TYPE_CHECKING:
    from whoseblock.study.simulation.entries import Entries
    from whoseblock.study.simulation.space import Space

__all__ = ["extents_weight", "pages_weight", "shared_extents"]


def pages_weight(entries: "Entries") -> tuple[int, int]:
    """Return the minimum and maximum memory of trees on every shared page.

    The tree of a page that was shared once stays for the one owner that is left.
    """
    *_, pages = entries.arrays()
    owners = np.bincount(pages)
    shared = owners[owners > 1]
    least = RB_ROOT_CACHED * shared.size + SHARED_FILE * int(shared.sum())
    return least, least + (RB_ROOT_CACHED + SHARED_FILE) * int((owners == 1).sum())


def extents_weight(entries: "Entries", records: list[tuple[int, int]]) -> int | None:
    """Return the memory of records with these bounds, None if the bounds are wrong.

    Each must have an owner, no page may be in two, and what is in none may have one owner only.
    """
    files, index, pages = entries.arrays()
    starts, ends = np.array(records, np.int64).reshape(-1, 2).T
    if (starts[1:] < ends[:-1]).any():
        return None
    record = np.searchsorted(starts, pages, side="right") - 1
    inside = record >= 0
    inside[inside] = pages[inside] < ends[record[inside]]
    # An owner is a file, and how far its index is from the page.
    owners = _apart(np.stack((record, files, index - pages))[:, inside])
    owners = _apart(owners[:, np.lexsort(owners)])
    held, alone = np.unique(owners[0]).size, np.bincount(pages[~inside])
    if held != len(records) or (alone > 1).any():
        return None
    return ADDRESS_SPACE * len(records) + SHARED_FILE * int(owners.shape[1])


def _apart(columns: np.ndarray) -> np.ndarray:
    """Leave out each column that is like the one before."""
    other = np.ones(columns.shape[1], bool)
    other[1:] = (columns[:, 1:] != columns[:, :-1]).any(axis=0)
    return columns[:, other]


def shared_extents(space: "Space", entries: "Entries") -> list[tuple[int, int]]:
    """Return the shared extents with a page that is faulted in."""
    pages = np.flatnonzero(np.bincount(entries.arrays()[2]))
    shared = [one[:2] for one in space.segments() if len(one.keys) > 1]
    bounds = np.searchsorted(pages, np.array(shared, np.int64).reshape(-1, 2))
    return [one for one, (low, high) in zip(shared, bounds.tolist(), strict=True) if low < high]
