"""The main job: a failure in, findings out.

`Lookup` takes failed ranges of a target, or of devices that the failures name themselves, follows
them down the stack, asks the filesystem that is found there, and puts the answers together in the
words of the question: every ``start`` is a byte of the device that was asked about.
"""

import os
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import ExitStack, closing
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Final, NamedTuple

from msgspec import UNSET, UnsetType
from msgspec.structs import replace

from whoseblock.closing import Closing
from whoseblock.errors import (
    BlockError,
    NotAFilesystemError,
    PrivilegeError,
    WhoseblockError,
)
from whoseblock.fs import recognise
from whoseblock.fs.arguments import check_within
from whoseblock.fs.base import (
    AddressSpace,
    Answer,
    FileOwner,
    Filesystem,
    Mounted,
    Outside,
    Owner,
    Paths,
    Progress,
    Unknown,
    Via,
    distinct,
    no_progress,
    remarks_in,
)
from whoseblock.media.base import Media
from whoseblock.media.device import FileMedia
from whoseblock.media.mounts import is_folder
from whoseblock.stack.base import Landing, Layer, Step, descend

if TYPE_CHECKING:
    from whoseblock.processes import Found

__all__ = ["Asked", "Lookup", "Wish", "open_filesystem", "with_processes"]

#: So many questions are answered together: enough to share reads, few enough to hold.
_BATCH: Final = 1 << 16


def open_filesystem(
    target: str | os.PathLike[str] | Media,
    *,
    log_device: str | os.PathLike[str] | Media | None = None,
    offline: bool = False,
) -> Filesystem:
    """Recognise and open the filesystem on ``target``.

    The kernel answers for what is mounted, unless ``offline``; the disk does for what the kernel
    has shut down, perhaps over the very failure that is asked about, and every answer says so.
    Raises `TargetError`, `NotAFilesystemError`, `UnsupportedError` or `PrivilegeError`; what was
    opened here is then closed again.
    """
    doubts: list[str] = []
    if isinstance(target, str | os.PathLike) and not offline:
        device = recognise.mounted_device(target)
        if device is not None:
            folder = is_folder(target)
            # A device has none of its own.
            size = None if folder else Path(target).stat().st_size or None
            try:
                if mounted := recognise.open_mounted(device, size):
                    return mounted
            except BlockError as error:
                doubts.append(f"{error}; the disk was read instead")
                if folder:
                    target = _device_below(device, error)
    with ExitStack() as undo:
        media = _open_media(target, undo)
        log_media = None if log_device is None else _open_media(log_device, undo)
        filesystem = recognise.open_filesystem(media, log_media, doubts)
        undo.pop_all()
    return filesystem


def _device_below(device: int, error: BlockError) -> str:
    """Give the path of the device of a number; raises ``error`` if it is no block device."""
    from whoseblock.stack.host import Host

    name = Host().device_numbered(device)
    if name is None:
        raise error
    return f"/dev/{name}"


def _open_media(given: str | os.PathLike[str] | Media, undo: ExitStack) -> Media:
    """Open what is named by its path; ``undo`` closes it, but nothing that was given open."""
    if isinstance(given, str | os.PathLike):
        return undo.enter_context(closing(FileMedia(given)))
    return given


class Asked(NamedTuple):
    """``length`` bytes from ``start`` of ``layer`` that failed.

    ``origin`` says where that was read, "" if a person asked; only then must it be on the device.
    ``named`` has the layer stand in the answer even if the filesystem is on it directly.
    ``remark`` becomes a note of the answer, and leaves ``complete`` alone.
    """

    start: int
    length: int
    layer: Layer
    origin: str = ""
    named: bool = False
    remark: str = ""


class Wish(NamedTuple):
    """What an answer is to have.

    ``paths`` of files; the ``processes`` that use them, where a mounted filesystem is asked; and
    whether the owners are ``verified``: asked for again in the end.
    """

    paths: bool = True
    processes: bool = False
    verified: bool = False


class _Leaf:
    """What is on a layer that nothing is made of: who answers for it, or why nobody does.

    ``wanted`` are the questions to it of the present batch, and ``told`` its answers.
    """

    def __init__(self, space: AddressSpace | None, error: WhoseblockError | None = None) -> None:
        self.space = space
        self.error = error
        self.wanted: list[tuple[int, int]] = []
        self.told: list[Answer] = []

    def ask(self, start: int, length: int) -> int:
        """Note a question down; give the number of its answer."""
        self.wanted.append((start, length))
        return len(self.wanted) - 1

    def answer(self, wish: "Wish") -> None:
        """Have all questions answered."""
        self.told = list(_told(self.space, self.wanted, wish)) if self.space else []
        self.wanted = []


class _Part(NamedTuple):
    """A part of a question: where it led, and who answers for it by which number, if anybody."""

    landing: Landing
    leaf: _Leaf | None
    number: int


class Lookup(Closing):
    """Answers questions about layers; a context manager, which closes what it opened.

    ``open_leaf`` opens what is on a layer that nothing is made of, and raises a `WhoseblockError`
    that says why there is nothing.
    """

    def __init__(self, open_leaf: Callable[[Layer], AddressSpace]) -> None:
        self.progress: Progress = no_progress
        #: The last permission that was denied.
        self.denied: PrivilegeError | None = None
        self._open_leaf = open_leaf
        self._leaves: dict[Layer, _Leaf] = {}

    def answers(self, asked: Iterable[Asked], wish: Wish = Wish()) -> Iterator[Answer]:  # noqa: B008 - frozen
        """Say whose each range is, in the order asked.

        Raises `OutOfDeviceError` for a range without an origin that is not on its device.
        """
        waiting = iter(asked)
        while batch := list(islice(waiting, _BATCH)):
            if self._are_plain(batch):
                yield from self._answer_plainly(batch, wish)
            else:
                yield from self._answer_batch(batch, wish)

    @property
    def layers(self) -> dict[str, Layer]:
        """The layers that were asked for what is on them, by their names."""
        return {layer.name: layer for layer in self._leaves}

    def file_size(self, layer: Layer, inode: int) -> int | None:
        """Give the size of a file of the filesystem on a layer, None if that is not known."""
        space = self._find_leaf(layer).space
        return space.file_size(inode) if isinstance(space, Filesystem) else None

    def paths_many(self, layer: Layer, inodes: Iterable[int]) -> dict[int, Paths]:
        """Give every path of each of ``inodes`` of the filesystem on a layer."""
        space = self._find_leaf(layer).space
        return space.paths_many(inodes) if isinstance(space, Filesystem) else {}

    def leaf(self, layer: Layer) -> AddressSpace:
        """Give what is on a layer that nothing is made of.

        Raises the `WhoseblockError` that says why there is nothing.
        """
        found = self._find_leaf(layer)
        if found.space is None:
            raise found.error or NotAFilesystemError("there is nothing")
        return found.space

    def _find_leaf(self, layer: Layer) -> _Leaf:
        leaf = self._leaves.get(layer)
        if leaf is None:
            try:
                space = self._open_leaf(layer)
            except PrivilegeError as error:
                # What root would be answered is not unknown.
                self.denied = error
                raise
            except WhoseblockError as error:
                leaf = _Leaf(None, error)
            else:
                space.progress = self.progress
                leaf = _Leaf(space)
            self._leaves[layer] = leaf
        return leaf

    @staticmethod
    def _are_plain(batch: Sequence[Asked]) -> bool:
        """Tell whether a filesystem itself is asked, so that its answers are ours as they are."""
        layer = batch[0].layer
        if layer.segments or layer.beneath or layer.remarks or layer.doubts:
            return False
        size = layer.size
        return all(
            asked.layer is layer and not asked.named and asked.start + asked.length <= size
            for asked in batch
        )

    def _answer_plainly(self, batch: Sequence[Asked], wish: Wish) -> Iterator[Answer]:
        space = self.leaf(batch[0].layer)
        told = _told(space, [(asked.start, asked.length) for asked in batch], wish)
        for asked, answer in zip(batch, told, strict=True):
            if asked.remark:
                notes = distinct([*answer.notes, asked.remark])
                yield replace(answer, origin=asked.origin, notes=notes)
            else:
                yield replace(answer, origin=asked.origin) if asked.origin else answer

    def _answer_batch(self, batch: Sequence[Asked], wish: Wish) -> Iterator[Answer]:
        parts = [list(self._parts(asked)) for asked in batch]
        for leaf in self._leaves.values():
            leaf.answer(wish)
        return map(_put_together, batch, parts)

    def _parts(self, asked: Asked) -> Iterator[_Part]:
        """Follow a range down, and note down what is to be asked of whom."""
        if not asked.origin:
            check_within(asked.start, asked.length, asked.layer.name, asked.layer.size)
        for landing in descend(asked.layer, asked.start, asked.length):
            if landing.layer is None:
                yield _Part(landing, None, 0)
            else:
                yield from self._parts_on(landing, self._find_leaf(landing.layer))

    @staticmethod
    def _parts_on(landing: Landing, leaf: _Leaf) -> Iterator[_Part]:
        """Ask a leaf for what it has; an image may be shorter than the device it is a copy of."""
        length = landing.length
        if leaf.space is not None:
            length = min(length, max(leaf.space.device_size - landing.offset, 0))
        if length:
            inside = landing._replace(length=length)
            yield _Part(inside, leaf, leaf.ask(landing.offset, length))
        if length < landing.length:
            way = tuple(Step(step.layer, step.start + length) for step in landing.way)
            rest = landing._replace(
                start=landing.start + length,
                length=landing.length - length,
                way=way,
                layer=None,
                what="past the end of what can be read of it",
                certain=False,
            )
            yield _Part(rest, None, 0)

    def close(self) -> None:
        """Close every filesystem that was opened."""
        for leaf in self._leaves.values():
            if leaf.space is not None:
                leaf.space.close()
        self._leaves.clear()


def _told(space: AddressSpace, wanted: Sequence[tuple[int, int]], wish: Wish) -> Iterable[Answer]:
    """Ask what is on a layer, and about those who use it."""
    told = space.owners_many(wanted, paths=wish.paths)
    if wish.processes and isinstance(space, Mounted):
        told = iter(with_processes(list(told), space.device))
    if wish.verified:
        now = list(told)
        told = map(_verified, now, space.owners_many(wanted, paths=False))
    return told


def with_processes(answers: Sequence[Answer], device: int) -> list[Answer]:
    """Add to every file the processes that use the part of it, or have it open.

    ``device`` is that of the filesystem, as `os.makedev` gives it.
    """
    from whoseblock.processes import Wanted, find_processes

    files = [row for answer in answers for row in answer if isinstance(row, FileOwner)]
    found = find_processes(
        [
            Wanted(device, row.inode, row.file_offset if row.what == "data" else None, row.length)
            for row in files
        ]
    )
    notes = _process_notes(found)
    users = iter(found.processes)
    return [
        replace(
            answer,
            owners=tuple(
                replace(row, processes=next(users)) if isinstance(row, FileOwner) else row
                for row in answer
            ),
            notes=distinct([*answer.notes, *notes]),
            remarks=answer.remarks
            if answer.complete or not notes
            else (*(answer.remarks or ()), *notes),
        )
        for answer in answers
    ]


def _process_notes(found: "Found") -> list[str]:
    """Say what may be missing of processes; the owners are all there."""
    notes = []
    if found.hidden:
        how_many = "a process" if found.hidden == 1 else f"{found.hidden} processes"
        notes.append(f"{how_many} could not be looked into: that takes CAP_SYS_PTRACE")
    if found.unlisted:
        notes.append("/proc does not list every process: ask outside of the container")
    if found.omitted:
        notes.append(f"{found.omitted} more mappings and descriptors are not listed")
    return notes


def _verified(answer: Answer, again: Answer) -> Answer:
    """Say whether the owners are still the same."""
    if list(map(_identity, answer)) == list(map(_identity, again)):
        return replace(answer, verified=True)
    note = "the owners changed while paths and processes were looked for: ask again"
    return replace(
        answer,
        verified=False,
        complete=False,
        notes=distinct([note, *answer.notes]),
        remarks=(answer.notes or UNSET) if answer.complete else answer.remarks,
    )


def _identity(row: Owner) -> Owner:
    """Give a row without what was found out about its owner."""
    if isinstance(row, FileOwner):
        return replace(
            row, paths=UNSET, unlinked=UNSET, detail=UNSET, mounted_at=UNSET, processes=UNSET
        )
    return row


def _put_together(asked: Asked, parts: Sequence[_Part]) -> Answer:
    """Make one answer in the terms of the question from those of the filesystems."""
    origin = asked.origin or UNSET
    rows: list[Owner] = []
    missing: list[str] = []
    remarks: list[str] = [asked.remark] if asked.remark else []
    for part in parts:
        rows += _rows_of(part, missing, remarks)
    if len(parts) > 1:
        rows.sort(key=_order)
    verified = {
        part.leaf.told[part.number].verified
        for part in parts
        if part.leaf is not None and part.leaf.space is not None
    }
    way: tuple[Via, ...] | UnsetType = _way(parts[0].landing, 0)
    if not (asked.named or asked.layer.segments or asked.layer.beneath):
        # The filesystem itself was asked, though not only for what it has.
        rows, way = [replace(row, via=UNSET) for row in rows], UNSET
    notes = distinct([*missing, *remarks])
    return Answer(
        asked.start,
        asked.length,
        not missing,
        notes,
        tuple(rows),
        origin,
        verified=UNSET if verified <= {UNSET} else False not in verified,
        remarks=remarks_in(notes, missing, remarks),
        via=way,
    )


def _rows_of(part: _Part, missing: list[str], remarks: list[str]) -> Iterator[Owner]:
    """Give the rows of one part, in the terms of the question, each with its way."""
    landing, leaf = part.landing, part.leaf
    missing += landing.doubts
    remarks += landing.remarks
    name = landing.way[-1].layer
    if leaf is not None and leaf.space is not None:
        answer = leaf.told[part.number]
        for note in answer.notes:
            only = answer.complete or note in (answer.remarks or ())
            (remarks if only else missing).append(f"{name}: {note}")
        for row in answer.owners:
            distance = row.start - landing.offset
            yield replace(row, start=landing.start + distance, via=_way(landing, distance))
        return
    if leaf is None and landing.certain:
        yield Outside(landing.start, landing.length, landing.what, via=_way(landing, 0))
        return
    missing.append(f"{name}: {leaf.error if leaf else landing.what}")
    yield Unknown(landing.start, landing.length, via=_way(landing, 0))


def _way(landing: Landing, distance: int) -> tuple[Via, ...]:
    return tuple(Via(layer, start + distance) for layer, start in landing.way)


def _order(row: Owner) -> tuple[int, int, int]:
    """Order rows as the contract does: by start, inode, file offset."""
    if isinstance(row, FileOwner):
        return row.start, row.inode, row.file_offset or 0
    return row.start, 0, 0
