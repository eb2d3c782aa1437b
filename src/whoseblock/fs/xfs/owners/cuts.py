"""Questions answered in cuts, each with about as many rows as a budget allows."""

from collections.abc import Iterable, Iterator, Sequence
from itertools import groupby
from typing import Final, NamedTuple

from whoseblock.errors import BlockError
from whoseblock.fs.arrays import OwnerArrays
from whoseblock.fs.pieces import FILE, Piece
from whoseblock.fs.xfs.owners.finder import OwnerFinder
from whoseblock.fs.xfs.volume import Volume
from whoseblock.ranges import RangeList

__all__ = ["Cut", "Found", "find_cuts"]

#: From this many questions on, reading leaves as arrays is worth loading NumPy.
_BULK: Final = 48
#: The leaves of the rmap btree that may be held at once.  Each question may touch another one.
_MOST_LEAVES: Final = 1 << 14

_Single = tuple[list[Piece], Sequence[str]]


class Found(NamedTuple):
    """Pieces of one question with their notes; ``more`` if other pieces of it follow."""

    start: int
    length: int
    pieces: list[Piece]
    notes: Sequence[str]
    more: bool


class Cut(NamedTuple):
    """The pieces of consecutive questions; of the last one, ``more`` may follow in the next cut."""

    questions: RangeList
    arrays: OwnerArrays | None
    single: Sequence[_Single] = ()
    more: bool = False

    @property
    def rows(self) -> int:
        """The number of pieces."""
        if self.arrays is not None:
            return int(self.arrays.question.size)
        return sum(len(pieces) for pieces, _ in self.single)

    def part(self, first: int, end: int) -> "Cut":
        """Return the part about the questions from ``first`` to before ``end``."""
        questions = self.questions[first:end]
        if self.arrays is None:
            return Cut(questions, None, self.single[first:end])
        import numpy as np

        low, high = np.searchsorted(self.arrays.question, (first, end)).tolist()
        columns = {name: getattr(self.arrays, name)[low:high] for name in Piece._fields}
        arrays = self.arrays._replace(
            question=self.arrays.question[low:high] - first,
            complete=self.arrays.complete[first:end],
            notes={
                number - first: notes
                for number, notes in self.arrays.notes.items()
                if first <= number < end
            },
            **columns,
        )
        return Cut(questions, arrays)

    def notes(self) -> Iterator[tuple[int, Sequence[str]]]:
        """Yield the numbers of the questions that have notes, with these."""
        if self.arrays is not None:
            yield from self.arrays.notes.items()
            return
        for number, (_, notes) in enumerate(self.single):
            if notes:
                yield number, notes

    def inodes(self) -> Iterable[int]:
        """Return the inodes of the files that own pieces."""
        if self.arrays is None:
            return {
                piece.inode for pieces, _ in self.single for piece in pieces if piece.kind == FILE
            }
        import numpy as np

        found: list[int] = np.unique(self.arrays.inode[self.arrays.kind == FILE]).tolist()
        return found

    def found(self, budget: int) -> Iterator[Found]:
        """Return the pieces of each question, at most ``budget`` of one question at a time.

        Arrays must be about one question.
        """
        if self.arrays is None:
            yield from self._of_single(budget)
        else:
            yield from self._of_one(self.arrays, budget)

    def _of_single(self, budget: int) -> Iterator[Found]:
        for (start, length), (pieces, notes) in zip(self.questions, self.single, strict=True):
            at = 0
            while len(pieces) - at > budget:
                yield Found(start, length, pieces[at : at + budget], (), more=True)
                at += budget
            yield Found(start, length, pieces[at:] if at else pieces, notes, more=False)

    def _of_one(self, arrays: OwnerArrays, budget: int) -> Iterator[Found]:
        """Slice the columns before they become objects: as such they take ten times the memory."""
        ((start, length),) = self.questions
        columns = [getattr(arrays, name) for name in Piece._fields]
        for at in range(0, self.rows, budget):
            upto = at + budget
            values = (column[at:upto].tolist() for column in columns)
            pieces = list(map(Piece._make, zip(*values, strict=True)))
            last = upto >= self.rows
            notes = arrays.notes.get(0, ()) if last else ()
            yield Found(start, length, pieces, notes, self.more or not last)


def find_cuts(
    finder: OwnerFinder, questions: RangeList, budget: int, *, whole: bool = False
) -> Iterator[Cut]:
    """Answer all of ``questions``, which lie on the device, in order.

    A cut of several questions has at most ``budget`` records.  A question that is long enough to
    have more is cut where no record is, but not if ``whole``.  Where a scan answers, it has been
    prepared for them, and its extents are in memory.
    """
    if whole:
        yield from _singly(finder, questions, budget)
        return
    most = budget * finder.volume.block_size
    for is_long, some in _by_length(questions, most):
        if is_long:
            for question in some:
                if finder.scanned is None:
                    yield from _parts(finder, question, budget)
                else:
                    yield from _together(finder, RangeList.of([question]), budget)
            continue
        yield from (_together if len(some) >= _BULK else _singly)(finder, some, budget)


def _by_length(questions: RangeList, most: int) -> Iterator[tuple[bool, RangeList]]:
    """Group consecutive questions by whether they are longer than ``most`` bytes."""
    if max(questions.lengths, default=0) <= most:
        yield False, questions
        return
    for is_long, group in groupby(questions, lambda question: question[1] > most):
        yield is_long, RangeList.of(group)


def _singly(finder: OwnerFinder, questions: RangeList, budget: int) -> Iterator[Cut]:
    first, rows = 0, 0
    found: list[_Single] = []
    for number, (start, length) in enumerate(questions, 1):
        notes: list[str] = []
        pieces = finder.find(start, length, notes)
        found.append((pieces, notes))
        rows += len(pieces)
        if rows >= budget or number == len(questions):
            yield Cut(questions[first:number], None, found)
            first, rows, found = number, 0, []


def _together(finder: OwnerFinder, questions: RangeList, budget: int) -> Iterator[Cut]:
    import numpy as np

    from whoseblock.fs.xfs.owners.bulk import OverBudgetError, find_many

    most = _MOST_LEAVES if _has_many_leaves(finder.volume, questions) else len(questions)
    todo = [questions[at : at + most] for at in reversed(range(0, len(questions), most))]
    while todo:
        part = todo.pop()
        starts, lengths = np.array(part.starts, np.int64), np.array(part.lengths, np.int64)
        try:
            arrays = find_many(finder, starts, lengths, budget)
        except OverBudgetError as over:
            todo += [part[begin:end] for begin, end in reversed(over.cuts)]
        else:
            yield Cut(part, arrays)


def _has_many_leaves(volume: Volume, questions: RangeList) -> bool:
    """Return whether the questions might touch more leaves than may be held."""
    if len(questions) <= _MOST_LEAVES:
        return False
    import numpy as np

    starts = np.array(questions.starts, np.int64)
    groups = set(np.flatnonzero(np.bincount(starts // volume.ag_bytes)).tolist())
    try:
        # A short question reaches into the next group at most.
        known = [
            volume.agf(agno).rmap_blocks
            for agno in groups | {agno + 1 for agno in groups}
            if agno < volume.sb.agcount
        ]
    except BlockError:
        return True
    return sum(known) > _MOST_LEAVES


def _parts(finder: OwnerFinder, question: tuple[int, int], budget: int) -> Iterator[Cut]:
    from whoseblock.fs.xfs.owners.bulk import find_many
    from whoseblock.fs.xfs.owners.seams import split

    end = sum(question)
    for start, length in split(finder, *question, budget):
        arrays = find_many(finder, (start,), (length,))
        yield Cut(RangeList.of([question]), arrays, more=start + length < end)
