"""A mounted filesystem of any kind, for which the kernel answers through GETFSMAP."""

import errno
import os
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack
from functools import cached_property
from itertools import islice
from typing import TYPE_CHECKING, Final, NamedTuple, Self

from msgspec import UNSET

from whoseblock.errors import BlockError, UnsupportedError
from whoseblock.fs.arguments import check_columns, checked_ranges
from whoseblock.fs.arrays import OwnerArrays, as_columns, row_dtype
from whoseblock.fs.base import (
    Answer,
    FileId,
    Owner,
    Paths,
    distinct,
    remarks_in,
)
from whoseblock.fs.driver import Allocation, FileFacts, ReverseMap
from whoseblock.fs.mounted import kernel
from whoseblock.fs.mounted.fiemap import maps_run
from whoseblock.fs.mounted.format import InodeFacts
from whoseblock.fs.mounted.identity import find_identity
from whoseblock.fs.mounted.paths import InodeAccess, PathFinder, gone_note, unreadable_note
from whoseblock.fs.mounted.records import piece_of
from whoseblock.fs.mounted.recovery import unrecovered_by, unrecovered_note
from whoseblock.fs.mounted.view import OpenRoot, View, open_view
from whoseblock.fs.mounted.viewed import ViewedVolume
from whoseblock.fs.pieces import (
    FILE,
    FILE_DATA,
    METADATA,
    OUTSIDE,
    PAST_END,
    UNKNOWN,
    UNKNOWN_DATA,
    Piece,
    data_what,
    mark_shared,
    row_of,
)
from whoseblock.fs.stream import ROW_BUDGET, LeadingRows
from whoseblock.media.mounts import Mount
from whoseblock.ranges import ByteRange

if TYPE_CHECKING:
    from numpy.typing import ArrayLike

__all__ = ["FsmapVolume", "no_answers"]

#: This many questions are answered together, and their paths found in one search.
_BATCH: Final = 1 << 12
#: How often the owners of a range are read again while they change.
_ATTEMPTS: Final = 4


#: An inode and its generation, None if that was not the same all the time.
_Owner = tuple[int, int | None]


class _Found(NamedTuple):
    """Pieces of one question with their notes; ``more`` if other pieces of it follow.

    ``generations`` are those of the inodes that have the pieces: the number of an inode may be
    another file's when the next question is answered.
    """

    start: int
    length: int
    pieces: list[Piece]
    generations: dict[int, int | None]
    notes: list[str]
    remarks: tuple[str, ...]
    more: bool


class FsmapVolume(ViewedVolume):
    """The filesystem that a `View` shows, which is closed with it.

    ``device_size`` is the size of its device in bytes.  ``unnumbered`` is as in
    `whoseblock.fs.mounted.kernel.data_device`.  Raises `PrivilegeError`, `UnsupportedError` if the
    kernel does not report the owners of blocks of this kind of filesystem, and `BlockError` if it
    has shut the filesystem down.
    """

    #: The most rows of one piece of an answer, and about the most that are held as objects.
    row_budget = ROW_BUDGET
    #: Opens the root directory; None where only the kernel's own answers are available.
    open_root: OpenRoot | None = None
    #: How inodes are reached by their numbers, None where they are not.
    inodes: InodeAccess | None = None
    #: The reason why its own driver does not answer, if it has one.
    nameless = ""
    #: The size of the filesystem if the kernel reports it.
    known_size: int | None = None

    def __init__(self, view: View, device_size: int, unnumbered: int | None = None) -> None:
        super().__init__(view)
        self.name = view.kind
        self.device_size = device_size
        #: The questions to the kernel, and how often each was asked.
        self.asked: Counter[str] = Counter()
        try:
            self._device = kernel.data_device(view.fd, unnumbered)
        except OSError as error:
            raise no_answers(view, error) from error
        self._devices = frozenset({view.device, os.fstat(view.fd).st_dev})
        self.size = device_size
        self.block_size = os.fstatvfs(view.fd).f_bsize
        self._facts: dict[int, InodeFacts | None] = {}
        #: The notes about inodes that the kernel could not read.
        self._unreadable: dict[int, str] = {}

    @classmethod
    def open(cls, mounts: Sequence[Mount], process: int | None, device_size: int) -> Self:
        """Open the filesystem of some mounts; see `Driver.open_mounted`."""
        try:
            view = open_view(mounts, process, cls.open_root)
        except OSError as error:
            raise BlockError(f"the kernel does not answer: {error.strerror}") from error
        with ExitStack() as undo:
            undo.callback(view.close)
            volume = cls(view, device_size)
            undo.pop_all()
        return volume

    @property
    def devices(self) -> frozenset[int]:
        """Every ``st_dev`` under which its files appear."""
        return self._devices

    @cached_property
    def identity(self) -> str:
        """The identity of the filesystem, whatever its device is called."""
        return find_identity(self.view.fd, self.view.kind, self.view.device)

    @property
    def reverse_map(self) -> ReverseMap:
        """The way owners are found: not at all, unless a driver overrides this."""
        return "none"

    @property
    def reads(self) -> Counter[str]:
        """The number of questions to the kernel, by kind."""
        return self.asked

    @cached_property
    def unreplayed_log(self) -> str:
        """The reason why the kernel does not know changes that are in the log, "" if it does."""
        option = unrecovered_by(self.view.options)
        return unrecovered_note(option) if option else ""

    @property
    def doubts(self) -> tuple[str, ...]:
        """The reasons why every answer is incomplete."""
        return (self.unreplayed_log,) if self.unreplayed_log else ()

    # ------------------------------------------------------------------ owners

    def owners_stream(
        self, ranges: Iterable[tuple[int, int]], *, paths: bool = True
    ) -> Iterator[LeadingRows | Answer]:
        """Answer like `owners_many`, an answer with more than ``row_budget`` rows in pieces."""
        self._check_open()
        wanted = checked_ranges(ranges, self.view.point, self.device_size)
        while batch := list(islice(wanted, _BATCH)):
            self._check_open()
            self._forget_inodes()
            self._prepare(batch)
            yield from self._answers(self._groups(batch), paths=paths)

    def _prepare(self, ranges: list[tuple[int, int]]) -> None:
        """Prepare what serves many questions together; a driver may override this."""

    def _remarks_on(self, _pieces: list[Piece]) -> tuple[str, ...]:
        """Return the remarks on the pieces of one question, besides `remarks`."""
        return ()

    def _answers(
        self, groups: Iterable[list[_Found]], *, paths: bool
    ) -> Iterator[LeadingRows | Answer]:
        known: dict[_Owner, Paths] = {}
        # Notes that belong to leading rows stand in the answer that ends them.
        carried: dict[str, None] = {}
        for group in groups:
            if paths:
                self._learn(group, known)
            for one in group:
                missing = [*carried, *one.notes]
                for at in range(0, max(len(one.pieces), 1), self.row_budget):
                    pieces = one.pieces[at : at + self.row_budget]
                    if one.more or at + self.row_budget < len(one.pieces):
                        rows = self._rows(pieces, one.generations, known, missing)
                        yield LeadingRows(one.start, one.length, rows)
                    else:
                        yield self._answer(one._replace(pieces=pieces, notes=missing), known)
                carried = dict.fromkeys(missing) if one.more else {}
            if len(self._facts) > self.row_budget:
                self._forget_inodes()

    def _groups(self, batch: list[tuple[int, int]]) -> Iterator[list[_Found]]:
        """Find the pieces of questions, and group them by the rows that may be held at once."""
        group: list[_Found] = []
        rows = 0
        for start, length in batch:
            for low, high in self._parts(start, start + length):
                pieces, notes = self._find(low, high - low)
                owners = self._generations(piece.inode for piece in pieces if piece.kind == FILE)
                remarks = self._remarks_on(pieces)
                more = high < start + length
                group.append(_Found(start, length, pieces, owners, notes, remarks, more))
                rows += len(pieces)
                if rows >= self.row_budget:
                    yield group
                    group, rows = [], 0
        yield group

    def _parts(self, start: int, end: int) -> Iterator[tuple[int, int]]:
        """Cut a range that may have many rows where no record of the kernel is."""
        most = self.row_budget * self.block_size
        while end - start > most:
            seam = self._seam(start, end)
            yield start, seam
            start = seam
        if start < end:
            yield start, end

    def _seam(self, start: int, end: int) -> int:
        """Find a byte after ``row_budget`` records that none crosses; ``end`` if there is none."""
        last = min(end, self.size)
        reach = start
        self.asked["fsmap"] += 1
        try:
            records = kernel.fsmap(self.view.fd, self._device, start, last) if start < last else ()
            for number, record in enumerate(records):
                place = record.physical
                if number >= self.row_budget and start < place and reach <= place < end:
                    return place
                reach = max(reach, place + record.length)
        except OSError:
            # The question itself reports it.
            return end
        return end

    def _generations(self, inodes: Iterable[int]) -> dict[int, int | None]:
        """Return the generation of each inode as it was read last, None if there was none."""
        facts = {inode: self._facts.get(inode) for inode in inodes}
        return {inode: None if one is None else one.generation for inode, one in facts.items()}

    def _learn(self, group: list[_Found], known: dict[_Owner, Paths]) -> None:
        """Add the paths of the owners of a group to ``known``, unless it has them."""
        owners = list(dict.fromkeys(owner for one in group for owner in one.generations.items()))
        new = [owner for owner in owners if owner[1] is None or owner not in known]
        if len(known) + len(new) > 2 * self.row_budget:
            known.clear()
            new = owners
        while new:
            # A number that was reused meanwhile is in one search for each of its generations.
            once = dict(new)
            found = self._paths_of(once)
            known.update({owner: found[owner[0]] for owner in once.items()})
            new = [owner for owner in new if owner not in once.items()]

    def owners_of(self, starts: "ArrayLike", lengths: "ArrayLike") -> OwnerArrays:
        """Answer many ranges as NumPy columns, without paths; see `OwnerArrays`.

        Raises `ArgumentError`, `OutOfDeviceError` and `ClosedError`.
        """
        import numpy as np

        self._check_open()
        columns = check_columns(starts, lengths, self.view.point, self.device_size)
        ranges = list(zip(*(column.tolist() for column in columns), strict=True))
        self._forget_inodes()
        self._prepare(ranges)
        # As columns, rows take a tenth of the memory that they take as objects.
        parts = [np.empty(0, row_dtype())]
        said: dict[int, tuple[str, ...]] = {}
        for number, (start, length) in enumerate(ranges):
            for low, high in self._parts(start, start + length):
                pieces, notes = self._find(low, high - low)
                parts.append(np.array([(number, *piece) for piece in pieces], row_dtype()))
                if notes:
                    said[number] = distinct([*said.get(number, ()), *notes])
                if len(self._facts) > self.row_budget:
                    self._forget_inodes()
        rows = np.concatenate(parts)
        complete = np.full(len(ranges), not self.doubts)
        complete[list(said)] = False
        return as_columns(rows, complete, said)

    def _find(self, start: int, length: int) -> tuple[list[Piece], list[str]]:
        """Return the pieces of a range in the order of the contract, and what may be missing.

        The number of an inode may be reused meanwhile.  An owner is certain if
        its generation was the same before the question and after it.
        """
        before: set[int] = set()
        for attempt in range(1, _ATTEMPTS + 1):
            notes: list[str] = []
            pieces = self._ask(start, length, notes)
            owners = {piece.inode for piece in pieces if piece.kind == FILE}
            changed = {inode for inode in owners & before if self._has_changed(inode)}
            if attempt > 1 and (not (owners - before or changed) or attempt == _ATTEMPTS):
                break
            if not owners:
                break
            before = owners
            for inode in owners:
                self._inode(inode)
        for inode in (owners - before) | changed:
            self._facts[inode] = None
        pieces = [self._with_what(piece, notes) for piece in pieces]
        mark_shared(pieces)
        if any(piece.kind == UNKNOWN for piece in pieces) and not (notes or self.doubts):
            notes.append(
                f"the kernel names no files on {self.name}: what is neither free nor metadata is"
                " unknown" + (f" ({self.nameless})" if self.nameless else "")
            )
        return pieces, notes

    def _has_changed(self, number: int) -> bool:
        """Read an inode again, keep its facts, and return whether it is another one than before."""
        old, new = self._facts[number], self.inode(number)
        self._facts[number] = new
        return old is None or new is None or old.generation != new.generation

    def _ask(self, start: int, length: int, notes: list[str]) -> list[Piece]:
        """Ask the kernel once; whether data is a directory's or a file's is not known yet."""
        end = start + length
        pieces: list[Piece] = []
        failed = False
        self.asked["fsmap"] += 1
        try:
            # It refuses questions that begin past the end.
            last = min(end, self.size)
            records = kernel.fsmap(self.view.fd, self._device, start, last) if start < last else ()
            for record in records:
                low = max(start, record.physical)
                high = min(end, record.physical + record.length)
                if low < high:
                    pieces.append(piece_of(record, low, high))
        except OSError as error:
            notes.append(
                f"the kernel cannot say whose all of {start}+{length} is: {error.strerror}"
            )
            failed = True
        pieces.sort(key=_order)
        pieces += list(self._gaps(pieces, start, end, notes, failed=failed))
        pieces.sort(key=_order)
        return pieces

    def _gaps(
        self, pieces: list[Piece], start: int, end: int, notes: list[str], *, failed: bool
    ) -> Iterator[Piece]:
        """Yield what no record covers: past the end of the filesystem, or unknown."""
        covered = start
        for piece in (*pieces, Piece(end, 0, UNKNOWN)):
            if covered < piece.start:
                yield from self._gap(covered, piece.start, notes, failed=failed)
            covered = max(covered, piece.end)

    def _gap(self, low: int, high: int, notes: list[str], *, failed: bool) -> Iterator[Piece]:
        past = low if self.known_size is None else max(low, self.known_size)
        if past < high and not failed and self._is_past_end(past):
            yield Piece(past, high - past, OUTSIDE, PAST_END)
            high = past
        if low < high:
            yield Piece(low, high - low, UNKNOWN)
            if not failed and (note := self._note_unaccounted(low, high - low)):
                notes.append(note)

    def _note_unaccounted(self, low: int, length: int) -> str:
        """Return the note about bytes of which the kernel has no record, "" for none."""
        return f"the kernel does not account for {low}+{length}"

    def _is_past_end(self, place: int) -> bool:
        if self.known_size is not None:
            return place >= self.known_size
        # Only where nothing at all follows does the filesystem end before its device.
        return not any(kernel.fsmap(self.view.fd, self._device, place, self.device_size))

    def _with_what(self, piece: Piece, notes: list[str]) -> Piece:
        """Look up in the inode whether blocks are those of a directory, a symlink or a file."""
        if piece.kind != FILE:
            return piece
        facts = self._inode(piece.inode)
        if piece.what != FILE_DATA:
            return piece
        if facts is None:
            notes.append(self._unreadable.get(piece.inode) or gone_note(piece.inode))
            return piece._replace(what=UNKNOWN_DATA)
        return piece._replace(what=data_what(facts.mode))

    def _inode(self, number: int) -> InodeFacts | None:
        if number not in self._facts:
            self._facts[number] = self.inode(number)
        return self._facts[number]

    def _answer(self, one: _Found, known: Mapping[_Owner, Paths]) -> Answer:
        missing = [*self.doubts, *one.notes]
        rows = self._rows(one.pieces, one.generations, known, missing)
        remarks = (*self.remarks, *one.remarks)
        said = distinct([*missing, *remarks])
        only = remarks_in(said, missing, remarks)
        return Answer(one.start, one.length, not missing, said, rows, remarks=only)

    def _rows(
        self,
        pieces: list[Piece],
        generations: Mapping[int, int | None],
        known: Mapping[_Owner, Paths],
        missing: list[str],
    ) -> tuple[Owner, ...]:
        """Return the rows of pieces; adds to ``missing`` why a path may be missing."""
        rows = []
        for piece in pieces:
            if piece.kind == METADATA:
                rows.append(self._metadata_row(piece))
                continue
            if piece.kind != FILE:
                rows.append(row_of(piece, None))
                continue
            generation = generations[piece.inode]
            paths = known.get((piece.inode, generation))
            if paths is not None and not paths.complete:
                missing += paths.notes
            known_generation = UNSET if generation is None else generation
            rows.append(row_of(piece, paths, generation=known_generation))
        return tuple(rows)

    def _metadata_row(self, piece: Piece) -> Owner:
        return row_of(piece, None)

    # ------------------------------------------------------------------ files

    def inode(self, number: int) -> InodeFacts | None:
        """Return type, links, flags, size and generation of an inode; None if there is none.

        None also if the kernel cannot read it; it is not read again for the same question.
        """
        if self.inodes is None or number in self._unreadable:
            return None
        self.asked["inode"] += 1
        try:
            return self.inodes.facts(number)
        except OSError as error:
            self._unreadable[number] = unreadable_note(number, error)
            return None

    def _forget_inodes(self) -> None:
        self._facts.clear()
        self._unreadable.clear()

    def files(self, files: Iterable[FileId]) -> dict[FileId, FileFacts]:
        """Return the facts of files; one that is gone or cannot be read is left out."""
        self._check_open()
        found = {}
        for file in files:
            if (facts := self.inode(file.inode)) is not None:
                found[file] = FileFacts(
                    facts.mode,
                    facts.size,
                    facts.links,
                    facts.generation,
                    immutable=facts.immutable,
                    append_only=facts.append_only,
                )
        return found

    def still_maps(self, fd: int, file_offset: int, run: ByteRange) -> bool:
        """Return whether an open file still has all of ``run`` as written data at an offset."""
        return maps_run(fd, file_offset, run)

    def allocation(self, ranges: Iterable[tuple[int, int]]) -> Iterator[Allocation]:
        """Yield which parts of the ranges the kernel reports as free; raises OSError."""
        certain = not self.unreplayed_log
        for start, length in checked_ranges(ranges, self.view.point, self.device_size):
            at, end = start, start + length
            last = min(end, self.size)
            records = kernel.fsmap(self.view.fd, self._device, start, last) if start < last else ()
            for record in records:
                low = max(at, record.physical)
                high = min(end, record.physical + record.length)
                if low < high and record.is_free and certain:
                    if at < low:
                        yield Allocation(at, low - at, is_free=False)
                    yield Allocation(low, high - low, is_free=True)
                    at = high
            if at < end:
                yield Allocation(at, end - at, is_free=False)

    def free_extents(self, run: ByteRange) -> Iterator[ByteRange]:
        """Yield the free extents that have a byte of a range, as a whole; raises OSError."""
        last = min(run.end, self.size)
        for record in kernel.fsmap(self.view.fd, self._device, run.start, last):
            if record.is_free:
                yield ByteRange(record.physical, record.length)

    def paths_of(self, files: Iterable[FileId]) -> dict[FileId, Paths]:
        """Return every path of each file, in one search for all; raises `ClosedError`."""
        self._check_open()
        self._forget_inodes()
        for inode in (asked := {file.inode for file in files}):
            self._inode(inode)
        found = self._paths_of(self._generations(asked))
        return {FileId(0, inode): paths for inode, paths in found.items()}

    def _paths_of(self, inodes: Mapping[int, int | None]) -> dict[int, Paths]:
        """Return the paths of inodes that still have their generations; None is of no file."""
        if self.inodes is None or self.view.root is None:
            note = f"the kernel does not name the files of {self.name}"
            return {inode: Paths(complete=False, notes=(note,)) for inode in inodes}
        return PathFinder(self.view, self.view.root, self.inodes, self.progress).find(inodes)


def _order(piece: Piece) -> tuple[int, int, int, int]:
    return piece.start, piece.subvolume, piece.inode, piece.file_offset


def no_answers(view: View, error: OSError) -> Exception:
    """Return the error for a filesystem about which the kernel does not answer."""
    if error.errno in (errno.ENOTTY, errno.EOPNOTSUPP, errno.ENOSYS):
        return UnsupportedError(
            f"the kernel does not tell who owns what on {view.kind}, mounted at {view.point!r}",
            hint="unmount it, and ask the device",
        )
    return BlockError(f"the kernel does not answer for {view.point!r}: {error.strerror}")
