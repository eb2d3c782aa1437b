"""A scan in place of a reverse map that is damaged, for the ranges where it is.

A lost or old leaf of the rmap btree leaves owners unknown.  The extent maps of all inodes have the
same facts, and the refcount and the free-space btree confirm them.  Where an inode and the rmap
btree contradict each other, neither is preferred.
"""

from collections.abc import Callable, Iterator, Sequence
from itertools import groupby
from typing import Final, NamedTuple

from whoseblock.fs.pieces import UNKNOWN, Piece
from whoseblock.fs.xfs.inodes import InodeTable
from whoseblock.fs.xfs.owners.cuts import Cut
from whoseblock.fs.xfs.owners.finder import OwnerFinder
from whoseblock.fs.xfs.owners.scanned import ScannedRecords
from whoseblock.fs.xfs.volume import Volume

__all__ = ["Rescan", "Single", "scan_size"]

#: In more groups, inodes are not counted: a group is one read.
_MOST_COUNTED: Final = 64


class Single(NamedTuple):
    """The pieces of one question with their notes, and a remark if a scan found them."""

    pieces: list[Piece]
    notes: list[str]
    remark: str = ""


class Rescan:
    """Answers questions by the rmap btree, and again by a scan where that is damaged."""

    def __init__(self, finder: OwnerFinder, volume: Volume, inodes: InodeTable) -> None:
        self._finder = finder
        self._by_scan = OwnerFinder(volume, inodes, finder.free_doubt, finder.is_at_rest)
        self._by_scan.scan_instead()

    def settle(self, cut: Cut, progress: Callable[[int], None]) -> Iterator[tuple[str, Cut]]:
        """Yield the parts of a cut, each with a remark if a scan was needed for it.

        One scan serves all questions of the cut whose notes it may settle.
        """
        settleable = self._finder.settleable
        doubtful = [number for number, notes in cut.notes() if settleable.intersection(notes)]
        found = dict(
            zip(doubtful, self.find([cut.questions[at] for at in doubtful], progress), strict=True)
        )
        for needed, numbers in groupby(range(len(cut.questions)), found.__contains__):
            first, *others = numbers
            if not needed:
                yield "", cut.part(first, first + len(others) + 1)
                continue
            for number in (first, *others):
                pieces, notes, remark = found[number]
                question = cut.questions[number : number + 1]
                yield remark, Cut(question, None, [(pieces, notes)])

    def find(
        self, questions: Sequence[tuple[int, int]], progress: Callable[[int], None]
    ) -> list[Single]:
        """Return the pieces of each question; one scan serves all that need it."""
        found: list[Single] = []
        doubtful: dict[int, bool] = {}
        for number, (start, length) in enumerate(questions):
            notes: list[str] = []
            self._finder.settleable.clear()
            found.append(Single(self._finder.find(start, length, notes), notes))
            if self._finder.settleable.intersection(notes):
                doubtful[number] = self._finder.settleable.issuperset(notes)
        scanned = self._by_scan.scanned
        if not doubtful or scanned is None:
            return found
        scanned.prepare([questions[number] for number in doubtful], progress, may_scan=True)
        for number, can_settle in doubtful.items():
            before = found[number]
            again: list[str] = []
            pieces = self._by_scan.find(*questions[number], again)
            remark = _remark(scanned, before.notes[0])
            if not again and can_settle:
                found[number] = Single(pieces, [], remark)
            elif _unknown(pieces) < _unknown(before.pieces):
                found[number] = Single(pieces, [*before.notes, *again], remark)
        return found


def scan_size(volume: Volume) -> int | None:
    """Return about how many bytes a scan reads; None if that is not known.

    Inodes are those that the AGIs count.  Maps have a record for each record of the rmap btree at
    most, and theirs are smaller.
    """
    if volume.sb.agcount > _MOST_COUNTED:
        return None
    total = 0
    for agno in range(volume.sb.agcount):
        agf, agi = volume.headers(agno)
        if agf is None or agi is None:
            return None
        total += agi.icount * volume.inode_size + agf.rmap_blocks * volume.block_size
    return total


def _remark(scanned: ScannedRecords, why: str) -> str:
    return f"the reverse map is damaged here, and {scanned.inodes_read} inodes were scanned: {why}"


def _unknown(pieces: Sequence[Piece]) -> int:
    """Return how many bytes have no owner that is known."""
    return sum(piece.length for piece in pieces if piece.kind == UNKNOWN)
