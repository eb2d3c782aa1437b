"""The places of a leaf's bytes in the layers above it: `descend` the other way round."""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from itertools import pairwise
from typing import Final, NamedTuple

from whoseblock.stack.base import MAX_DEPTH, Layer, LayerOffset, Segment, reach

__all__ = ["Above", "Placement", "ascend", "layers_above"]

#: So many bytes are placed at once: an array may have a place of its own for each chunk.
_WINDOW: Final = 64 << 20

#: The segments that each layer is made of, with the layer that has them.
Above = Mapping[Layer, Sequence[tuple[Layer, Segment]]]


class Placement(NamedTuple):
    """The places of ``length`` bytes from ``start`` of a leaf.

    There is one way for each copy, from the layer that no other one contains down to the leaf.
    """

    start: int
    length: int
    ways: tuple[tuple[LayerOffset, ...], ...]


def layers_above(tops: Iterable[Layer]) -> Above:
    """Return the segments that layers are made of, of all layers that ``tops`` lead to."""
    above: dict[Layer, list[tuple[Layer, Segment]]] = {}
    for layer in dict.fromkeys(below for top in tops for below in _in_order(top)):
        for segment in layer.segments:
            if segment.to is not None:
                above.setdefault(segment.to, []).append((layer, segment))
    return above


def _in_order(top: Layer) -> list[Layer]:
    return sorted(reach(top), key=lambda layer: layer.name)


def ascend(above: Above, leaf: Layer, start: int, length: int) -> Iterator[Placement]:
    """Yield the places of a range of a leaf, in order; placements that continue are joined.

    Bytes of which no layer above is known have the leaf itself as their place.
    """
    held: Placement | None = None
    for at in range(start, start + length, _WINDOW):
        for one in _place_window(above, leaf, at, min(_WINDOW, start + length - at)):
            if held is None or not _continues(held, one):
                if held is not None:
                    yield held
                held = one
            else:
                held = held._replace(length=held.length + one.length)
    if held is not None:
        yield held


def _place_window(above: Above, leaf: Layer, start: int, length: int) -> Iterator[Placement]:
    """Yield the places of a range, cut wherever a copy is."""
    parts = list(_ways(above, leaf, start, length, 0))
    edges = {start, start + length}
    for part in parts:
        edges |= {part.start, part.start + part.length}
    cuts = sorted(edges)
    number_of = {edge: number for number, edge in enumerate(cuts)}
    ways: list[list[tuple[LayerOffset, ...]]] = [[] for _ in cuts]
    for part in parts:
        for number in range(number_of[part.start], number_of[part.start + part.length]):
            ways[number].append(_advance(part.way, cuts[number] - part.start))
    for number, (low, high) in enumerate(pairwise(cuts)):
        places = ways[number] or [(LayerOffset(leaf.name, low),)]
        yield Placement(low, high - low, tuple(places))


class _Part(NamedTuple):
    """One copy of ``length`` bytes from ``start`` of a layer, and the way to its first byte."""

    start: int
    length: int
    way: tuple[LayerOffset, ...]


def _ways(above: Above, layer: Layer, start: int, length: int, depth: int) -> Iterator[_Part]:
    if layer not in above or depth >= MAX_DEPTH:
        yield _Part(start, length, (LayerOffset(layer.name, start),))
        return
    for containing, segment in above[layer]:
        for at, mapped, to_start in segment.map_back(start, length):
            # A table may map more bytes than its device has.
            size = min(mapped, containing.size - at)
            for part in _ways(above, containing, at, size, depth + 1) if size > 0 else ():
                here = to_start + part.start - at
                yield _Part(here, part.length, (*part.way, LayerOffset(layer.name, here)))


def _advance(way: tuple[LayerOffset, ...], distance: int) -> tuple[LayerOffset, ...]:
    return tuple(LayerOffset(layer, start + distance) for layer, start in way)


def _continues(one: Placement, other: Placement) -> bool:
    """Return whether all copies of one placement go on in another one, which follows it."""
    return tuple(_advance(way, one.length) for way in one.ways) == other.ways
