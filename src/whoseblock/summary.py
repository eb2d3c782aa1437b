"""Many answers in one page: what each file lost, and totals that add up to the bytes asked."""

from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import NamedTuple

from whoseblock.fs.base import MAX_NOTES, Answer, FileOwner, MetadataOwner, Owner

__all__ = ["KINDS", "FileLoss", "Summary"]

#: What a byte counts as; where layers overlap, as the first of those that its owners are.
KINDS = ("file", "metadata", "unknown", "unwritten", "staging", "free", "outside")


class FileLoss(NamedTuple):
    """What one file lost: ``lost`` bytes in ``ranges`` pieces; ``what`` as in `FileOwner`.

    ``layer`` is the layer that the file's filesystem is on.  ``size`` is the file's, None if it is
    not known or if it was no data that was lost; ``within`` are those of the lost bytes that lie
    before its end, for the last block of a file is rarely full.
    """

    layer: str
    inode: int
    what: str
    lost: int
    ranges: int
    shared: bool
    within: int
    size: int | None

    @property
    def share(self) -> float | None:
        """What part of the file was lost, None if nobody knows."""
        return self.within / self.size if self.size else None


class _Count:
    """What is counted of one file, or of one part of it that is not data."""

    __slots__ = ("end", "lost", "ranges", "shared", "size", "within")

    def __init__(self, size: int | None) -> None:
        self.lost: int = 0
        self.ranges: int = 0
        self.within: int = 0
        self.shared = False
        #: Where the last row ended: one that goes on there is of the same range.
        self.end: tuple[int, int | None] = (-1, None)
        self.size = size


class Summary:
    """Adds up answers as they come; nothing is kept of them but one count for each file.

    ``size_of`` tells the size of a file by its layer and inode, None if that cannot be had.
    """

    def __init__(self, size_of: Callable[[str, int], int | None]) -> None:
        self.asked = 0
        self.questions = 0
        self.incomplete = 0
        #: Bytes of the question by kind: each byte once, however many have it.
        self.totals = dict.fromkeys(KINDS, 0)
        self.metadata: dict[str, int] = defaultdict(int)
        self.notes: dict[str, None] = {}
        self._size_of = size_of
        self._files: dict[tuple[str, int, str], _Count] = {}

    def add(self, answer: Answer) -> None:
        """Take one answer in.  No byte may be asked about twice."""
        self.asked += answer.length
        self.questions += 1
        self.incomplete += not answer.complete
        for note in answer.notes:
            if len(self.notes) < MAX_NOTES:
                self.notes[note] = None
        for row in answer.owners:
            if isinstance(row, MetadataOwner):
                self.metadata[row.what] += row.length
            elif isinstance(row, FileOwner) and not row.unwritten:
                self._add_file(row)
        for kind, length in _counted_once(answer):
            self.totals[kind] += length

    def _add_file(self, row: FileOwner) -> None:
        layer = row.via[-1].layer if isinstance(row.via, tuple) else ""
        key = (layer, row.inode, row.what)
        count = self._files.get(key)
        if count is None:
            size = self._size_of(layer, row.inode) if row.what == "data" else None
            count = self._files[key] = _Count(size)
        count.lost += row.length
        offset = row.file_offset
        count.ranges += count.end != (row.start, offset)
        count.end = row.start + row.length, None if offset is None else offset + row.length
        count.shared |= row.shared
        if count.size is not None and row.file_offset is not None:
            count.within += max(min(row.length, count.size - row.file_offset), 0)

    @property
    def files(self) -> list[FileLoss]:
        """What each file lost, the most first."""
        losses = [
            FileLoss(*key, count.lost, count.ranges, count.shared, count.within, count.size)
            for key, count in self._files.items()
        ]
        return sorted(losses, key=lambda loss: (-loss.lost, loss.layer, loss.inode, loss.what))


def _kind(row: Owner) -> str:
    return "unwritten" if isinstance(row, FileOwner) and row.unwritten else row.kind


def _counted_once(answer: Answer) -> Iterable[tuple[str, int]]:
    """Give the bytes of an answer by kind, each byte once."""
    if sum(row.length for row in answer.owners) == answer.length:
        return ((_kind(row), row.length) for row in answer.owners)
    return _sweep(answer.owners)


def _sweep(rows: Sequence[Owner]) -> Iterator[tuple[str, int]]:
    """Go over rows that overlap, and give each piece between two edges one kind."""
    edges: dict[int, list[tuple[int, int]]] = defaultdict(list)
    for row in rows:
        rank = KINDS.index(_kind(row))
        edges[row.start].append((rank, 1))
        edges[row.start + row.length].append((rank, -1))
    here = [0] * len(KINDS)
    before = 0
    for edge in sorted(edges):
        if any(here):
            # The first that any row has.
            yield (
                next(kind for kind, count in zip(KINDS, here, strict=True) if count),
                edge - before,
            )
        for changed, by in edges[edge]:
            here[changed] += by
        before = edge
