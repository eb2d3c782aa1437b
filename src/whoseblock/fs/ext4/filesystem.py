"""An ext2, ext3 or ext4 filesystem that is not mounted, behind the `Volume` protocol."""

from collections import Counter
from collections.abc import Iterable, Iterator
from functools import cached_property
from itertools import islice
from typing import Final

from msgspec import UNSET

from whoseblock.closing import Closing
from whoseblock.errors import BlockError
from whoseblock.fs.arguments import check_open, checked_ranges
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
from whoseblock.fs.pieces import FILE, Piece
from whoseblock.fs.stream import ROW_BUDGET, LeadingRows
from whoseblock.media.base import Media
from whoseblock.media.mounts import mount_note

__all__ = ["Ext4Filesystem"]

#: So many questions share one scan.
_BATCH: Final = 1 << 16


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
        remarks = (one.remark,) if one.remark else ()
        notes = distinct([*missing, *remarks])
        only = remarks_in(notes, missing, remarks) if remarks else UNSET
        yield Answer(start, length, not missing, notes, rows, remarks=only)

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
