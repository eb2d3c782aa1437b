"""Where a large question can be cut without cutting a row.

No record of the reverse mapping crosses a seam, and one begins there or at the start of an
allocation group.  The rows of both sides, asked for apart, are those of the whole.
"""

from bisect import bisect_left, bisect_right
from collections.abc import Iterator
from typing import TYPE_CHECKING

import numpy as np

from whoseblock.fs.xfs.btree import RMAPBT, AgTree, Fault, Leaf, Node
from whoseblock.fs.xfs.owners import OwnerFinder

if TYPE_CHECKING:
    from numpy.typing import NDArray

    Ints = NDArray[np.int64]

__all__ = ["split"]


def split(finder: OwnerFinder, start: int, length: int, budget: int) -> Iterator[tuple[int, int]]:
    """Cut ``length`` bytes from ``start`` into ``(start, length)`` of about ``budget`` records.

    A part has more where so many records overlap that there is no seam among them.  Only one leaf
    is held at a time.
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
    """Return the starts and ends of the records of each leaf, where they touch the blocks."""
    layout = tree.shape.record

    def touched(node: Node) -> list[int]:
        window = range(bisect_right(node.reach, low), bisect_left(node.starts, high))
        return [index for index in window if node.ends[index] > low]

    # What is damaged is reported by the questions that touch it.
    faults: list[Fault] = []
    for leaf in tree.leaves(touched, faults):
        records = np.frombuffer(leaf.block, layout.dtype(), leaf.numrecs, leaf.offset)
        first = records["startblock"].astype(np.int64)
        after = first + records["blockcount"]
        if leaf.numrecs and _is_sound(leaf, first, after):
            here = (after > low) & (first < high)
            yield first[here], after[here]


def _is_sound(leaf: Leaf, first: "Ints", after: "Ints") -> bool:
    """Tell whether the records ascend within what the parent promises."""
    return bool(
        (after > first).all()
        and (first[1:] >= first[:-1]).all()
        and first[0] >= leaf.low
        and after.max() <= leaf.high
    )
