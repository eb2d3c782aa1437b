"""A mounted btrfs: owners and names by its last commit, confirmed by the kernel."""

import os
from collections import Counter, deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import ExitStack
from itertools import islice
from typing import Final, NamedTuple, Self

from msgspec import UNSET

from whoseblock.errors import BlockError, TargetError, UnsupportedError
from whoseblock.fs.arguments import checked_ranges
from whoseblock.fs.base import (
    Answer,
    FileId,
    Owner,
    Paths,
    distinct,
    remarks_in,
)
from whoseblock.fs.btrfs.format.keys import FIRST_FREE
from whoseblock.fs.btrfs.logical import LogicalSpace
from whoseblock.fs.btrfs.mounted import kernel
from whoseblock.fs.btrfs.mounted.commit import Commit, Moment, read_moment
from whoseblock.fs.btrfs.mounted.names import LiveNames, open_now
from whoseblock.fs.btrfs.names.paths import read_facts
from whoseblock.fs.btrfs.notes import repair_advice
from whoseblock.fs.btrfs.owners.finder import Found, Piece
from whoseblock.fs.btrfs.owners.placement import locate_in_file
from whoseblock.fs.btrfs.rows import files_of, path_faults
from whoseblock.fs.driver import (
    AddressSpace,
    DeviceSegment,
    FileFacts,
    ReverseMap,
)
from whoseblock.fs.mounted.recovery import unrecovered_by, unrecovered_note
from whoseblock.fs.mounted.view import View, open_view
from whoseblock.fs.mounted.viewed import ViewedVolume
from whoseblock.fs.stream import ROW_BUDGET, LeadingRows, join_rows
from whoseblock.media.base import Media
from whoseblock.media.direct import DirectMedia
from whoseblock.media.mounts import Mount, device_node, devices_of

__all__ = ["MountedBtrfs"]

#: So many questions are answered with one look at the state of the filesystem.
_BATCH: Final = 1 << 10
#: Up to this length, in the order of their places.
_SHORT: Final = 1 << 20
#: How often a question is repeated while the filesystem is committed.
_ATTEMPTS: Final = 4
_CHANGING: Final = "the filesystem was committed each time while it was read: ask again"

#: Yields the owners of a range by a commit.
_Find = Callable[[Commit, int, int], Iterator[Found]]


class _Rest(NamedTuple):
    """The part of a question from ``at`` on that is not answered."""

    start: int
    length: int
    at: int


class _Part(NamedTuple):
    """Pieces of one question with its notes; ``more`` if other pieces of it follow."""

    rest: _Rest
    pieces: list[Piece]
    notes: list[str]
    remarks: list[str]
    more: bool


class MountedBtrfs(ViewedVolume):
    """The btrfs that a `View` shows, which is closed with it; ranges are of one of its devices.

    ``device`` is the number of that as in ``st_rdev``.  With the number of a filesystem on several
    devices, only logical addresses can be asked about.  Raises `PrivilegeError`, `TargetError` if
    its devices cannot be read here, `UnsupportedError`, and `BlockError` if the kernel does not
    answer.
    """

    name = "btrfs"
    #: The most rows of one piece of an answer.
    row_budget = ROW_BUDGET

    def __init__(self, view: View, mount: Mount, device: int, device_size: int) -> None:
        super().__init__(view)
        self._undo = ExitStack()
        with ExitStack() as undo:
            undo.callback(self._undo.close)
            self._asked, self._members = self._open_members(mount, device)
            self._state: Commit | None = None
            try:
                commit = self._commit()
            except OSError as error:
                raise _no_answer(view, error) from error
            undo.pop_all()
        self.device_size = device_size or (self._asked.size if self._asked else 0)
        self.block_size = commit.volume.sector_size
        self.size = sum(item.size for item in commit.volume.items.values())
        self._device: int | None = None
        for number, media in commit.volume.devices.items():
            if media is self._asked:
                self._device = number
                self.size = commit.volume.items[number].size
        self._uuid = commit.volume.sb.uuid_text
        self._devices = frozenset({view.device, os.fstat(view.fd).st_dev, *self._members})
        self._reads: Counter[str] = Counter()

    @classmethod
    def open(
        cls, mounts: Sequence[Mount], process: int | None, device_size: int, device: int
    ) -> Self:
        """Open the filesystem of some mounts; see `Driver.open_mounted`."""
        try:
            view = open_view(mounts, process, kernel.open_root)
        except OSError as error:
            raise BlockError(f"the kernel does not answer: {error.strerror}") from error
        with ExitStack() as undo:
            undo.callback(view.close)
            volume = cls(view, mounts[0], device, device_size)
            undo.pop_all()
        return volume

    def _open_members(self, mount: Mount, device: int) -> tuple[Media | None, dict[int, Media]]:
        """Open the devices of the filesystem; return that which was asked about, and all."""
        members: dict[int, Media] = {}
        for number in sorted(devices_of(mount)):
            if not os.major(number):
                continue
            path = device_node(number)
            if path is None:
                raise TargetError(f"a device of {self.view.point!r} has no node in /dev here")
            media = self._undo.enter_context(DirectMedia(path))
            media.name = path.removeprefix("/dev/")
            members[number] = media
        if not members:
            raise TargetError(f"the devices of {self.view.point!r} are not known here")
        only = next(iter(members.values())) if len(members) == 1 else None
        return members.get(device, only), members

    # ------------------------------------------------------------------ the filesystem

    @property
    def identity(self) -> str:
        """The type and UUID of the filesystem."""
        return f"{self.name} {self._uuid}"

    @property
    def reverse_map(self) -> ReverseMap:
        """The way owners are found: by the back references of the extent tree."""
        return "index"

    @property
    def reads(self) -> Counter[str]:
        """The number of metadata blocks read, by kind."""
        return self._reads + (self._state.volume.reads if self._state else Counter())

    @property
    def devices(self) -> frozenset[int]:
        """Every device number of the filesystem; those of subvolumes: `subvolume_device`."""
        return self._devices

    def subvolume_device(self, subvolume: int) -> int | None:
        """Return the ``st_dev`` of the files of a subvolume, None if it is gone."""
        try:
            now = open_now(self.view.fd, FileId(subvolume, FIRST_FREE), 0)
        except OSError:
            return None
        return None if now is None else now.status.st_dev

    @property
    def unreplayed_log(self) -> str:
        """The reason why the kernel does not know changes that are in the log, "" if it does."""
        option = unrecovered_by(self.view.options)
        if not option or not self._commit().volume.sb.log_root:
            return ""
        return unrecovered_note(option, "its log tree is not empty")

    @property
    def doubts(self) -> tuple[str, ...]:
        """The reasons why every answer is incomplete."""
        return self._commit().doubts

    def logical_addresses(self) -> AddressSpace:
        """Return the space of the logical addresses; closing it closes the filesystem."""
        return LogicalSpace(self)

    @property
    def logical_size(self) -> int:
        """The end of the last chunk."""
        return self._commit().volume.chunks.end

    def locate_in_file(self, file: FileId, offset: int, length: int) -> Iterator[tuple[int, int]]:
        """Yield the logical addresses of bytes of a file; see `Volume.locate_in_file`."""
        self._check_open()
        return locate_in_file(self._commit().volume, file, offset, length)

    def device_segments(self) -> Iterator[DeviceSegment]:
        """Yield the chunks on the device; see `Volume.device_segments`."""
        if self._device is not None:
            yield from self._commit().rows.segments(self._device)

    # ------------------------------------------------------------------ the last commit

    def _moment(self) -> Moment:
        return read_moment(self.view.fd, self._members.values())

    def _commit(self) -> Commit:
        """Return the last commit, read again if there was another one; raises OSError."""
        moment = self._moment()
        if self._state is None or self._state.moment != moment:
            if self._state is not None:
                self._reads += self._state.volume.reads
            members = list(self._members.values())
            if self._asked is not None:
                # Notes about the superblock are of the device that was asked about.
                members.sort(key=lambda one: one is not self._asked)
            self._state = Commit(self.view.fd, tuple(members), moment)
        elif not moment.is_settled:
            # The kernel may have changed owners since.
            self._state.finder.resolver.forget()
        self._state.finder.resolver.limit(self.max_owners)
        return self._state

    # ------------------------------------------------------------------ owners

    def owners_stream(
        self, ranges: Iterable[tuple[int, int]], *, paths: bool = True
    ) -> Iterator[LeadingRows | Answer]:
        """Answer many ranges; see `AddressSpace.owners_stream`."""
        self._check_open()
        if self._device is None:
            raise UnsupportedError(
                f"{self.view.point!r} is a btrfs on several devices",
                hint="name one of them, or ask with --address-space logical",
            )
        wanted = checked_ranges(ranges, self._name, self.device_size)
        return self._stream(wanted, self._find, with_paths=paths)

    def logical_stream(
        self, ranges: Iterable[tuple[int, int]], *, paths: bool = True
    ) -> Iterator[LeadingRows | Answer]:
        """Answer ranges of logical addresses; see `AddressSpace.owners_stream`."""
        self._check_open()
        wanted = checked_ranges(ranges, self.identity, self.logical_size)
        return self._stream(wanted, _find_logical, with_paths=paths)

    @property
    def _name(self) -> str:
        return self._asked.name if self._asked else self.view.point

    def _find(self, commit: Commit, start: int, length: int) -> Iterator[Found]:
        return commit.finder.find(self._device or 0, start, length)

    def _stream(
        self, wanted: Iterator[tuple[int, int]], find: _Find, *, with_paths: bool
    ) -> Iterator[LeadingRows | Answer]:
        while batch := list(islice(wanted, _BATCH)):
            if max(length for _, length in batch) > _SHORT:
                yield from self._answers(batch, find, with_paths=with_paths)
                continue
            # Those near each other need the same tree blocks.
            order = sorted(range(len(batch)), key=batch.__getitem__)
            near = (batch[number] for number in order)
            answers = join_rows(self._answers(near, find, with_paths=with_paths))
            found = dict(zip(order, answers, strict=True))
            yield from (found.pop(number) for number in range(len(batch)))

    def _answers(
        self, batch: Iterable[tuple[int, int]], find: _Find, *, with_paths: bool
    ) -> Iterator[LeadingRows | Answer]:
        todo = deque(_Rest(start, length, start) for start, length in batch)
        # Notes that belong to leading rows stand in the answer that ends them.
        carried: dict[str, None] = {}
        while todo:
            self._check_open()
            for part, rows, notes in self._settle(todo, find, with_paths=with_paths):
                carried.update(dict.fromkeys(notes))
                if part.more:
                    yield LeadingRows(part.rest.start, part.rest.length, rows)
                else:
                    yield self._answer(part, rows, carried)
                    carried = {}

    def _answer(self, part: _Part, rows: tuple[Owner, ...], missing: dict[str, None]) -> Answer:
        remarks = [*self.remarks, *part.remarks]
        notes = distinct([*missing, *remarks])
        only = remarks_in(notes, missing, remarks) if remarks else UNSET
        start, length, _ = part.rest
        return Answer(start, length, not missing, notes, rows, remarks=only)

    def _settle(
        self, todo: deque[_Rest], find: _Find, *, with_paths: bool
    ) -> list[tuple[_Part, tuple[Owner, ...], list[str]]]:
        """Answer the first questions, and take them off ``todo``.

        They are asked again if the filesystem was committed meanwhile.
        """
        for attempt in range(1, _ATTEMPTS + 1):
            try:
                commit = self._commit()
                parts, rest = self._collect(commit, todo, find)
                pieces = [piece for part in parts for piece in part.pieces]
                names = LiveNames(self.view, commit.paths)
                known = names.find(files_of(pieces)) if with_paths else {}
                found = [
                    (
                        part,
                        commit.rows.rows(part.pieces, known, names.generations),
                        [
                            *commit.doubts,
                            *part.notes,
                            *path_faults(
                                {file: known[file] for file in files_of(part.pieces)}
                                if with_paths
                                else {}
                            ),
                        ],
                    )
                    for part in parts
                ]
                is_stable = self._moment() == commit.moment
            except OSError as error:
                raise _no_answer(self.view, error) from error
            if is_stable or attempt == _ATTEMPTS:
                break
        if not is_stable:
            for _, _, notes in found:
                notes.append(_CHANGING)
        todo.clear()
        todo.extend(rest)
        return found

    def _collect(
        self, commit: Commit, todo: Iterable[_Rest], find: _Find
    ) -> tuple[list[_Part], deque[_Rest]]:
        """Find the pieces of questions, as many as may be held; return what is left to do."""
        rest = deque(todo)
        parts: list[_Part] = []
        room = self.row_budget
        reader = commit.volume.reader
        reader.take_remarks()
        while rest and room > 0:
            one = rest[0]
            pieces: list[Piece] = []
            notes: list[str] = []
            stop, reach = None, one.at
            for found in find(commit, one.at, one.start + one.length - one.at):
                if isinstance(found, str):
                    notes.append(found)
                    continue
                if len(pieces) >= room and found.start >= reach:
                    stop = found.start
                    break
                pieces.append(found)
                reach = max(reach, found.start + found.length)
            parts.append(_Part(one, pieces, notes, reader.take_remarks(), stop is not None))
            room -= len(pieces) or 1
            if stop is None:
                rest.popleft()
            else:
                rest[0] = one._replace(at=stop)
        return parts, rest

    # ------------------------------------------------------------------ files

    def file_of(self, fd: int) -> FileId:
        """Return the identity of an open file that is on it."""
        found = kernel.identify(fd)
        return FileId(0, os.fstat(fd).st_ino) if found is None else found[0]

    def open_file(self, file: FileId, generation: int, flags: int) -> int:
        """Open a file by its identity; raises OSError, FileNotFoundError if it is gone."""
        return kernel.open_inode(self.view.fd, file, generation, flags)

    def files(self, files: Iterable[FileId]) -> dict[FileId, FileFacts]:
        """Return the facts of files; one that is gone or cannot be read is left out."""
        self._check_open()
        volume = self._commit().volume
        found = {}
        for file in files:
            try:
                facts = read_facts(volume, file)
                now = open_now(self.view.fd, file, facts.generation)
            except (BlockError, OSError):
                continue
            if now is not None:
                status = now.status
                found[file] = facts._replace(
                    mode=status.st_mode, size=status.st_size, links=status.st_nlink
                )
        return found

    def paths_of(self, files: Iterable[FileId]) -> dict[FileId, Paths]:
        """Return every path of each file; raises `ClosedError`."""
        self._check_open()
        return LiveNames(self.view, self._commit().paths).find(dict.fromkeys(files))

    def repair_advice(self, row: Owner) -> str:
        """Return what repairs a row that is metadata, of the filesystem or of a file."""
        return repair_advice(row)

    def close(self) -> None:
        """Close the filesystem and its devices; a second time has no effect."""
        self._undo.close()
        super().close()


def _find_logical(commit: Commit, start: int, length: int) -> Iterator[Found]:
    return commit.finder.find_logical(start, length)


def _no_answer(view: View, error: OSError) -> BlockError:
    return BlockError(f"the kernel does not answer for {view.point!r}: {error.strerror}")
