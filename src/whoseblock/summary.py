"""A summary of many answers: the loss of each file, and totals that add up to the bytes asked."""

from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator
from typing import TYPE_CHECKING, NamedTuple

from msgspec import UNSET, UnsetType

from whoseblock.fs import arrays
from whoseblock.fs.base import MAX_NOTES, Answer, FileId, FileOwner, MetadataOwner, Owner
from whoseblock.fs.stream import LeadingRows

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    from whoseblock.columns import PlacedColumns

__all__ = ["KINDS", "FileLoss", "Summary", "Sweep", "kind_of"]

#: The kinds of bytes; where layers overlap, a byte has the first kind of those of its owners.
KINDS = (
    "file",
    "metadata",
    "unknown",
    "unreferenced",
    "unwritten",
    "staging",
    "free",
    "outside",
)


class FileLoss(NamedTuple):
    """The loss of one file: ``lost`` bytes of the device in ``ranges`` pieces; ``what`` of a row.

    ``layer`` is the layer that the file's filesystem is on.  ``size`` is the file's, None if it is
    unknown or if no data was lost.  ``within`` are the lost bytes of the file before its end: more
    than those of the device where data is compressed, and often fewer in the last block.
    ``subvolume`` is set only on filesystems that have subvolumes.
    """

    layer: str
    file: FileId
    what: str
    lost: int
    ranges: int
    shared: bool
    within: int
    size: int | None
    subvolume: int | UnsetType = UNSET

    @property
    def share(self) -> float | None:
        """The part of the file that was lost, None if it is unknown."""
        return self.within / self.size if self.size else None


class _Count:
    """The counts of one file, or of one part of it that is not data."""

    __slots__ = ("end", "last", "lost", "ranges", "shared", "size", "subvolume", "within")

    def __init__(self, size: int | None) -> None:
        self.lost: int = 0
        self.ranges: int = 0
        self.within: int = 0
        self.shared = False
        #: The end of the last row: a row that starts there continues the same range.
        self.end: tuple[int, int | None] = (-1, None)
        #: The part of the file that the last row lost: rows of one compressed extent lose the same.
        self.last: tuple[int, int] | None = None
        self.size = size
        self.subvolume: int | UnsetType = UNSET


class Summary:
    """A sum of answers, which keeps only one count for each file.

    ``size_of`` returns the size of a file by its layer and identity, None if it is unknown.
    """

    def __init__(self, size_of: Callable[[str, FileId], int | None]) -> None:
        self.asked = 0
        self.questions = 0
        self.incomplete = 0
        #: Bytes of the question by kind: each byte once, however many have it.
        self.totals = dict.fromkeys(KINDS, 0)
        self.metadata: dict[str, int] = defaultdict(int)
        self.notes: dict[str, None] = {}
        #: Those of the notes that make an answer incomplete.
        self.reasons: set[str] = set()
        self._size_of = size_of
        self._files: dict[tuple[str, FileId, str], _Count] = {}
        self._sweep: Sweep | None = None

    def add_rows(self, leading: LeadingRows) -> None:
        """Add the leading rows of an answer whose other rows follow."""
        if self._sweep is None:
            self._sweep = Sweep()
        self._count_rows(leading.owners)
        self._sweep_up(leading.owners, self._sweep)

    def add(self, answer: Answer) -> None:
        """Add an answer, or the last rows of one.  No byte may be in two answers."""
        self.asked += answer.length
        self._add_notes(answer)
        self._count_rows(answer.owners)
        if self._sweep is None and sum(row.length for row in answer.owners) == answer.length:
            for row in answer.owners:
                self.totals[kind_of(row)] += row.length
            return
        sweep = self._sweep or Sweep()
        self._sweep_up(answer.owners, sweep)
        self._finish(sweep)
        self._sweep = None

    def add_columns(self, placed: "PlacedColumns") -> None:
        """Add whole answers in columns, with the same result as `add`."""
        import numpy as np

        columns, rows = placed.columns, placed.columns.rows
        lengths = np.array(columns.questions.lengths, np.int64)
        self.asked += int(lengths.sum())
        plain = np.flatnonzero(~columns.is_odd)
        for number in np.append(np.flatnonzero(columns.is_odd), plain[:1]).tolist():
            is_plain = not columns.is_odd[number]
            answers = plain.size if is_plain else 1
            self._add_notes(columns.common if is_plain else columns.answer(number), answers)
        is_file = rows.kind == arrays.KINDS.index("file")
        self._count_metadata(rows)
        self._count_files(rows, np.flatnonzero(is_file & ~rows.unwritten), _layer_of(placed))
        # The kind of each row; where rows overlap, a byte has the first kind.
        kinds = [KINDS.index(kind) for kind in arrays.KINDS]
        rank = np.where(
            is_file & rows.unwritten, KINDS.index("unwritten"), np.array(kinds)[rows.kind]
        )
        alone = np.bincount(rows.question, rows.length, lengths.size) == lengths
        apart = alone[rows.question]
        for kind in np.unique(rank[apart]).tolist():
            self.totals[KINDS[kind]] += int(rows.length[apart & (rank == kind)].sum())
        together = np.flatnonzero(~apart)
        values = (rows.question, rank, rows.start, rows.length)
        sweep, swept = Sweep(), -1
        for question, kind, start, length in zip(
            *(column[together].tolist() for column in values), strict=True
        ):
            if question != swept:
                self._finish(sweep)
                sweep, swept = Sweep(), question
            for found, size in sweep.add(kind, start, length):
                self.totals[found] += size
        self._finish(sweep)

    def _add_notes(self, answer: Answer, answers: int = 1) -> None:
        """Add the notes that so many answers have."""
        self.questions += answers
        self.incomplete += answers * (not answer.complete)
        for note in answer.notes:
            if len(self.notes) < MAX_NOTES:
                self.notes[note] = None
        if not answer.complete:
            remarks = answer.remarks or ()
            self.reasons.update(
                note for note in answer.notes if note in self.notes and note not in remarks
            )

    def _finish(self, sweep: "Sweep") -> None:
        for kind, length in sweep.finish():
            self.totals[kind] += length

    def _count_metadata(self, rows: arrays.OwnerArrays) -> None:
        import numpy as np

        which = np.flatnonzero(rows.kind == arrays.KINDS.index("metadata"))
        whats, firsts = np.unique(rows.what[which], return_index=True)
        # In the order in which they first appear.
        for what in whats[np.argsort(firsts, kind="stable")].tolist():
            total = int(rows.length[which[rows.what[which] == what]].sum())
            self.metadata[arrays.WHATS[what]] += total

    def _count_files(
        self, rows: arrays.OwnerArrays, which: "NDArray[np.int64]", layer: str
    ) -> None:
        """Count the rows of files at indices of columns, all of a file at once."""
        import numpy as np

        if not which.size:
            return
        keys = [column[which] for column in (rows.what, rows.inode, rows.subvolume)]
        order = np.lexsort(keys)
        which, keys = which[order], [key[order] for key in keys]
        starts, lengths, offsets = rows.start[which], rows.length[which], rows.file_offset[which]
        is_new = np.append(True, np.any([key[1:] != key[:-1] for key in keys], axis=0))
        follows = np.append(False, starts[1:] == starts[:-1] + lengths[:-1])
        is_map = keys[0] == arrays.WHATS.index("extent-map")
        follows &= is_map | np.append(False, offsets[1:] == offsets[:-1] + lengths[:-1])
        firsts = np.flatnonzero(is_new)
        lasts = np.append(firsts[1:], which.size) - 1
        lost = np.add.reduceat(lengths, firsts).tolist()
        further = np.add.reduceat((~(follows | is_new)).astype(np.int64), firsts).tolist()
        shared = np.logical_or.reduceat(rows.shared[which], firsts).tolist()
        counts: list[_Count] = []
        for number, (first, last) in enumerate(zip(firsts.tolist(), lasts.tolist(), strict=True)):
            what, inode, subvolume = (int(key[first]) for key in keys)
            file = FileId(subvolume, inode)
            count = self._count_of(layer, file, arrays.WHATS[what], subvolume or UNSET)
            begin = None if is_map[first] else int(offsets[first])
            count.lost += lost[number]
            count.ranges += further[number] + (count.end != (int(starts[first]), begin))
            count.shared |= shared[number]
            end = None if is_map[last] else int(offsets[last] + lengths[last])
            count.end = int(starts[last] + lengths[last]), end
            count.last = None
            counts.append(count)
        sizes = np.array([-1 if count.size is None else count.size for count in counts])
        size = np.repeat(sizes, lasts - firsts + 1)
        held = np.where(size < 0, 0, np.clip(size - offsets, 0, lengths))
        for count, within in zip(counts, np.add.reduceat(held, firsts).tolist(), strict=True):
            count.within += within

    def _count_rows(self, rows: Iterable[Owner]) -> None:
        for row in rows:
            if isinstance(row, MetadataOwner):
                self.metadata[row.what] += row.length
            elif isinstance(row, FileOwner) and not row.unwritten:
                self._add_file(row)

    def _sweep_up(self, rows: Iterable[Owner], sweep: "Sweep") -> None:
        for row in rows:
            for kind, length in sweep.add(KINDS.index(kind_of(row)), row.start, row.length):
                self.totals[kind] += length

    def _add_file(self, row: FileOwner) -> None:
        layer = row.via[-1].layer if isinstance(row.via, tuple) else ""
        count = self._count_of(layer, row.file, row.what, row.subvolume)
        count.lost += row.length
        offset = row.file_offset
        encoded = isinstance(row.encoding, str)
        continues = count.last == row.lost if encoded else count.end == (row.start, offset)
        count.ranges += not continues
        if count.size is not None and row.lost is not None and not (encoded and continues):
            begin, length = row.lost
            count.within += max(min(length, count.size - begin), 0)
        count.end = row.start + row.length, None if offset is None else offset + row.length
        count.last = row.lost if encoded else None
        count.shared |= row.shared

    def _count_of(self, layer: str, file: FileId, what: str, subvolume: int | UnsetType) -> _Count:
        """Return the counts of a file, or of one part of it that is not data."""
        key = (layer, file, what)
        count = self._files.get(key)
        if count is None:
            count = self._files[key] = _Count(
                self._size_of(layer, file) if what == "data" else None
            )
            count.subvolume = subvolume
        return count

    @property
    def files(self) -> list[FileLoss]:
        """The loss of each file, the largest first."""
        losses = [
            FileLoss(
                *key,
                count.lost,
                count.ranges,
                count.shared,
                count.within,
                count.size,
                count.subvolume,
            )
            for key, count in self._files.items()
        ]
        return sorted(losses, key=lambda loss: (-loss.lost, loss.layer, loss.file, loss.what))


def _layer_of(placed: "PlacedColumns") -> str:
    """Return the layer that the filesystem of answers is on."""
    return placed.way[-1][0] if placed.way else ""


def kind_of(row: Owner) -> str:
    """Return the kind of a row, one of `KINDS`."""
    return "unwritten" if isinstance(row, FileOwner) and row.unwritten else row.kind


class Sweep:
    """Counts each byte of rows that overlap once, as the first kind that any row there has.

    The rows come in order of their start.  Nothing is kept but where each kind ends.
    """

    def __init__(self) -> None:
        self._at = 0
        self._ends = [0] * len(KINDS)

    def add(self, rank: int, start: int, length: int) -> Iterator[tuple[str, int]]:
        """Add a row of a kind, by its place in `KINDS`; yield what is known of the bytes before.

        That are kinds and lengths.
        """
        yield from self._go_to(start)
        self._ends[rank] = max(self._ends[rank], start + length)

    def finish(self) -> Iterator[tuple[str, int]]:
        """Return the kinds and lengths of the bytes that are left."""
        return self._go_to(max(self._ends))

    def _go_to(self, place: int) -> Iterator[tuple[str, int]]:
        for kind, end in zip(KINDS, self._ends, strict=True):
            reached = min(end, place)
            if reached > self._at:
                yield kind, reached - self._at
                self._at = reached
        self._at = max(self._at, place)
