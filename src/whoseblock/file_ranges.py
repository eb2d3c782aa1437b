"""The reverse question: where the bytes of a file are, in every layer.

`MountedFiles` asks the kernel about files of mounted filesystems (FIEMAP), which takes no
privileges.  `find_in_target` reads the owners of a whole device or image, and keeps the rows of the
files that were named.
"""

import os
import stat
from collections.abc import Iterable, Iterator, Sequence
from functools import cached_property
from typing import TYPE_CHECKING, Final

from msgspec import UNSET, Struct, UnsetType
from msgspec.structs import replace

from whoseblock.errors import NotAFilesystemError, TargetError, WhoseblockError
from whoseblock.fs import registry
from whoseblock.fs.base import FileOwner, LayerLocation, distinct
from whoseblock.fs.driver import AddressSpace, Volume
from whoseblock.fs.mounted.fiemap import Extent, all_extents, is_realtime
from whoseblock.fs.stream import LeadingRows
from whoseblock.media.mounts import mount_kind
from whoseblock.ranges import RangeList
from whoseblock.stack.ascent import Above, ascend, layers_above
from whoseblock.stack.base import Layer, reach
from whoseblock.stack.kernel.devices import BlockDevices
from whoseblock.stack.kernel.host import Host
from whoseblock.stack.mounted import companion_devices

if TYPE_CHECKING:
    from whoseblock.lookup import Lookup

__all__ = ["FileRange", "FileSummary", "MountedFiles", "find_in_target"]

#: The bytes of a device that are asked about at once.
_PIECE: Final = 1 << 30
#: The notes of one answer are few, but those of a whole device may be many.
_MOST_NOTES: Final = 1000


class FileRange(Struct, frozen=True, tag_field="kind", tag="range"):
    """``length`` bytes of a file from ``file_offset``, and where they are.

    ``start`` is the first byte in the device of the filesystem, None if the bytes have no place of
    their own.  ``what`` is as in `FileOwner`, or ``delayed`` (not yet allocated), ``inline`` (in
    a block of metadata) or ``unknown``.  ``places`` has a way for each copy: where the first byte
    is in each layer, from the disk down to the filesystem's device.  ``encoding`` and
    ``file_length`` are as in `FileOwner`; for a mounted filesystem, ``encoding`` is ``compressed``
    or ``encrypted``.
    """

    path: str
    what: str
    file_offset: int | None
    length: int
    start: int | None
    unwritten: bool
    shared: bool
    places: tuple[tuple[LayerLocation, ...], ...] = ()
    fork: str | UnsetType = UNSET
    encoding: str | UnsetType = UNSET
    file_length: int | UnsetType = UNSET


class FileSummary(Struct, frozen=True, tag_field="kind", tag="file"):
    """A file whose ranges have come before it; ``ranges`` is their number.

    ``device`` is the layer of the filesystem, None if it is not on one device; ``size`` is in
    bytes.  Ranges may be missing unless ``complete``, and ``notes`` say why.
    """

    path: str
    inode: int
    size: int | None
    device: str | None
    ranges: int
    complete: bool
    notes: tuple[str, ...]
    subvolume: int | UnsetType = UNSET


class MountedFiles:
    """Finds the ranges of files of this machine's mounted filesystems."""

    def __init__(self) -> None:
        self._host = Host()
        self._devices = BlockDevices(self._host)

    @cached_property
    def _above(self) -> Above:
        tops = []
        for name in self._host.block_devices():
            try:
                tops.append(self._devices.find_layer(name))
            except TargetError:
                # It is gone.
                continue
        return layers_above(tops)

    def find(self, path: str) -> Iterator[FileRange | FileSummary]:
        """Yield the ranges of the data of a file by their offsets, and the file itself.

        Raises `TargetError` for what is neither a file nor a folder, or cannot be opened.
        """
        try:
            descriptor = _open_file(path)
        except OSError as error:
            raise TargetError(f"{path!r} cannot be opened: {error.strerror}") from error
        try:
            yield from self._find(path, descriptor)
        except OSError as error:
            what = f"the kernel does not report the ranges of {path!r}: {error.strerror}"
            raise TargetError(what) from error
        finally:
            os.close(descriptor)

    def _find(self, path: str, descriptor: int) -> Iterator[FileRange | FileSummary]:
        status = os.fstat(descriptor)
        layer = self._layer_of(descriptor, status.st_dev)
        notes: list[str] = []
        if layer is None:
            kind = mount_kind(status.st_dev) or "the filesystem"
            notes.append(
                f"{kind} is not on one block device: offsets are its own addresses, and the places"
                " on its devices are unknown"
            )
        is_complete = layer is not None
        ranges = 0
        what = "directory" if stat.S_ISDIR(status.st_mode) else "data"
        for extent in all_extents(descriptor):
            is_complete &= extent.is_located or extent.is_delayed
            for one in self._ranges(path, what, extent, layer):
                ranges += 1
                yield one
        if not is_complete and not notes:
            notes.append("the kernel does not report where some of its bytes are")
        yield FileSummary(
            path,
            status.st_ino,
            status.st_size,
            None if layer is None else layer.name,
            ranges,
            is_complete,
            tuple(notes),
        )

    def _layer_of(self, descriptor: int, device: int) -> Layer | None:
        """Return the layer of the device that has a file's data; None if there is no single one."""
        name = self._host.find_device_by_number(device)
        if name is None:
            return None
        if is_realtime(descriptor):
            # Without a device of its own, the realtime section is on the device itself.
            for one in companion_devices(self._host, registry.companion_mount_options()):
                if one.data == name and one.role == "realtime":
                    found = self._host.find_device_at(f"/dev/{one.device}")
                    return self._devices.find_layer(found or one.device)
        return self._devices.find_layer(name)

    def _ranges(
        self, path: str, what: str, extent: Extent, layer: Layer | None
    ) -> Iterator[FileRange]:
        if extent.is_inline:
            what = "inline"
        elif not extent.is_located:
            what = "delayed" if extent.is_delayed else "unknown"
        one = FileRange(
            path,
            what,
            extent.logical,
            extent.length,
            extent.physical if extent.is_located else None,
            extent.is_unwritten,
            extent.is_shared,
            encoding=extent.encoding or UNSET,
        )
        if one.start is None or layer is None:
            yield one
        else:
            yield from _placed(one, one.start, self._above, layer)


def _open_file(path: str) -> int:
    """Open a file or a folder for reading, and nothing else; raises OSError."""
    named = os.open(path, os.O_PATH | os.O_CLOEXEC)
    try:
        kind = stat.S_IFMT(os.fstat(named).st_mode)
        if kind not in (stat.S_IFREG, stat.S_IFDIR):
            raise TargetError(f"{path!r} is neither a file nor a folder")
        return os.open(f"/proc/self/fd/{named}", os.O_RDONLY | os.O_CLOEXEC)
    finally:
        os.close(named)


def _placed(one: FileRange, start: int, above: Above, layer: Layer) -> Iterator[FileRange]:
    """Yield a range with its places, cut where they do not continue."""
    for placement in ascend(above, layer, start, one.length):
        skipped = placement.start - start
        offset = one.file_offset
        if offset is not None and one.encoding is UNSET:
            offset += skipped
        yield replace(
            one,
            file_offset=offset,
            length=placement.length,
            start=placement.start,
            places=tuple(tuple(LayerLocation(*step) for step in way) for way in placement.ways),
        )


def find_in_target(
    finder: "Lookup", tops: Sequence[Layer], paths: Iterable[str]
) -> Iterator[FileRange | FileSummary]:
    """Yield the ranges of files of the filesystems that are on layers, and the files themselves.

    ``paths`` are from the root of a filesystem.  The owners of the whole filesystem are read, and
    the rows of the files are held.  Raises `TargetError` if no filesystem has one of the files.
    """
    wanted = list(dict.fromkeys(f"/{path.strip('/')}" for path in paths))
    above = layers_above(tops)
    found: set[str] = set()
    notes: list[str] = []
    for layer in dict.fromkeys(one for top in tops for one in sorted(reach(top), key=_by_name)):
        if layer.segments:
            continue
        try:
            space = finder.leaf(layer)
        except NotAFilesystemError:
            continue
        except WhoseblockError as error:
            notes.append(f"{layer.name}: {error}")
            continue
        files = _Files(finder, layer, space, wanted)
        found.update(files.rows)
        yield from files.ranges(above)
    missing = ", ".join(repr(path) for path in wanted if path not in found)
    if missing:
        reasons = f" ({'; '.join(notes)})" if notes else ""
        raise TargetError(
            f"nothing there belongs to {missing}{reasons}",
            hint="the file is not there, or has no blocks of its own, as an empty one",
        )


def _by_name(layer: Layer) -> str:
    return layer.name


class _Files:
    """The rows of files, among the owners of a whole filesystem."""

    def __init__(
        self, finder: "Lookup", layer: Layer, space: AddressSpace, wanted: Sequence[str]
    ) -> None:
        self._layer = layer
        self._space = space
        #: The rows by path; a file with several of the names has them under each.
        self.rows: dict[str, list[FileOwner]] = {}
        self._notes: dict[str, None] = {}
        size = space.device_size
        pieces = RangeList.of((at, min(_PIECE, size - at)) for at in range(0, size, _PIECE))
        for item in space.owners_stream(pieces, paths=True):
            for row in item.owners:
                if isinstance(row, FileOwner) and isinstance(row.paths, tuple):
                    for path in set(row.paths).intersection(wanted):
                        self.rows.setdefault(path, []).append(row)
            if isinstance(item, LeadingRows):
                continue
            finder.progress("MiB searched", (item.start + item.length) >> 20, size >> 20)
            if not item.complete and len(self._notes) < _MOST_NOTES:
                remarks = item.remarks or ()
                self._notes |= dict.fromkeys(note for note in item.notes if note not in remarks)

    def ranges(self, above: Above) -> Iterator[FileRange | FileSummary]:
        """Yield the ranges of each file by fork and offset, and the file itself."""
        for path, rows in self.rows.items():
            rows.sort(key=_by_offset)
            ranges = 0
            for row in rows:
                for one in _ranges_of(path, row, above, self._layer):
                    ranges += 1
                    yield one
            file = rows[0].file
            facts = (
                self._space.files((file,)).get(file) if isinstance(self._space, Volume) else None
            )
            yield FileSummary(
                path,
                file.inode,
                None if facts is None else facts.size,
                self._layer.name,
                ranges,
                not self._notes,
                distinct(self._notes),
                rows[0].subvolume,
            )


def _by_offset(row: FileOwner) -> tuple[bool, bool, int, int]:
    # The blocks of an extent map, which have no offset, come after what they map.
    has_no_offset = row.file_offset is None
    return row.fork != "data", has_no_offset, row.file_offset or 0, row.start


def _ranges_of(path: str, row: FileOwner, above: Above, layer: Layer) -> Iterator[FileRange]:
    """Yield a row of a file with the places of all its copies."""
    one = FileRange(
        path,
        row.what,
        row.file_offset,
        row.length,
        row.start,
        row.unwritten,
        row.shared,
        fork=row.fork,
        encoding=row.encoding,
        file_length=row.file_length,
    )
    copies = row.copies if isinstance(row.copies, tuple) else ()
    for part in _placed(one, row.start, above, layer):
        skipped = (part.start or 0) - row.start
        others = tuple((LayerLocation(copy.layer, copy.start + skipped),) for copy in copies)
        yield replace(part, places=part.places + others)
