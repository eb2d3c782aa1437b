"""The owners of blocks of a mounted XFS without a reverse map.

GETFSMAP reports free space, and all else as in use.  Headers and the log are at fixed places.  One
pass over all inodes finds the files that have the other blocks of a batch of questions, and each is
asked again for every answer.  What no file has is metadata of a group, or unknown.
"""

import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from itertools import pairwise
from typing import Final, NamedTuple

from whoseblock.errors import BlockError
from whoseblock.fs.mounted.kernel import fsmap
from whoseblock.fs.pieces import EXTENT_MAP, FILE, FREE, UNKNOWN, Piece
from whoseblock.fs.scan.engine import Extent, Found, UnreadInodes, Wanted, run_scan
from whoseblock.fs.xfs.mounted.disk import DiskState
from whoseblock.fs.xfs.mounted.format import Geometry
from whoseblock.fs.xfs.mounted.groups import LiveGroups, Metadata, TransactionCounter
from whoseblock.fs.xfs.mounted.scan import SHARED, LiveScan, UnaskedInodes, clip_extents
from whoseblock.fs.xfs.owners.scanned import NOT_SCANNED, scan_remark, unread_note

__all__ = ["LiveOwners", "MountedDevice", "contradict", "single_sharers"]

#: How often all inodes are read again for a batch of questions, while blocks change their owners.
_MOST_SCANS: Final = 6
#: How often the owners of one question are compared with each other.
_ATTEMPTS: Final = 4
#: Seconds after which the disk is read again even if nothing has changed.
_DISK_AGE: Final = 5.0


class MountedDevice(NamedTuple):
    """A mounted filesystem: a descriptor on it, what all its handles have in common, its geometry.

    ``device`` is the number of its data device in GETFSMAP, and ``number`` its dev_t.
    """

    fd: int
    fsid: bytes
    geometry: Geometry
    device: int
    number: int


class _State(NamedTuple):
    """The owners of the blocks of one question at one moment.

    ``single`` are blocks that the kernel calls shared, with one owner that is known; ``shares`` is
    whether there are any that it calls so.
    """

    extents: list[Extent]
    metadata: list[Metadata]
    free: list[tuple[int, int]]
    rest: Wanted
    single: Wanted
    shares: bool
    notes: list[str]
    unread: list[UnreadInodes]

    @property
    def lost(self) -> Wanted:
        """The blocks whose owners are to be looked for again."""
        doubtful = ((one.start, one.end) for one in self.metadata if one.doubt)
        return Wanted([*_runs(self.rest), *_runs(self.single), *doubtful])


class LiveOwners:
    """Answers a batch of questions, which share scans; ``progress`` takes the inodes read."""

    def __init__(
        self, mounted: MountedDevice, progress: Callable[[int], None], *, may_scan: bool
    ) -> None:
        self._mounted = mounted
        self._size = mounted.geometry.blocksize
        self._progress = progress
        self._may_scan = may_scan
        self._left = _MOST_SCANS
        fd, fsid, geometry, device, number = mounted
        self.scan = LiveScan(fd, fsid, geometry, number)
        self._transactions = TransactionCounter(number)
        self._groups = LiveGroups(fd, geometry, device, self._transactions)
        self._found: Found | None = None
        #: Whether the last two scans found different sharers of blocks.
        self._is_unsure = False
        #: The number of transactions before the last scan, and before the disk was read.
        self._scanned_at: int | None = None
        self._read_at: int | None = None
        self._read_when = 0.0
        self._disk_fault = ""

    @property
    def remark(self) -> str:
        """The remark on how owners were found, "" if no scan was needed yet."""
        return "" if self._found is None else scan_remark(self._found.inodes_read)

    def prepare(self, pieces: Iterable[Piece]) -> None:
        """Scan once for all pieces of which the kernel knows no owner."""
        if not self._may_scan:
            return
        wanted = Wanted(run for piece in pieces for run in self._split(piece)[1])
        if wanted:
            self._look_for(wanted)

    def resolve(self, pieces: Sequence[Piece], notes: list[str]) -> list[Piece]:
        """Return the pieces of one question with their owners, as they are now.

        ``pieces`` are the kernel's, in order; what it does not know is `UNKNOWN`.  ``notes``
        receives why owners may be missing.
        """
        found: list[Piece] = []
        runs: list[tuple[int, int]] = []
        for piece in pieces:
            if piece.kind != UNKNOWN:
                found.append(piece)
                continue
            fixed, others = self._split(piece)
            found += (self._piece(one.start, one.end, one) for one in fixed)
            runs += others
        if runs:
            found += self._resolve(Wanted(runs), notes)
        start, end = pieces[0].start, pieces[-1].end
        return [_clip(one, start, end) for one in found]

    def close(self) -> None:
        """Close the device; a second time has no effect."""
        self.scan.forget()

    # ------------------------------------------------------------------ one piece

    def _split(self, piece: Piece) -> tuple[list[Metadata], list[tuple[int, int]]]:
        """Split a piece of which the kernel knows no owner: fixed metadata, and other blocks."""
        if piece.kind != UNKNOWN:
            return [], []
        low, high = piece.start // self._size, -(-piece.end // self._size)
        fixed = list(self._groups.fixed(self._disk(), low, high))
        return fixed, list(Wanted((one.start, one.end) for one in fixed).gaps(low, high))

    def _resolve(self, wanted: Wanted, notes: list[str]) -> Iterator[Piece]:
        """Yield the pieces of blocks, whole."""
        if not self._may_scan:
            notes.append(NOT_SCANNED)
            yield from (self._piece(*run) for run in _runs(wanted))
            return
        try:
            state = self._settled(wanted)
        except OSError as error:
            notes.append(f"the kernel cannot say who owns all of it: {error.strerror}")
            yield from (self._piece(*run) for run in _runs(wanted))
            return
        yield from map(self._of_extent, state.extents)
        for place in state.metadata:
            yield self._piece(place.start, place.end, place)
            if place.doubt:
                notes.append(place.doubt)
        for run in state.free:
            yield self._piece(*run)._replace(kind=FREE)
        for run in _runs(state.rest):
            yield self._piece(*run)
        notes += self._notes(state)

    def _settled(self, wanted: Wanted) -> _State:
        """Return the owners of blocks, after further scans while they change.  Raises OSError."""
        state = self._state(wanted)
        before = Wanted(())
        while (lost := state.lost) and self._left and self._has_changed():
            if (lost.lows, lost.highs) == (before.lows, before.highs):
                # What a second scan does not find either has no owner.
                break
            self._look_for(before := lost)
            state = self._state(wanted)
        return state

    def _notes(self, state: _State) -> Iterator[str]:
        """Yield why owners of blocks may be missing or others by now."""
        size = self._size
        for low, high in _runs(state.single):
            yield _SINGLE.format(low * size, (high - low) * size)
        if self._is_unsure and state.shares:
            yield _CHANGING
        known = self._found or Found()
        unread = [*state.unread, *known.unread]
        hides = known.unread_count > sum(one.last - one.first + 1 for one in known.unread)
        hides |= any(isinstance(one, UnaskedInodes) for one in unread)
        if state.rest or state.single or (state.shares and hides):
            for low, high in _runs(state.rest):
                yield _UNACCOUNTED.format(low * size, (high - low) * size)
            yield from state.notes
            total = Found()
            for one in unread:
                total.add_unread(one)
            total.unread_count = max(total.unread_count, known.unread_count)
            if total.unread_count:
                yield unread_note(total)
        if (state.rest or state.single) and self._has_changed():
            yield _CHANGING

    def _piece(self, low: int, high: int, place: Metadata | None = None) -> Piece:
        """Return blocks ``low`` to before ``high`` as a piece, unknown without a place."""
        start, length = low * self._size, (high - low) * self._size
        if place is None:
            return Piece(start, length, UNKNOWN)
        return Piece(start, length, place.kind, place.what)

    def _of_extent(self, extent: Extent) -> Piece:
        start, length = extent.start * self._size, extent.length * self._size
        what, fork, inode = extent.what, extent.fork, extent.inode
        if what == EXTENT_MAP:
            return Piece(start, length, FILE, what, fork, inode)
        offset = extent.offset * self._size
        return Piece(start, length, FILE, what, fork, inode, offset, extent.unwritten)

    # ------------------------------------------------------------------ what is known now

    def _state(self, wanted: Wanted) -> _State:
        """Return what is known of blocks now."""
        since = self._transactions.read()
        disk = self._fresh_disk()
        found = self._found or Found()
        hits = {hit for low, high in _runs(wanted) for hit in found.within(low, high)}
        confirmed = self.scan.confirm(hits, wanted)
        for _ in range(_ATTEMPTS):
            # One file was asked before a block left it, and another after it had got the block.
            if not contradict(confirmed.extents):
                break
            confirmed = self.scan.confirm(hits, wanted)
        extents = _joined(confirmed.extents)
        lost = _left_over(wanted, ((one.start, one.end) for one in extents))
        notes = [self._disk_fault] if self._disk_fault else []
        metadata: list[Metadata] = []
        if disk is not None:
            for run in _runs(lost):
                metadata += self._groups.find(disk, run, since, notes)
        rest = _left_over(lost, ((one.start, one.end) for one in metadata))
        free = [run for low, high in _runs(rest) for run in self._free(low, high)]
        rest = _left_over(rest, free)
        return _State(
            extents,
            _adjoined(metadata),
            free,
            rest,
            single_sharers(confirmed.extents),
            any(one.flags & SHARED for one in confirmed.extents),
            notes,
            confirmed.unread,
        )

    def _free(self, low: int, high: int) -> Iterator[tuple[int, int]]:
        """Yield the blocks that are free by now."""
        size = self._size
        fd, device = self._mounted.fd, self._mounted.device
        for one in fsmap(fd, device, low * size, high * size):
            if one.is_free:
                start, end = one.physical // size, (one.physical + one.length) // size
                yield max(low, start), min(high, end)

    def _has_changed(self) -> bool:
        """Return whether anything may have changed since the last scan began."""
        now = self._transactions.read()
        return now is None or now != self._scanned_at

    # ------------------------------------------------------------------ the scan and the disk

    def _look_for(self, wanted: Wanted) -> None:
        """Scan for the owners of blocks, and add them to those that are known."""
        self._fresh_disk()
        again = True
        before: set[Extent] = set()
        while again and self._left:
            self._left -= 1
            self._scanned_at = self._transactions.read()
            groups = self._nearest(wanted)
            found = run_scan(
                self.scan.batches(groups),
                wanted,
                lambda some: _is_all(wanted, some),
                self._progress,
            )
            shared = {one for one in found.extents if one.flags & SHARED}
            # A file may get a shared block after it was asked, from one that is asked later.
            again = bool(shared) and shared != before and self._has_changed()
            before = shared
            self._is_unsure = again
            found.extents = list(clip_extents(found.extents, wanted))
            if self._found is not None:
                found.extents += self._found.extents
                found.inodes_read = max(found.inodes_read, self._found.inodes_read)
                for one in self._found.unread if not found.is_whole else ():
                    found.add_unread(one)
            found.finish()
            self._found = found

    def _nearest(self, wanted: Wanted) -> list[int]:
        """Return all groups, those of the blocks first: the kernel puts both near each other."""
        geometry = self._mounted.geometry
        first: dict[int, None] = {}
        for low, high in _runs(wanted):
            groups = range(low // geometry.agblocks, (high - 1) // geometry.agblocks + 1)
            first.update(dict.fromkeys(groups))
        return list(dict.fromkeys([*first, *range(geometry.agcount)]))

    def _disk(self) -> DiskState | None:
        """Return the metadata on the disk, None if it cannot be read."""
        try:
            found = self.scan.disk()
        except BlockError as error:
            self._disk_fault = f"the metadata on the disk was not read: {error}"
            return None
        self._disk_fault = ""
        return found

    def _fresh_disk(self) -> DiskState | None:
        """Return the metadata on the disk, not older than the last change."""
        now = self._transactions.read()
        when = time.monotonic()
        if now is None or now != self._read_at or when - self._read_when > _DISK_AGE:
            self.scan.forget()
            self._read_at, self._read_when = now, when
        return self._disk()


_SINGLE: Final = "the kernel calls {}+{} shared, and one owner was found: others may own it too"
_UNACCOUNTED: Final = "neither a file nor the metadata on the disk accounts for {}+{}"
_CHANGING: Final = "blocks changed their owners while these were looked for; ask again"


def _clip(piece: Piece, start: int, end: int) -> Piece:
    """Clip a piece to the bytes from ``start`` to before ``end``."""
    low, high = max(piece.start, start), min(piece.end, end)
    offset = piece.file_offset if piece.file_offset < 0 else piece.file_offset + low - piece.start
    return piece._replace(start=low, length=high - low, file_offset=offset)


def _runs(wanted: Wanted) -> Iterator[tuple[int, int]]:
    return zip(wanted.lows, wanted.highs, strict=True)


def _left_over(wanted: Wanted, taken: Iterable[tuple[int, int]]) -> Wanted:
    """Return what is wanted and not taken."""
    known = Wanted(taken)
    return Wanted(gap for low, high in _runs(wanted) for gap in known.gaps(low, high))


def _is_all(wanted: Wanted, extents: Iterable[Extent]) -> bool:
    """Return whether no inode but those found can have the blocks."""
    return wanted.is_covered(one for one in extents if not one.flags & SHARED)


def contradict(extents: Sequence[Extent]) -> bool:
    """Return whether two extents, sorted by start, have a block that is not shared."""
    reach = 0
    alone = False
    for one in extents:
        is_alone = not one.flags & SHARED
        if one.start < reach and (alone or is_alone):
            return True
        if one.end >= reach:
            reach, alone = one.end, is_alone
    return False


def single_sharers(extents: Sequence[Extent]) -> Wanted:
    """Return the blocks that are shared, and have one extent only."""
    shared = [one for one in extents if one.flags & SHARED]
    edges = sorted({edge for one in shared for edge in (one.start, one.end)})
    counts = dict.fromkeys(edges, 0)
    for one in shared:
        counts[one.start] += 1
        counts[one.end] -= 1
    found: list[tuple[int, int]] = []
    now = 0
    for low, high in pairwise(edges):
        now += counts[low]
        if now == 1:
            found.append((low, high))
    return Wanted(found)


def _joined(extents: Iterable[Extent]) -> list[Extent]:
    """Join extents, sorted by start, that follow one another in a fork and on the device."""
    found: list[Extent] = []
    ends: dict[tuple[int, int, int, int, int], int] = {}
    for extent in extents:
        one = extent._replace(flags=extent.flags & ~SHARED)
        index = ends.pop((one.start, one.inode, one.fork, one.offset, one.flags), None)
        if index is None:
            index = len(found)
            found.append(one)
        else:
            found[index] = found[index]._replace(length=one.end - found[index].start)
        follows = one.offset if one.offset < 0 else one.offset + one.length
        ends[one.end, one.inode, one.fork, follows, one.flags] = index
    return found


def _adjoined(places: Iterable[Metadata]) -> list[Metadata]:
    """Join metadata of one kind that follow one another."""
    found: list[Metadata] = []
    for one in sorted(places):
        if found and found[-1][1:] == (one.start, *one[2:]):
            found[-1] = found[-1]._replace(end=one.end)
        else:
            found.append(one)
    return found
