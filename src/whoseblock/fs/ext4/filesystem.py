"""An ext2, ext3 or ext4 filesystem that is not mounted, behind the `Volume` protocol."""

from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from functools import cached_property
from itertools import islice
from typing import TYPE_CHECKING, Final

from msgspec import UNSET

from whoseblock.closing import Closing
from whoseblock.errors import BlockError
from whoseblock.fs.arguments import check_columns, check_list, check_open, checked_ranges
from whoseblock.fs.arrays import OwnerArrays
from whoseblock.fs.base import (
    Answer,
    FileId,
    Owner,
    Paths,
    Progress,
    distinct,
    no_progress,
    remarks_in,
)
from whoseblock.fs.driver import Allocation, FileFacts, ReverseMap
from whoseblock.fs.driver import Volume as VolumeProtocol
from whoseblock.fs.ext4.format.inode import EXT4_APPEND_FL, EXT4_IMMUTABLE_FL
from whoseblock.fs.ext4.inodes import get_inode
from whoseblock.fs.ext4.names.paths import PathFinder
from whoseblock.fs.ext4.notes import filesystem_doubts, repair_advice
from whoseblock.fs.ext4.owners.finder import OwnerFinder, Owners
from whoseblock.fs.ext4.owners.rows import make_row
from whoseblock.fs.ext4.scan import InodeScan
from whoseblock.fs.ext4.static import FixedMetadata
from whoseblock.fs.ext4.superblocks import open_superblock
from whoseblock.fs.ext4.volume import Volume
from whoseblock.fs.pieces import FILE, FREE, Piece
from whoseblock.fs.stream import ROW_BUDGET, AnswerColumns, LeadingRows, join_rows
from whoseblock.media.base import Media
from whoseblock.media.mounts import mount_note
from whoseblock.ranges import RangeList

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import ArrayLike, NDArray

    from whoseblock.fs.ext4.owners.bulk import BulkOwners

__all__ = ["Ext4Filesystem"]

#: So many questions share one scan.
_BATCH: Final = 1 << 16
#: From so many questions on, none of them longer than this, the answers are columns.
_MANY: Final = 48
_SHORT: Final = 1 << 20
_COLUMNS: Final = 1 << 18


class Ext4Filesystem(Closing, VolumeProtocol):
    """An ext2, ext3 or ext4 filesystem on ``media``, which is closed with it.

    ``doubts`` are what the caller knows that makes every answer incomplete.  Raises
    `NotAFilesystemError` and `UnsupportedError`.
    """

    #: The most rows of one piece of an answer.
    row_budget = ROW_BUDGET

    def __init__(self, media: Media, doubts: Iterable[str] = ()) -> None:
        self._told = tuple(doubts)
        sb, self._superblock_notes = open_superblock(media)
        self.name = sb.name
        self.progress: Progress = no_progress
        self.volume = Volume(media, sb)
        self.size = self.volume.size
        self.device_size = media.size
        self.block_size = sb.block_size
        self._media = media
        self._closed = False

    @cached_property
    def _fixed(self) -> FixedMetadata:
        return FixedMetadata(self.volume)

    @cached_property
    def _scan(self) -> InodeScan:
        return InodeScan(self.volume, self._fixed)

    @cached_property
    def _finder(self) -> OwnerFinder:
        return OwnerFinder(self.volume, self._fixed, self._scan, self.volume.sb.journal_inum)

    @property
    def identity(self) -> str:
        """The type and UUID of the filesystem, which do not depend on the name of the device."""
        return f"{self.name} {self.volume.sb.uuid_text}"

    @property
    def reverse_map(self) -> ReverseMap:
        """The way owners are found: by a scan of the inodes."""
        return "scan"

    @property
    def reads(self) -> Counter[str]:
        """The number of metadata blocks read from the medium, by kind."""
        return self.volume.reads

    @cached_property
    def doubts(self) -> tuple[str, ...]:
        """The reasons why every answer is incomplete."""
        notes = [*self._told, *self._superblock_notes]
        notes += filesystem_doubts(self.volume, self._fixed)
        if mounted := mount_note(self._media.name):
            notes.append(mounted)
        return tuple(notes)

    def owners_stream(
        self, ranges: Iterable[tuple[int, int]], *, paths: bool = True
    ) -> Iterator[LeadingRows | Answer]:
        """Answer many ranges, those of a batch with one scan; see `AddressSpace.owners_stream`."""
        self._check_open()
        wanted = checked_ranges(ranges, self._media.name, self.device_size)
        while batch := list(islice(wanted, _BATCH)):
            self._check_open()
            found = self._finder.find(batch, self._report, may_scan=self.scans)
            answers: list[Owners] = list(found)
            known: dict[int, Paths] = {}
            if paths:
                inodes = dict.fromkeys(
                    piece.inode for one in answers for piece in one.pieces if piece.kind == FILE
                )
                known = self._find_paths(inodes)
            for (start, length), one in zip(batch, answers, strict=True):
                yield from self._answer(start, length, one, known)

    def columns_stream(self, ranges: RangeList) -> Iterator[LeadingRows | Answer | AnswerColumns]:
        """Answer like `owners_stream`, without paths, many short answers as columns."""
        if len(ranges) < _MANY or max(ranges.lengths) > _SHORT:
            yield from self.owners_stream(ranges, paths=False)
            return
        check_list(ranges, self._media.name, self.device_size)
        for at in range(0, len(ranges), _COLUMNS):
            yield self._columns(ranges[at : at + _COLUMNS])

    def _columns(self, ranges: RangeList) -> AnswerColumns:
        import numpy as np

        starts, lengths = (np.array(one, np.int64) for one in (ranges.starts, ranges.lengths))
        found = self._find_bulk(starts, lengths)
        common = _with_notes(0, 0, self.doubts, found.remark, ())
        # The rows of fixed metadata have more fields, and what took no scan has no remark.
        is_odd = ~found.is_scanned
        is_odd[list(found.odd)] = True

        def answer(number: int) -> Answer:
            start, length = ranges[number]
            one = found.odd.get(number)
            if one is None:
                free = Piece(start, length, FREE)
                one = Owners([free], [], "")
                if found.is_scanned[number]:
                    columns = (getattr(found.rows, name) for name in Piece._fields)
                    at = int(np.searchsorted(found.rows.question, number))
                    piece = Piece._make(column[at].item() for column in columns)
                    one = Owners([piece], [], found.remark)
            (made,) = join_rows(self._answer(start, length, one, {}))
            return made

        return AnswerColumns(ranges, found.rows, common, is_odd, answer)

    def owners_of(self, starts: "ArrayLike", lengths: "ArrayLike") -> OwnerArrays:
        """Answer many ranges as NumPy columns, without paths; see `OwnerArrays`.

        `doubts` make every question incomplete, and stand in no question's notes.  Raises
        `ArgumentError`, `OutOfDeviceError` and `ClosedError`.
        """
        self._check_open()
        low, length = check_columns(starts, lengths, self._media.name, self.device_size)
        rows = self._find_bulk(low, length).rows
        if self.doubts:
            rows.complete[:] = False
        return rows

    def _find_bulk(self, starts: "NDArray[np.int64]", lengths: "NDArray[np.int64]") -> "BulkOwners":
        from whoseblock.fs.ext4.owners.bulk import find_bulk

        self._check_open()
        return find_bulk(self._finder, starts, lengths, self._report, may_scan=self.scans)

    def _report(self, inodes: int) -> None:
        self.progress("inodes scanned", inodes, self.volume.sb.inodes_count)

    def _answer(
        self, start: int, length: int, one: Owners, known: dict[int, Paths]
    ) -> Iterator[LeadingRows | Answer]:
        missing = [*self.doubts, *one.notes]
        lacking = dict.fromkeys(piece.inode for piece in one.pieces if piece.kind == FILE)
        for inode in lacking:
            if inode in known and not known[inode].complete:
                missing += known[inode].notes
        budget = self.row_budget
        pieces = one.pieces
        at = 0
        while len(pieces) - at > budget:
            yield LeadingRows(start, length, self._rows(pieces[at : at + budget], known))
            at += budget
        rows = self._rows(pieces[at:], known)
        yield _with_notes(start, length, missing, one.remark, rows)

    def _rows(self, pieces: list[Piece], known: dict[int, Paths]) -> tuple[Owner, ...]:
        return tuple(
            make_row(
                self.volume,
                self._fixed,
                piece,
                known.get(piece.inode) if piece.kind == FILE else None,
            )
            for piece in pieces
        )

    def allocation(self, ranges: Iterable[tuple[int, int]]) -> Iterator[Allocation]:
        """Yield which parts of the ranges are free, by the bitmaps alone where they verify."""
        before, self.scans = self.scans, self.scans and not self.volume.sb.has_checksums
        try:
            yield from super().allocation(ranges)
        finally:
            self.scans = before

    def files(self, files: Iterable[FileId]) -> dict[FileId, FileFacts]:
        """Return the facts of files; one whose inode cannot be read is left out."""
        self._check_open()
        found = {}
        for file in files:
            try:
                inode = get_inode(self.volume, file.inode)
            except BlockError:
                continue
            found[file] = FileFacts(
                inode.mode,
                inode.size,
                inode.links,
                inode.generation,
                immutable=bool(inode.flags & EXT4_IMMUTABLE_FL),
                append_only=bool(inode.flags & EXT4_APPEND_FL),
            )
        return found

    def paths_of(self, files: Iterable[FileId]) -> dict[FileId, Paths]:
        """Return every path of each file, in one search for all; raises `ClosedError`."""
        self._check_open()
        found = self._find_paths(file.inode for file in files)
        return {FileId(0, inode): paths for inode, paths in found.items()}

    def _find_paths(self, inodes: Iterable[int]) -> dict[int, Paths]:
        finder = PathFinder(self.volume, self._scan, self.progress)
        return finder.find(inodes, may_scan=self.scans)

    def repair_advice(self, row: Owner) -> str:
        """Return what repairs a row that is metadata, of the filesystem or of a file."""
        return repair_advice(row)

    def _check_open(self) -> None:
        check_open(self._media.name, closed=self._closed)

    def close(self) -> None:
        """Close the medium; a second time has no effect."""
        if not self._closed:
            self._closed = True
            self._media.close()


def _with_notes(
    start: int, length: int, missing: Sequence[str], remark: str, rows: tuple[Owner, ...]
) -> Answer:
    """Make an answer, which is complete if nothing is missing."""
    remarks = (remark,) if remark else ()
    notes = distinct([*missing, *remarks])
    only = remarks_in(notes, missing, remarks) if remarks else UNSET
    return Answer(start, length, not missing, notes, rows, remarks=only)
