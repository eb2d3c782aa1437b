"""A scan in place of a reverse map that is damaged, for the ranges where it is.

A lost or old leaf of the rmap btree leaves owners unknown.  The extent maps of all inodes have the
same facts, and the refcount and the free-space btree confirm them.  Where an inode and the rmap
btree contradict each other, neither is preferred.
"""

from collections.abc import Callable, Sequence
from typing import NamedTuple

from whoseblock.fs.pieces import UNKNOWN, Piece
from whoseblock.fs.xfs.inodes import InodeTable
from whoseblock.fs.xfs.owners.finder import OwnerFinder
from whoseblock.fs.xfs.owners.scanned import ScannedRecords
from whoseblock.fs.xfs.volume import Volume

__all__ = ["Rescan", "Single"]


class Single(NamedTuple):
    """The pieces of one question with their notes, and a remark if a scan found them."""

    pieces: list[Piece]
    notes: list[str]
    remark: str = ""


class Rescan:
    """Answers questions by the rmap btree, and again by a scan where that is damaged."""

    def __init__(self, finder: OwnerFinder, volume: Volume, inodes: InodeTable) -> None:
        self._finder = finder
        self._by_scan = OwnerFinder(volume, inodes, finder.free_doubt)
        self._by_scan.scan_instead()

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


def _remark(scanned: ScannedRecords, why: str) -> str:
    return f"the reverse map is damaged here, and {scanned.inodes_read} inodes were scanned: {why}"


def _unknown(pieces: Sequence[Piece]) -> int:
    """Return how many bytes have no owner that is known."""
    return sum(piece.length for piece in pieces if piece.kind == UNKNOWN)
