"""Encrypted devices: where their data is, and the layer of the opened volume."""

from collections.abc import Iterable, Iterator
from typing import NamedTuple

from whoseblock.media.base import Media
from whoseblock.stack.base import (
    Layer,
    LayerMapping,
    Segment,
    UnmappedSegment,
    map_back_linearly,
)
from whoseblock.stack.formats.luks import LuksHeader, read_luks_header

__all__ = ["EncryptedSegment", "add_header", "cut_encrypted"]


class EncryptedSegment(NamedTuple):
    """A segment whose bytes are those of the opened volume ``to`` from its beginning, encrypted.

    A byte is at the same distance in both, but neither can be read from the other.
    """

    start: int
    length: int
    to: Layer
    what: str = ""
    doubt: str = ""

    def map_range(self, start: int, length: int) -> Iterable[LayerMapping]:
        """Map a range of the layer, which must be within the segment."""
        return (LayerMapping(start, length, self.to, start - self.start, doubt=self.doubt),)

    def map_back(self, to_start: int, length: int) -> Iterable[tuple[int, int, int]]:
        """Map a range of the opened volume back to the layer."""
        return map_back_linearly(self, 0, to_start, length)


def cut_encrypted(layer: Layer, header: LuksHeader, opened: Layer | None) -> Iterator[Segment]:
    """Yield the segments of an encrypted layer; ``opened`` has what it shows if it is opened."""
    name = f"LUKS{header.version}"
    if header.unsupported:
        what = f"{name}, {header.unsupported}: open it, and name what it maps"
        yield UnmappedSegment(0, layer.size, what, certain=False)
        return
    start = min(header.start, layer.size)
    yield _header_segment(layer, header, start)
    size = layer.size - start if header.size is None else min(header.size, layer.size - start)
    size -= size % header.sector
    if size <= 0:
        return
    if opened is None:
        doubt = (
            f"{layer.name}: encrypted; open it, or name an image of the opened volume:"
            f" --member {layer.name}=IMAGE"
        )
        what = f"{name}, closed, {header.cipher}"
        yield UnmappedSegment(start, size, what, certain=False, doubt=doubt)
        return
    doubt = ""
    if opened.size != size:
        doubt = f"{opened.name} has {opened.size} bytes, and the volume on {layer.name} has {size}:"
        doubt += " it may be the image of another volume"
    inside = min(size, opened.size)
    if inside:
        yield EncryptedSegment(start, inside, opened, f"{name}, {header.cipher}", doubt)
    if inside < size:
        what = f"past the end of {opened.name}"
        yield UnmappedSegment(start + inside, size - inside, what, certain=False, doubt=doubt)


def add_header(layer: Layer, media: Media) -> None:
    """Add the header to a layer whose opened volume the kernel maps."""
    header = read_luks_header(media)
    first = min((segment.start for segment in layer.segments), default=0)
    # A volume that begins elsewhere was opened with another header.
    if header is not None and not header.unsupported and header.start == first:
        layer.segments = [_header_segment(layer, header, first), *layer.segments]


def _header_segment(layer: Layer, header: LuksHeader, length: int) -> UnmappedSegment:
    remark = (
        f"{layer.name}: the volume cannot be opened without these bytes; restore a backup of its"
        " header with cryptsetup luksHeaderRestore"
    )
    return UnmappedSegment(0, length, f"LUKS{header.version} header and keys", remark=remark)
