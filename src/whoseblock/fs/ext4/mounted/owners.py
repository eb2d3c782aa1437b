"""The owners of blocks of a mounted filesystem: a scan finds them, and the kernel confirms them."""

from bisect import bisect_right
from collections.abc import Callable, Iterable, Iterator, Sequence
from functools import cached_property
from typing import Final

from whoseblock.fs.ext4.mounted.confirm import confirm_extents
from whoseblock.fs.ext4.mounted.metadata import LiveMetadata
from whoseblock.fs.ext4.owners.allocation import Allocation
from whoseblock.fs.ext4.owners.finder import Answers, OwnerFinder, Owners, Segment, scan_remark
from whoseblock.fs.ext4.static import FixedRun
from whoseblock.fs.pieces import FREE, METADATA, OUTSIDE, UNKNOWN, Piece
from whoseblock.fs.scan.engine import Extent, Found, Wanted

__all__ = ["LiveOwners"]

#: How often all inodes are read again for a batch of questions, while blocks change their owners.
_MOST_SCANS: Final = 6


class LiveOwners:
    """Answers a batch of questions, which share scans.

    ``mount`` is a descriptor on the filesystem.  ``progress`` takes the number of inodes read.
    """

    def __init__(
        self,
        live: LiveMetadata,
        mount: int,
        progress: Callable[[int], None],
        *,
        may_scan: bool,
    ) -> None:
        self.live = live
        self.mount = mount
        self.progress = progress
        live.refresh()
        self.finder = OwnerFinder(live.volume, live.fixed, live.scan, live.sb.journal_inum)
        self._found: Found | None = None
        self._covered = Wanted(())
        self._left = _MOST_SCANS if may_scan else 0
        self._may_scan = may_scan

    @property
    def remark(self) -> str:
        """The remark on how owners were found, "" if no scan was needed yet."""
        return "" if self._found is None else scan_remark(self._found)

    def prepare(self, pieces: Iterable[Piece]) -> None:
        """Scan once for all pieces of which the kernel knows no owner."""
        wanted = Wanted(self._clusters(one) for one in self._segments(pieces) if _is_open(one))
        if wanted and self._left:
            self._look_for(wanted)

    def resolve(self, start: int, length: int, pieces: Sequence[Piece]) -> Owners:
        """Return the pieces of one question with their owners, as they are now.

        ``pieces`` are the kernel's, in order, and cover it; what it does not know is `UNKNOWN`.
        """
        segments = self._segments(pieces)
        opened = [one for one in segments if _is_open(one)]
        if not opened:
            return LiveAnswers(self, segments, None).of(start, length)
        wanted = Wanted(map(self._clusters, opened))
        while True:
            confirmed = self._confirmed(wanted)
            lost = self._unexplained(wanted, confirmed)
            if not lost or not self._left:
                break
            # They have changed since the scan.
            self._look_for(lost)
        found = self._found or Found()
        now = Found()
        now.extents = confirmed
        now.unread, now.unread_count = found.unread, found.unread_count
        now.unowned_values = found.unowned_values
        now.finish()
        answer = LiveAnswers(self, segments, now if self._may_scan else None).of(start, length)
        if lost and self._may_scan:
            answer.notes.append(_CHANGING)
        return answer

    # ------------------------------------------------------------------ segments

    def _segments(self, pieces: Iterable[Piece]) -> list[Segment]:
        """Return the segments of pieces, in blocks; what the kernel does not know is in use."""
        size, fixed = self.live.volume.block_size, self.live.fixed
        found: list[Segment] = []
        for piece in pieces:
            if piece.kind == OUTSIDE:
                continue
            low, high = piece.start // size, -(-piece.end // size)
            if piece.kind in {FREE, METADATA}:
                run = FixedRun(low, high - low, piece.what, 0, "")
                is_fixed = piece.kind == METADATA
                found.append(Segment(low, high, run if is_fixed else None, not is_fixed, ""))
                continue
            # It reports neither the boot block nor that of MMP.
            at = low
            for run in fixed.within(low, high):
                start, end = max(run.start, at), min(run.start + run.length, high)
                if start < end:
                    if at < start:
                        found.append(Segment(at, start, None, is_free=False, fault=""))
                    found.append(Segment(start, end, run, is_free=False, fault=""))
                    at = end
            if at < high:
                found.append(Segment(at, high, None, is_free=False, fault=""))
        return found

    def _clusters(self, segment: Segment) -> tuple[int, int]:
        ratio = self.live.volume.ratio
        return segment.start // ratio * ratio, -(-segment.end // ratio) * ratio

    # ------------------------------------------------------------------ extents

    def _look_for(self, wanted: Wanted) -> None:
        """Scan for the owners of blocks, and add them to those that are known."""
        self._left -= 1
        found = self.finder.find_extents(wanted, self.progress)
        if self._found is not None:
            found.extents += self._found.extents
            found.finish()
        self._found = found

    def _confirmed(self, wanted: Wanted) -> list[Extent]:
        """Return the extents that the kernel confirms; bigalloc needs those of whole clusters."""
        if self._found is None:
            return []
        hits = {
            hit
            for low, high in zip(wanted.lows, wanted.highs, strict=True)
            for hit in self._found.within(low, high)
        }
        return confirm_extents(self.live, self.mount, hits, wanted)

    def _unexplained(self, wanted: Wanted, confirmed: Sequence[Extent]) -> Wanted:
        """Return the blocks that have neither an owner nor another explanation."""
        volume, fixed = self.live.volume, self.live.fixed
        ratio = volume.ratio
        taken = Wanted(
            (one.start // ratio * ratio, -(-one.end // ratio) * ratio) for one in confirmed
        )
        lost: list[tuple[int, int]] = []
        for low, high in zip(wanted.lows, wanted.highs, strict=True):
            for start, end in _gaps(taken, low, min(high, volume.blocks)):
                lost += (
                    (first, last)
                    for first, last, is_free in self.runs(start, end)
                    if not is_free and not (ratio > 1 and fixed.touches(first, last))
                )
        return Wanted(lost)

    def runs(self, low: int, high: int) -> list[tuple[int, int, bool]]:
        """Return the runs of blocks with whether the block bitmap has them free at the moment."""
        self.live.volume.forget()
        allocation = _LiveAllocation(self.live.volume, self.live.fixed)
        return [
            (one.start, one.end, one.is_free and not one.fault)
            for one in allocation.runs(max(low, self.live.volume.first), high)
        ]


class _LiveAllocation(Allocation):
    """The block bitmaps of a mounted filesystem."""

    @cached_property
    def _count_fault(self) -> str:
        """No reason: the kernel counts the free blocks of the superblock when it unmounts."""
        return ""


def _gaps(taken: Wanted, low: int, high: int) -> Iterator[tuple[int, int]]:
    """Yield the parts of blocks ``low`` to before ``high`` that are not taken."""
    at = bisect_right(taken.highs, low)
    while low < high:
        start = taken.lows[at] if at < len(taken.lows) else high
        if low < start:
            yield low, min(start, high)
        low = taken.highs[at] if at < len(taken.lows) else high
        at += 1


_CHANGING: Final = "blocks changed their owners while these were looked for; ask again"
_HELD: Final = (
    "blocks {}+{} are in no file: they were freed or preallocated, and the kernel holds them until"
    " the journal commits or a file takes them"
)


def _is_open(segment: Segment) -> bool:
    """Return whether only inodes know the owners of a segment."""
    return segment.fixed is None and not segment.is_free


class LiveAnswers(Answers):
    """Makes the answers of one question from confirmed extents."""

    def __init__(
        self, owners: LiveOwners, segments: Sequence[Segment], found: Found | None
    ) -> None:
        super().__init__(owners.finder, segments, found)
        self._owners = owners

    def _is_certain(self, segment: Segment) -> bool:
        """Return whether blocks are free: the kernel itself would allocate them."""
        return not segment.fault

    def _unowned(self, low: int, high: int, pieces: list[Piece], notes: dict[str, None]) -> None:
        """Add blocks that no inode has, and what the block bitmap says of them."""
        size = self.volume.block_size
        for start, end, is_free in self._owners.runs(low, high):
            if is_free:
                pieces.append(Piece(start * size, (end - start) * size, UNKNOWN))
                notes[_HELD.format(start, end - start)] = None
            else:
                super()._unowned(start, end, pieces, notes)
