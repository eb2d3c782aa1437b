"""An XFS filesystem that is not mounted, behind the `Filesystem` protocol."""

from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from functools import cached_property
from itertools import islice
from typing import TYPE_CHECKING, Final

from msgspec import UNSET

from whoseblock.closing import Closing
from whoseblock.errors import BlockError
from whoseblock.fs.arguments import (
    check_columns,
    check_inodes,
    check_open,
    check_within,
    checked_ranges,
)
from whoseblock.fs.arrays import OwnerArrays
from whoseblock.fs.base import Answer, Paths, Progress, distinct, no_progress, remarks_in
from whoseblock.fs.pieces import FILE, Piece
from whoseblock.fs.xfs.attributes import Attributes
from whoseblock.fs.xfs.format.superblock import XFS_SB_VERSION_5
from whoseblock.fs.xfs.inodes import InodeTable
from whoseblock.fs.xfs.log import log_note
from whoseblock.fs.xfs.owners import OwnerFinder
from whoseblock.fs.xfs.paths import PathFinder
from whoseblock.fs.xfs.rows import make_row
from whoseblock.fs.xfs.superblocks import open_superblock
from whoseblock.fs.xfs.volume import Volume
from whoseblock.media.base import Media
from whoseblock.media.mounts import mount_note

if TYPE_CHECKING:
    from numpy.typing import ArrayLike

__all__ = ["XfsFilesystem"]

#: From so many questions on, reading leaves as arrays is worth loading NumPy.
_BULK: Final = 48
#: So many questions are answered together: enough to share reads, few enough to hold.
_BATCH: Final = 1 << 16


_REALTIME_REMARK: Final = (
    "the filesystem has a realtime section, an address space of its own; this answer is about the"
    " data section"
)


class XfsFilesystem(Closing):
    """An XFS filesystem on ``media``, which is closed with it.

    ``log_media`` is the device of an external log, to tell whether it is clean.  ``doubts`` are
    what the caller knows that makes every answer incomplete.  Raises `NotAFilesystemError` and
    `UnsupportedError`.
    """

    name = "xfs"

    def __init__(
        self, media: Media, log_media: Media | None = None, doubts: Iterable[str] = ()
    ) -> None:
        self._told = tuple(doubts)
        sb, self._superblock_notes, disputed = open_superblock(media)
        self.progress: Progress = no_progress
        self.volume = Volume(media, sb, disputed)
        self.size = self.volume.size
        self.device_size = media.size
        self.block_size = sb.blocksize
        self.inodes = InodeTable(self.volume)
        self._media = media
        self._log_media = log_media
        self._closed = False
        self._finder = OwnerFinder(self.volume, self.inodes)

    @property
    def identity(self) -> str:
        """What tells the filesystem from others, whatever its device is called."""
        from uuid import UUID

        return f"xfs {UUID(bytes=self.volume.sb.uuid)}"

    @property
    def reads(self) -> Counter[str]:
        """How many blocks of metadata were read from the medium, by kind."""
        return self.volume.reads

    @cached_property
    def doubts(self) -> tuple[str, ...]:
        """What makes every answer incomplete, whatever is asked."""
        sb = self.volume.sb
        notes = [*self._told, *self._superblock_notes]
        if sb.version != XFS_SB_VERSION_5:
            notes.append(
                f"XFS version {sb.version} has neither a reverse mapping nor checksums: nobody can"
                " say who owns a block without reading every inode"
            )
        elif not sb.has_rmapbt:
            notes.append(
                "the filesystem was made without a reverse mapping (rmapbt=0): nobody can say who"
                " owns a block without reading every inode"
            )
        if sb.inprogress:
            notes.append("mkfs.xfs has not finished making the filesystem")
        if sb.needs_repair:
            notes.append("the filesystem is marked as needing xfs_repair")
        if mounted := mount_note(self._media.name):
            notes.append(mounted)
        if log := log_note(self.volume, self._log_media):
            notes.append(log)
        return tuple(notes)

    @cached_property
    def remarks(self) -> tuple[str, ...]:
        """What is said with every answer, though nothing is missing."""
        if self.volume.sb.rblocks:
            return (_REALTIME_REMARK,)
        return ()

    def owners(self, start: int, length: int, *, paths: bool = True) -> Answer:
        """Say who owns ``length`` bytes from ``start`` of the device.

        Raises `ArgumentError`, `OutOfDeviceError` and `ClosedError`; damaged metadata makes the
        answer incomplete, with a note.
        """
        self._check_open()
        start, length = check_within(start, length, self._media.name, self.device_size)
        notes: list[str] = []
        pieces = self._finder.find(start, length, notes)
        known = self.paths_many(_inodes_of(pieces)) if paths else {}
        return self._answer(start, length, notes, pieces, known)

    def owners_many(
        self, ranges: Iterable[tuple[int, int]], *, paths: bool = True
    ) -> Iterator[Answer]:
        """Answer many ``(start, length)``, in the order asked, sharing what is read.

        Raises `ArgumentError`, `OutOfDeviceError` or `ClosedError` before the batch that has such a
        range is answered.
        """
        self._check_open()
        wanted = checked_ranges(ranges, self._media.name, self.device_size)
        while batch := list(islice(wanted, _BATCH)):
            self._check_open()
            yield from self._answer_batch(batch, paths=paths)

    def _answer_batch(self, batch: list[tuple[int, int]], *, paths: bool) -> Iterator[Answer]:
        many = self._pieces_many if len(batch) >= _BULK else self._pieces_singly
        found: Iterable[tuple[list[Piece], Sequence[str]]] = many(batch)
        known: dict[int, Paths] = {}
        if paths:
            found = list(found)
            known = self.paths_many(ino for pieces, _ in found for ino in _inodes_of(pieces))
        for (start, length), (pieces, notes) in zip(batch, found, strict=True):
            yield self._answer(start, length, notes, pieces, known)

    def _pieces_singly(
        self, batch: list[tuple[int, int]]
    ) -> Iterator[tuple[list[Piece], Sequence[str]]]:
        for start, length in batch:
            notes: list[str] = []
            yield self._finder.find(start, length, notes), notes

    def _pieces_many(
        self, batch: list[tuple[int, int]]
    ) -> Iterator[tuple[list[Piece], Sequence[str]]]:
        from whoseblock.fs.xfs.bulk import find_many, pieces_by_question

        starts, lengths = zip(*batch, strict=True)
        return pieces_by_question(find_many(self._finder, starts, lengths))

    def owners_of(self, starts: "ArrayLike", lengths: "ArrayLike") -> OwnerArrays:
        """Answer many ranges as NumPy columns, without paths; see `OwnerArrays`.

        `doubts` make every question incomplete, and stand in no question's notes.  Raises
        `ArgumentError`, `OutOfDeviceError` and `ClosedError`.
        """
        from whoseblock.fs.xfs.bulk import find_many

        self._check_open()
        low, length = check_columns(starts, lengths, self._media.name, self.device_size)
        arrays = find_many(self._finder, low, length)
        if self.doubts:
            arrays.complete[:] = False
        return arrays

    def _answer(
        self,
        start: int,
        length: int,
        notes: Sequence[str],
        pieces: list[Piece],
        known: dict[int, Paths],
    ) -> Answer:
        rows = []
        missing = [*self.doubts, *notes]
        for piece in pieces:
            paths = known.get(piece.inode) if known and piece.kind == FILE else None
            if paths is not None and not paths.complete:
                missing += paths.notes
            rows.append(make_row(self.volume, piece, paths))
        said = distinct([*missing, *self.remarks]) if missing else self.remarks
        only = remarks_in(said, missing, self.remarks) if self.remarks else UNSET
        return Answer(start, length, not missing, said, tuple(rows), remarks=only)

    def file_size(self, inode: int) -> int | None:
        """Give the size of a file in bytes, None if its inode cannot be read."""
        self._check_open()
        (inode,) = check_inodes((inode,))
        try:
            return self.inodes.get(inode).core.size
        except BlockError:
            return None

    def paths(self, inode: int) -> Paths:
        """Give every path of ``inode``, and what may be missing.

        Raises `ArgumentError` and `ClosedError`.
        """
        (inode,) = check_inodes((inode,))
        return self.paths_many((inode,))[inode]

    def paths_many(self, inodes: Iterable[int]) -> dict[int, Paths]:
        """Give every path of each of ``inodes``, in one search for all.

        Raises `ArgumentError` and `ClosedError`.
        """
        self._check_open()
        inodes = check_inodes(inodes)
        return PathFinder(self.volume, self.inodes, self.progress).find(inodes)

    def readlink(self, inode: int) -> bytes:
        """Give what a symbolic link holds; raises `BlockError`."""
        self._check_open()
        return Attributes(self.volume, self.inodes).readlink(inode)

    def attributes(self, inode: int) -> dict[tuple[int, bytes], bytes]:
        """Give the extended attributes of an inode by namespace flags and name.

        The flags are XFS_ATTR_ROOT and XFS_ATTR_SECURE.  Raises `BlockError`.
        """
        self._check_open()
        found = Attributes(self.volume, self.inodes).values(inode)
        return {(attribute.namespace, attribute.name): attribute.value for attribute in found}

    def _check_open(self) -> None:
        check_open(self._media.name, closed=self._closed)

    def close(self) -> None:
        """Close the media; a second time has no effect."""
        if self._closed:
            return
        self._closed = True
        self._media.close()
        if self._log_media is not None:
            self._log_media.close()


def _inodes_of(pieces: Iterable[Piece]) -> Iterator[int]:
    return (piece.inode for piece in pieces if piece.kind == FILE)
