"""Loop devices, and where the files behind them lie."""

from collections.abc import Callable, Iterable
from pathlib import Path
from typing import NamedTuple, Protocol

from whoseblock.stack.base import Layer, Linear, Piece, Segment
from whoseblock.stack.host import Host

__all__ = ["BackingFile", "FileExtent", "FileExtents", "backing_file", "below_loop"]


class FileExtent(Protocol):
    """``length`` bytes of a file from ``logical`` on, at ``physical`` if they have a place."""

    @property
    def logical(self) -> int:
        """The first byte in the file."""

    @property
    def physical(self) -> int:
        """The first byte on the device of the filesystem."""

    @property
    def length(self) -> int:
        """The number of bytes."""

    @property
    def has_place(self) -> bool:
        """Whether ``physical`` means anything."""


#: Yields the extents of a part of the file at a path; raises OSError.
FileExtents = Callable[[str, int, int], Iterable[FileExtent]]


class BackingFile(NamedTuple):
    """The file behind a loop device: byte 0 of the device is byte ``offset`` of it."""

    path: str
    offset: int


def backing_file(host: Host, loop: str) -> BackingFile | None:
    """Give the file behind a loop device (loop.ko's attributes in sysfs); None if there is none."""
    folder = host.root / "sys/class/block" / loop / "loop"
    path, offset = host.text(folder / "backing_file"), host.number(folder / "offset")
    return BackingFile(path, offset or 0) if path else None


class _FileSegment(NamedTuple):
    """A whole file, which leads to the device that its filesystem is on."""

    start: int
    length: int
    path: str
    to: Layer
    extents: FileExtents
    what: str = "extents of the file"

    def pieces(self, start: int, length: int) -> Iterable[Piece]:
        """Say where each extent of a part of the file leads."""
        try:
            extents = list(self.extents(self.path, start, length))
        except OSError as error:
            what = f"the extents of {self.path} cannot be had: {error.strerror}"
            return [Piece(start, length, what=what, certain=False)]
        pieces = []
        end = start + length
        for extent in extents:
            low, high = max(start, extent.logical), min(end, extent.logical + extent.length)
            if low >= high:
                continue
            if start < low:
                pieces.append(Piece(start, low - start, what=f"hole in {self.path}"))
            if not extent.has_place:
                what = f"a part of {self.path} that has no place of its own"
                pieces.append(Piece(low, high - low, what=what, certain=False))
            else:
                place = extent.physical + low - extent.logical
                pieces.append(Piece(low, high - low, self.to, place))
            start = high
        if start < end:
            pieces.append(Piece(start, end - start, what=f"hole in {self.path}"))
        return pieces


def below_loop(
    host: Host, loop: str, device_layer: Callable[[str], Layer], extents: FileExtents
) -> list[Segment]:
    """Return what a loop device is made of: its file, and the device of the file's filesystem.

    ``extents`` reads where a file lies.  The result is empty if the device is no loop device, or if
    the filesystem is on no single device.
    """
    backing = backing_file(host, loop) if host.live else None
    if backing is None:
        return []
    try:
        status = Path(backing.path).stat()
    except OSError:
        # Deleted, or in another mount namespace.
        return []
    device = host.device_numbered(status.st_dev)
    if device is None:
        return []
    file = Layer(backing.path, status.st_size, "backing file")
    file.segments = [_FileSegment(0, status.st_size, backing.path, device_layer(device), extents)]
    size = max(status.st_size - backing.offset, 0)
    return [Linear(0, size, file, backing.offset)] if size else []
