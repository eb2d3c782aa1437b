"""Owners of many ranges: each leaf that a question touches is read once and matched with NumPy.

Questions about sound metadata are answered here.  A question that touches a damaged block, an
unknown owner, the end of the filesystem, or a gap that the free-space btree does not confirm goes
to `OwnerFinder`, so that only one module describes faults.
"""

from collections.abc import Iterator
from typing import TYPE_CHECKING, Final, NamedTuple

import numpy as np

from whoseblock.fs.arrays import OwnerArrays, as_columns, row_dtype
from whoseblock.fs.base import distinct
from whoseblock.fs.pieces import (
    ATTR,
    DATA,
    EXTENT_MAP,
    FILE,
    FILE_DATA,
    FREE,
    INODES,
    LOG,
    NO_FORK,
    NOTHING,
    STAGING,
    STATIC,
    UNKNOWN,
    XATTR,
)
from whoseblock.fs.xfs.btree import BNOBT, CNTBT, INOBT, REFCOUNTBT, RMAPBT, AgTree, Fault, Node
from whoseblock.fs.xfs.format.btree import (
    XFS_RMAP_NON_INODE,
    XFS_RMAP_OFF_ATTR_FORK,
    XFS_RMAP_OFF_BMBT_BLOCK,
    XFS_RMAP_OFF_MASK,
    XFS_RMAP_OFF_UNWRITTEN,
)
from whoseblock.fs.xfs.owners.agree import miscounted, size_keys, within_chunks
from whoseblock.fs.xfs.owners.confirm import confirm_files
from whoseblock.fs.xfs.owners.crosscheck import Part, static_blocks
from whoseblock.fs.xfs.owners.finder import OwnerFinder
from whoseblock.fs.xfs.owners.group_btrees import GROUP_BTREES
from whoseblock.fs.xfs.owners.promises import sound_records
from whoseblock.fs.xfs.owners.rows import MAX_FILE_SIZE, SPECIAL_OWNERS
from whoseblock.fs.xfs.owners.seams import split
from whoseblock.fs.xfs.volume import MOST_LOST_GROUPS

if TYPE_CHECKING:
    from numpy.typing import ArrayLike, NDArray

    from whoseblock.fs.xfs.volume import Volume

    Ints = NDArray[np.int64]

__all__ = ["OverBudgetError", "find_all", "find_many"]

#: Candidates are taken one by one up to so many for each question and record, else by blocks...
_PLENTY: Final = 4
#: ... of so many records.
_BLOCK: Final = 64


#: Past every block number.
_NEVER: Final = 1 << 62

_ROW: Final = row_dtype()


class OverBudgetError(Exception):
    """Several questions have more records than the budget.

    ``cuts`` divide them, in the order asked, so that each part is within it as far as counted: the
    index of its first question, and that past its last.
    """

    def __init__(self, records: "Ints", budget: int) -> None:
        super().__init__(f"more than {budget} records")
        self.cuts: list[tuple[int, int]] = []
        total = np.cumsum(records)
        begin = 0
        while begin < records.size:
            before = int(total[begin] - records[begin])
            end = max(int(np.searchsorted(total, before + budget, "right")), begin + 1)
            self.cuts.append((begin, end))
            begin = end


class _Window(NamedTuple):
    """The records from ``first[i]`` up to ``stop[i]`` are all that may touch question i.

    If their ends ascend as their starts do, all of them touch it.
    """

    first: "Ints"
    stop: "Ints"
    ends_ascend: bool


class _Count:
    """Counts the records of each question before they are matched with it."""

    def __init__(self, order: "Ints", budget: int | None) -> None:
        self._order = order
        self._budget = budget
        self._records = np.zeros(order.size, dtype=np.int64)
        self._total = 0

    def add(self, number: "Ints", low: "Ints", after: "Ints", window: "_Window") -> None:
        """Count the records that touch each question; raises `OverBudgetError`.

        The records end before ``after``, the questions begin at ``low``.
        """
        if self._budget is None or self._order.size == 1:
            return
        # A record touches a question unless it begins past it or ends before it.
        before = window.first
        if not window.ends_ascend:
            before = np.searchsorted(np.sort(after), low, "right")
        records = window.stop - before
        self._records[number] += records
        self._total += int(records.sum())
        if self._total > self._budget:
            asked = np.empty_like(self._records)
            asked[self._order] = self._records
            raise OverBudgetError(asked, self._budget)


def find_many(
    finder: OwnerFinder, starts: "ArrayLike", lengths: "ArrayLike", budget: int | None = None
) -> OwnerArrays:
    """Answer ``lengths[i]`` bytes from ``starts[i]`` for every i; all lie on the device.

    Raises `OverBudgetError` if several questions have more than ``budget`` records.
    """
    low = np.asarray(starts, dtype=np.int64)
    rows, notes = _find_rows(finder, low, np.asarray(lengths, dtype=np.int64), budget)
    complete = np.ones(low.size, dtype=np.bool_)
    complete[list(notes)] = False
    return as_columns(rows, complete, notes)


def _find_rows(
    finder: OwnerFinder, low: "Ints", length: "Ints", budget: int | None
) -> "tuple[NDArray[np.void], dict[int, tuple[str, ...]]]":
    """Return rows in the order of the contract, and the notes by question."""
    volume = finder.volume
    high = low + length
    # In ascending order every search below walks through memory instead of jumping about in it.
    # Stable: NumPy's other sort uses AVX2, with which the processor that QEMU 7.2 emulates gets a
    # quarter of all orders wrong, and rows of a question would be missing.
    order = np.argsort(low, kind="stable")
    low, high = low[order], high[order]
    odd = (high > volume.size) | (high - low > MOST_LOST_GROUPS * volume.ag_bytes)
    scanned = finder.scanned
    if scanned is not None and not scanned.has_columns:
        odd[:] = True
    count = _Count(order, budget)
    parts = [
        _find_in_group(finder, questions, odd, count)
        for questions in _by_group(volume, low[~odd], high[~odd], np.flatnonzero(~odd))
    ]
    rows = _join(parts)
    notes: dict[int, tuple[str, ...]] = {}
    if scanned is None:
        confirm_files(finder, rows, odd)
    else:
        scanned.set_whats(rows)
        if note := scanned.unread_note:
            fixed = (rows["kind"] == FREE) | np.isin(rows["what"], (STATIC, LOG))
            notes = dict.fromkeys(rows["question"][~fixed].tolist(), (note,))
    if odd.any():
        notes = {question: said for question, said in notes.items() if not odd[question]}
        single = _find_singly(finder, low, high, odd, notes)
        rows = _join([rows[~odd[rows["question"]]], single])
    notes = {int(order[question]): said for question, said in notes.items()}
    rows["question"] = order[rows["question"]]
    return _pick(rows, _answer_order(rows, low.size)), notes


def find_all(
    finder: OwnerFinder, starts: "ArrayLike", lengths: "ArrayLike", budget: int
) -> OwnerArrays:
    """Answer like `find_many`, about ``budget`` records at a time.

    Matching takes several times the memory of the rows that are matched.
    """
    low, length = np.asarray(starts, dtype=np.int64), np.asarray(lengths, dtype=np.int64)
    complete = np.ones(low.size, dtype=np.bool_)
    notes: dict[int, tuple[str, ...]] = {}
    parts: list[NDArray[np.void]] = []
    todo = [(0, low.size)]
    while todo:
        begin, end = todo.pop()
        ranges = [(low[begin:end], length[begin:end])]
        if end == begin + 1 and length[begin] > budget * finder.volume.block_size:
            split_up = split(finder, int(low[begin]), int(length[begin]), budget)
            ranges = [(np.array([at]), np.array([size])) for at, size in split_up]
        try:
            for starts_here, lengths_here in ranges:
                rows, said = _find_rows(finder, starts_here, lengths_here, budget)
                rows["question"] += begin
                parts.append(rows)
                for question, more in said.items():
                    before = notes.get(begin + question, ())
                    notes[begin + question] = distinct([*before, *more])
        except OverBudgetError as over:
            todo += [(begin + first, begin + stop) for first, stop in reversed(over.cuts)]
    complete[list(notes)] = False
    return as_columns(_join(parts), complete, notes)


class _Questions(NamedTuple):
    """The questions, by number, that touch one allocation group: bytes from low up to high."""

    agno: int
    number: "Ints"
    low: "Ints"
    high: "Ints"


def _by_group(volume: "Volume", low: "Ints", high: "Ints", number: "Ints") -> Iterator[_Questions]:
    """Assign the questions, which ascend, to the groups that they touch."""
    first, last = low // volume.ag_bytes, (high - 1) // volume.ag_bytes
    long = np.flatnonzero(first < last)
    groups = set(first[_run_starts(first)].tolist())
    for begin, end in set(zip(first[long].tolist(), last[long].tolist(), strict=True)):
        groups.update(range(begin, end + 1))
    for agno in sorted(groups):
        start, stop = np.searchsorted(first, [agno, agno + 1])
        across = long[(first[long] < agno) & (agno <= last[long])]
        here = np.concatenate((across, np.arange(start, stop)))
        yield _Questions(agno, number[here], low[here], high[here])


def _answer_order(rows: "NDArray[np.void]", questions: int) -> "Ints":
    """Return the order of rows by question, then as in an answer."""
    question = rows["question"]
    counts = np.bincount(question, minlength=questions)
    # Nearly every question has one row, whose place is known without sorting.
    alone = counts[question] == 1
    order = np.empty(rows.size, dtype=np.int64)
    order[(np.cumsum(counts) - counts)[question[alone]]] = np.flatnonzero(alone)
    several = np.flatnonzero(~alone)
    some = rows[several]
    keys = [some[name] for name in ("file_offset", "inode", "start", "question")]
    order[np.repeat(counts > 1, counts)] = several[np.lexsort(keys)]
    return order


def _find_singly(
    finder: OwnerFinder,
    low: "Ints",
    high: "Ints",
    odd: "NDArray[np.bool_]",
    notes: dict[int, tuple[str, ...]],
) -> "NDArray[np.void]":
    """Answer the odd questions with `OwnerFinder`."""
    rows: list[tuple[int | bool, ...]] = []
    for question in np.flatnonzero(odd).tolist():
        said: list[str] = []
        start, end = int(low[question]), int(high[question])
        rows += [(question, *piece) for piece in finder.find(start, end - start, said)]
        if said:
            notes[question] = distinct(said)
    return np.array(rows, _ROW)


def _find_in_group(
    finder: OwnerFinder, questions: _Questions, odd: "NDArray[np.bool_]", count: _Count
) -> "NDArray[np.void]":
    """Answer the part of the questions that lies in their group; mark the odd ones."""
    volume, agno = finder.volume, questions.agno
    base, size = agno * volume.ag_bytes, volume.block_size
    blocks = volume.ag_blocks(agno)
    starts = np.maximum(questions.low, base)
    ends = np.minimum(questions.high, base + blocks * size)
    low, high = (starts - base) // size, -(-(ends - base) // size)
    faults: list[Fault] = []

    merged = _merge(low, high)
    records = _records(finder, agno, *merged, faults)
    first = records["startblock"].astype(np.int64)
    after = first + records["blockcount"]
    reach = np.maximum.accumulate(after)
    window = _Window(
        np.searchsorted(reach, low, "right"),
        np.searchsorted(first, high),
        bool((reach == after).all()),
    )
    count.add(questions.number, low, after, window)
    if window.ends_ascend:
        asked, index = _expand(window.first, np.maximum(window.stop - window.first, 0))
    else:
        asked, index = _touching(after, window.first, window.stop, low)
    begin, end = np.maximum(first[index], low[asked]), np.minimum(after[index], high[asked])
    owned = _rows(asked, begin, end)
    _classify(owned, records, index, size)
    overlap = bool((reach[:-1] > first[1:]).any())
    if overlap:
        _mark_shared(owned)

    gaps = owned[:0]
    covered = np.bincount(asked, end - begin, low.size) == high - low
    if overlap or not covered.all():
        gaps = _find_gaps(first, reach, blocks, low, high)
    free, doubtful = _find_free(finder, agno, owned, gaps, faults)
    odd[questions.number[doubtful]] = True
    odd[questions.number[owned["question"][_unplaced(finder, agno, owned, faults)]]] = True
    counts = records[:0]
    if volume.sb.has_reflink:
        counts = _load(finder.tree(agno, REFCOUNTBT), *merged, faults)
    if overlap or counts.size:
        bad_low, bad_high = miscounted(records, counts)
        odd[questions.number[_intersect(bad_low, bad_high, low, high)[0]]] = True
    for fault in faults:
        odd[questions.number[(fault.low < high) & (low < fault.high)]] = True

    rows = _join([owned, free])
    which = rows["question"]
    piece_start = np.maximum(base + rows["start"] * size, starts[which])
    piece_end = np.minimum(base + (rows["start"] + rows["length"]) * size, ends[which])
    # How much of its record was cut off before a piece counts towards its place in the file.
    skipped = piece_start[: owned.size] - base - first[index] * size
    rows["file_offset"][: owned.size] += np.where(owned["file_offset"] < 0, 0, skipped)
    rows["start"], rows["length"] = piece_start, piece_end - piece_start
    rows["question"] = questions.number[which]
    return rows


def _find_gaps(
    first: "Ints", reach: "Ints", blocks: int, low: "Ints", high: "Ints"
) -> "NDArray[np.void]":
    """Return the parts of questions that no record covers, of a group of so many blocks.

    Where no question is, leaves were not read: what looks like a gap there is none.
    """
    gap_low = np.concatenate(([0], reach))
    gap_high = np.concatenate((first, [blocks]))
    real = gap_high > gap_low
    gap_low, gap_high = gap_low[real], gap_high[real]
    next_gap = np.searchsorted(gap_high, low, "right")
    gapped = np.flatnonzero(np.append(gap_low, _NEVER)[next_gap] < high)
    asked, begin, end = _intersect(gap_low, gap_high, low[gapped], high[gapped])
    return _rows(gapped[asked], begin, end)


def _find_free(
    finder: OwnerFinder,
    agno: int,
    owned: "NDArray[np.void]",
    gaps: "NDArray[np.void]",
    faults: list[Fault],
) -> "tuple[NDArray[np.void], Ints]":
    """Return what the free-space btree has in gaps, and which questions it contradicts.

    Those have a gap that is not all free, or where a scan found the owners, anything owned that is;
    all rows are in blocks.
    """
    both = gaps if finder.scanned is None else _join([gaps, owned])
    if not both.size:
        return both, both["question"]
    low, high = both["start"], both["start"] + both["length"]
    space = _load(finder.tree(agno, BNOBT), *_merge(low, high), faults)
    free_low = space["startblock"].astype(np.int64)
    which, begin, end = _intersect(free_low, free_low + space["blockcount"], low, high)
    in_gap = which < gaps.size
    free = _rows(both["question"][which[in_gap]], begin[in_gap], end[in_gap])
    free["kind"] = FREE
    gap_bounds = _merge(low[: gaps.size], high[: gaps.size])
    in_gaps = np.zeros(space.size, dtype=np.bool_)
    in_gaps[_intersect(*gap_bounds, *_bounds(space))[0]] = True
    space = space[in_gaps]
    odd = _intersect(*_merge(*_bounds(space[~_sized(finder, agno, space)])), low, high)[0]
    confirmed = np.bincount(which, end - begin, both.size)
    confirmed[odd] = -1
    if free.size and finder.free_doubt():
        confirmed[: gaps.size] = -1
    expected = np.where(np.arange(both.size) < gaps.size, both["length"], 0)
    return free, both["question"][confirmed != expected]


def _bounds(space: "NDArray[np.void]") -> "tuple[Ints, Ints]":
    """Return the blocks of free extents: from, to."""
    start = space["startblock"].astype(np.int64)
    return start, start + space["blockcount"]


def _sized(finder: OwnerFinder, agno: int, space: "NDArray[np.void]") -> "NDArray[np.bool_]":
    """Return which free extents the free-space btree by size has too."""
    wanted = size_keys(space)
    order = np.sort(wanted)
    faults: list[Fault] = []
    found = _load(finder.tree(agno, CNTBT), order, order + 1, faults)
    # What is missing of it makes its extents odd, for which the single question has the words.
    return np.isin(wanted, size_keys(found))


def _unplaced(
    finder: OwnerFinder, agno: int, owned: "NDArray[np.void]", faults: list[Fault]
) -> "NDArray[np.bool_]":
    """Return which rows, in blocks, are not of files and not confirmed by another structure.

    ``faults`` receives what is missing of the inode btree, in blocks.
    """
    volume = finder.volume
    kind = owned["kind"]
    if (kind == FILE).all():
        return np.zeros(owned.size, dtype=np.bool_)
    low, high = owned["start"], owned["start"] + owned["length"]
    what = owned["what"]
    unplaced = (kind == UNKNOWN) | (kind == STAGING)
    unplaced |= (what == STATIC) & (high > static_blocks(volume))
    for row in np.flatnonzero(what == LOG).tolist():
        unplaced[row] = not finder.check.is_log(agno, int(low[row]), int(high[row]))
    if finder.scanned is None:
        for btrees in GROUP_BTREES:
            for row in np.flatnonzero(what == btrees).tolist():
                unplaced[row] = not finder.check.btrees.has(
                    agno, btrees, int(low[row]), int(high[row]), []
                )
    inodes = np.flatnonzero(what == INODES)
    if inodes.size:
        log = volume.sb.inopblog
        lost: list[Fault] = []
        asked = _merge(low[inodes] << log, high[inodes] << log)
        chunks = _load(finder.tree(agno, INOBT), *asked, lost)
        faults += [Fault(fault.low >> log, -(-fault.high >> log), fault.note) for fault in lost]
        unplaced[inodes] = ~within_chunks(chunks, log, low[inodes], high[inodes])
    return np.asarray(unplaced)


def _join(parts: "list[NDArray[np.void]]") -> "NDArray[np.void]":
    """Concatenate rows; as bytes, because NumPy copies structures one by one."""
    filled = [part for part in parts if part.size]
    if len(filled) == 1:
        return filled[0]
    return np.concatenate([np.empty(0, np.uint8), *(part.view(np.uint8) for part in filled)]).view(
        _ROW
    )


def _pick(rows: "NDArray[np.void]", index: "Ints") -> "NDArray[np.void]":
    """Return the rows at ``index``, in its order; as bytes, like `_join`."""
    table = rows.view(np.uint8).reshape(-1, _ROW.itemsize)
    return np.take(table, index, axis=0).reshape(-1).view(_ROW)


def _run_starts(values: "NDArray[np.generic]") -> "NDArray[np.intp]":
    """Return the index of each value that differs from the one before it."""
    return np.flatnonzero(np.concatenate(([True], values[1:] != values[:-1]))[: values.size])


def _rows(question: "Ints", low: "Ints", high: "Ints") -> "NDArray[np.void]":
    """Make rows of blocks from ``low`` up to ``high``, of which nothing else is known."""
    rows = np.zeros(question.size, _ROW)
    rows["question"], rows["start"], rows["length"] = question, low, high - low
    rows["file_offset"] = -1
    return rows


def _records(
    finder: OwnerFinder, agno: int, lows: "Ints", highs: "Ints", faults: list[Fault]
) -> "NDArray[np.void]":
    """Return the records of the rmap btree that questions touch, or those that a scan made."""
    if finder.scanned is None:
        return _load(finder.tree(agno, RMAPBT), lows, highs, faults)
    lost: list[str] = []
    whole = Part(agno, int(lows[0]), int(highs[-1]))
    records = finder.scanned.columns(whole, lost)
    if not finder.volume.has_crc and (note := finder.scanned.unread_note):
        # Without checksums, free space needs the word of all inodes.
        lost.append(note)
    faults += [Fault(whole.low, whole.high, note) for note in lost]
    return records


def _load(tree: AgTree, lows: "Ints", highs: "Ints", faults: list[Fault]) -> "NDArray[np.void]":
    """Read every leaf that a question touches; return their records in order, verified."""
    layout = tree.shape.record
    if not lows.size:
        return np.empty(0, layout.dtype())
    begins = np.append(lows, _NEVER)

    def touched(node: Node) -> list[int]:
        # The first question that ends past a child's start touches it, or none does.
        question = np.searchsorted(highs, node.starts, "right")
        return np.flatnonzero(begins[question] < np.array(node.ends)).tolist()

    records, start, _ = sound_records(tree, list(tree.leaves(touched, faults)), faults)
    # Only leaves that two parents promise differently can be out of order.
    if (start[1:] < start[:-1]).any():
        records = records[np.argsort(start, kind="stable")]
    return records


def _merge(low: "Ints", high: "Ints") -> "tuple[Ints, Ints]":
    """Join questions that touch or overlap; the result ascends."""
    if (low[1:] < low[:-1]).any():
        order = np.argsort(low, kind="stable")
        low, high = low[order], high[order]
    high = np.maximum.accumulate(high)
    begins = np.concatenate(([True], low[1:] > high[:-1]))[: low.size]
    return low[begins], high[np.concatenate((begins[1:], [True]))[: low.size]]


def _touching(ends: "Ints", first: "Ints", stop: "Ints", low: "Ints") -> "tuple[Ints, Ints]":
    """Return every pair of a question and a record of its window that ends past its ``low``.

    The window of question i is the records from ``first[i]`` up to ``stop[i]``.  One early record
    that ends late makes the windows of all after it begin there.  So if the windows are large, the
    largest ends of blocks of records are matched first, which skips what cannot match.
    """
    counts = np.maximum(stop - first, 0)
    if counts.sum() <= _PLENTY * (ends.size + low.size) or ends.size <= _BLOCK:
        question, record = _expand(first, counts)
    else:
        largest = np.maximum.reduceat(ends, np.arange(0, ends.size, _BLOCK))
        asked, block = _touching(largest, first // _BLOCK, -(-stop // _BLOCK), low)
        block_first = np.maximum(first[asked], block * _BLOCK)
        block_stop = np.minimum(stop[asked], (block + 1) * _BLOCK)
        position, record = _expand(block_first, np.maximum(block_stop - block_first, 0))
        question = asked[position]
    keep = ends[record] > low[question]
    return question[keep], record[keep]


def _expand(first: "Ints", counts: "Ints") -> "tuple[Ints, Ints]":
    """Return (i, first[i]), (i, first[i] + 1), … ``counts[i]`` times for every i."""
    if (counts == 1).all():
        return np.arange(counts.size), first
    owner = np.repeat(np.arange(counts.size), counts)
    begin = np.cumsum(counts) - counts
    return owner, np.arange(owner.size) - (begin - first)[owner]


def _intersect(
    starts: "Ints", ends: "Ints", low: "Ints", high: "Ints"
) -> "tuple[Ints, Ints, Ints]":
    """Intersect disjoint ascending intervals with questions: question, from, to."""
    first = np.searchsorted(ends, low, "right")
    stop = np.searchsorted(starts, high)
    question, index = _expand(first, np.maximum(stop - first, 0))
    return (
        question,
        np.maximum(starts[index], low[question]),
        np.minimum(ends[index], high[question]),
    )


def _classify(
    rows: "NDArray[np.void]", records: "NDArray[np.void]", index: "Ints", block_size: int
) -> None:
    """Set the fields of row i from record ``index[i]``, as `rows.piece_of` does."""
    owner = records["owner"].astype(np.uint64)[index]
    offset = records["offset"].astype(np.uint64)[index]
    attr = (offset & np.uint64(XFS_RMAP_OFF_ATTR_FORK)) != 0
    extent_map = (offset & np.uint64(XFS_RMAP_OFF_BMBT_BLOCK)) != 0
    rows["kind"], rows["fork"], rows["what"] = FILE, DATA, FILE_DATA
    rows["fork"][attr], rows["what"][attr] = ATTR, XATTR
    rows["what"][extent_map] = EXTENT_MAP
    rows["inode"] = owner
    rows["unwritten"] = (offset & np.uint64(XFS_RMAP_OFF_UNWRITTEN)) != 0
    block = (offset & np.uint64(XFS_RMAP_OFF_MASK)).astype(np.int64)
    rows["file_offset"] = block * block_size
    past = block + records["blockcount"][index] > MAX_FILE_SIZE // block_size
    rows["kind"][past & ~extent_map] = UNKNOWN
    special = np.flatnonzero((owner & np.uint64(XFS_RMAP_NON_INODE)) != 0)
    rows["kind"][special] = UNKNOWN
    for name, nothing in (("what", NOTHING), ("fork", NO_FORK), ("inode", 0)):
        rows[name][special] = nothing
    for value, (kind, what) in SPECIAL_OWNERS.items():
        is_it = special[owner[special] == np.uint64(value)]
        rows["kind"][is_it], rows["what"][is_it] = kind, what
    for placeless in (special, np.flatnonzero(extent_map)):
        rows["file_offset"][placeless], rows["unwritten"][placeless] = -1, False


def _mark_shared(rows: "NDArray[np.void]") -> None:
    """Mark the rows of files, in blocks, that overlap another one of the same question.

    They are ordered by question, then by start.
    """
    pick = np.flatnonzero((rows["kind"] == FILE) & (rows["what"] == FILE_DATA))
    if pick.size:
        # Questions are set apart in one number line, farther than any block number is large.
        begin = (rows["question"][pick] << 32) + rows["start"][pick]
        end = begin + rows["length"][pick]
        earlier = np.concatenate(([False], np.maximum.accumulate(end)[:-1] > begin[1:]))
        later = np.concatenate((begin[1:] < end[:-1], [False]))
        rows["shared"][pick] = earlier | later
