"""The main job: a failure in, findings out.

`Lookup` takes failed ranges of a target, or of devices that the failures name themselves, follows
them down the stack, asks the filesystem that is found there, and puts the answers together in the
words of the question: every ``start`` is a byte of the device that was asked about.
"""

import os
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack, closing
from heapq import merge
from itertools import islice, pairwise
from pathlib import Path
from typing import Final, NamedTuple

from msgspec import UNSET, UnsetType
from msgspec.structs import replace

from whoseblock.asking import Streamed, Wish, told
from whoseblock.closing import Closing
from whoseblock.errors import (
    BlockError,
    NotAFilesystemError,
    PrivilegeError,
    WhoseblockError,
)
from whoseblock.fs import registry
from whoseblock.fs.arguments import check_within
from whoseblock.fs.base import (
    Answer,
    FileOwner,
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
from whoseblock.fs.driver import AddressSpace, Volume
from whoseblock.fs.stream import ROW_BUDGET, LeadingRows, join_rows
from whoseblock.media.base import Media
from whoseblock.media.device import FileMedia
from whoseblock.media.mounts import is_folder, mounted_device
from whoseblock.stack.base import Layer, LayerOffset, RangeMapping, descend

__all__ = ["Asked", "Lookup", "Wish", "open_filesystem"]

#: So many questions are answered together: enough to share reads, few enough to hold.
_BATCH: Final = 1 << 16
#: The parts of a question that are looked at together, if it can be cut there.
_RUN: Final = 1 << 12
#: Longer parts may have more rows than can be held.
_LONG: Final = 256 << 20


def open_filesystem(
    target: str | os.PathLike[str] | Media,
    *,
    companions: Mapping[str, str | os.PathLike[str] | Media] | None = None,
    offline: bool = False,
) -> Volume:
    """Open the filesystem on ``target``; see `whoseblock.open`.

    The kernel answers for what is mounted, unless ``offline``; the disk is read where the kernel
    does not answer, and every answer then says so.  ``companions`` are the other devices of the
    filesystem, by their role.  Raises `TargetError`, `NotAFilesystemError`, `UnsupportedError` or
    `PrivilegeError`; what was opened here is then closed again.
    """
    path = target if isinstance(target, str | os.PathLike) else None
    device = None if path is None or offline else mounted_device(path)
    size = None
    if path is not None and device is not None and not is_folder(path):
        # A device has no size of its own.
        size = Path(path).stat().st_size or None

    def open_disk(failed: BlockError | None, doubts: Sequence[str]) -> Volume:
        source = target
        if failed is not None and device is not None and path is not None and is_folder(path):
            source = _device_below(device, failed)
        with ExitStack() as undo:
            media = _open_media(source, undo)
            others = {role: _open_media(one, undo) for role, one in (companions or {}).items()}
            filesystem = registry.open_volume([media], others, doubts)
            undo.pop_all()
        return filesystem

    return registry.open_mounted_or_disk(device, size, open_disk)


def _device_below(device: int, error: BlockError) -> str:
    """Return the path of the device of a number; raises ``error`` if it is no block device."""
    from whoseblock.stack.kernel.host import Host

    name = Host().find_device_by_number(device)
    if name is None:
        raise error
    return f"/dev/{name}"


def _open_media(given: str | os.PathLike[str] | Media, undo: ExitStack) -> Media:
    """Open a path as a medium that ``undo`` closes; a medium that is open already is returned."""
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


class _Leaf:
    """What is on a layer that nothing is made of: who answers for it, or why nobody does."""

    def __init__(self, space: AddressSpace | None, error: WhoseblockError | None = None) -> None:
        self.space = space
        self.error = error


class _Part(NamedTuple):
    """A part of a question: where it led, and what is there; None if there is nothing to ask."""

    landing: RangeMapping
    leaf: _Leaf | None


#: The answers of each leaf, in the order of the parts.
_Streams = dict[_Leaf, Iterator[Streamed]]


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

        Each answer is held whole; `stream` holds a part of it.  Raises `OutOfDeviceError` for a
        range without an origin that is not on its device.
        """
        return join_rows(self.stream(asked, wish))

    def stream(self, asked: Iterable[Asked], wish: Wish = Wish()) -> Iterator[Streamed]:  # noqa: B008 - frozen
        """Answer like `answers`, an answer with many rows in pieces; see `fs.stream`."""
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
        return space.file_size(inode) if isinstance(space, Volume) else None

    def paths_many(self, layer: Layer, inodes: Iterable[int]) -> dict[int, Paths]:
        """Give every path of each of ``inodes`` of the filesystem on a layer."""
        space = self._find_leaf(layer).space
        return space.paths_many(inodes) if isinstance(space, Volume) else {}

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
        if layer.segments or layer.backing_segments or layer.remarks or layer.doubts:
            return False
        size = layer.size
        return all(
            asked.layer is layer and not asked.named and asked.start + asked.length <= size
            for asked in batch
        )

    def _answer_plainly(self, batch: Sequence[Asked], wish: Wish) -> Iterator[Streamed]:
        space = self.leaf(batch[0].layer)
        answered = 0
        for item in told(space, [(asked.start, asked.length) for asked in batch], wish):
            if isinstance(item, LeadingRows):
                yield item
                continue
            yield _with_origin(item, batch[answered])
            answered += 1

    def _answer_batch(self, batch: Sequence[Asked], wish: Wish) -> Iterator[Streamed]:
        for asked in batch:
            if not asked.origin:
                check_within(asked.start, asked.length, asked.layer.name, asked.layer.size)
        runs = (run for asked in batch for run in _runs(asked, self._parts(asked)))
        assembled: _Assembled | None = None
        for some in _grouped(runs):
            streams = _open_streams(some, wish)
            for asked, parts, last in some:
                assembled = assembled or _Assembled(asked)
                yield from assembled.add(parts, streams, wish)
                if last:
                    yield assembled.answer()
                    assembled = None

    def _parts(self, asked: Asked) -> Iterator[_Part]:
        """Follow a range down to what can be asked about it."""
        for landing in descend(asked.layer, asked.start, asked.length):
            if landing.layer is None:
                yield _Part(landing, None)
            else:
                yield from self._parts_on(landing, self._find_leaf(landing.layer))

    @staticmethod
    def _parts_on(landing: RangeMapping, leaf: _Leaf) -> Iterator[_Part]:
        """Ask a leaf for what it has; an image may be shorter than the device it is a copy of."""
        length = landing.length
        if leaf.space is not None:
            length = min(length, max(leaf.space.device_size - landing.offset, 0))
        if length:
            yield _Part(landing._replace(length=length), leaf)
        if length < landing.length:
            way = tuple(LayerOffset(step.layer, step.start + length) for step in landing.via)
            rest = landing._replace(
                start=landing.start + length,
                length=landing.length - length,
                via=way,
                layer=None,
                what="past the end of what can be read of it",
                certain=False,
            )
            yield _Part(rest, None)

    def close(self) -> None:
        """Close every filesystem that was opened."""
        for leaf in self._leaves.values():
            if leaf.space is not None:
                leaf.space.close()
        self._leaves.clear()


def _with_origin(answer: Answer, asked: Asked) -> Answer:
    """Add to the answer of a filesystem where the failure was read, and the remark about it."""
    if not asked.remark:
        return replace(answer, origin=asked.origin) if asked.origin else answer
    return replace(
        answer,
        origin=asked.origin,
        notes=distinct([*answer.notes, asked.remark]),
        remarks=UNSET if answer.complete else (*(answer.remarks or ()), asked.remark),
    )


_Run = tuple[Asked, list[_Part], bool]


def _runs(asked: Asked, parts: Iterable[_Part]) -> Iterator[_Run]:
    """Cut the parts of a question, which ascend, where none crosses; tell which run is the last."""
    run: list[_Part] = []
    reach = 0
    for part in parts:
        landing = part.landing
        if len(run) >= _RUN and landing.start >= reach:
            yield asked, run, False
            run = []
        run.append(part)
        reach = max(reach, landing.start + landing.length)
    yield asked, run, True


def _grouped(runs: Iterable[_Run]) -> Iterator[list[_Run]]:
    """Group runs whose parts are asked about together."""
    group: list[_Run] = []
    parts = 0
    for run in runs:
        group.append(run)
        parts += len(run[1])
        if parts >= _BATCH:
            yield group
            group, parts = [], 0
    if group:
        yield group


def _open_streams(runs: Iterable[_Run], wish: Wish) -> _Streams:
    """Ask each leaf for all parts of ``runs``, but for those that are asked about apart."""
    wanted: dict[_Leaf, list[tuple[int, int]]] = {}
    for _, parts, _ in runs:
        if _is_apart(parts):
            continue
        for landing, leaf in parts:
            if leaf is not None and leaf.space is not None:
                wanted.setdefault(leaf, []).append((landing.offset, landing.length))
    return {
        leaf: iter(told(leaf.space, ranges, wish))
        for leaf, ranges in wanted.items()
        if leaf.space is not None
    }


def _overlap(parts: Sequence[_Part]) -> bool:
    """Tell whether some bytes of the question have several parts."""
    return any(
        before.landing.start + before.landing.length > part.landing.start
        for before, part in pairwise(parts)
    )


def _is_apart(parts: Sequence[_Part]) -> bool:
    """Tell whether parts that overlap are so long that their rows are merged as they come."""
    return _overlap(parts) and any(part.landing.length > _LONG for part in parts)


class _Assembled:
    """Puts one answer together, in the terms of the question, from those of the filesystems."""

    def __init__(self, asked: Asked) -> None:
        self._asked = asked
        self._rows: list[Owner] = []
        self._missing: dict[str, None] = {}
        self._remarks: dict[str, None] = {asked.remark: None} if asked.remark else {}
        self._verified: set[bool | UnsetType] = set()
        self._way: tuple[Via, ...] | UnsetType | None = None
        #: Whether the filesystem itself was asked, though not only for what it has.
        self._plain = not (asked.named or asked.layer.segments or asked.layer.backing_segments)

    def add(self, parts: Sequence[_Part], streams: _Streams, wish: Wish) -> Iterator[LeadingRows]:
        """Add the rows of ``parts``, and return those that need not be held."""
        if self._way is None:
            self._way = _way(parts[0].landing, 0)
        rows: Iterable[Owner]
        if _is_apart(parts):
            rows = merge(
                *(self._rows_of(part, self._apart(part, wish)) for part in parts), key=_order
            )
        else:
            rows = (
                row
                for part in parts
                for row in self._rows_of(part, streams.get(part.leaf) if part.leaf else None)
            )
            if _overlap(parts):
                rows = sorted(rows, key=_order)
        for row in rows:
            if len(self._rows) >= ROW_BUDGET:
                yield LeadingRows(self._asked.start, self._asked.length, tuple(self._rows))
                self._rows = []
            self._rows.append(replace(row, via=UNSET) if self._plain else row)

    def answer(self) -> Answer:
        """Return the answer, with the rows that were not returned before."""
        asked = self._asked
        notes = distinct([*self._missing, *self._remarks])
        return Answer(
            asked.start,
            asked.length,
            not self._missing,
            notes,
            tuple(self._rows),
            asked.origin or UNSET,
            verified=UNSET if self._verified <= {UNSET} else False not in self._verified,
            remarks=remarks_in(notes, self._missing, self._remarks),
            via=UNSET if self._plain or self._way is None else self._way,
        )

    @staticmethod
    def _apart(part: _Part, wish: Wish) -> Iterator[Streamed] | None:
        landing, leaf = part
        if leaf is None or leaf.space is None:
            return None
        return iter(told(leaf.space, [(landing.offset, landing.length)], wish))

    def _rows_of(self, part: _Part, stream: Iterator[Streamed] | None) -> Iterator[Owner]:
        """Return the rows of one part, in the terms of the question, each with its way."""
        landing, leaf = part
        self._missing.update(dict.fromkeys(landing.doubts))
        self._remarks.update(dict.fromkeys(landing.remarks))
        name = landing.via[-1].layer
        if stream is not None:
            for item in stream:
                for row in item.owners:
                    distance = row.start - landing.offset
                    way = _way(landing, distance)
                    yield replace(row, start=landing.start + distance, via=way)
                if isinstance(item, Answer):
                    for note in item.notes:
                        only = item.complete or note in (item.remarks or ())
                        (self._remarks if only else self._missing)[f"{name}: {note}"] = None
                    self._verified.add(item.verified)
                    return
        elif leaf is None and landing.certain:
            yield Outside(landing.start, landing.length, landing.what, via=_way(landing, 0))
        else:
            self._missing[f"{name}: {leaf.error if leaf else landing.what}"] = None
            yield Unknown(landing.start, landing.length, via=_way(landing, 0))


def _way(landing: RangeMapping, distance: int) -> tuple[Via, ...]:
    return tuple(Via(layer, start + distance) for layer, start in landing.via)


def _order(row: Owner) -> tuple[int, int, int]:
    """Order rows as the contract does: by start, inode, file offset."""
    if isinstance(row, FileOwner):
        return row.start, row.inode, row.file_offset or 0
    return row.start, 0, 0
