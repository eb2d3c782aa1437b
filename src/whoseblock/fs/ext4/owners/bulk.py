"""The owners of very many ranges with NumPy: one scan, and no loop over plain questions.

A question is plain if all its blocks are free, or all are in use and of one extent of a file, and
nothing is wrong with them.  The others are odd, and answered by `Answers` from the same scan.
"""

from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, Final, NamedTuple

import numpy as np

from whoseblock.fs.arrays import OwnerArrays, as_columns, row_dtype
from whoseblock.fs.ext4.owners.finder import Answers, OwnerFinder, Owners, Segment
from whoseblock.fs.ext4.scan import VALUE_INODE
from whoseblock.fs.pieces import FILE, FREE, LOG, METADATA, XATTR
from whoseblock.fs.scan.bulk import ExtentArrays, FoundArrays, merge_ranges
from whoseblock.fs.scan.engine import UNWRITTEN, Batch, Found, Wanted

if TYPE_CHECKING:
    from numpy.typing import NDArray

    Ints = NDArray[np.int64]
    Bools = NDArray[np.bool_]

__all__ = ["BulkOwners", "find_bulk"]

_ROW: Final = row_dtype()


class BulkOwners(NamedTuple):
    """The rows of all questions, and by question the `Owners` of the odd ones.

    ``remark`` is about the plain questions that ``is_scanned`` marks.  The notes of `OwnerArrays`
    are those of odd questions.
    """

    rows: OwnerArrays
    odd: dict[int, Owners]
    is_scanned: "Bools"
    remark: str


class _Questions:
    """Questions in bytes and in blocks; ``is_odd`` and ``is_used`` are filled in step by step."""

    def __init__(self, finder: OwnerFinder, starts: "Ints", lengths: "Ints") -> None:
        volume = finder.volume
        self.finder = finder
        self.starts = starts
        self.lengths = lengths
        self.low = starts // volume.block_size
        self.high = -(-(starts + lengths) // volume.block_size)
        first = (self.low - volume.first) // volume.sb.blocks_per_group
        last = (self.high - 1 - volume.first) // volume.sb.blocks_per_group
        self.is_odd: Bools = (self.high > volume.blocks) | (first != last)
        self.is_odd |= self._touch_fixed() | (self.low < volume.first)
        if volume.ratio > 1:
            # A cluster has an owner for blocks that it does not map.
            self.is_odd[:] = True
        self.is_used = np.zeros(len(starts), np.bool_)
        self._read_bitmaps(first)

    def _touch_fixed(self) -> "Bools":
        runs = self.finder.fixed.runs
        starts = np.array([run.start for run in runs], np.int64)
        ends = np.array([run.start + run.length for run in runs], np.int64)
        at = np.searchsorted(starts, self.high - 1, "right") - 1
        touch: Bools = (at >= 0) & (ends[at] > self.low)
        return touch

    def _read_bitmaps(self, groups: "Ints") -> None:
        """Find which questions have only blocks in use, and which have both kinds."""
        volume = self.finder.volume
        for group in np.unique(groups[~self.is_odd]).tolist():
            here = np.flatnonzero((groups == group) & ~self.is_odd)
            bits = self.finder.allocation.certain_bits(group)
            if not bits:
                self.is_odd[here] = True
                continue
            used = np.frombuffer(bits.encode(), np.uint8) == ord("1")
            total = np.append(0, np.cumsum(used))
            base = volume.group_start(group)
            count = total[self.high[here] - base] - total[self.low[here] - base]
            blocks = self.high[here] - self.low[here]
            self.is_used[here] = count == blocks
            # What is free by a bitmap without a checksum is looked for, too.
            free = (count == 0) & volume.sb.has_checksums
            self.is_odd[here] = ~free & (count != blocks)

    def pairs(self, which: "Bools") -> Iterator[tuple[int, int]]:
        """Return the ranges of some questions in blocks, those on the volume."""
        high = np.minimum(self.high[which], self.finder.volume.blocks)
        pairs = zip(self.low[which].tolist(), high.tolist(), strict=True)
        return (pair for pair in pairs if pair[0] < pair[1])


def find_bulk(
    finder: OwnerFinder,
    starts: "Ints",
    lengths: "Ints",
    progress: Callable[[int], None],
    *,
    may_scan: bool,
) -> BulkOwners:
    """Return the owners of ``lengths`` bytes from ``starts``, which are on the device."""
    asked = _Questions(finder, starts, lengths)
    if not may_scan:
        asked.is_odd |= asked.is_used
    segments = finder.segments(Wanted(asked.pairs(asked.is_odd)))
    used = asked.is_used & ~asked.is_odd
    others = finder.to_scan(segments)
    wanted = merge_ranges(
        np.append(asked.low[used], np.array(others.lows, np.int64)),
        np.append(asked.high[used], np.array(others.highs, np.int64)),
    )
    found = finder.find_extents(wanted, progress) if wanted and may_scan else None
    odd = _answer(Answers(finder, segments, found), asked, asked.is_odd)
    rows = np.zeros(len(starts), _ROW)
    rows["question"] = np.arange(len(starts))
    rows["start"], rows["length"] = starts, lengths
    rows["kind"], rows["file_offset"] = FREE, -1
    remark = ""
    if found is not None and used.any():
        late = _match(asked, found, rows, np.flatnonzero(used))
        union = Wanted(asked.pairs(late))
        runs = zip(union.lows, union.highs, strict=True)
        whole = [Segment(low, high, None, is_free=False, fault="") for low, high in runs]
        answers = Answers(finder, whole, found)
        remark = answers.remark
        odd |= _answer(answers, asked, late)
    plain = np.ones(len(starts), np.bool_)
    plain[list(odd)] = False
    return BulkOwners(_join(rows[plain], odd, len(starts)), odd, used, remark)


def _answer(answers: Answers, asked: _Questions, which: "Bools") -> dict[int, Owners]:
    return {
        number: answers.of(int(asked.starts[number]), int(asked.lengths[number]))
        for number in np.flatnonzero(which).tolist()
    }


def _match(asked: _Questions, found: Found, rows: "NDArray[np.void]", which: "Ints") -> "Bools":
    """Fill the rows of questions that one extent of a file has; return which are odd."""
    size = asked.finder.volume.block_size
    if isinstance(found, FoundArrays):
        columns, reach = found.columns, found.reach
    else:
        columns = ExtentArrays.of(Batch.of(found.extents, 0))
        reach = np.maximum.accumulate(columns.starts + columns.lengths)
    late = np.zeros(len(asked.low), np.bool_)
    low, high = asked.low[which], asked.high[which]
    first = np.searchsorted(reach, low, "right")
    last = np.searchsorted(columns.starts, high)
    alone = (last - first == 1) & (not found.unread_count)
    late[which[~alone]] = True
    which, low, high = which[alone], low[alone], high[alone]
    own = columns.pick(first[alone])
    whats = own.whats
    wrong = (own.starts > low) | (own.starts + own.lengths < high) | (whats == XATTR)
    wrong |= (own.flags & VALUE_INODE != 0) | np.isin(own.inodes, list(found.unowned_values))
    late[which[wrong]] = True
    is_log = own.inodes == asked.finder.journal
    skipped = asked.starts[which] - own.starts * size
    rows["kind"][which] = np.where(is_log, METADATA, FILE)
    rows["what"][which] = np.where(is_log, LOG, whats)
    for name, column in (("fork", own.forks), ("inode", own.inodes)):
        rows[name][which] = np.where(is_log, 0, column)
    has_offset = ~is_log & (own.offsets >= 0)
    rows["file_offset"][which] = np.where(has_offset, own.offsets * size + skipped, -1)
    rows["unwritten"][which] = ~is_log & (own.flags & UNWRITTEN != 0)
    return late


def _join(plain: "NDArray[np.void]", odd: dict[int, Owners], count: int) -> OwnerArrays:
    """Put all rows in the order of the questions."""
    rows = [(number, *piece) for number, one in odd.items() for piece in one.pieces]
    joined = np.concatenate((plain, np.array(rows, _ROW)))
    joined = joined[np.argsort(joined["question"], kind="stable")]
    notes = {number: tuple(one.notes) for number, one in sorted(odd.items()) if one.notes}
    complete = np.ones(count, np.bool_)
    complete[list(notes)] = False
    return as_columns(joined, complete, notes)
