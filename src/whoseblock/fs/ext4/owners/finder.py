"""The owners of ranges: fixed metadata, then the block bitmap, then a scan of the inodes."""

from bisect import bisect_right
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from typing import Final, NamedTuple

from whoseblock.errors import BlockError
from whoseblock.fs.ext4.format import xattr
from whoseblock.fs.ext4.owners.allocation import Allocation
from whoseblock.fs.ext4.owners.values import find_value_owners
from whoseblock.fs.ext4.scan import VALUE_INODE, InodeScan, nearest_groups
from whoseblock.fs.ext4.static import FixedMetadata, FixedRun
from whoseblock.fs.ext4.volume import Volume
from whoseblock.fs.pieces import (
    FILE,
    FILE_DATA,
    FREE,
    LOG,
    METADATA,
    OUTSIDE,
    PAST_END,
    STATIC,
    UNKNOWN,
    XATTR,
    Piece,
    mark_shared,
)
from whoseblock.fs.scan.engine import Extent, Found, Wanted, run_scan

__all__ = ["Answers", "OwnerFinder", "Owners", "Segment", "scan_remark"]

_NO_SCAN: Final = "the owner was not looked for, because a scan of all inodes was not permitted"
#: Reasons for unread inodes that are named in one note.
_MOST_REASONS: Final = 3
#: A scan for so many separate runs of blocks ends when all have an owner.
_FEW: Final = 16
#: NumPy takes as long to import as so many inodes to decode without it.
_LARGE: Final = 1 << 14


class Segment(NamedTuple):
    """Blocks ``start`` to before ``end``: fixed metadata, or by the bitmap free or in use."""

    start: int
    end: int
    fixed: FixedRun | None
    is_free: bool
    fault: str


class Owners(NamedTuple):
    """The pieces of one question, why they may not be all, and a remark about the scan."""

    pieces: list[Piece]
    notes: list[str]
    remark: str


class OwnerFinder:
    """Finds the owners of ranges of one volume.

    ``journal`` is the inode of the journal, 0 if it is on another device.
    """

    def __init__(self, volume: Volume, fixed: FixedMetadata, scan: InodeScan, journal: int) -> None:
        self.volume = volume
        self.fixed = fixed
        self.scan = scan
        self.journal = journal
        self.allocation = Allocation(volume, fixed)

    def find(
        self,
        questions: Sequence[tuple[int, int]],
        progress: Callable[[int], None],
        *,
        may_scan: bool,
    ) -> Iterator[Owners]:
        """Yield the owners of each ``(start, length)`` in bytes; one scan serves all."""
        volume = self.volume
        size = volume.block_size
        ranges = [
            (start // size, min(-(-(start + length) // size), volume.blocks))
            for start, length in questions
        ]
        union = Wanted((low, high) for low, high in ranges if low < high)
        segments = self.segments(union)
        wanted = self.to_scan(segments)
        found: Found | None = None
        if wanted and may_scan:
            found = self.find_extents(wanted, progress)
        answer = Answers(self, segments, found)
        for start, length in questions:
            yield answer.of(start, length)

    # ------------------------------------------------------------------ what the bitmaps say

    def segments(self, asked: Wanted) -> list[Segment]:
        """Return what the bitmaps say of all blocks asked about, in order."""
        return [
            segment
            for low, high in zip(asked.lows, asked.highs, strict=True)
            for segment in self._segments(low, high)
        ]

    def _segments(self, low: int, high: int) -> Iterator[Segment]:
        at = low
        for run in self.fixed.within(low, high):
            start, end = max(run.start, at), min(run.start + run.length, high)
            if start >= end:
                continue
            yield from self._allocated(at, start)
            yield Segment(start, end, run, is_free=False, fault="")
            at = end
        yield from self._allocated(at, high)

    def _allocated(self, low: int, high: int) -> Iterator[Segment]:
        for run in self.allocation.runs(low, high):
            yield Segment(run.start, run.end, None, run.is_free, run.fault)

    def to_scan(self, segments: Sequence[Segment]) -> Wanted:
        """Return the blocks whose owners only inodes know, as whole clusters.

        Without checksums, a bitmap is one structure, and no inode may have what it calls free.
        """
        ratio, alone = self.volume.ratio, self.volume.sb.has_checksums
        return Wanted(
            (one.start // ratio * ratio, -(-one.end // ratio) * ratio)
            for one in segments
            if one.fixed is None and (one.fault or not one.is_free or not alone)
        )

    def find_extents(self, wanted: Wanted, progress: Callable[[int], None]) -> Found:
        """Return the extents of all inodes that intersect blocks, of which there are some."""
        volume = self.volume
        sb = volume.sb

        def is_enough(extents: list[Extent]) -> bool:
            return not any(one.what == XATTR for one in extents) and wanted.is_covered(extents)

        # More are answered with one whole scan, whose end need not be looked for after each hit.
        is_few = len(wanted.lows) <= _FEW
        alone = is_few and sb.has_checksums and not sb.shares_data and volume.ratio == 1
        groups = list(nearest_groups(volume, volume.group_of(wanted.lows[0])))
        if alone:
            ranges = list(zip(wanted.lows, wanted.highs, strict=True))
            found = run_scan(self.scan.likely(groups, ranges), wanted, is_enough, progress)
            if not found.is_whole:
                return found
        if sb.inodes_count > _LARGE:
            from whoseblock.fs.scan.bulk import run_bulk_scan

            found = run_bulk_scan(self.scan.tables(groups), wanted, progress)
        else:
            found = run_scan(self.scan.batches(groups), wanted, None, progress)
        if found.has_flag(VALUE_INODE):
            self._name_values(found)
        return found

    def _name_values(self, found: Found) -> None:
        """Replace inodes that are values of attributes by the inodes that have the attributes."""
        values = {one.inode for one in found.extents if one.flags & VALUE_INODE}
        owners, unread = find_value_owners(self.volume, self.scan, values)
        for inodes in unread:
            found.add_unread(inodes)
        extents: list[Extent] = []
        for one in found.extents:
            if one.flags & VALUE_INODE:
                extents += (one._replace(inode=inode) for inode in owners.get(one.inode, ()))
                if one.inode not in owners:
                    extents.append(one)
                    found.unowned_values.add(one.inode)
            else:
                extents.append(one)
        found.extents = extents
        found.is_whole = True
        found.finish()


class Answers:
    """Makes the answers of one scan; ``segments`` are ordered, and cover all that is asked."""

    def __init__(
        self, finder: OwnerFinder, segments: Sequence[Segment], found: Found | None
    ) -> None:
        self.finder = finder
        self.volume = finder.volume
        self.segments = segments
        self.starts = [segment.start for segment in segments]
        self.found = found
        self._checked: dict[int, str] = {}

    def of(self, start: int, length: int) -> Owners:
        """Return the owners of one range in bytes."""
        size = self.volume.block_size
        end = start + length
        pieces: list[Piece] = []
        notes: dict[str, None] = {}
        scanned = False
        low, high = start // size, min(-(-end // size), self.volume.blocks)
        if low < high:
            at = bisect_right(self.starts, low) - 1
            while at < len(self.segments) and self.segments[at].start < high:
                segment = self.segments[at]
                first, last = max(segment.start, low), min(segment.end, high)
                scanned |= self._segment(segment, first, last, pieces, notes)
                at += 1
        pieces = [_clipped(piece, start, end) for piece in pieces]
        pieces.sort(key=lambda piece: (piece.start, piece.inode, piece.file_offset))
        if end > self.volume.size:
            past = max(start, self.volume.size)
            pieces.append(Piece(past, end - past, OUTSIDE, PAST_END))
        mark_shared(pieces)
        _mark_shared_attributes(pieces)
        return Owners(pieces, list(notes), self.remark if scanned else "")

    @property
    def remark(self) -> str:
        """The way the owners were found, "" if there was no scan."""
        return "" if self.found is None else scan_remark(self.found)

    def _is_certain(self, segment: Segment) -> bool:
        """Return whether blocks that are free need no scan; a bitmap alone may be wrong."""
        return self.volume.sb.has_checksums and not segment.fault

    def _segment(
        self, segment: Segment, low: int, high: int, pieces: list[Piece], notes: dict[str, None]
    ) -> bool:
        """Add the pieces of blocks of a segment; return whether they took a scan."""
        size = self.volume.block_size
        start, length = low * size, (high - low) * size
        if segment.fixed is not None:
            pieces.append(Piece(start, length, METADATA, segment.fixed.what))
            return False
        if segment.fault and (segment.is_free or self.found is None):
            notes[segment.fault] = None
        if segment.is_free and self._is_certain(segment):
            pieces.append(Piece(start, length, FREE))
            return False
        found = self.found
        if found is None:
            notes[_NO_SCAN] = None
            pieces.append(Piece(start, length, UNKNOWN))
            return True
        if found.unread_count:
            notes[_unread_note(found)] = None
        extents = found.within(low, high)
        at = low
        for extent in extents:
            if extent.start > at:
                self._gap(segment, at, extent.start, pieces, notes)
            self._file(extent, max(extent.start, low), min(extent.end, high), pieces, notes)
            at = max(at, extent.end)
        if at < high:
            self._gap(segment, at, high, pieces, notes)
        if segment.is_free and extents:
            where = extents[0].start
            notes[f"block {where} has an owner, and is free by the block bitmap"] = None
        self._check_claims(found, extents, notes)
        return True

    def _file(
        self, extent: Extent, low: int, high: int, pieces: list[Piece], notes: dict[str, None]
    ) -> None:
        """Add what an extent has of blocks ``low`` to before ``high``."""
        size = self.volume.block_size
        start, length = low * size, (high - low) * size
        if extent.inode == self.finder.journal:
            pieces.append(Piece(start, length, METADATA, LOG))
            return
        offset = -1 if extent.offset < 0 else (extent.offset + low - extent.start) * size
        pieces.append(
            Piece(
                start,
                length,
                FILE,
                extent.what,
                extent.fork,
                extent.inode,
                offset,
                extent.unwritten,
            )
        )
        if self.found is not None and extent.inode in self.found.unowned_values:
            notes[
                f"inode {extent.inode} is the value of an attribute, and no inode has the attribute"
            ] = None

    def _gap(
        self, segment: Segment, low: int, high: int, pieces: list[Piece], notes: dict[str, None]
    ) -> None:
        """Add blocks that no inode maps."""
        size, ratio = self.volume.block_size, self.volume.ratio
        found = self.found
        if segment.fault:
            # Where an inode has a block, the bitmap is not needed.
            notes[segment.fault] = None
        if ratio > 1 and not segment.is_free and found is not None:
            at = low
            while at < high:
                end = min((at // ratio + 1) * ratio, high)
                if not self._rest(at, end, found, pieces):
                    self._unowned(at, end, pieces, notes)
                at = end
            return
        if segment.is_free and not segment.fault and found is not None and not found.unread_count:
            pieces.append(Piece(low * size, (high - low) * size, FREE))
            return
        if segment.is_free:
            pieces.append(Piece(low * size, (high - low) * size, UNKNOWN))
            why = "no free space is certain where inodes are unread, or the bitmap is not believed"
            notes[why] = None
            return
        self._unowned(low, high, pieces, notes)

    def _unowned(self, low: int, high: int, pieces: list[Piece], notes: dict[str, None]) -> None:
        size = self.volume.block_size
        pieces.append(Piece(low * size, (high - low) * size, UNKNOWN))
        notes[f"block {low} is in use by the block bitmap, but no inode has it"] = None

    def _rest(self, low: int, high: int, found: Found, pieces: list[Piece]) -> bool:
        """Add the rest of one cluster, if its owner is known: blocks that were never written."""
        size, ratio = self.volume.block_size, self.volume.ratio
        first = low // ratio * ratio
        start, length = low * size, (high - low) * size
        if self.finder.fixed.touches(first, first + ratio):
            pieces.append(Piece(start, length, METADATA, STATIC))
            return True
        owners: dict[tuple[int, int], Extent] = {}
        for extent in found.within(first, first + ratio):
            owners.setdefault((extent.inode, extent.what), extent)
        if len({what for _, what in owners}) != 1:
            return False
        if len(owners) > 1 and next(iter(owners))[1] != XATTR:
            return False
        for extent in owners.values():
            offset = -1
            if extent.offset >= 0:
                offset = (extent.offset + low - extent.start) * size
                if offset < 0:
                    return False
            if extent.inode == self.finder.journal:
                pieces.append(Piece(start, length, METADATA, LOG))
                continue
            pieces.append(
                Piece(start, length, FILE, extent.what, extent.fork, extent.inode, offset, True)  # noqa: FBT003
            )
        return bool(owners)

    # ------------------------------------------------------------------ what agrees

    def _check_claims(
        self, found: Found, extents: Sequence[Extent], notes: dict[str, None]
    ) -> None:
        """Add a note for blocks that several inodes claim which cannot share them."""
        shares, ratio = self.volume.sb.shares_data, self.volume.ratio
        reach: Extent | None = None
        if ratio > 1 and extents:
            # The other extents of the clusters.
            low, high = extents[0].start, max(extent.end for extent in extents)
            extents = found.within(low // ratio * ratio, -(-high // ratio) * ratio)
        for extent in extents:
            if reach is not None and extent.start // ratio <= (reach.end - 1) // ratio:
                both = {extent.what, reach.what}
                values = extent.flags & reach.flags & VALUE_INODE
                blocks = both == {XATTR} and extent.start == reach.start
                one = extent.start >= reach.end and _is_one_cluster(reach, extent)
                if not (one or values or blocks or (shares and both == {FILE_DATA})):
                    notes[
                        f"block {extent.start} is claimed by inode {reach.inode} and by inode"
                        f" {extent.inode}"
                    ] = None
            if reach is None or extent.end > reach.end:
                reach = extent
        for extent in extents:
            if extent.what == XATTR and not extent.flags & VALUE_INODE:
                if extent.start not in self._checked:
                    self._checked[extent.start] = self._check_sharers(found, extent.start)
                if note := self._checked[extent.start]:
                    notes[note] = None

    def _check_sharers(self, found: Found, block: int) -> str:
        """Return why inodes that share a block of attributes may be missing, or ""."""
        volume = self.volume
        try:
            raw = volume.read_block("attribute block", block)
        except BlockError:
            # The block that is asked about, most likely: its inodes are known without it.
            return ""
        sb = volume.sb
        if sb.has_checksums and not xattr.xattr_block_matches(volume.seed, block, raw):
            return ""
        wanted = xattr.refcount(raw)
        count = sum(1 for one in found.within(block, block + 1) if one.what == XATTR)
        if wanted is None or wanted == count:
            return ""
        return f"block {block} of attributes is shared by {wanted} inodes, and {count} were found"


def scan_remark(found: Found) -> str:
    """Return the remark on answers that took a scan."""
    count = found.inodes_read
    text = f"there is no reverse map: the owners were found by a scan of {count} inodes"
    return text if found.is_whole else f"{text}, which ended at the owner"


def _mark_shared_attributes(pieces: list[Piece]) -> None:
    """Mark attribute blocks that several inodes have; `mark_shared` knows of data only."""
    counts = Counter(piece.start for piece in pieces if piece.what == XATTR)
    for index, piece in enumerate(pieces):
        if piece.what == XATTR and counts[piece.start] > 1:
            pieces[index] = piece._replace(shared=True)


def _is_one_cluster(one: Extent, other: Extent) -> bool:
    """Return whether two extents may be in one cluster: parts of one file, in their places."""
    if (one.inode, one.what) != (other.inode, other.what):
        return False
    return one.offset < 0 or one.start - one.offset == other.start - other.offset


def _clipped(piece: Piece, start: int, end: int) -> Piece:
    """Clip a piece of whole blocks to the bytes asked about."""
    low, high = max(piece.start, start), min(piece.end, end)
    offset = piece.file_offset
    if offset >= 0:
        offset += low - piece.start
    return piece._replace(start=low, length=high - low, file_offset=offset)


def _unread_note(found: Found) -> str:
    reasons = list(dict.fromkeys(one.reason for one in found.unread))[:_MOST_REASONS]
    return (
        f"{found.unread_count} inodes may own it too, which could not be read or verified:"
        f" {'; '.join(reasons)}"
    )
