"""Owners of many ranges: each leaf that a question touches is read once and matched with NumPy.

Questions about sound metadata are answered here.  A question that touches a damaged block, an
unknown owner, the end of the filesystem, or a gap that the free-space btree does not confirm goes
to `OwnerFinder`, so that only one module describes faults.
"""

from collections.abc import Iterator
from typing import TYPE_CHECKING, Final, NamedTuple

import numpy as np

from whoseblock.fs.arrays import OwnerArrays, row_dtype
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
from whoseblock.fs.xfs.owners.budget import OverBudgetError, RecordCount, Window
from whoseblock.fs.xfs.owners.confirm import confirm_files
from whoseblock.fs.xfs.owners.crosscheck import Part, static_blocks
from whoseblock.fs.xfs.owners.finder import OwnerFinder
from whoseblock.fs.xfs.owners.group_btrees import GROUP_BTREES
from whoseblock.fs.xfs.owners.hulls import Hulls
from whoseblock.fs.xfs.owners.intervals import (
    ascending_order,
    expand,
    intersect,
    merge,
    run_starts,
    touching,
)
from whoseblock.fs.xfs.owners.promises import sound_records
from whoseblock.fs.xfs.owners.rows import MAX_FILE_SIZE, SPECIAL_OWNERS
from whoseblock.fs.xfs.owners.seams import split
from whoseblock.fs.xfs.volume import MOST_LOST_GROUPS

if TYPE_CHECKING:
    from numpy.typing import ArrayLike, NDArray

    from whoseblock.fs.xfs.volume import Volume

    Ints = NDArray[np.int64]

__all__ = ["OverBudgetError", "find_all", "find_many"]

#: Past every block number.
_NEVER: Final = 1 << 62

_ROW: Final = row_dtype()
_NAMES: Final = _ROW.names or ()


def find_many(
    finder: OwnerFinder, starts: "ArrayLike", lengths: "ArrayLike", budget: int | None = None
) -> OwnerArrays:
    """Answer ``lengths[i]`` bytes from ``starts[i]`` for every i; all lie on the device.

    Raises `OverBudgetError` if several questions have more than ``budget`` records.
    """
    low, length = np.asarray(starts, dtype=np.int64), np.asarray(lengths, dtype=np.int64)
    return _find(finder, low, length, budget)


def find_all(
    finder: OwnerFinder, starts: "ArrayLike", lengths: "ArrayLike", budget: int
) -> OwnerArrays:
    """Answer like `find_many`, about ``budget`` records at a time, and one for each question.

    Matching takes several times the memory of the rows that are matched.
    """
    low, length = np.asarray(starts, dtype=np.int64), np.asarray(lengths, dtype=np.int64)
    notes: dict[int, tuple[str, ...]] = {}
    parts: list[OwnerArrays] = []
    todo = [(0, low.size)]
    while todo:
        begin, end = todo.pop()
        ranges = [(low[begin:end], length[begin:end])]
        if end == begin + 1 and length[begin] > budget * finder.volume.block_size:
            split_up = split(finder, int(low[begin]), int(length[begin]), budget)
            ranges = [(np.array([at]), np.array([size])) for at, size in split_up]
        try:
            for some in ranges:
                part = _find(finder, *some, budget, uncounted=1)
                parts.append(part._replace(question=part.question + begin))
                for question, more in part.notes.items():
                    before = notes.get(begin + question, ())
                    notes[begin + question] = distinct([*before, *more])
        except OverBudgetError as over:
            todo += [(begin + first, begin + stop) for first, stop in reversed(over.cuts)]
    rows = parts[0] if len(parts) == 1 else _join_arrays(parts)
    return rows._replace(complete=_completeness(low.size, notes), notes=notes)


def _join_arrays(parts: list[OwnerArrays]) -> OwnerArrays:
    """Concatenate the rows of answers."""
    names = [*_NAMES, "complete"]
    joined = {name: np.concatenate([getattr(part, name) for part in parts]) for name in names}
    return OwnerArrays(**joined, notes={})


def _completeness(questions: int, notes: dict[int, tuple[str, ...]]) -> "NDArray[np.bool_]":
    complete = np.ones(questions, dtype=np.bool_)
    complete[list(notes)] = False
    return complete


def _find(
    finder: OwnerFinder,
    starts: "Ints",
    lengths: "Ints",
    budget: int | None,
    uncounted: int = 0,
) -> OwnerArrays:
    """Answer like `find_many`; ``uncounted`` records of each question are within the budget."""
    volume, scanned = finder.volume, finder.scanned
    size = volume.block_size
    low, high = starts // size, (starts + lengths - 1) // size + 1
    # In ascending order every search below walks through memory instead of jumping about in it.
    order = ascending_order(low)
    low, high = low[order], high[order]
    odd = np.zeros(2 * low.size, dtype=np.bool_)
    is_long = high - low > MOST_LOST_GROUPS * volume.sb.agblocks
    odd[: low.size] = is_long | (high > volume.size // size)
    if scanned is not None and not scanned.has_columns:
        odd[: low.size] = True
    count, hulls = RecordCount(order, budget, uncounted), Hulls(low.size)
    rows = _join(
        [
            _find_in_group(finder, questions, odd, count, hulls)
            for questions in _by_group(volume, low, high, np.flatnonzero(~odd[: low.size]))
        ]
    )
    if scanned is None:
        confirm_files(finder, rows, odd)
    else:
        scanned.set_whats(rows)
    hulls.mark(odd)
    notes: dict[int, tuple[str, ...]] = {}
    if odd.any():
        asked = starts[order], lengths[order]
        single = _find_singly(finder, *asked, odd[: low.size], notes)
        rows = _join([rows[~odd[rows["question"]]], single])
        notes = {int(order[question]): said for question, said in notes.items()}
    index, question = _in_answer_order(rows, *hulls.spread(rows, odd), order)
    arrays = _columns(rows, index, question, starts, lengths)
    if scanned is not None and (note := scanned.doubt):
        fixed = (arrays.kind == FREE) | np.isin(arrays.what, (STATIC, LOG))
        noted = np.zeros(low.size, dtype=np.bool_)
        noted[question[~fixed]] = True
        noted[order[odd[: low.size]]] = False
        notes |= dict.fromkeys(np.flatnonzero(noted).tolist(), (note,))
    return arrays._replace(complete=_completeness(low.size, notes), notes=notes)


def _columns(
    rows: "NDArray[np.void]", index: "Ints", question: "Ints", starts: "Ints", lengths: "Ints"
) -> OwnerArrays:
    """Return the rows at ``index``, which are of whole blocks, clipped to their ``question``."""
    # Columns that lie together are in the processor's cache while rows are picked.
    columns = {name: np.ascontiguousarray(rows[name]) for name in _NAMES}
    of_hull = columns.pop("question") >= starts.size
    row_start, row_length, place = map(columns.pop, ("start", "length", "file_offset"))
    del columns["subvolume"]
    # A row of a hull has all bytes of its questions.
    start, length = starts, lengths
    if index.size != starts.size or not of_hull.all():
        end = np.minimum((row_start + row_length)[index], (starts + lengths)[question])
        start = np.maximum(row_start[index], starts[question])
        length = end - start
    file_offset = (place - row_start)[index] + start
    if (place < 0).any():
        file_offset[(place < 0)[index]] = -1
    return OwnerArrays(
        question=question,
        start=start,
        length=length,
        file_offset=file_offset,
        subvolume=np.zeros(index.size, dtype=np.uint64),
        complete=np.empty(0, np.bool_),
        notes={},
        **{name: column[index] for name, column in columns.items()},
    )


class _Questions(NamedTuple):
    """The questions, by number, that touch one allocation group, in the blocks of the group."""

    agno: int
    number: "Ints"
    low: "Ints"
    high: "Ints"
    #: The indices of those that do not lie within the group.
    cut: "Ints"


def _by_group(volume: "Volume", low: "Ints", high: "Ints", number: "Ints") -> Iterator[_Questions]:
    """Assign those questions that have a number, in ascending order, to the groups they touch."""
    size = volume.sb.agblocks
    if number.size < low.size:
        low, high = low[number], high[number]
    first, last = low // size, (high - 1) // size
    long = np.flatnonzero(first < last)
    groups = set(first[run_starts(first)].tolist())
    for begin, end in set(zip(first[long].tolist(), last[long].tolist(), strict=True)):
        groups.update(range(begin, end + 1))
    here: slice | Ints
    for agno in sorted(groups):
        start, stop = np.searchsorted(first, [agno, agno + 1])
        across = long[(first[long] < agno) & (agno <= last[long])]
        here = slice(start, stop)
        if across.size:
            here = np.concatenate((across, np.arange(start, stop)))
        cut = np.flatnonzero((first[here] != agno) | (last[here] != agno)) if long.size else long
        some_low, some_high = low[here] - agno * size, high[here] - agno * size
        some_low[cut] = np.maximum(some_low[cut], 0)
        some_high[cut] = np.minimum(some_high[cut], volume.ag_blocks(agno))
        yield _Questions(agno, number[here], some_low, some_high, cut)


def _in_answer_order(
    rows: "NDArray[np.void]", index: "Ints", question: "Ints", order: "Ints"
) -> "tuple[Ints, Ints]":
    """Order rows, given by their ``index``, by question, then as in an answer.

    ``question`` counts in ``order``; the questions that are returned do not.
    """
    rows_of = np.bincount(question, minlength=order.size)
    asked = order[question]
    if index.size == order.size and (rows_of == 1).all():
        placed = np.empty_like(index)
        placed[asked] = index
        return placed, np.arange(order.size)
    counts = np.empty_like(rows_of)
    counts[order] = rows_of
    # Nearly every question has one row, whose place is known without sorting.
    alone = rows_of[question] == 1
    placed = np.empty_like(index)
    placed[(np.cumsum(counts) - counts)[asked[alone]]] = index[alone]
    several = np.flatnonzero(~alone)
    some = rows[index[several]]
    keys = [*(some[name] for name in ("file_offset", "inode", "start")), asked[several]]
    placed[np.repeat(counts > 1, counts)] = index[several[np.lexsort(keys)]]
    return placed, np.repeat(np.arange(counts.size), counts)


def _find_singly(
    finder: OwnerFinder,
    start: "Ints",
    length: "Ints",
    odd: "NDArray[np.bool_]",
    notes: dict[int, tuple[str, ...]],
) -> "NDArray[np.void]":
    """Answer the odd questions with `OwnerFinder`."""
    rows: list[tuple[int | bool, ...]] = []
    for question in np.flatnonzero(odd).tolist():
        said: list[str] = []
        asked = int(start[question]), int(length[question])
        rows += [(question, *piece) for piece in finder.find(*asked, said)]
        if said:
            notes[question] = distinct(said)
    return np.array(rows, _ROW)


def _find_in_group(
    finder: OwnerFinder,
    questions: _Questions,
    odd: "NDArray[np.bool_]",
    count: RecordCount,
    hulls: Hulls,
) -> "NDArray[np.void]":
    """Answer the part of the questions that lies in their group; mark the odd ones.

    The rows are of whole blocks.  Questions within one record are answered by one of the ``hulls``.
    """
    volume, agno = finder.volume, questions.agno
    faults: list[Fault] = []
    merged = merge(questions.low, questions.high)
    records = _records(finder, agno, *merged, faults)
    first = records["startblock"].astype(np.int64)
    after = first + records["blockcount"]
    reach = np.maximum.accumulate(after)
    candidate = _first_touching(reach, questions.low)
    number, low, high = questions.number, questions.low, questions.high
    inside = _lies_inside(first, after, candidate, low, high)
    inside[questions.cut] = False
    if inside.any():
        # Often that is all of them, and nothing need be picked.
        pick = slice(None) if inside.all() else inside
        joined = hulls.join(candidate[pick], number[pick], low[pick], high[pick])
        rest = np.flatnonzero(~inside)
        candidate, number, low, high = (
            np.concatenate((column[rest], of_hulls))
            for column, of_hulls in zip((candidate, number, low, high), joined, strict=True)
        )
    window = Window(candidate, np.searchsorted(first, high), bool((reach == after).all()))
    count.add_one(questions.number[inside])
    count.add(number[number < hulls.questions], low, after, window)

    which, index = _match(after, window, low)
    begin, end = np.maximum(first[index], low[which]), np.minimum(after[index], high[which])
    owned = _rows(which, begin, end)
    _classify(owned, records, index, MAX_FILE_SIZE // volume.block_size)
    # How much of its record was cut off before a piece counts towards its place in the file.
    owned["file_offset"] += np.where(owned["file_offset"] < 0, 0, begin - first[index])
    overlap = bool((reach[:-1] > first[1:]).any())
    if overlap:
        _mark_shared(owned)

    covered = np.bincount(which, end - begin, low.size) == high - low
    has_gaps = overlap or not covered.all()
    blocks = volume.ag_blocks(agno)
    gaps = _find_gaps(first, reach, blocks, low, high) if has_gaps else owned[:0]
    free, doubtful = _find_free(finder, agno, owned, gaps, faults)
    odd[number[doubtful]] = True
    odd[number[which[_unplaced(finder, agno, owned, faults)]]] = True
    counts = records[:0]
    if volume.sb.has_reflink:
        counts = _load(finder.tree(agno, REFCOUNTBT), *merged, faults)
    if overlap or counts.size:
        bad = miscounted(records, counts)
        odd[questions.number[intersect(*bad, questions.low, questions.high)[0]]] = True
    for fault in faults:
        touches = (fault.low < questions.high) & (questions.low < fault.high)
        odd[questions.number[touches]] = True
    return _to_bytes(_join([owned, free]), number, agno * volume.ag_bytes, volume.block_size)


def _first_touching(reach: "Ints", low: "Ints") -> "Ints":
    """Return for each question the first record that ends past its ``low``, which ascends."""
    if low.size < reach.size:
        return np.searchsorted(reach, low, "right")
    # The fewer are looked for among the more.
    upto = np.concatenate((np.searchsorted(low, reach), [low.size]))
    return np.repeat(np.arange(upto.size), np.diff(upto, prepend=0))


def _lies_inside(
    first: "Ints", after: "Ints", candidate: "Ints", low: "Ints", high: "Ints"
) -> "NDArray[np.bool_]":
    """Return which questions lie within their candidate, and touch no other record."""
    begins, ends = np.append(first, (_NEVER, _NEVER)), np.append(after, _NEVER)
    limits = np.minimum(ends, begins[1:])
    return np.asarray((begins[candidate] <= low) & (high <= limits[candidate]))


def _match(after: "Ints", window: Window, low: "Ints") -> "tuple[Ints, Ints]":
    """Return every pair of a question and a record that touch."""
    if window.ends_ascend:
        return expand(window.first, np.maximum(window.stop - window.first, 0))
    return touching(after, window.first, window.stop, low)


def _to_bytes(rows: "NDArray[np.void]", number: "Ints", base: int, size: int) -> "NDArray[np.void]":
    """Convert rows from blocks to bytes, and let their questions have the numbers."""
    rows["start"] = base + rows["start"] * size
    rows["length"] *= size
    rows["file_offset"] = np.where(rows["file_offset"] < 0, -1, rows["file_offset"] * size)
    rows["question"] = number[rows["question"]]
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
    asked, begin, end = intersect(gap_low, gap_high, low[gapped], high[gapped])
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
    space = _load(finder.tree(agno, BNOBT), *merge(low, high), faults)
    free_low = space["startblock"].astype(np.int64)
    which, begin, end = intersect(free_low, free_low + space["blockcount"], low, high)
    in_gap = which < gaps.size
    free = _rows(both["question"][which[in_gap]], begin[in_gap], end[in_gap])
    free["kind"] = FREE
    gap_bounds = merge(low[: gaps.size], high[: gaps.size])
    in_gaps = np.zeros(space.size, dtype=np.bool_)
    in_gaps[intersect(*gap_bounds, *_bounds(space))[0]] = True
    space = space[in_gaps]
    odd = intersect(*merge(*_bounds(space[~_sized(finder, agno, space)])), low, high)[0]
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
        asked = merge(low[inodes] << log, high[inodes] << log)
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
    if not finder.volume.has_crc and (note := finder.scanned.doubt):
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


def _classify(
    rows: "NDArray[np.void]", records: "NDArray[np.void]", index: "Ints", most_blocks: int
) -> None:
    """Set the fields of row i from record ``index[i]``, as `rows.piece_of` does, in blocks.

    A file has at most ``most_blocks``.
    """
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
    rows["file_offset"] = block
    past = block + records["blockcount"][index] > most_blocks
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
