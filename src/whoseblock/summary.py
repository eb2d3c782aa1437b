"""A summary of many answers: the loss of each file, and totals that add up to the bytes asked."""

from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator
from typing import NamedTuple

from msgspec import UNSET, UnsetType

from whoseblock.fs.base import MAX_NOTES, Answer, FileId, FileOwner, MetadataOwner, Owner
from whoseblock.fs.stream import LeadingRows

__all__ = ["KINDS", "FileLoss", "Summary"]

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
        self._sweep: _Sweep | None = None

    def add_rows(self, leading: LeadingRows) -> None:
        """Add the leading rows of an answer whose other rows follow."""
        if self._sweep is None:
            self._sweep = _Sweep()
        self._count_rows(leading.owners)
        self._sweep_up(leading.owners, self._sweep)

    def add(self, answer: Answer) -> None:
        """Add an answer, or the last rows of one.  No byte may be in two answers."""
        self.asked += answer.length
        self.questions += 1
        self.incomplete += not answer.complete
        for note in answer.notes:
            if len(self.notes) < MAX_NOTES:
                self.notes[note] = None
        if not answer.complete:
            remarks = answer.remarks or ()
            self.reasons.update(
                note for note in answer.notes if note in self.notes and note not in remarks
            )
        self._count_rows(answer.owners)
        if self._sweep is None and sum(row.length for row in answer.owners) == answer.length:
            for row in answer.owners:
                self.totals[_kind(row)] += row.length
            return
        sweep = self._sweep or _Sweep()
        self._sweep_up(answer.owners, sweep)
        for kind, length in sweep.finish():
            self.totals[kind] += length
        self._sweep = None

    def _count_rows(self, rows: Iterable[Owner]) -> None:
        for row in rows:
            if isinstance(row, MetadataOwner):
                self.metadata[row.what] += row.length
            elif isinstance(row, FileOwner) and not row.unwritten:
                self._add_file(row)

    def _sweep_up(self, rows: Iterable[Owner], sweep: "_Sweep") -> None:
        for row in rows:
            for kind, length in sweep.add(row):
                self.totals[kind] += length

    def _add_file(self, row: FileOwner) -> None:
        layer = row.via[-1].layer if isinstance(row.via, tuple) else ""
        key = (layer, row.file, row.what)
        count = self._files.get(key)
        if count is None:
            size = self._size_of(layer, row.file) if row.what == "data" else None
            count = self._files[key] = _Count(size)
            count.subvolume = row.subvolume
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


def _kind(row: Owner) -> str:
    return "unwritten" if isinstance(row, FileOwner) and row.unwritten else row.kind


class _Sweep:
    """Counts each byte of rows that overlap once, as the first kind that any row there has.

    The rows come in order of their start.  Nothing is kept but where each kind ends.
    """

    def __init__(self) -> None:
        self._at = 0
        self._ends = [0] * len(KINDS)

    def add(self, row: Owner) -> Iterator[tuple[str, int]]:
        """Add a row; returns the kinds and lengths of the bytes before it."""
        yield from self._go_to(row.start)
        rank = KINDS.index(_kind(row))
        self._ends[rank] = max(self._ends[rank], row.start + row.length)

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
