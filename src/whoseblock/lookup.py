"""The main job: failed ranges in, owners out.

`Lookup` takes failed ranges of a target, or of devices that the failures name themselves.  It
follows them down the stack, queries the filesystem there, and returns the answers in the address
space of the query: every ``start`` is a byte of the device that was queried.
"""

import os
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack, closing
from heapq import merge
from itertools import islice, pairwise
from pathlib import Path
from typing import TYPE_CHECKING, Final

from msgspec import UNSET, UnsetType
from msgspec.structs import replace

from whoseblock.closing import Closing
from whoseblock.errors import (
    BlockError,
    NotAFilesystemError,
    PrivilegeError,
    WhoseblockError,
)
from whoseblock.fs import opening
from whoseblock.fs.arguments import check_list, check_within
from whoseblock.fs.base import (
    MAX_OWNERS,
    Answer,
    FileId,
    FileOwner,
    LayerLocation,
    Outside,
    Owner,
    Paths,
    Progress,
    Unknown,
    distinct,
    no_progress,
    remarks_in,
)
from whoseblock.fs.driver import AddressSpace, Volume
from whoseblock.fs.stream import ROW_BUDGET, LeadingRows, join_rows
from whoseblock.media.base import Media
from whoseblock.media.device import FileMedia
from whoseblock.media.mounts import is_folder, mounted_device
from whoseblock.query import Leaf, Part, Query, QueryList, is_plain
from whoseblock.querying import QueryOptions, StreamItem, stream_owners
from whoseblock.stack.base import Layer, LayerOffset, RangeMapping, descend

if TYPE_CHECKING:
    from whoseblock.columns import PlacedColumns

__all__ = [
    "RESCAN_LIMIT",
    "Assembled",
    "Lookup",
    "Query",
    "QueryList",
    "QueryOptions",
    "open_filesystem",
    "with_origin",
]

#: So many bytes are read without asking where a reverse map is damaged: about a second of a disk.
RESCAN_LIMIT: Final = 64 << 20
_DEFAULTS: Final = QueryOptions()
#: This many queries are answered together: enough to share reads, few enough to hold.
_BATCH: Final = 1 << 16
#: The same as columns, 16 bytes each: filesystems divide them again, and one may need a scan for
#: each call.
_COLUMNS: Final = 1 << 20
#: Fewer questions are not worth loading NumPy.
_FEW: Final = 48
#: The order of rows that belong to no file.
_NO_FILE: Final = FileId(0, 0)
#: The parts of a query that are answered together, if it can be cut there.
_RUN: Final = 1 << 12
#: Longer parts may have more rows than can be held.
_LONG: Final = 256 << 20


def open_filesystem(
    target: str | os.PathLike[str] | Media,
    *,
    companions: Mapping[str, str | os.PathLike[str] | Media] | None = None,
    members: Sequence[str | os.PathLike[str] | Media] = (),
    offline: bool = False,
) -> Volume:
    """Open the filesystem on ``target``; see `whoseblock.open`.

    The kernel answers for what is mounted, unless ``offline``; the disk is read where the kernel
    does not answer, and every answer then has a note.  ``companions`` are the other devices of the
    filesystem, by their role, and ``members`` those that are like the target.  Raises
    `TargetError`, `NotAFilesystemError`, `UnsupportedError` or `PrivilegeError`; what was opened
    here is then closed again.
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
            media = [_open_media(one, undo) for one in (source, *members)]
            others = {role: _open_media(one, undo) for role, one in (companions or {}).items()}
            filesystem = opening.open_volume(media, others, doubts)
            undo.pop_all()
        return filesystem

    return opening.open_mounted_or_disk(device, size, open_disk)


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


#: The answers of each leaf, in the order of the parts.
_Streams = dict[Leaf, Iterator[StreamItem]]


class Lookup(Closing):
    """Answers queries about layers; a context manager, which closes what it opened.

    ``open_leaf`` opens what is on a layer that nothing is made of, or raises a `WhoseblockError`
    with the reason why there is nothing.
    """

    def __init__(self, open_leaf: Callable[[Layer], AddressSpace]) -> None:
        self.progress: Progress = no_progress
        #: As the same attributes of `AddressSpace`, for what is opened from now on.
        self.scans = True
        self.rescans = False
        self.rescan_limit = 0
        self.max_owners = MAX_OWNERS
        #: The last permission that was denied.
        self.denied: PrivilegeError | None = None
        self._open_leaf = open_leaf
        self._leaves: dict[Layer, Leaf] = {}

    def answers(
        self, queries: Iterable[Query], options: QueryOptions = _DEFAULTS
    ) -> Iterator[Answer]:
        """Yield the owners of each range, in the order of the queries.

        Each answer is held whole; `stream` holds a part of it.  Raises `OutOfDeviceError` for a
        range without an origin that is not on its device.
        """
        return join_rows(self.stream(queries, options))

    def stream(
        self, queries: Iterable[Query], options: QueryOptions = _DEFAULTS
    ) -> Iterator[StreamItem]:
        """Answer like `answers`, an answer with many rows in pieces; see `fs.stream`."""
        waiting = iter(queries)
        while batch := list(islice(waiting, _BATCH)):
            if self._are_plain(batch):
                yield from self._answer_plainly(batch, options)
            else:
                yield from self._answer_batch(batch, options)

    def stream_columns(
        self, queries: QueryList, options: QueryOptions = _DEFAULTS
    ) -> Iterator["StreamItem | PlacedColumns"]:
        """Answer like `stream`, as columns where the filesystem has them.

        Raises `OutOfDeviceError` as `stream` does.
        """
        layer, ranges = queries.layer, queries.ranges
        if len(ranges) < _FEW or not options.bare_rows or not (options.bare or queries.named):
            yield from self._stream_ranges(queries, options)
            return
        from whoseblock.columns import stream_placed

        if not queries.report:
            check_list(ranges, layer.name, layer.size)
        for at in range(0, len(ranges), _COLUMNS):
            part = queries.part(at, at + _COLUMNS)
            yield from stream_placed(part, options, self._find_leaf, self.stream)

    def _stream_ranges(self, queries: QueryList, options: QueryOptions) -> Iterator[StreamItem]:
        """Answer like `stream`, without an object for each question where that is possible."""
        layer, ranges = queries.layer, queries.ranges
        if queries.named or queries.report or not options.bare or not is_plain(layer):
            yield from self.stream(queries.queries(), options)
            return
        check_list(ranges, layer.name, layer.size)
        for at in range(0, len(ranges), _COLUMNS):
            yield from stream_owners(self.leaf(layer), ranges[at : at + _COLUMNS], options)

    @property
    def layers(self) -> dict[str, Layer]:
        """The layers whose content was queried, by their names."""
        return {layer.name: layer for layer in self._leaves}

    def file_size(self, layer: Layer, file: FileId) -> int | None:
        """Return the size of a file of the filesystem on a layer, None if it is unknown."""
        space = self._find_leaf(layer).space
        if not isinstance(space, Volume):
            return None
        facts = space.files((file,)).get(file)
        return None if facts is None else facts.size

    def paths_of(self, layer: Layer, files: Iterable[FileId]) -> dict[FileId, Paths]:
        """Return every path of each file of the filesystem on a layer."""
        space = self._find_leaf(layer).space
        return space.paths_of(files) if isinstance(space, Volume) else {}

    def leaf(self, layer: Layer) -> AddressSpace:
        """Return what is on a layer that nothing is made of.

        Raises the `WhoseblockError` with the reason why there is nothing.
        """
        found = self._find_leaf(layer)
        if found.space is None:
            raise found.error or NotAFilesystemError("there is nothing")
        return found.space

    def _find_leaf(self, layer: Layer) -> Leaf:
        leaf = self._leaves.get(layer)
        if leaf is None:
            try:
                space = self._open_leaf(layer)
            except PrivilegeError as error:
                # Root would get an answer: this is not unknown.
                self.denied = error
                raise
            except WhoseblockError as error:
                leaf = Leaf(None, error)
            else:
                space.progress = self.progress
                space.scans = self.scans
                space.rescans = self.rescans
                space.rescan_limit = self.rescan_limit
                space.max_owners = self.max_owners
                leaf = Leaf(space)
            self._leaves[layer] = leaf
        return leaf

    @staticmethod
    def _are_plain(batch: Sequence[Query]) -> bool:
        """Return whether a filesystem itself is queried, whose answers need no translation."""
        layer = batch[0].layer
        size = layer.size
        return is_plain(layer) and all(
            query.layer is layer and not query.named and query.start + query.length <= size
            for query in batch
        )

    def _answer_plainly(
        self, batch: Sequence[Query], options: QueryOptions
    ) -> Iterator[StreamItem]:
        layer = batch[0].layer
        stream = stream_owners(
            self.leaf(layer), [(query.start, query.length) for query in batch], options
        )
        if options.bare and not any(query.origin or query.remark for query in batch):
            yield from stream
            return
        answered = 0
        for item in stream:
            if not options.bare:
                item = _with_via(item, layer)  # noqa: PLW2901 - the same item, with its way
            if isinstance(item, LeadingRows):
                yield item
                continue
            yield with_origin(item, batch[answered])
            answered += 1

    def _answer_batch(self, batch: Sequence[Query], options: QueryOptions) -> Iterator[StreamItem]:
        for query in batch:
            if not query.origin:
                check_within(query.start, query.length, query.layer.name, query.layer.size)
        runs = (run for query in batch for run in _runs(query, self._parts(query)))
        assembled: Assembled | None = None
        for some in _grouped(runs):
            streams = _open_streams(some, options)
            for query, parts, last in some:
                assembled = assembled or Assembled(query, bare=options.bare)
                yield from assembled.add(parts, streams, options)
                if last:
                    yield assembled.answer()
                    assembled = None

    def _parts(self, query: Query) -> Iterator[Part]:
        """Follow a range down to what can be queried."""
        for mapping in descend(query.layer, query.start, query.length):
            if mapping.layer is None:
                yield Part(mapping, None)
            else:
                yield from self._parts_on(mapping, self._find_leaf(mapping.layer))

    @staticmethod
    def _parts_on(mapping: RangeMapping, leaf: Leaf) -> Iterator[Part]:
        """Query a leaf for what it has; an image may be shorter than the device it is a copy of."""
        length = mapping.length
        if leaf.space is not None:
            length = min(length, max(leaf.space.device_size - mapping.offset, 0))
        if length:
            yield Part(mapping._replace(length=length), leaf)
        if length < mapping.length:
            way = tuple(LayerOffset(step.layer, step.start + length) for step in mapping.via)
            rest = mapping._replace(
                start=mapping.start + length,
                length=mapping.length - length,
                via=way,
                layer=None,
                what="past the end of what can be read of it",
                certain=False,
            )
            yield Part(rest, None)

    def close(self) -> None:
        """Close every filesystem that was opened."""
        for leaf in self._leaves.values():
            if leaf.space is not None:
                leaf.space.close()
        self._leaves.clear()


def _with_via(item: StreamItem, layer: Layer) -> StreamItem:
    """Add to the rows of a filesystem on the layer that was queried their place in it."""
    rows = tuple(replace(row, via=(LayerLocation(layer.name, row.start),)) for row in item.owners)
    if isinstance(item, LeadingRows):
        return replace(item, owners=rows)
    return replace(item, owners=rows, via=(LayerLocation(layer.name, item.start),))


_Run = tuple[Query, list[Part], bool]


def _runs(query: Query, parts: Iterable[Part]) -> Iterator[_Run]:
    """Cut the ascending parts of a query where none crosses; yield whether a run is the last."""
    run: list[Part] = []
    reach = 0
    for part in parts:
        mapping = part.mapping
        if len(run) >= _RUN and mapping.start >= reach:
            yield query, run, False
            run = []
        run.append(part)
        reach = max(reach, mapping.start + mapping.length)
    yield query, run, True


def _grouped(runs: Iterable[_Run]) -> Iterator[list[_Run]]:
    """Group runs whose parts are queried together."""
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


def _open_streams(runs: Iterable[_Run], options: QueryOptions) -> _Streams:
    """Query each leaf for all parts of ``runs``, except those that are queried apart."""
    wanted: dict[Leaf, list[tuple[int, int]]] = {}
    for _, parts, _ in runs:
        if _is_apart(parts):
            continue
        for mapping, leaf in parts:
            if leaf is not None and leaf.space is not None:
                wanted.setdefault(leaf, []).append((mapping.offset, mapping.length))
    return {
        leaf: iter(stream_owners(leaf.space, ranges, options))
        for leaf, ranges in wanted.items()
        if leaf.space is not None
    }


def with_origin(answer: Answer, query: Query) -> Answer:
    """Add to an answer where the failure was read, and the remark about it."""
    if not query.remark:
        return replace(answer, origin=query.origin) if query.origin else answer
    return replace(
        answer,
        origin=query.origin,
        notes=distinct([*answer.notes, query.remark]),
        remarks=UNSET if answer.complete else (*(answer.remarks or ()), query.remark),
    )


def _overlap(parts: Sequence[Part]) -> bool:
    """Return whether some bytes of the query have several parts."""
    return any(
        before.mapping.start + before.mapping.length > part.mapping.start
        for before, part in pairwise(parts)
    )


def _is_apart(parts: Sequence[Part]) -> bool:
    """Return whether overlapping parts are so long that their rows are merged as they come."""
    return _overlap(parts) and any(part.mapping.length > _LONG for part in parts)


class Assembled:
    """Joins one answer, in the address space of the query, from those of the filesystems."""

    def __init__(self, query: Query, *, bare: bool) -> None:
        self._query = query
        self._rows: list[Owner] = []
        self._missing: dict[str, None] = {}
        self._remarks: dict[str, None] = {query.remark: None} if query.remark else {}
        self._verified: set[bool | UnsetType] = set()
        self._way: tuple[LayerLocation, ...] | UnsetType | None = None
        layer = query.layer
        #: Whether the filesystem itself was queried, and ``via`` is left out.
        self._plain = bare and not (query.named or layer.segments or layer.backing_segments)

    def add(
        self, parts: Sequence[Part], streams: _Streams, options: QueryOptions
    ) -> Iterator[LeadingRows]:
        """Add the rows of ``parts``, and return those that need not be held."""
        if self._way is None:
            self._way = _way(parts[0].mapping, 0)
        rows: Iterable[Owner]
        if _is_apart(parts):
            rows = merge(
                *(self._rows_of(part, self._apart(part, options)) for part in parts), key=_order
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
                yield LeadingRows(self._query.start, self._query.length, tuple(self._rows))
                self._rows = []
            self._rows.append(replace(row, via=UNSET) if self._plain else row)

    def answer(self) -> Answer:
        """Return the answer, with the rows that were not returned before."""
        query = self._query
        notes = distinct([*self._missing, *self._remarks])
        return Answer(
            query.start,
            query.length,
            not self._missing,
            notes,
            tuple(self._rows),
            query.origin or UNSET,
            verified=UNSET if self._verified <= {UNSET} else False not in self._verified,
            remarks=remarks_in(notes, self._missing, self._remarks),
            via=UNSET if self._plain or self._way is None else self._way,
        )

    @staticmethod
    def _apart(part: Part, options: QueryOptions) -> Iterator[StreamItem] | None:
        mapping, leaf = part
        if leaf is None or leaf.space is None:
            return None
        return iter(stream_owners(leaf.space, [(mapping.offset, mapping.length)], options))

    def _rows_of(self, part: Part, stream: Iterator[StreamItem] | None) -> Iterator[Owner]:
        """Yield the rows of one part, in the address space of the query, each with its way."""
        mapping, leaf = part
        self._missing.update(dict.fromkeys(mapping.doubts))
        self._remarks.update(dict.fromkeys(mapping.remarks))
        name = mapping.via[-1].layer
        if stream is not None:
            for item in stream:
                for row in item.owners:
                    distance = row.start - mapping.offset
                    way = _way(mapping, distance)
                    yield replace(row, start=mapping.start + distance, via=way)
                if isinstance(item, Answer):
                    for note in item.notes:
                        only = item.complete or note in (item.remarks or ())
                        (self._remarks if only else self._missing)[f"{name}: {note}"] = None
                    self._verified.add(item.verified)
                    return
        elif leaf is None and mapping.certain:
            yield Outside(mapping.start, mapping.length, mapping.what, via=_way(mapping, 0))
        else:
            self._missing[f"{name}: {leaf.error if leaf else mapping.what}"] = None
            yield Unknown(mapping.start, mapping.length, via=_way(mapping, 0))


def _way(mapping: RangeMapping, distance: int) -> tuple[LayerLocation, ...]:
    return tuple(LayerLocation(layer, start + distance) for layer, start in mapping.via)


def _order(row: Owner) -> tuple[int, FileId, int]:
    """Order rows as the contract does: by start, subvolume, inode, file offset."""
    if isinstance(row, FileOwner):
        return row.start, row.file, row.file_offset or 0
    return row.start, _NO_FILE, 0
