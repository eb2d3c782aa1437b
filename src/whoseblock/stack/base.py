"""The words of the stack: layers, the segments that they are cut into, and the way down.

A *layer* is anything with an address space: physical memory, a region, a disk, a partition, a
volume, an array.  What is made of it, or lies on it, are its *segments*: a partition of a disk, a
logical volume's extents on a physical volume, an array's chunks on a member.  A failure goes from
the layer where it was seen into the layers that are made of the failed bytes, until one is reached
that nothing is made of: there a filesystem may be.
"""

from bisect import bisect_right
from collections.abc import Callable, Iterable, Iterator
from itertools import accumulate
from typing import Final, NamedTuple, Protocol

from whoseblock.media.base import Media

__all__ = [
    "PHYSICAL_MEMORY",
    "Ending",
    "Landing",
    "Layer",
    "Linear",
    "Piece",
    "Segment",
    "Step",
    "descend",
]

#: The name of the layer that a page frame number addresses.
PHYSICAL_MEMORY: Final = "physical-memory"

#: No sane stack is deeper; a table that leads back to itself would be.
_MAX_DEPTH: Final = 32


class Piece(NamedTuple):
    """``length`` bytes from ``start`` of a layer, and where they lead.

    Either to byte ``to_start`` of the layer ``to``; or nowhere, then ``what`` says what lies there,
    and ``certain`` whether that is known to hold no filesystem.  ``remark`` is worth telling in any
    case, such as that there is another copy.
    """

    start: int
    length: int
    to: "Layer | None" = None
    to_start: int = 0
    what: str = ""
    certain: bool = True
    remark: str = ""


class Segment(Protocol):
    """``length`` bytes from ``start`` of a layer that belong to one thing."""

    @property
    def start(self) -> int:
        """Where it begins in the layer."""

    @property
    def length(self) -> int:
        """How many bytes it has."""

    @property
    def to(self) -> "Layer | None":
        """The layer that is made of it, if one is; for drawing the stack."""

    @property
    def what(self) -> str:
        """What it is for."""

    def pieces(self, start: int, length: int) -> Iterable[Piece]:
        """Say where a part of the segment leads; it is within the segment."""


class Linear(NamedTuple):
    """A segment that another layer has as it is, from ``to_start`` on."""

    start: int
    length: int
    to: "Layer"
    to_start: int = 0
    what: str = ""
    remark: str = ""

    def pieces(self, start: int, length: int) -> Iterable[Piece]:
        """Say where a part of the segment leads."""
        to_start = self.to_start + start - self.start
        return (Piece(start, length, self.to, to_start, remark=self.remark),)


class Ending(NamedTuple):
    """A segment that nothing further is made of; ``what`` says what it is.

    Not ``certain``: nobody can follow it further, although a filesystem may lie there.
    """

    start: int
    length: int
    what: str
    certain: bool = True
    remark: str = ""

    @property
    def to(self) -> "Layer | None":
        """Nothing is made of it."""
        return None

    def pieces(self, start: int, length: int) -> Iterable[Piece]:
        """Say that a part of the segment leads nowhere."""
        return (Piece(start, length, None, 0, self.what, self.certain, self.remark),)


class Layer:
    """An address space of ``size`` bytes, cut into segments, which may overlap.

    A layer without segments is one that nothing is made of.  What no segment of one with segments
    covers is ``gap``; unless ``gap_certain``, nobody can say what else it may be.  ``kind`` is a
    word for people: disk, partition, volume.  ``open`` reads the layer; the caller closes what it
    gives.
    """

    def __init__(  # noqa: PLR0913 - what there is to say of a layer
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
    ) -> None:
        self.name = name
        self.size = size
        self.kind = kind
        self.gap = gap
        self.gap_certain = gap_certain
        #: Worth telling of every answer that comes through here.
        self.remarks = tuple(remarks)
        #: What makes every such answer incomplete.
        self.doubts = tuple(doubts)
        #: The number of the block device of this machine that reads it, as `os.makedev` gives it.
        self.device = device
        self._open_media = open_media
        #: What the layer itself is made of, where a question is to go there as well.
        self.beneath: tuple[Segment, ...] = ()
        self._segments: list[Segment] = []
        self._starts: list[int] = []
        #: The furthest end of all segments so far: one that begins early may end late.
        self._ends: list[int] = []

    @property
    def segments(self) -> list[Segment]:
        """The segments, by their start."""
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
        """Whether `open` can give anything."""
        return self._open_media is not None

    def read_from(self, open_media: Callable[[], Media]) -> None:
        """Have the layer read from a copy of it."""
        self._open_media = open_media

    def open(self) -> Media:
        """Open the layer for reading; raises `TargetError`."""
        if self._open_media is None:
            raise LookupError(f"{self.name} is an address space only")
        return self._open_media()

    def pieces(self, start: int, length: int) -> Iterator[Piece]:
        """Say where each part of a range leads; overlapping segments each have their say."""
        for segment in self.beneath:
            high = min(start + length, segment.start + segment.length)
            if start < high:
                yield from segment.pieces(start, high - start)
        if not self._segments:
            return
        end = start + length
        last = bisect_right(self._starts, end - 1)
        # The first whose end, or the end of any before it, lies past the start.
        first = bisect_right(self._ends, start, hi=last)
        covered = start
        for segment in self._segments[first:last]:
            low = max(start, segment.start)
            high = min(end, segment.start + segment.length)
            if low >= high:
                continue
            if covered < low:
                yield self._gap(covered, low)
            yield from segment.pieces(low, high - low)
            covered = max(covered, high)
        if covered < end:
            yield self._gap(covered, end)

    def _gap(self, start: int, end: int) -> Piece:
        return Piece(start, end - start, what=self.gap, certain=self.gap_certain)

    def __repr__(self) -> str:
        return f"<{self.kind} {self.name}, {self.size} bytes>"


class Step(NamedTuple):
    """One step of a way: a place in a layer."""

    layer: str
    start: int


class Landing(NamedTuple):
    """Where a part of a failed range ends up.

    ``start`` is in the layer that was asked, ``way`` the same place in it and in each layer below.
    Either ``layer`` is the last of them, and ``offset`` the place in it; or ``layer`` is None, and
    ``what`` and ``certain`` are as in a `Piece`.
    """

    start: int
    length: int
    way: tuple[Step, ...]
    layer: Layer | None
    offset: int
    what: str = ""
    certain: bool = True
    remarks: tuple[str, ...] = ()
    doubts: tuple[str, ...] = ()


def descend(layer: Layer, start: int, length: int) -> Iterator[Landing]:
    """Follow a range down from ``layer`` to where nothing more is made of it.

    The landings come in the order of the range, but where several layers are made of the same
    bytes there are several for them.
    """
    return _descend(layer, start, length, _Above(start, (), (), ()))


class _Above(NamedTuple):
    """What the layers above know: the place in the question, the way, and what is to be told."""

    asked: int
    way: tuple[Step, ...]
    remarks: tuple[str, ...]
    doubts: tuple[str, ...]


def _descend(layer: Layer, start: int, length: int, above: _Above) -> Iterator[Landing]:
    asked = above.asked
    way = (*above.way, Step(layer.name, start))
    remarks, doubts = above.remarks + layer.remarks, above.doubts + layer.doubts
    # A table may promise more than there is.
    inside = max(min(length, layer.size - start), 0)
    if inside and not layer.segments:
        yield Landing(asked, inside, way, layer, start, remarks=remarks, doubts=doubts)
    for piece in layer.pieces(start, inside) if inside else ():
        place = asked + piece.start - start
        here = _moved(way, piece.start - start)
        told = (*remarks, piece.remark) if piece.remark else remarks
        if piece.to is not None and len(way) < _MAX_DEPTH:
            through = _Above(place, here, told, doubts)
            yield from _descend(piece.to, piece.to_start, piece.length, through)
            continue
        what = "layers without end" if piece.to else piece.what
        certain = piece.certain and piece.to is None
        yield Landing(place, piece.length, here, None, 0, what, certain, told, doubts)
    if inside < length:
        what, beyond = f"past the end of {layer.name}", _moved(way, inside)
        last = Landing(asked + inside, length - inside, beyond, None, 0, what)
        yield last._replace(remarks=remarks, doubts=doubts)


def _moved(way: tuple[Step, ...], distance: int) -> tuple[Step, ...]:
    """Give the same way, ``distance`` bytes further."""
    return tuple(Step(step.layer, step.start + distance) for step in way) if distance else way
