"""Encrypted devices: where their data is, and the layer of the opened volume."""

from collections.abc import Iterable, Iterator
from typing import NamedTuple

from whoseblock.stack.base import Layer, LayerMapping, Segment, UnmappedSegment
from whoseblock.stack.formats.luks import LuksHeader

__all__ = ["EncryptedSegment", "cut_encrypted"]


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


def cut_encrypted(layer: Layer, header: LuksHeader, opened: Layer | None) -> Iterator[Segment]:
    """Yield the segments of an encrypted layer; ``opened`` has what it shows if it is opened."""
    name = f"LUKS{header.version}"
    if header.unsupported:
        what = f"{name}, {header.unsupported}: open it, and name what it maps"
        yield UnmappedSegment(0, layer.size, what, certain=False)
        return
    start = min(header.start, layer.size)
    remark = (
        f"{layer.name}: the volume cannot be opened without these bytes; restore a backup of its"
        " header with cryptsetup luksHeaderRestore"
    )
    yield UnmappedSegment(0, start, f"{name} header and keys", remark=remark)
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
