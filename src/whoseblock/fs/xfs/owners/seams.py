"""Seams: places where a large question is cut without cutting a row.

No record of the reverse map crosses a seam, and one begins there or at the start of an allocation
group.  The rows of both sides together are those of the whole.
"""

from bisect import bisect_left, bisect_right
from collections.abc import Iterator
from itertools import islice
from typing import TYPE_CHECKING, Final

import numpy as np

from whoseblock.fs.xfs.btree import RMAPBT, AgTree, Fault, Node
from whoseblock.fs.xfs.owners.finder import OwnerFinder
from whoseblock.fs.xfs.owners.promises import sound_records

if TYPE_CHECKING:
    from numpy.typing import NDArray

    Ints = NDArray[np.int64]

__all__ = ["split"]

#: Leaves that are verified together.
_TOGETHER: Final = 64


def split(finder: OwnerFinder, start: int, length: int, budget: int) -> Iterator[tuple[int, int]]:
    """Cut ``length`` bytes from ``start`` into ``(start, length)`` of about ``budget`` records.

    A part has more where so many records overlap that there is no seam among them.  Few leaves are
    held at a time.
    """
    volume = finder.volume
    end = start + length
    within = min(end, volume.size)
    at, count = start, 0
    for agno in _groups(finder, start, within):
        base = agno * volume.ag_bytes
        if count >= budget and base > at:
            yield at, base - at
            at, count = base, 0
        low = (max(start, base) - base) // volume.block_size
        high = -(-(min(within, base + volume.ag_bytes) - base) // volume.block_size)
        reach = 0
        for first, after in _extents(finder.tree(agno, RMAPBT), low, high):
            reached = np.maximum.accumulate(np.concatenate(([reach], after)))
            reach = int(reached[-1])
            done = 0
            if count + first.size > budget:
                places = base + first * volume.block_size
                clean = np.flatnonzero((reached[:-1] <= first) & (places > at))
                for index in clean.tolist():
                    if count + index - done >= budget:
                        place = int(places[index])
                        yield at, place - at
                        at, count, done = place, 0, index
            count += first.size - done
    yield at, end - at


def _groups(finder: OwnerFinder, start: int, within: int) -> Iterator[int]:
    """Return the groups from byte ``start`` up to ``within`` that have a reverse mapping."""
    volume = finder.volume
    if not volume.sb.has_rmapbt or start >= within:
        return
    agno, end = start // volume.ag_bytes, (within - 1) // volume.ag_bytes + 1
    while agno < end:
        lost = finder.count_lost_groups(agno, within, [])
        if not lost:
            yield agno
        agno += lost or 1


def _extents(tree: AgTree, low: int, high: int) -> "Iterator[tuple[Ints, Ints]]":
    """Return the starts and ends of the records of some leaves at a time, in the blocks asked."""

    def touched(node: Node) -> list[int]:
        window = range(bisect_right(node.reach, low), bisect_left(node.starts, high))
        return [index for index in window if node.ends[index] > low]

    # What is damaged is reported by the questions that touch it.
    faults: list[Fault] = []
    leaves = tree.leaves(touched, faults)
    while some := list(islice(leaves, _TOGETHER)):
        _, first, after = sound_records(tree, some, faults)
        here = (after > low) & (first < high)
        yield first[here], after[here]
        faults.clear()
