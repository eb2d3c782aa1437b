"""Conversion of the pieces of a cut to answers.

The rows of a large cut are made a column at a time: one row at a time takes several times as long.
"""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from functools import partial
from itertools import groupby, repeat
from typing import TYPE_CHECKING, Any, Final

from msgspec import UNSET

from whoseblock.fs.arrays import FORKS, WHATS, OwnerArrays
from whoseblock.fs.base import Answer, FileOwner, Free, Owner, Paths, distinct, remarks_in
from whoseblock.fs.pieces import EXTENT_MAP, FILE, FREE, INODES, STATIC, Piece
from whoseblock.fs.stream import AnswerColumns, LeadingRows
from whoseblock.fs.xfs.owners.cuts import Cut
from whoseblock.fs.xfs.owners.rows import make_row
from whoseblock.fs.xfs.volume import Volume

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

__all__ = ["AnswerMaker"]

#: The fields of `FileOwner` that a row without paths has not.
_NO_PATHS: Final = (UNSET, UNSET, UNSET, UNSET, UNSET)


class AnswerMaker:
    """Makes the answers of one filesystem.

    ``doubts`` make every answer incomplete; ``remarks`` are added to every answer.
    """

    def __init__(self, volume: Volume, doubts: Sequence[str], remarks: tuple[str, ...]) -> None:
        self.volume = volume
        self.doubts = doubts
        self.remarks = remarks

    def of_cuts(
        self, cuts: Iterable[Cut], known: Mapping[int, Paths], budget: int
    ) -> Iterator[LeadingRows | Answer]:
        """Make the answers of ``cuts``; one of more rows than ``budget`` comes in pieces."""
        # Notes that belong to leading rows stand in the answer that ends them.
        carried: dict[str, None] = {}
        for cut in cuts:
            if cut.arrays is not None and _has_many(cut):
                yield from self._of_arrays(cut, cut.arrays, known)
                continue
            for start, length, pieces, notes, more in cut.found(budget):
                if more:
                    missing = list(notes)
                    rows = self._rows(pieces, known, missing)
                    carried.update(dict.fromkeys(missing))
                    yield LeadingRows(start, length, rows)
                elif carried:
                    yield self.answer(start, length, [*carried, *notes], pieces, known)
                    carried = {}
                else:
                    yield self.answer(start, length, notes, pieces, known)

    def columns_of_cuts(
        self, cuts: Iterable[Cut], budget: int
    ) -> Iterator[LeadingRows | Answer | AnswerColumns]:
        """Make the answers of ``cuts`` without paths, those of several questions as columns."""
        for many, group in groupby(cuts, _has_many):
            if many:
                yield from (self._columns(cut, cut.arrays) for cut in group if cut.arrays)
            else:
                yield from self.of_cuts(group, {}, budget)

    def _columns(self, cut: Cut, arrays: OwnerArrays) -> AnswerColumns:
        import numpy as np

        is_odd = np.zeros(len(cut.questions), dtype=np.bool_)
        is_odd[list(arrays.notes)] = True
        # Their rows have fields that are not in the columns.
        is_odd[arrays.question[(arrays.what == STATIC) | (arrays.what == INODES)]] = True
        common = self._with_notes(0, 0, (), ())
        answer = partial(self._one_of_arrays, cut, arrays)
        return AnswerColumns(cut.questions, arrays, common, is_odd, answer)

    def _one_of_arrays(self, cut: Cut, arrays: OwnerArrays, number: int) -> Answer:
        """Make the answer to one question of a cut."""
        import numpy as np

        first, end = np.searchsorted(arrays.question, (number, number + 1)).tolist()
        columns = (getattr(arrays, name)[first:end].tolist() for name in Piece._fields)
        pieces = map(Piece._make, zip(*columns, strict=True))
        start, length = cut.questions[number]
        return self.answer(start, length, arrays.notes.get(number, ()), pieces, {})

    def answer(
        self,
        start: int,
        length: int,
        notes: Sequence[str],
        pieces: Iterable[Piece],
        known: Mapping[int, Paths],
    ) -> Answer:
        """Make one answer; ``known`` are the paths of inodes, empty if the caller asks for none."""
        missing = list(notes)
        rows = self._rows(pieces, known, missing)
        return self._with_notes(start, length, missing, rows)

    def with_remarks(self, answer: Answer, before: tuple[str, ...]) -> Answer:
        """Return an answer with other remarks than those that it has ``before``."""
        notes = [note for note in answer.notes if note not in before]
        return self._with_notes(answer.start, answer.length, notes, answer.owners)

    def _with_notes(
        self, start: int, length: int, notes: Sequence[str], rows: tuple[Owner, ...]
    ) -> Answer:
        missing = [*self.doubts, *notes]
        said = distinct([*missing, *self.remarks]) if missing else self.remarks
        only = remarks_in(said, missing, self.remarks) if self.remarks else UNSET
        return Answer(start, length, not missing, said, rows, remarks=only)

    def _rows(
        self, pieces: Iterable[Piece], known: Mapping[int, Paths], missing: list[str]
    ) -> tuple[Owner, ...]:
        """Make rows of pieces; add to ``missing`` why a path may be missing."""
        rows = []
        for piece in pieces:
            paths = known.get(piece.inode) if known and piece.kind == FILE else None
            if paths is not None and not paths.complete:
                missing += paths.notes
            rows.append(make_row(self.volume, piece, paths))
        return tuple(rows)

    def _of_arrays(
        self, cut: Cut, arrays: OwnerArrays, known: Mapping[int, Paths]
    ) -> Iterator[Answer]:
        import numpy as np

        rows = self._column_rows(arrays, known)
        counts = np.bincount(arrays.question, minlength=len(cut.questions))
        owners: Iterable[tuple[Owner, ...]]
        if (counts == 1).all():
            owners = zip(rows)
        else:
            ends = np.cumsum(counts)
            firsts = (ends - counts).tolist()
            owners = (
                tuple(rows[first:end]) for first, end in zip(firsts, ends.tolist(), strict=True)
            )
        starts, lengths = cut.questions.starts, cut.questions.lengths
        plain = self._with_notes(0, 0, (), ())
        notes = self._notes(arrays, known)
        if not notes:
            yield from map(
                Answer,
                starts,
                lengths,
                repeat(plain.complete),
                repeat(plain.notes),
                owners,
                repeat(UNSET),
                repeat(UNSET),
                repeat(plain.remarks),
            )
            return
        for number, (start, length, its) in enumerate(zip(starts, lengths, owners, strict=True)):
            yield self._with_notes(start, length, notes.get(number, ()), its)

    @staticmethod
    def _notes(arrays: OwnerArrays, known: Mapping[int, Paths]) -> dict[int, Sequence[str]]:
        """Return the notes of the questions that have any, those about missing paths included."""
        notes: dict[int, Sequence[str]] = dict(arrays.notes)
        lacking = [inode for inode, paths in known.items() if not paths.complete]
        if lacking:
            import numpy as np

            wanted = np.array(lacking, dtype=np.uint64)
            of_it = np.flatnonzero((arrays.kind == FILE) & np.isin(arrays.inode, wanted))
            for question, inode in zip(
                arrays.question[of_it].tolist(), arrays.inode[of_it].tolist(), strict=True
            ):
                notes[question] = [*notes.get(question, ()), *known[inode].notes]
        return notes

    def _column_rows(self, arrays: OwnerArrays, known: Mapping[int, Paths]) -> list[Owner]:
        """Make a row of each element."""
        import numpy as np

        rows = np.empty(arrays.kind.size, dtype=object)
        files = arrays.kind == FILE
        free = arrays.kind == FREE
        others = np.flatnonzero(~(files | free))
        if files.all():
            return self._file_rows(arrays, slice(None), known)
        rows[files] = self._file_rows(arrays, files, known)
        starts, lengths = arrays.start[free].tolist(), arrays.length[free].tolist()
        rows[free] = list(map(Free, starts, lengths))
        columns = (getattr(arrays, name)[others].tolist() for name in Piece._fields)
        for index, values in zip(others.tolist(), zip(*columns, strict=True), strict=True):
            rows[index] = make_row(self.volume, Piece._make(values), None)
        found: list[Owner] = rows.tolist()
        return found

    @staticmethod
    def _file_rows(
        arrays: OwnerArrays, which: "NDArray[np.bool_] | slice", known: Mapping[int, Paths]
    ) -> list[Owner]:
        """Make the rows of files."""
        import numpy as np

        what = arrays.what[which]
        inodes: list[int] = arrays.inode[which].tolist()
        offsets: list[int | None] = arrays.file_offset[which].tolist()
        for index in np.flatnonzero(what == EXTENT_MAP).tolist():
            offsets[index] = None
        columns: list[Iterable[Any]] = [
            arrays.start[which].tolist(),
            arrays.length[which].tolist(),
            inodes,
            np.array(FORKS, dtype=object)[arrays.fork[which]].tolist(),
            np.array(WHATS, dtype=object)[what].tolist(),
            offsets,
            arrays.unwritten[which].tolist(),
            arrays.shared[which].tolist(),
        ]
        if known:
            facts = {inode: _facts(known.get(inode)) for inode in set(inodes)}
            columns += zip(*map(facts.__getitem__, inodes), strict=True)
        return list(map(FileOwner, *columns))


def _has_many(cut: Cut) -> bool:
    """Return whether a cut has the columns of several questions."""
    return cut.arrays is not None and len(cut.questions) > 1


def _facts(paths: Paths | None) -> tuple[Any, ...]:
    """Return the fields of a row that depend on the paths of its file, in the order of the row."""
    if paths is None:
        return _NO_PATHS
    return (
        paths.paths,
        True if paths.unlinked else UNSET,
        paths.detail or UNSET,
        UNSET,
        paths.mounted_at,
    )
