"""The owners of blocks of a mounted filesystem: a scan finds them, and the kernel confirms them."""

from collections.abc import Callable, Iterable, Sequence
from functools import cached_property
from itertools import pairwise
from typing import Final

from whoseblock.fs.ext4.mounted.confirm import Confirmed, confirm_extents
from whoseblock.fs.ext4.mounted.metadata import LiveMetadata
from whoseblock.fs.ext4.owners.allocation import Allocation
from whoseblock.fs.ext4.owners.finder import Answers, OwnerFinder, Owners, Segment, scan_remark
from whoseblock.fs.ext4.static import FixedRun
from whoseblock.fs.pieces import FREE, METADATA, OUTSIDE, UNKNOWN, XATTR, Piece
from whoseblock.fs.scan.engine import Extent, Found, Wanted

__all__ = ["LiveAnswers", "LiveOwners"]

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

    def prepare(self, wanted: Wanted) -> None:
        """Scan once for blocks of which the kernel knows no owner."""
        if wanted and self._left:
            self._look_for(wanted)

    def clusters(self, segments: Iterable[Segment]) -> Wanted:
        """Return the blocks that only inodes know the owners of, as whole clusters."""
        return Wanted(self._clusters(one) for one in segments if _is_open(one))

    def found_of(self, confirmed: list[Extent]) -> Found | None:
        """Return what was confirmed as the result of a scan, None if none is permitted."""
        if not self._may_scan:
            return None
        found = self._found or Found()
        now = Found()
        now.extents = confirmed
        now.unread, now.unread_count = found.unread, found.unread_count
        now.unowned_values = found.unowned_values
        now.finish()
        return now

    def resolve(self, start: int, length: int, pieces: Sequence[Piece]) -> Owners:
        """Return the pieces of one question with their owners, as they are now.

        ``pieces`` are the kernel's, in order, and cover it; what it does not know is `UNKNOWN`.
        """
        segments = self.segments(pieces)
        wanted = self.clusters(segments)
        if not wanted:
            return LiveAnswers(self, segments, None).of(start, length)
        confirmed, lost = self.confirmed(wanted).extents, Wanted(())
        is_stable = False
        while not is_stable:
            before, lost = lost, self.unexplained(wanted, confirmed)
            # What a second scan does not find either has no owner.
            is_stable = not lost or (before.lows == lost.lows and before.highs == lost.highs)
            if is_stable or not self._left:
                break
            # They have changed since the scan.
            self._look_for(lost)
            confirmed = self.confirmed(wanted).extents
        answer = LiveAnswers(self, segments, self.found_of(confirmed)).of(start, length)
        if self._may_scan and not is_stable:
            answer.notes.append(_CHANGING)
        return answer

    # ------------------------------------------------------------------ segments

    def segments(self, pieces: Iterable[Piece]) -> list[Segment]:
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
        self.live.volume.forget()
        found = self.finder.find_extents(wanted, self.progress)
        if self._found is not None:
            found.extents += self._found.extents
            found.finish()
        self._found = found

    def confirmed(self, wanted: Wanted) -> Confirmed:
        """Return the extents that the kernel confirms; bigalloc needs those of whole clusters."""
        found = Confirmed([], {})
        if self._found is None:
            return found
        shares = self.live.sb.shares_data
        hits = {
            hit
            for low, high in zip(wanted.lows, wanted.highs, strict=True)
            for hit in self._found.within(low, high)
        }
        for _ in range(_MOST_SCANS):
            found = confirm_extents(self.live, self.mount, hits, wanted)
            # One file was asked before the block left it, and another after it had got the block.
            if shares or not _overlap(found.extents):
                break
        return found

    def unexplained(self, wanted: Wanted, confirmed: Sequence[Extent]) -> Wanted:
        """Return the blocks that have neither an owner nor another explanation."""
        volume, fixed = self.live.volume, self.live.fixed
        ratio = volume.ratio
        taken = Wanted(
            (one.start // ratio * ratio, -(-one.end // ratio) * ratio) for one in confirmed
        )
        lost: list[tuple[int, int]] = []
        for low, high in zip(wanted.lows, wanted.highs, strict=True):
            for start, end in taken.gaps(low, min(high, volume.blocks)):
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


def _overlap(extents: Sequence[Extent]) -> bool:
    """Return whether two files claim data, which are sorted by their start."""
    data = [one for one in extents if one.what != XATTR]
    return any(two.start < one.end for one, two in pairwise(data))


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
        self._held: list[tuple[int, int]] = []

    def _is_certain(self, segment: Segment) -> bool:
        """Return whether blocks are free: the kernel itself would allocate them."""
        return not segment.fault

    def of(self, start: int, length: int) -> Owners:
        """Return the owners of one range in bytes."""
        self._held.clear()
        found = super().of(start, length)
        held = Wanted(self._held)
        for low, high in zip(held.lows, held.highs, strict=True):
            found.notes.append(_HELD.format(low, high - low))
        return found._replace(pieces=_joined(found.pieces))

    def _unowned(self, low: int, high: int, pieces: list[Piece], notes: dict[str, None]) -> None:
        """Add blocks that no inode has, and what the block bitmap says of them."""
        size = self.volume.block_size
        for start, end, is_free in self._owners.runs(low, high):
            if is_free:
                pieces.append(Piece(start * size, (end - start) * size, UNKNOWN))
                self._held.append((start, end))
            else:
                super()._unowned(start, end, pieces, notes)


def _joined(pieces: list[Piece]) -> list[Piece]:
    """Join the unknown pieces of adjacent clusters."""
    found: list[Piece] = []
    for piece in pieces:
        before = found[-1] if found else None
        if before and piece.kind == before.kind == UNKNOWN and before.end == piece.start:
            found[-1] = before._replace(length=before.length + piece.length)
        else:
            found.append(piece)
    return found
