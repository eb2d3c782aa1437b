"""A btrfs filesystem that is not mounted, behind the `Volume` protocol."""

from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from contextlib import suppress
from functools import cached_property
from itertools import islice
from typing import TYPE_CHECKING, Final

from msgspec import UNSET

from whoseblock.closing import Closing
from whoseblock.errors import BlockError
from whoseblock.fs.arguments import check_columns, check_open, checked_ranges
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
from whoseblock.fs.btrfs.names.paths import PathFinder, read_facts
from whoseblock.fs.btrfs.notes import filesystem_doubts, log_doubts, repair_advice
from whoseblock.fs.btrfs.owners.finder import Found, OwnerFinder, Piece
from whoseblock.fs.btrfs.rows import RowMaker, files_of, path_faults
from whoseblock.fs.btrfs.superblocks import open_devices
from whoseblock.fs.btrfs.volume import Volume
from whoseblock.fs.driver import AddressSpace, DeviceSegment, FileFacts, ReverseMap
from whoseblock.fs.driver import Volume as VolumeProtocol
from whoseblock.fs.stream import ROW_BUDGET, LeadingRows, join_rows
from whoseblock.media.base import Media
from whoseblock.media.mounts import mount_note

if TYPE_CHECKING:
    from numpy.typing import ArrayLike

__all__ = ["BtrfsFilesystem"]

#: So many questions are answered together if they are short, and fewer one by one.
_BATCH: Final = 1 << 16
_MANY: Final = 48
_SHORT: Final = 1 << 20


class BtrfsFilesystem(Closing, VolumeProtocol):
    """A btrfs filesystem on ``members``, which are closed with it; ranges are of the first.

    ``doubts`` are what the caller knows that makes every answer incomplete.  Raises
    `NotAFilesystemError` and `UnsupportedError`.
    """

    name = "btrfs"
    #: The most rows of one piece of an answer.
    row_budget = ROW_BUDGET

    def __init__(self, members: Sequence[Media], doubts: Iterable[str] = ()) -> None:
        media = members[0]
        self._told = tuple(doubts)
        sb, self._device, devices, items, self._superblock_notes = open_devices(members)
        self.progress: Progress = no_progress
        self.volume = Volume(devices, items, sb)
        self.size = items[self._device].size
        self.device_size = media.size
        self.block_size = sb.sector_size

        self._members = tuple(members)
        self._media = media
        self._closed = False
        self._finder = OwnerFinder(self.volume)
        self._paths = PathFinder(self.volume)
        self._row_maker = RowMaker(self.volume, self._paths)

    @property
    def identity(self) -> str:
        """The type and UUID of the filesystem, which do not depend on the name of the device."""
        return f"{self.name} {self.volume.sb.uuid_text}"

    @property
    def reverse_map(self) -> ReverseMap:
        """The way owners are found: by the back references of the extent tree."""
        return "index"

    @property
    def reads(self) -> Counter[str]:
        """The number of metadata blocks read from the medium, by kind."""
        return self.volume.reads

    @cached_property
    def doubts(self) -> tuple[str, ...]:
        """The reasons why every answer is incomplete."""
        notes = [*self._told, *self._superblock_notes]
        notes += [*log_doubts(self.volume), *filesystem_doubts(self.volume)]
        notes += filter(None, (mount_note(media.name) for media in self._members))
        return tuple(notes)

    def owners_stream(
        self, ranges: Iterable[tuple[int, int]], *, paths: bool = True
    ) -> Iterator[LeadingRows | Answer]:
        """Answer many ranges; see `AddressSpace.owners_stream`."""
        self._check_open()
        self._finder.resolver.limit(self.max_owners)
        wanted = checked_ranges(ranges, self._media.name, self.device_size)
        while batch := list(islice(wanted, _BATCH)):
            if len(batch) < _MANY or max(length for _, length in batch) > _SHORT:
                for start, length in batch:
                    self._check_open()
                    found = self._finder.find(self._device, start, length)
                    yield from self._answer(start, length, found, with_paths=paths)
            else:
                self._check_open()
                yield from self._answer_together(batch, with_paths=paths)

    def logical_stream(
        self, ranges: Iterable[tuple[int, int]], *, paths: bool = True
    ) -> Iterator[LeadingRows | Answer]:
        """Answer ranges of logical addresses; see `AddressSpace.owners_stream`."""
        self._check_open()
        self._finder.resolver.limit(self.max_owners)
        for start, length in checked_ranges(ranges, self.identity, self.logical_size):
            self._check_open()
            found = self._finder.find_logical(start, length)
            yield from self._answer(start, length, found, with_paths=paths)

    def logical_addresses(self) -> AddressSpace:
        """Return the space of the logical addresses; closing it closes the filesystem."""
        from whoseblock.fs.btrfs.logical import LogicalSpace

        return LogicalSpace(self)

    def locate_in_file(self, file: FileId, offset: int, length: int) -> Iterator[tuple[int, int]]:
        """Yield the logical addresses of bytes of a file; see `Volume.locate_in_file`."""
        from whoseblock.fs.btrfs.owners.placement import locate_in_file

        self._check_open()
        return locate_in_file(self.volume, file, offset, length)

    def device_segments(self) -> Iterator[DeviceSegment]:
        """Yield the chunks on the device; see `Volume.device_segments`."""
        yield from self._row_maker.segments(self._device)

    @cached_property
    def logical_size(self) -> int:
        """The end of the last chunk."""
        return self.volume.chunks.end

    def _answer_together(
        self, batch: list[tuple[int, int]], *, with_paths: bool
    ) -> Iterator[LeadingRows | Answer]:
        """Answer many short questions: those with a single owner as arrays, the others in order."""
        import numpy as np

        from whoseblock.fs.btrfs.bulk.device import find_on_device

        columns = np.array(batch, np.int64)
        together = find_on_device(self.volume, self._device, columns[:, 0], columns[:, 1])
        is_found = together.owners.is_found.tolist()
        known: dict[FileId, Paths] = {}
        if with_paths:
            files = {
                FileId(*one): None
                for one, found in zip(
                    zip(
                        together.owners.subvolume.tolist(),
                        together.owners.inode.tolist(),
                        strict=True,
                    ),
                    is_found,
                    strict=True,
                )
                if found
            }
            # Files near each other have their names in the same leaves.
            known = self._paths.find(sorted(files))
        others: dict[int, list[LeadingRows | Answer]] = {}
        for number in sorted(range(len(batch)), key=batch.__getitem__):
            if not is_found[number]:
                start, length = batch[number]
                found = self._finder.find(self._device, start, length)
                others[number] = list(self._answer(start, length, found, with_paths=with_paths))
        doubts = self.doubts
        for number, (start, length) in enumerate(batch):
            if not is_found[number]:
                yield from others.pop(number)
                continue
            piece = together.piece(number, start, length)
            mine = {piece.part.file: known[piece.part.file]} if with_paths else {}
            missing = [*doubts, *path_faults(mine)] if doubts or with_paths else []
            rows = self._row_maker.rows((piece,), mine)
            yield Answer(start, length, not missing, distinct(missing), rows)

    def owners_of(self, starts: "ArrayLike", lengths: "ArrayLike") -> OwnerArrays:
        """Answer many ranges as NumPy columns, without paths; see `OwnerArrays`.

        Raises `ArgumentError`, `OutOfDeviceError` and `ClosedError`.
        """
        from whoseblock.fs.btrfs.bulk.columns import owners_as_columns

        self._check_open()
        start, length = check_columns(starts, lengths, self._media.name, self.device_size)
        return owners_as_columns(
            self.volume,
            self._device,
            (start, length),
            lambda low, size: next(
                join_rows(
                    self._answer(
                        low, size, self._finder.find(self._device, low, size), with_paths=False
                    )
                )
            ),
            self.doubts,
        )

    def _answer(
        self,
        start: int,
        length: int,
        found: Iterator[Found],
        *,
        with_paths: bool,
    ) -> Iterator[LeadingRows | Answer]:
        missing = dict.fromkeys(self.doubts)
        pieces: list[Piece] = []
        # What this answer reads again from the copies that earlier ones left in the cache counts.
        self.volume.reader.take_remarks()
        for one in found:
            if isinstance(one, str):
                missing[one] = None
                continue
            if len(pieces) >= self.row_budget:
                yield LeadingRows(start, length, self._rows(pieces, missing, with_paths=with_paths))
                pieces = []
            pieces.append(one)
        rows = self._rows(pieces, missing, with_paths=with_paths)
        remarks = self.volume.reader.take_remarks()
        notes = distinct([*missing, *remarks])
        only = remarks_in(notes, missing, remarks) if remarks else UNSET
        yield Answer(start, length, not missing, notes, rows, remarks=only)

    def _rows(
        self,
        pieces: list[Piece],
        missing: dict[str, None],
        *,
        with_paths: bool,
    ) -> tuple[Owner, ...]:
        """Return the rows of pieces; adds why paths are missing to ``missing``."""
        known = self._paths.find(files_of(pieces)) if with_paths else {}
        missing.update(path_faults(known))
        return self._row_maker.rows(pieces, known)

    # ------------------------------------------------------------------ files

    def files(self, files: Iterable[FileId]) -> dict[FileId, FileFacts]:
        """Return the facts of files; one whose inode cannot be read is left out."""
        self._check_open()
        found = {}
        for file in files:
            with suppress(BlockError):
                found[file] = read_facts(self.volume, file)
        return found

    def paths_of(self, files: Iterable[FileId]) -> dict[FileId, Paths]:
        """Return every path of each file; raises `ClosedError`."""
        self._check_open()
        return self._paths.find(files)

    def repair_advice(self, row: Owner) -> str:
        """Return what repairs a row that is metadata, of the filesystem or of a file."""
        return repair_advice(row)

    def _check_open(self) -> None:
        check_open(self._media.name, closed=self._closed)

    def close(self) -> None:
        """Close the media; a second time has no effect."""
        if not self._closed:
            self._closed = True
            for media in self._members:
                media.close()
