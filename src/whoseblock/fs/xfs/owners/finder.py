"""Owners of one range: one descent of the rmap btree.

Plain Python without NumPy: one question reads a handful of blocks, and importing NumPy would take
longer than all of it.
"""

from collections.abc import Callable, Iterable, Iterator
from typing import TYPE_CHECKING, Final

from whoseblock.errors import BlockError, CorruptError
from whoseblock.fs.pieces import (
    FILE_DATA,
    FREE,
    LOG,
    OUTSIDE,
    PAST_END,
    STATIC,
    UNKNOWN,
    UNKNOWN_DATA,
    Piece,
    data_what,
    is_shareable,
    mark_shared,
)
from whoseblock.fs.xfs.btree import BNOBT, CNTBT, INOBT, REFCOUNTBT, RMAPBT, AgTree, Fault, Shape
from whoseblock.fs.xfs.format.btree import XFS_INODES_PER_CHUNK
from whoseblock.fs.xfs.inodes import InodeTable
from whoseblock.fs.xfs.owners.crosscheck import Claim, CrossCheck, Part, most_counted
from whoseblock.fs.xfs.owners.maps import ExtentMaps
from whoseblock.fs.xfs.owners.rows import piece_of
from whoseblock.fs.xfs.volume import MOST_LOST_GROUPS, Volume

if TYPE_CHECKING:
    from whoseblock.fs.xfs.owners.scanned import ScannedRecords

__all__ = ["OwnerFinder"]

#: Trees kept, and with them their blocks; and groups without a header.
_MOST_TREES: Final = 2048


class OwnerFinder:
    """Answers single questions; keeps the trees, and with them the blocks that were read.

    ``free_doubt`` returns why no space of the filesystem can be called free, or "".  ``is_at_rest``
    returns whether the blocks on the disk are of one moment.
    """

    def __init__(
        self,
        volume: Volume,
        inodes: InodeTable,
        free_doubt: Callable[[], str] = str,
        is_at_rest: Callable[[], bool] = bool,
    ) -> None:
        self.volume = volume
        self.inodes = inodes
        self.free_doubt = free_doubt
        self.is_at_rest = is_at_rest
        self._trees: dict[tuple[int, str], AgTree] = {}
        self._lost: dict[int, str] = {}
        self.maps = ExtentMaps(volume, inodes)
        self.check: CrossCheck = CrossCheck(volume, self, self.maps)
        #: Notes that a scan of all inodes may settle, of all questions so far.
        self.settleable: set[str] = set()
        #: What stands in for the rmap btree, on filesystems without one.
        self.scanned: ScannedRecords | None = None
        if not volume.sb.has_rmapbt:
            self.scan_instead()

    def scan_instead(self) -> None:
        """Find owners by a scan of all inodes from now on, and do not read the rmap btree."""
        from whoseblock.fs.xfs.owners.crosscheck import ScanCheck
        from whoseblock.fs.xfs.owners.scanned import ScannedRecords as Records
        from whoseblock.fs.xfs.scan import InodeScan

        self.check = ScanCheck(self.volume, self, self.maps)
        scan = InodeScan(self.volume, self.inodes, self.maps)
        self.scanned = Records(self.volume, self, scan, self.is_at_rest)

    def tree(self, agno: int, shape: Shape) -> AgTree:
        """Return a tree of an allocation group, the same one each time."""
        key = agno, shape.kind
        if key not in self._trees:
            if len(self._trees) >= _MOST_TREES:
                self._trees.clear()
            limit = self.volume.ag_blocks(agno)
            if shape is CNTBT:
                limit = (1 << 63) - 1
            elif shape is REFCOUNTBT:
                # Blocks reserved for copy-on-write sort behind all others, by a flag in the key.
                limit = 1 << 32
            elif shape is INOBT:
                # The last chunk may be sparse, and reach past the end of the group.
                limit = (limit << self.volume.sb.inopblog) + XFS_INODES_PER_CHUNK
            self._trees[key] = AgTree(self.volume, agno, shape, limit)
        return self._trees[key]

    def find(self, start: int, length: int, notes: list[str]) -> list[Piece]:
        """Return the pieces of a range of the device, in the order of the contract.

        ``notes`` receives what may be missing or uncertain.
        """
        volume = self.volume
        end = start + length
        within = min(end, volume.size)
        pieces: list[Piece] = []
        at = start
        while at < within:
            agno = at // volume.ag_bytes
            upto = min((agno + 1) * volume.ag_bytes, within)
            if (lost := self.count_lost_groups(agno, within, notes)) and (
                self.scanned is None or lost >= MOST_LOST_GROUPS
            ):
                upto = min((agno + lost) * volume.ag_bytes, within)
                pieces.append(Piece(at, upto - at, UNKNOWN))
            else:
                pieces += self._find_in_group(agno, at, upto, notes)
            at = upto
        if at < end:
            pieces += self._past_end(at, end, notes)
        return pieces

    def count_lost_groups(self, first: int, within: int, notes: list[str]) -> int:
        """Count the groups from ``first`` on, up to a byte, whose AGF does not verify.

        After so many as no filesystem loses, the rest is taken for lost without a look: a
        superblock may claim any number of groups.
        """
        end = -(-within // self.volume.ag_bytes)
        for agno in range(first, end):
            if agno - first == MOST_LOST_GROUPS:
                notes.append(
                    f"{MOST_LOST_GROUPS} allocation groups from AG {first} on have no header that"
                    " verifies; the rest was not looked at"
                )
                return end - first
            note = self._header_fault(agno)
            if not note:
                return agno - first
            notes.append(note)
        return end - first

    def _header_fault(self, agno: int) -> str:
        """Return what is wrong with the AGF of a group; "" if nothing is."""
        if note := self._lost.get(agno):
            return note
        try:
            self.volume.agf(agno)
        except CorruptError as error:
            if len(self._lost) >= _MOST_TREES:
                self._lost.clear()
            self._lost[agno] = str(error)
            return self._lost[agno]
        except BlockError as error:
            # A medium may heal.
            return str(error)
        return ""

    def _past_end(self, start: int, end: int, notes: list[str]) -> Iterator[Piece]:
        if self.volume.sb.rtstart:
            notes.append("past the data section lies the realtime section, which is not read")
            yield Piece(start, end - start, UNKNOWN)
            return
        disputed = self.volume.disputed
        if disputed is not None and start < disputed.end:
            notes.append(disputed.note)
            upto = min(end, disputed.end)
            yield Piece(start, upto - start, UNKNOWN)
            start = upto
        if start < end:
            yield Piece(start, end - start, OUTSIDE, PAST_END)

    def _find_in_group(self, agno: int, start: int, end: int, notes: list[str]) -> list[Piece]:
        base, size = agno * self.volume.ag_bytes, self.volume.block_size
        low, high = (start - base) // size, -(-(end - base) // size)
        part = Part(agno, low, high)
        faults: list[Fault] = []
        doubts: list[str] = []
        lost: list[str] = []
        records = self._records(part, faults, doubts, lost)
        pieces, claims, gaps = self._recorded(part, records, start, end, notes)
        # What is damaged somewhere in the group matters only where it touches the question.
        faults = [fault for fault in faults if fault.low < high and low < fault.high]
        uncounted: list[Fault] = []
        counts: list[tuple[int, int, int]] = []
        counted = bool(faults) or self.check.needs_counts(claims)
        if counted:
            counts = self.check.counts(part, notes, lost=uncounted)
        unowned = list(self._gaps(part, gaps, faults, counts, notes))
        for first, after, kind in unowned:
            clipped = max(start, base + first * size)
            pieces.append(Piece(clipped, min(end, base + after * size) - clipped, kind))
        if not counted and any(kind == UNKNOWN for _, _, kind in unowned):
            counts = self.check.counts(part, notes, lost=uncounted)
        notes += [fault.note for fault in faults]
        if any(piece.kind != FREE and piece.what not in (STATIC, LOG) for piece in pieces):
            notes += doubts
        if any(piece.kind == UNKNOWN for piece in pieces):
            notes += lost
        self.settleable.update(fault.note for fault in faults)
        self.check.check(part, claims, counts, [*faults, *uncounted], notes)
        self.settleable.update(self.check.miscounts)
        self.check.miscounts.clear()
        if len(pieces) > 1:
            pieces.sort(key=lambda piece: (piece.start, piece.inode, piece.file_offset))
            mark_shared(pieces)
        if faults:
            self._mark_counted(part, pieces, counts)
        return pieces

    def _records(
        self, part: Part, faults: list[Fault], doubts: list[str], lost: list[str]
    ) -> list[tuple[int, ...]]:
        """Return the records of a part, from the rmap btree or from a scan.

        ``doubts`` receives why files may have blocks that no record has, and ``lost`` why the
        metadata of the group may.
        """
        if self.scanned is not None:
            found = self.scanned.find(part)
            doubts += found.notes
            lost += found.lost
            if found.notes and not self.volume.has_crc:
                # Without checksums, free space needs the word of all inodes.
                faults.append(Fault(part.low, part.high, found.notes[0]))
            return list(found.records)
        # Leaves that are not as promised may hold what others hold, and not be in order.
        tree = self.tree(part.agno, RMAPBT)
        return sorted(set(tree.find(part.low, part.high, faults)))

    def _recorded(
        self,
        part: Part,
        records: Iterable[tuple[int, ...]],
        start: int,
        end: int,
        notes: list[str],
    ) -> tuple[list[Piece], list[Claim], list[tuple[int, int]]]:
        """Return what records say of a part: pieces, claims, and the gaps between.

        The pieces are clipped to the bytes from ``start`` up to ``end``.
        """
        agno, low, high = part
        base, size = agno * self.volume.ag_bytes, self.volume.block_size
        pieces: list[Piece] = []
        claims: list[Claim] = []
        gaps: list[tuple[int, int]] = []
        covered = low
        for record in records:
            first, count, owner, place = record
            if first > covered:
                gaps.append((covered, first))
            covered = max(covered, first + count)
            clipped = max(start, base + first * size)
            length = min(end, base + (first + count) * size) - clipped
            piece = piece_of(record, clipped, length, clipped - base - first * size, size)
            if piece.what == FILE_DATA:
                piece = self._with_what(piece, notes)
            elif piece.kind == UNKNOWN:
                notes.append(f"no owner can be what the rmap btree says: {owner:#x} at {place:#x}")
            pieces.append(piece)
            if piece.kind != UNKNOWN:
                skipped = max(low - first, 0)
                claims.append(
                    Claim(first + skipped, min(first + count, high), owner, place + skipped)
                )
        if covered < high:
            gaps.append((covered, high))
        return pieces, claims, gaps

    def _with_what(self, piece: Piece, notes: list[str]) -> Piece:
        """Set from the inode whether the blocks are of a directory, a symlink or plain data."""
        if self.scanned is not None:
            return piece._replace(what=self.scanned.what_of(piece.inode))
        try:
            return piece._replace(what=data_what(self.inodes.get(piece.inode).core.mode))
        except BlockError as error:
            notes.append(str(error))
            return piece._replace(what=UNKNOWN_DATA)

    def _gaps(
        self,
        part: Part,
        gaps: list[tuple[int, int]],
        faults: list[Fault],
        counts: list[tuple[int, int, int]],
        notes: list[str],
    ) -> Iterator[tuple[int, int, int]]:
        """Return the blocks that no record of the rmap btree covers, as free or unknown.

        They are free if both free-space btrees list them, nothing of the rmap btree is lost that
        might have covered them, and no owners are counted.
        """
        for low, high in gaps:
            if any(fault.low < high and low < fault.high for fault in faults):
                yield low, high, UNKNOWN
            else:
                yield from self._gap(part.agno, low, high, counts, notes)

    def _gap(
        self,
        agno: int,
        low: int,
        high: int,
        counts: list[tuple[int, int, int]],
        notes: list[str],
    ) -> Iterator[tuple[int, int, int]]:
        lost: list[Fault] = []
        free = list(self.tree(agno, BNOBT).find(low, high, lost))
        lost = [fault for fault in lost if fault.low < high and low < fault.high]
        notes += [fault.note for fault in lost]
        doubt = self.free_doubt() if free else ""
        notes += [doubt] if doubt else []
        at = low
        for whole, count in sorted(free):
            first, after = max(whole, at), min(whole + count, high)
            if first > at:
                yield at, first, UNKNOWN
                self._note_gap(agno, at, first, notes)
            if after > first:
                used = (
                    any(fault.low < after and first < fault.high for fault in lost)
                    or most_counted(counts, first, after)
                    or doubt
                    or not self.check.is_free(agno, whole, count, notes)
                )
                yield first, after, UNKNOWN if used else FREE
                at = after
        if at < high:
            yield at, high, UNKNOWN
            self._note_gap(agno, at, high, notes)

    def _note_gap(self, agno: int, low: int, high: int, notes: list[str]) -> None:
        if self.scanned is not None and not self.scanned.remark:
            # Nothing was looked for, which is said once.
            return
        start = self.volume.ag_to_byte(agno, low)
        length = (high - low) * self.volume.block_size
        note = f"neither the rmap nor the free-space btree accounts for {start}+{length}"
        if self.scanned is not None:
            note = f"neither an inode nor the free-space btree accounts for {start}+{length}"
        self.settleable.add(note)
        notes.append(note)

    def _mark_counted(
        self, part: Part, pieces: list[Piece], counts: list[tuple[int, int, int]]
    ) -> None:
        """Mark as shared what is counted twice, where records of other sharers are lost."""
        base, size = part.agno * self.volume.ag_bytes, self.volume.block_size
        for index, piece in enumerate(pieces):
            if is_shareable(piece) and not piece.shared:
                low, high = (piece.start - base) // size, -(-(piece.end - base) // size)
                shared = most_counted(counts, low, high) > 1
                pieces[index] = piece._replace(shared=shared)
