"""Find the files behind loop devices, and the extents of these files."""

from collections.abc import Callable, Iterable
from pathlib import Path
from typing import NamedTuple, Protocol

from whoseblock.media.loops import FileIdentity, backing_identity
from whoseblock.stack.base import Layer, LayerMapping, LinearSegment, Segment
from whoseblock.stack.kernel.host import Host

__all__ = [
    "BackingFile",
    "FileExtent",
    "ReadExtents",
    "find_backing_file",
    "find_backing_segments",
]


class FileExtent(Protocol):
    """``length`` bytes at ``logical`` of a file, stored at ``physical`` of its device."""

    @property
    def logical(self) -> int:
        """The offset in the file, in bytes."""

    @property
    def physical(self) -> int:
        """The offset in the device of the filesystem, in bytes."""

    @property
    def length(self) -> int:
        """The length in bytes."""

    @property
    def has_place(self) -> bool:
        """Whether ``physical`` is valid."""


#: Yields the extents of a range (start, length) of the file at a path; raises OSError.
ReadExtents = Callable[[str, int, int], Iterable[FileExtent]]


class BackingFile(NamedTuple):
    """The file behind a loop device; byte 0 of the device is its byte ``offset``."""

    path: str
    offset: int


def find_backing_file(host: Host, loop: str) -> BackingFile | None:
    """Return the file behind a loop device, None if there is none.

    Source: the attributes of the loop driver in sysfs.
    """
    folder = host.root / "sys/class/block" / loop / "loop"
    path, offset = host.read_text(folder / "backing_file"), host.read_number(folder / "offset")
    return BackingFile(path, offset or 0) if path else None


class _FileSegment(NamedTuple):
    """A whole file, stored on the device of its filesystem."""

    start: int
    length: int
    path: str
    to: Layer
    read_extents: ReadExtents
    what: str = "extents of the file"

    def map_range(self, start: int, length: int) -> Iterable[LayerMapping]:
        """Map each extent of a range of the file."""
        try:
            extents = list(self.read_extents(self.path, start, length))
        except OSError as error:
            what = f"cannot read the extents of {self.path}: {error.strerror}"
            return [LayerMapping(start, length, what=what, certain=False)]
        mappings = []
        end = start + length
        for extent in extents:
            low, high = max(start, extent.logical), min(end, extent.logical + extent.length)
            if low >= high:
                continue
            if start < low:
                mappings.append(LayerMapping(start, low - start, what=f"hole in {self.path}"))
            if not extent.has_place:
                what = f"extent of {self.path} without a location"
                mappings.append(LayerMapping(low, high - low, what=what, certain=False))
            else:
                location = extent.physical + low - extent.logical
                mappings.append(LayerMapping(low, high - low, self.to, location))
            start = high
        if start < end:
            mappings.append(LayerMapping(start, end - start, what=f"hole in {self.path}"))
        return mappings

    def map_back(self, _to_start: int, _length: int) -> Iterable[tuple[int, int, int]]:
        """Return nothing: which bytes of a device a file has is known from the file alone."""
        return ()


def find_backing_segments(
    host: Host, loop: str, device_layer: Callable[[str], Layer], read_extents: ReadExtents
) -> list[Segment]:
    """Return the segments behind a loop device: its file, and the device of the file's filesystem.

    Empty if it is not a loop device, or if the filesystem is not on a single device.
    """
    backing = find_backing_file(host, loop) if host.live else None
    if backing is None:
        return []
    try:
        status = Path(backing.path).stat()
    except (OSError, ValueError):
        # The file was deleted, or is in another mount namespace.
        return []
    if backing_identity(loop) != FileIdentity(status.st_dev, status.st_ino):
        # The path leads to another file here than in the mount namespace of the loop device.
        return []
    device = host.find_device_by_number(status.st_dev)
    if device is None:
        return []
    file = Layer(backing.path, status.st_size, "backing file")
    file.segments = [
        _FileSegment(0, status.st_size, backing.path, device_layer(device), read_extents)
    ]
    size = max(status.st_size - backing.offset, 0)
    return [LinearSegment(0, size, file, backing.offset)] if size else []
