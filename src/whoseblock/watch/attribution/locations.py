"""Find the layer that a failure is journaled under: the last one that has its bytes unchanged.

A page of memory, the sectors of a disk and the block of a partition may be one failure that several
sources see in different layers. It is recorded under the last layer that maps the bytes linearly.
Arrays and mirrors end that: the same bytes of two members may fail one after the other.
"""

from collections.abc import Iterable, Iterator, Sequence
from itertools import pairwise
from pathlib import Path
from typing import NamedTuple

from whoseblock.errors import TargetError, WhoseblockError
from whoseblock.fs.driver import Volume
from whoseblock.lookup import Lookup
from whoseblock.ranges import ByteRange
from whoseblock.stack.base import Layer, LinearSegment
from whoseblock.stack.kernel.host import Host
from whoseblock.stack.kernel.loops import find_backing_file
from whoseblock.target import Target

__all__ = [
    "FailureLocation",
    "find_identity",
    "find_layer",
    "follow_names",
    "identity_of",
    "layer_identity",
    "locate",
]

#: The same limit as in `whoseblock.stack.base.descend`.
_MAX_DEPTH = 32


class FailureLocation(NamedTuple):
    """``length`` bytes from ``start`` of ``device``; ``layer`` is None if the device is unknown.

    ``identity`` is a name of the filesystem or the device that does not depend on the kernel's
    numbering, "" if there is none. ``layer`` has the names of the layers from the reported device
    to the location, for `follow_names`; ``why`` is the reason if it is None. ``suspected`` is why
    only some of the bytes failed, and it is unknown which; "" if all did.
    """

    device: str
    identity: str
    start: int
    length: int
    layer: tuple[str, ...] | None
    why: str = ""
    suspected: str = ""

    @property
    def range(self) -> ByteRange:
        """The bytes that failed."""
        return ByteRange(self.start, self.length)


class _Piece(NamedTuple):
    # A range of a layer, and the names of the layers that lead to it below the reported device.
    layer: Layer
    start: int
    length: int
    names: tuple[str, ...]


def locate(target: Target, finder: Lookup, where: tuple[str, int, int]) -> list[FailureLocation]:
    """Return the locations of a failed range, in byte order.

    ``where`` is the device, the start and the length.
    """
    device, start, length = where
    try:
        layer = target.layer_of(device)
    except TargetError as error:
        return [FailureLocation(device, "", start, length, None, str(error))]
    return [
        FailureLocation(
            at.layer.name,
            layer_identity(target.host, finder, at.layer),
            at.start,
            at.length,
            (device, *at.names),
        )
        for at in _locate(_Piece(layer, start, length, ()), 0)
    ]


def follow_names(target: Target, names: Sequence[str]) -> Layer:
    """Return the layer that the names of a `FailureLocation` lead to.

    Raises `TargetError` if they do not lead to exactly one layer: the stack has changed.
    """
    layer = target.layer_of(names[0])
    for name in names[1:]:
        below = {segment.to for segment in layer.segments if isinstance(segment, LinearSegment)}
        called = [one for one in below if one.name == name]
        if len(called) != 1:
            many = "several layers" if called else "no layer"
            raise TargetError(f"{layer.name} leads to {many} called {name!r}")
        layer = called[0]
    return layer


def find_layer(target: Target, name: str) -> Layer:
    """Return the layer with the name of a `FailureLocation`; raises `TargetError`."""
    return target.layer_of(target.host.find_device_by_layer(name))


def _locate(whole: _Piece, depth: int) -> list[_Piece]:
    layer, start, length, names = whole
    inside = max(min(length, layer.size - start), 0)
    if not layer.segments or not inside or depth == _MAX_DEPTH:
        return [whole]
    found: list[_Piece] = []
    for begin, size, straight in _split(layer, start, inside):
        if straight is None:
            found.append(_Piece(layer, begin, size, names))
        else:
            to_start = straight.to_start + begin - straight.start
            below = _Piece(straight.to, to_start, size, (*names, straight.to.name))
            found += _locate(below, depth + 1)
    if inside < length:
        found.append(_Piece(layer, start + inside, length - inside, names))
    return _join(found)


def _split(
    layer: Layer, start: int, length: int
) -> Iterator[tuple[int, int, LinearSegment | None]]:
    """Cut a range at segment edges; yield each piece with the linear segment that maps it.

    The segment is None where several overlap, where it is not linear, or where there is none.
    """
    end = start + length
    touching = [one for one in layer.segments if one.start < end and start < one.start + one.length]
    edges = {start, end}
    for one in touching:
        edges |= {max(one.start, start), min(one.start + one.length, end)}
    ordered = sorted(edges)
    for low, high in pairwise(ordered):
        over = [one for one in touching if one.start <= low and high <= one.start + one.length]
        straight = over[0] if len(over) == 1 and isinstance(over[0], LinearSegment) else None
        # A remark means that there is another copy.
        yield low, high - low, None if straight is None or straight.remark else straight


def _join(pieces: Iterable[_Piece]) -> list[_Piece]:
    """Join adjacent pieces of one layer."""
    joined: list[_Piece] = []
    for piece in pieces:
        last = joined[-1] if joined else None
        if last and last.layer is piece.layer and last.start + last.length == piece.start:
            joined[-1] = last._replace(length=last.length + piece.length)
        else:
            joined.append(piece)
    return joined


def layer_identity(host: Host, finder: Lookup, layer: Layer) -> str:
    """Return the identity of the filesystem on a layer, as `respond` uses it; else the device's."""
    if not layer.segments:
        try:
            space = finder.leaf(layer)
        except (WhoseblockError, OSError):
            space = None
        if isinstance(space, Volume):
            return space.identity
    return identity_of(host, layer)


def identity_of(host: Host, layer: Layer) -> str:
    """Return a name of a device that persists over reboots, set by the kernel or its vendor."""
    name = None if layer.device is None else host.find_device_by_number(layer.device)
    return find_identity(host, name or layer.name)


def find_identity(host: Host, name: str) -> str:
    """Return the persistent name of the device that the kernel calls ``name``, "" if unknown."""
    folder = host.find_device_folder(name)
    if folder is None:
        return ""
    if (folder / "partition").exists():
        whole, number = folder.parent, host.read_text(folder / "partition") or ""
        above = _own_identity(host, whole.name, whole)
        return f"{above}-part{number}" if above else ""
    return _own_identity(host, folder.name, folder)


def _own_identity(host: Host, name: str, folder: Path) -> str:
    for attribute, prefix in (
        ("dm/uuid", "dm-uuid-"),
        ("md/uuid", "md-uuid-"),
        ("wwid", ""),
        ("device/wwid", ""),
        ("device/serial", "serial-"),
        # Of a namespace of persistent memory, or of the pfn device on it.
        ("device/uuid", "nd-"),
    ):
        value = (host.read_text(folder / attribute) or "").strip()
        if value and value.isprintable():
            return f"{prefix}{value}"
    backing = find_backing_file(host, name)
    return f"loop-{backing.path}-{backing.offset}" if backing else ""
