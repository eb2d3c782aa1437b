"""An XFS filesystem that is not mounted, behind the `Filesystem` protocol."""

from collections import Counter
from collections.abc import Iterable, Iterator
from functools import cached_property
from itertools import groupby, islice
from operator import itemgetter
from typing import TYPE_CHECKING, Final

from whoseblock.closing import Closing
from whoseblock.errors import BlockError
from whoseblock.fs.arguments import (
    check_columns,
    check_list,
    check_open,
    check_within,
    checked_ranges,
)
from whoseblock.fs.arrays import OwnerArrays
from whoseblock.fs.base import (
    Answer,
    FileId,
    Owner,
    Paths,
    Progress,
    no_progress,
)
from whoseblock.fs.driver import Allocation, Capability, FileFacts, IndexLeaf, IndexSize, ReverseMap
from whoseblock.fs.driver import Volume as VolumeProtocol
from whoseblock.fs.pieces import FILE, FREE, Piece
from whoseblock.fs.stream import ROW_BUDGET, AnswerColumns, LeadingRows, join_rows
from whoseblock.fs.xfs.counters import ALWAYS_COMPARED, SummaryCounters
from whoseblock.fs.xfs.format.inode import XFS_DIFLAG_APPEND, XFS_DIFLAG_IMMUTABLE
from whoseblock.fs.xfs.inodes import InodeTable
from whoseblock.fs.xfs.log import log_note
from whoseblock.fs.xfs.notes import REALTIME_REMARK, repair_advice
from whoseblock.fs.xfs.owners.answers import AnswerMaker
from whoseblock.fs.xfs.owners.cuts import Cut, find_cuts
from whoseblock.fs.xfs.owners.finder import OwnerFinder
from whoseblock.fs.xfs.superblocks import open_superblock
from whoseblock.fs.xfs.volume import Volume
from whoseblock.media.base import Media
from whoseblock.media.mounts import mount_note
from whoseblock.ranges import RangeList

if TYPE_CHECKING:
    from numpy.typing import ArrayLike

    from whoseblock.fs.xfs.owners.rescan import Rescan
    from whoseblock.fs.xfs.owners.scanned import ScannedRecords

__all__ = ["XfsFilesystem"]

#: As columns, this many times as many rows may be held as of objects.
_HELD: Final = 8
#: So many questions are answered together: enough to share reads, few enough to hold.
_BATCH: Final = 1 << 16


class XfsFilesystem(Closing, VolumeProtocol):
    """An XFS filesystem on ``media``, which is closed with it.

    ``log_media`` is the device of an external log, to tell whether it is clean.  ``doubts`` are
    what the caller knows that makes every answer incomplete.  Raises `NotAFilesystemError` and
    `UnsupportedError`.
    """

    name = "xfs"
    #: The most rows of one piece of an answer, and about the most that are held as objects.
    row_budget = ROW_BUDGET

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
        self._finder = OwnerFinder(
            self.volume, self.inodes, self._free_doubt, lambda: not self._known_doubts
        )

    @property
    def identity(self) -> str:
        """The type and UUID of the filesystem, which do not depend on the name of the device."""
        from uuid import UUID

        return f"xfs {UUID(bytes=self.volume.sb.uuid)}"

    @property
    def reverse_map(self) -> ReverseMap:
        """The way owners are found: in the reverse-mapping btree, or by a scan of all inodes."""
        if self.volume.sb.has_rmapbt:
            return "index"
        return "scan"

    @property
    def capabilities(self) -> frozenset[Capability]:
        """The capabilities that repairs may rely on; doubts forbid repairs in any case."""
        return frozenset({Capability.ZERO_FREE} if self.volume.sb.has_rmapbt else ())

    @property
    def unused_companions(self) -> dict[str, str]:
        """The companions that this filesystem does not have, each with the reason."""
        unused = {}
        if self.volume.sb.logstart:
            unused["log"] = "the log of the filesystem is internal"
        if not self.volume.sb.rblocks:
            unused["realtime"] = "the filesystem has no realtime section"
        return unused

    @property
    def reads(self) -> Counter[str]:
        """The number of metadata blocks read from the medium, by kind."""
        return self.volume.reads

    @cached_property
    def doubts(self) -> tuple[str, ...]:
        """The reasons why every answer is incomplete."""
        if self.volume.sb.agcount > ALWAYS_COMPARED or not (note := self._free_doubt()):
            return self._known_doubts
        return (note,)

    @cached_property
    def _counters(self) -> SummaryCounters:
        return SummaryCounters(self.volume)

    def _free_doubt(self) -> str:
        """Return why no space can be called free; "" if nothing is known against it.

        The counters are only comparable if nothing else makes answers incomplete: a dirty log
        holds changes of some of them.
        """
        return "" if self._known_doubts else self._counters.note

    @cached_property
    def _known_doubts(self) -> tuple[str, ...]:
        """The notes that make every answer incomplete, except for those about headers of groups."""
        sb = self.volume.sb
        notes = [*self._told, *self._superblock_notes]
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
        """The notes of every answer that do not make it incomplete."""
        if self.volume.sb.rblocks:
            return (REALTIME_REMARK,)
        return ()

    @cached_property
    def _answers(self) -> AnswerMaker:
        return AnswerMaker(self.volume, self.doubts, self.remarks)

    def owners(self, start: int, length: int, *, paths: bool = True) -> Answer:
        """Return the owners of ``length`` bytes from ``start`` of the device.

        Raises `ArgumentError`, `OutOfDeviceError` and `ClosedError`; damaged metadata makes the
        answer incomplete, with a note.
        """
        self._check_open()
        start, length = check_within(start, length, self._media.name, self.device_size)
        notes: list[str] = []
        finder = self._finder
        if finder.scanned is None:
            finder.settleable.clear()
            pieces = finder.find(start, length, notes)
        if finder.scanned or (finder.settleable.intersection(notes) and self._may_rescan):
            (answer,) = self.owners_many([(start, length)], paths=paths)
            return answer
        known = self.paths_many(_inodes_of(pieces)) if paths else {}
        return self._answers.answer(start, length, notes, pieces, known)

    def owners_many(
        self, ranges: Iterable[tuple[int, int]], *, paths: bool = True
    ) -> Iterator[Answer]:
        """Answer many ``(start, length)``, in the order asked, sharing what is read.

        Each answer is held whole; `owners_stream` holds a part of it.  Raises `ArgumentError`,
        `OutOfDeviceError` or `ClosedError` before the batch that has such a range is answered.
        """
        return join_rows(self.owners_stream(ranges, paths=paths))

    def owners_stream(
        self, ranges: Iterable[tuple[int, int]], *, paths: bool = True
    ) -> Iterator[LeadingRows | Answer]:
        """Answer like `owners_many`, an answer with more than ``row_budget`` rows in pieces."""
        self._check_open()
        wanted = checked_ranges(ranges, self._media.name, self.device_size)
        known: dict[int, Paths] = {}
        while batch := list(islice(wanted, _BATCH)):
            self._check_open()
            if scanned := self._finder.scanned:
                scanned.prepare(batch, self._report, may_scan=self.scans)
            ranges = RangeList.of(batch)
            cuts = find_cuts(self._finder, ranges, self.row_budget, whole=self.rescans)
            if scanned is None:
                for maker, settled in self._settled(cuts):
                    some = self._with_paths(settled, known) if paths else settled
                    yield from maker.of_cuts(some, known, self.row_budget)
            else:
                cuts = self._with_paths(cuts, known) if paths else cuts
                yield from self._scanned_answers(scanned, cuts, known)

    def _scanned_answers(
        self, scanned: "ScannedRecords", cuts: Iterable[Cut], known: dict[int, Paths]
    ) -> Iterator[LeadingRows | Answer]:
        """Make answers, with a remark where they took the scan."""
        remarks = (*self.remarks, scanned.remark) if scanned.remark else self.remarks
        makers = self._answers, AnswerMaker(self.volume, self.doubts, remarks)
        for cut in cuts:
            if cut.arrays is not None:
                for item in makers[False].of_cuts([cut], known, self.row_budget):
                    if isinstance(item, Answer) and scanned.needs_scan(item.start, item.length):
                        yield makers[True].with_remarks(item, self.remarks)
                    else:
                        yield item
                continue
            took = [scanned.needs_scan(*question) for question in cut.questions]
            at = 0
            for needed, group in groupby(took):
                end = at + len(list(group))
                part = Cut(cut.questions[at:end], None, cut.single[at:end])
                yield from makers[needed].of_cuts([part], known, self.row_budget)
                at = end

    def _settled(self, cuts: Iterable[Cut]) -> Iterator[tuple[AnswerMaker, Iterator[Cut]]]:
        """Yield cuts and who makes answers of them; a scan settles what is damaged, if it may."""
        for remark, some in groupby(self._settled_parts(cuts), itemgetter(0)):
            maker = self._answers
            if remark:
                maker = AnswerMaker(self.volume, self.doubts, (*self.remarks, remark))
            yield maker, (cut for _, cut in some)

    def _settled_parts(self, cuts: Iterable[Cut]) -> Iterator[tuple[str, Cut]]:
        settleable = self._finder.settleable
        settleable.clear()
        in_parts = False
        for cut in cuts:
            # The parts of a long question have their notes at its end.
            in_parts, is_part = cut.more, in_parts or cut.more
            if settleable and not is_part and self._may_rescan:
                yield from self._rescan.settle(cut, self._report)
            else:
                yield "", cut
            settleable.clear()

    @property
    def _may_rescan(self) -> bool:
        """Whether a scan may answer where the rmap btree is damaged."""
        if self.rescans or not self.rescan_limit:
            return self.rescans
        return self._scan_size is not None and self._scan_size <= self.rescan_limit

    @cached_property
    def _scan_size(self) -> int | None:
        from whoseblock.fs.xfs.owners.rescan import scan_size

        return scan_size(self.volume)

    @cached_property
    def _rescan(self) -> "Rescan":
        from whoseblock.fs.xfs.owners.rescan import Rescan

        return Rescan(self._finder, self.volume, self.inodes)

    def _report(self, inodes: int) -> None:
        self.progress("inodes scanned", inodes, self.volume.sb.icount)

    def columns_stream(self, ranges: RangeList) -> Iterator[LeadingRows | Answer | AnswerColumns]:
        """Answer like `owners_stream`, without paths, many short answers as columns."""
        if self._finder.scanned is not None:
            yield from self.owners_stream(ranges, paths=False)
            return
        for at in range(0, len(ranges), _BATCH):
            self._check_open()
            batch = ranges[at : at + _BATCH]
            check_list(batch, self._media.name, self.device_size)
            cuts = find_cuts(self._finder, batch, self.row_budget, whole=self.rescans)
            for maker, settled in self._settled(cuts):
                yield from maker.columns_of_cuts(settled, self.row_budget)

    def _with_paths(self, cuts: Iterable[Cut], known: dict[int, Paths]) -> Iterator[Cut]:
        """Pass the cuts on once ``known`` has the paths of their inodes, many with one search."""
        held: list[Cut] = []
        inodes: set[int] = set()
        rows = 0
        for cut in cuts:
            held.append(cut)
            rows += cut.rows
            inodes.update(cut.inodes())
            if rows >= self.row_budget * _HELD or len(inodes) >= self.row_budget:
                self._learn(inodes, known)
                yield from held
                held, inodes, rows = [], set(), 0
        self._learn(inodes, known)
        yield from held

    def _learn(self, inodes: set[int], known: dict[int, Paths]) -> None:
        """Add the paths of inodes to ``known``, which is emptied if it would grow too large."""
        new = inodes - known.keys()
        if new and len(known) + len(new) > 2 * self.row_budget:
            known.clear()
            new = inodes
        if new:
            known.update(self.paths_many(new))

    def owners_of(self, starts: "ArrayLike", lengths: "ArrayLike") -> OwnerArrays:
        """Answer many ranges as NumPy columns, without paths; see `OwnerArrays`.

        `doubts` make every question incomplete, and stand in no question's notes.  Raises
        `ArgumentError`, `OutOfDeviceError` and `ClosedError`.
        """
        from whoseblock.fs.xfs.owners.bulk import find_all

        self._check_open()
        low, length = check_columns(starts, lengths, self._media.name, self.device_size)
        if scanned := self._finder.scanned:
            pairs = zip(low.tolist(), length.tolist(), strict=True)
            scanned.prepare(pairs, self._report, may_scan=self.scans)
        arrays = find_all(self._finder, low, length, _HELD * self.row_budget)
        if self.doubts:
            arrays.complete[:] = False
        return arrays

    def allocation(self, ranges: Iterable[tuple[int, int]]) -> Iterator[Allocation]:
        """Yield which parts of the ranges are free; that takes no scan."""
        scanned = self._finder.scanned
        if scanned is None:
            yield from super().allocation(ranges)
            return
        from whoseblock.fs.xfs.owners.scanned import NOT_SCANNED

        wanted = checked_ranges(ranges, self._media.name, self.device_size)
        while batch := list(islice(wanted, _BATCH)):
            # Without checksums, free space needs a scan, too.
            may_scan = self.scans and not self.volume.has_crc
            scanned.prepare(batch, self._report, may_scan=may_scan)
            for start, length in batch:
                notes: list[str] = []
                pieces = self._finder.find(start, length, notes)
                certain = not self.doubts and set(notes) <= {NOT_SCANNED}
                for piece in pieces:
                    is_free = certain and piece.kind == FREE
                    yield Allocation(piece.start, piece.length, is_free)

    def scan_instead(self) -> None:
        """Find owners by a scan of all inodes from now on, even if there is a reverse map."""
        self._finder.scan_instead()

    def files(self, files: Iterable[FileId]) -> dict[FileId, FileFacts]:
        """Return the facts of files; one whose inode cannot be read is left out."""
        self._check_open()
        found = {}
        for file in files:
            try:
                core = self.inodes.get(file.inode).core
            except BlockError:
                continue
            found[file] = FileFacts(
                core.mode,
                core.size,
                core.nlink,
                core.gen,
                immutable=bool(core.flags & XFS_DIFLAG_IMMUTABLE),
                append_only=bool(core.flags & XFS_DIFLAG_APPEND),
            )
        return found

    def paths_of(self, files: Iterable[FileId]) -> dict[FileId, Paths]:
        """Return every path of each file, in one search for all; raises `ClosedError`."""
        self._check_open()
        inodes = [file.inode for file in files]
        if not inodes:
            return {}
        from whoseblock.fs.xfs.names.paths import PathFinder

        found = PathFinder(self.volume, self.inodes, self.progress).find(inodes)
        return {FileId(0, inode): paths for inode, paths in found.items()}

    def readlink(self, inode: int) -> bytes:
        """Return what a symbolic link holds; raises `BlockError`."""
        from whoseblock.fs.xfs.names.attributes import Attributes

        self._check_open()
        return Attributes(self.volume, self.inodes).readlink(inode)

    def attributes(self, inode: int) -> dict[tuple[int, bytes], bytes]:
        """Return the extended attributes of an inode by namespace flags and name.

        The flags are XFS_ATTR_ROOT and XFS_ATTR_SECURE.  Raises `BlockError`.
        """
        from whoseblock.fs.xfs.names.attributes import Attributes

        self._check_open()
        found = Attributes(self.volume, self.inodes).values(inode)
        return {(attribute.namespace, attribute.name): attribute.value for attribute in found}

    def index_size(self) -> IndexSize:
        """Return the size of the reverse-mapping btrees; raises `BlockError`."""
        from whoseblock.fs.xfs.index import measure_index

        self._check_open()
        return measure_index(self.volume)

    def index_leaves(self) -> Iterator[IndexLeaf]:
        """Yield the leaves of the reverse-mapping btrees, those that can be read."""
        from whoseblock.fs.xfs.index import index_leaves

        self._check_open()
        return index_leaves(self.volume)

    def repair_advice(self, row: Owner) -> str:
        """Return what repairs a row that is metadata, of the filesystem or of a file."""
        return repair_advice(row)

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
