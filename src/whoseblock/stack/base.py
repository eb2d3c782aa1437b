"""Layers, the segments that they are cut into, and the mapping of a range through them.

A *layer* is anything with an address space: physical memory, a region, a disk, a partition, a
volume, an array. Its *segments* are the parts that other layers are made of: a partition of a disk,
the extents of a logical volume on a physical volume, the chunks of an array on a member. `descend`
maps a failed range from the layer that reported it to the layers made of the failed bytes, down to
the leaves: layers that nothing is made of. Only a leaf can hold a filesystem.
"""

from bisect import bisect_right
from collections.abc import Callable, Iterable, Iterator
from itertools import accumulate
from typing import Final, NamedTuple, Protocol

from whoseblock.media.base import Media

__all__ = [
    "MAX_DEPTH",
    "Layer",
    "LayerMapping",
    "LayerOffset",
    "LinearSegment",
    "RangeMapping",
    "Segment",
    "UnmappedSegment",
    "descend",
    "layers_below",
    "linear_window",
    "map_back_linearly",
    "reach",
]

#: Limit on the depth of a stack; a table that maps to itself would exceed any limit.
MAX_DEPTH: Final = 32


class LayerMapping(NamedTuple):
    """A mapping of ``length`` bytes from ``start`` of a layer.

    They map to ``to_start`` of the layer ``to``. Without such a layer, ``what`` is their use, and
    ``certain`` is true if no filesystem can be there. ``remark`` becomes a note of the answer, for
    example that there is another copy; ``doubt`` one that makes the answer incomplete.
    """

    start: int
    length: int
    to: "Layer | None" = None
    to_start: int = 0
    what: str = ""
    certain: bool = True
    remark: str = ""
    doubt: str = ""


class Segment(Protocol):
    """``length`` bytes from ``start`` of a layer with one use."""

    @property
    def start(self) -> int:
        """The offset in the layer, in bytes."""

    @property
    def length(self) -> int:
        """The length in bytes."""

    @property
    def to(self) -> "Layer | None":
        """The layer that is made of the segment, or None; used to draw the stack."""

    @property
    def what(self) -> str:
        """The use of the segment, in a few words."""

    def map_range(self, start: int, length: int) -> Iterable[LayerMapping]:
        """Map a range of the layer, which must be within the segment."""

    def map_back(self, to_start: int, length: int) -> Iterable[tuple[int, int, int]]:
        """Map what the segment has of a range of ``to`` back to the layer.

        Yield each part as its start in the layer, its length, and its start in ``to``.
        """


class LinearSegment(NamedTuple):
    """A segment that another layer contains unchanged from its offset ``to_start``.

    ``remark`` and ``doubt`` are as in a `LayerMapping`.
    """

    start: int
    length: int
    to: "Layer"
    to_start: int = 0
    what: str = ""
    remark: str = ""
    doubt: str = ""

    def map_range(self, start: int, length: int) -> Iterable[LayerMapping]:
        """Map a range of the layer, which must be within the segment."""
        to_start = self.to_start + start - self.start
        said = (self.remark, self.doubt)
        return (LayerMapping(start, length, self.to, to_start, "", True, *said),)  # noqa: FBT003

    def map_back(self, to_start: int, length: int) -> Iterable[tuple[int, int, int]]:
        """Map what the segment has of a range of ``to`` back to the layer."""
        return map_back_linearly(self, self.to_start, to_start, length)


class UnmappedSegment(NamedTuple):
    """A segment that maps to no layer; ``what`` is its use.

    If ``certain`` is false, a filesystem may be there, in a form that is not followed. ``doubt``
    is as in a `LayerMapping`.
    """

    start: int
    length: int
    what: str
    certain: bool = True
    remark: str = ""
    doubt: str = ""

    @property
    def to(self) -> "Layer | None":
        """None: no layer is made of the segment."""
        return None

    def map_range(self, start: int, length: int) -> Iterable[LayerMapping]:
        """Map a range of the layer to no layer."""
        said = (self.what, self.certain, self.remark, self.doubt)
        return (LayerMapping(start, length, None, 0, *said),)

    def map_back(self, _to_start: int, _length: int) -> Iterable[tuple[int, int, int]]:
        """Return nothing: no layer is made of the segment."""
        return ()


def map_back_linearly(
    segment: Segment, begin: int, to_start: int, length: int
) -> Iterable[tuple[int, int, int]]:
    """Map a range back through a segment that begins at byte ``begin`` of its ``to``.

    See `Segment.map_back`.
    """
    low, high = max(to_start, begin), min(to_start + length, begin + segment.length)
    return ((segment.start + low - begin, high - low, low),) if low < high else ()


class Layer:
    """An address space of ``size`` bytes, cut into segments, which may overlap.

    A layer without segments is a leaf. In a layer with segments, ``gap`` is the use of bytes
    outside of all segments; if ``gap_certain`` is false, a filesystem may be there. ``kind`` is a
    word for users: disk, partition, volume. ``open_media`` opens the layer for reading; the caller
    closes the result.
    """

    def __init__(  # noqa: PLR0913 - the properties of a layer
        self,
        name: str,
        size: int,
        kind: str,
        *,
        open_media: Callable[[], Media] | None = None,
        gap: str = "unpartitioned",
        gap_certain: bool = True,
        remarks: Iterable[str] = (),
        doubts: Iterable[str] = (),
        device: int | None = None,
        size_certain: bool = True,
    ) -> None:
        self.name = name
        self.size = size
        #: False for a copy of an unknown device, which may be larger.
        self.size_certain = size_certain
        self.kind = kind
        self.gap = gap
        self.gap_certain = gap_certain
        #: Notes of every answer that involves this layer.
        self.remarks = tuple(remarks)
        #: Notes that make every such answer incomplete.
        self.doubts = tuple(doubts)
        #: The number (`os.makedev`) of this machine's block device that reads the layer.
        self.device = device
        self._open_media = open_media
        #: Segments of the storage behind the layer (a loop device's file) to continue in.
        self.backing_segments: tuple[Segment, ...] = ()
        self._segments: list[Segment] = []
        self._starts: list[int] = []
        #: The running maximum of the ends: a segment that begins early may end late.
        self._ends: list[int] = []

    @property
    def segments(self) -> list[Segment]:
        """The segments, in the order of their starts."""
        return self._segments

    @segments.setter
    def segments(self, segments: Iterable[Segment]) -> None:
        self._segments = sorted(segments, key=lambda segment: (segment.start, segment.length))
        self._starts = [segment.start for segment in self._segments]
        self._ends = list(
            accumulate((segment.start + segment.length for segment in self._segments), max)
        )

    @property
    def readable(self) -> bool:
        """Whether the layer can be opened."""
        return self._open_media is not None

    def read_from(self, open_media: Callable[[], Media]) -> None:
        """Read the layer from a copy of it from now on."""
        self._open_media = open_media

    def open(self) -> Media:
        """Open the layer for reading; raises `TargetError`."""
        if self._open_media is None:
            raise LookupError(f"{self.name} is an address space only")
        return self._open_media()

    def map_range(self, start: int, length: int) -> Iterator[LayerMapping]:
        """Map each part of a range; where segments overlap, yield a mapping for each of them."""
        for segment in self.backing_segments:
            high = min(start + length, segment.start + segment.length)
            if start < high:
                yield from segment.map_range(start, high - start)
        if not self._segments:
            return
        end = start + length
        last = bisect_right(self._starts, end - 1)
        # The first segment with a running maximum of ends past the start.
        first = bisect_right(self._ends, start, hi=last)
        covered = start
        for segment in self._segments[first:last]:
            low = max(start, segment.start)
            high = min(end, segment.start + segment.length)
            if low >= high:
                continue
            if covered < low:
                yield self._map_gap(covered, low)
            yield from segment.map_range(low, high - low)
            covered = max(covered, high)
        if covered < end:
            yield self._map_gap(covered, end)

    def only_segment(self, at: int) -> tuple[Segment, int, int] | None:
        """Return the segment of byte ``at``, and the bytes around it that no other one has.

        None if several segments may have the byte, or none.
        """
        if self.backing_segments:
            return None
        last = bisect_right(self._starts, at)
        first = bisect_right(self._ends, at, hi=last)
        if last - first != 1:
            return None
        segment = self._segments[first]
        low = max(segment.start, self._ends[first - 1]) if first else segment.start
        high = min([segment.start + segment.length, *self._starts[last : last + 1]])
        return segment, low, high

    def _map_gap(self, start: int, end: int) -> LayerMapping:
        return LayerMapping(start, end - start, what=self.gap, certain=self.gap_certain)

    def __repr__(self) -> str:
        return f"<{self.kind} {self.name}, {self.size} bytes>"


class LayerOffset(NamedTuple):
    """A byte offset in a layer."""

    layer: str
    start: int


class RangeMapping(NamedTuple):
    """A mapping of a part of a failed range through all layers.

    ``start`` is an offset in the layer of the question. ``via`` holds the same byte in that layer
    and in each layer below. Either ``layer`` is the leaf, the last of them, and ``offset`` the byte
    in it; or ``layer`` is None, and ``what`` and ``certain`` are as in a `LayerMapping`.
    """

    start: int
    length: int
    via: tuple[LayerOffset, ...]
    layer: Layer | None
    offset: int
    what: str = ""
    certain: bool = True
    remarks: tuple[str, ...] = ()
    doubts: tuple[str, ...] = ()


def descend(layer: Layer, start: int, length: int) -> Iterator[RangeMapping]:
    """Map a range of ``layer`` to the leaves.

    The mappings come in the order of the range. Where several layers are made of the same bytes,
    there is a mapping for each of them.
    """
    return _descend(layer, start, length, _Descent(start, (), (), ()))


class _Descent(NamedTuple):
    """The state collected in the layers above: ``asked`` is the offset in the question."""

    asked: int
    via: tuple[LayerOffset, ...]
    remarks: tuple[str, ...]
    doubts: tuple[str, ...]


def _descend(layer: Layer, start: int, length: int, above: _Descent) -> Iterator[RangeMapping]:
    asked = above.asked
    via = (*above.via, LayerOffset(layer.name, start))
    remarks, doubts = above.remarks + layer.remarks, above.doubts + layer.doubts
    # A table may map more bytes than its device has.
    inside = max(min(length, layer.size - start), 0)
    if inside and not layer.segments:
        yield RangeMapping(asked, inside, via, layer, start, remarks=remarks, doubts=doubts)
    for mapping in layer.map_range(start, inside) if inside else ():
        distance = mapping.start - start
        here = _advance(via, distance)
        notes = (*remarks, mapping.remark) if mapping.remark else remarks
        missing = (*doubts, mapping.doubt) if mapping.doubt else doubts
        if mapping.to is not None and len(via) < MAX_DEPTH:
            descent = _Descent(asked + distance, here, notes, missing)
            yield from _descend(mapping.to, mapping.to_start, mapping.length, descent)
            continue
        what = "layers without end" if mapping.to else mapping.what
        certain = mapping.certain and mapping.to is None
        yield RangeMapping(
            asked + distance, mapping.length, here, None, 0, what, certain, notes, missing
        )
    if inside < length:
        what, beyond = f"past the end of {layer.name}", _advance(via, inside)
        certain = layer.size_certain
        last = RangeMapping(asked + inside, length - inside, beyond, None, 0, what, certain)
        yield last._replace(remarks=remarks, doubts=doubts)


def linear_window(layer: Layer, at: int) -> RangeMapping | None:
    """Return a mapping to a leaf of the bytes around byte ``at`` of a layer.

    `descend` maps every range within them to the same leaf, at the same distance and with the same
    notes, and to nothing else.  None if there is no such mapping.
    """
    low, high, distance = 0, layer.size, 0
    path: list[tuple[Layer, int]] = []
    remarks: list[str] = []
    doubts: list[str] = []
    for _ in range(MAX_DEPTH):
        path.append((layer, distance))
        remarks += layer.remarks
        doubts += layer.doubts
        low, high = max(low, -distance), min(high, layer.size - distance)
        if not low <= at < high:
            return None
        if not layer.segments and not layer.backing_segments:
            via = tuple(LayerOffset(one.name, low + below) for one, below in path)
            notes = (tuple(remarks), tuple(doubts))
            return RangeMapping(low, high - low, via, layer, low + distance, "", True, *notes)  # noqa: FBT003
        alone = layer.only_segment(at + distance)
        if alone is None:
            return None
        segment, begin, end = alone
        if not isinstance(segment, LinearSegment):
            return None
        low, high = max(low, begin - distance), min(high, end - distance)
        distance += segment.to_start - segment.start
        remarks += [segment.remark] if segment.remark else []
        doubts += [segment.doubt] if segment.doubt else []
        layer = segment.to
    return None


def _advance(via: tuple[LayerOffset, ...], distance: int) -> tuple[LayerOffset, ...]:
    """Return the offsets ``distance`` bytes further in every layer."""
    if not distance:
        return via
    return tuple(LayerOffset(offset.layer, offset.start + distance) for offset in via)


def reach(layer: Layer) -> set[Layer]:
    """Return a layer and all layers that it leads to."""
    found: set[Layer] = set()
    todo = [layer]
    while todo:
        if (one := todo.pop()) not in found:
            found.add(one)
            todo += [segment.to for segment in one.segments if segment.to is not None]
            todo += [below for segment in one.backing_segments for below in layers_below(segment)]
    return found


def layers_below(segment: Segment) -> list[Layer]:
    """Return the layers that a segment leads into, at any depth."""
    found: list[Layer] = []
    todo = [segment]
    while todo:
        layer = todo.pop().to
        if layer is not None and layer not in found:
            found.append(layer)
            todo += layer.segments
    return found
