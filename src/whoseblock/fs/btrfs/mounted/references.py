"""The parts of files that an extent of data has by the kernel, which knows later changes."""

from collections.abc import Iterable
from contextlib import suppress
from typing import Final

from whoseblock.errors import CorruptError
from whoseblock.fs.btrfs.format.items import FileExtent, parse_file_extent
from whoseblock.fs.btrfs.mounted import kernel
from whoseblock.fs.btrfs.mounted.format import Reference
from whoseblock.fs.btrfs.owners.extents import Extent
from whoseblock.fs.btrfs.owners.references import (
    FilePart,
    FileParts,
    ReferenceResolver,
    part_of,
)
from whoseblock.fs.btrfs.owners.sharing import SharingIndex
from whoseblock.fs.btrfs.volume import Volume

__all__ = ["LiveResolver"]

_FREED: Final = (
    "the extent at logical address {} was freed, and the kernel keeps it until the next commit"
)
_CHANGING: Final = "the extent at logical address {} changes its owners: ask again"
_OTHERS: Final = (
    "the kernel and the last commit name different owners of the extent at logical address {}"
)


class LiveResolver(ReferenceResolver):
    """Resolves the back references of the last commit, and compares them with the kernel's.

    ``fd`` is on the filesystem.  If ``is_settled``, the kernel has no later changes.  Raises
    `PrivilegeError`, and OSError if the kernel does not answer.
    """

    def __init__(self, volume: Volume, sharing: SharingIndex, fd: int, *, is_settled: bool) -> None:
        super().__init__(volume, sharing)
        self._fd = fd
        self._is_settled = is_settled

    def _resolve(self, extent: Extent) -> FileParts:
        committed = super()._resolve(extent)
        named = self._ask(extent)
        known = {_reference(part) for part in committed.parts}
        if self._is_settled:
            is_cut = len(known) == self.max_owners
            if named == known or is_cut or self._has_each(extent, committed.parts, named):
                return committed
            fault = _OTHERS.format(extent.start)
            return committed._replace(faults=(*committed.faults, fault))
        faults = []
        if len(both := sorted(known | named)) > self.max_owners:
            both = both[: self.max_owners]
            faults.append(self._too_many(extent))
        parts = self._parts(extent, both)
        if self._ask(extent) != named or self._parts(extent, both) != parts:
            faults.append(_CHANGING.format(extent.start))
        elif not parts:
            faults.append(_FREED.format(extent.start))
        return FileParts(parts, tuple(faults))

    def _ask(self, extent: Extent) -> set[Reference]:
        return set(kernel.references(self._fd, extent.start) or ())

    def _has_each(self, extent: Extent, parts: Iterable[FilePart], named: set[Reference]) -> bool:
        """Return whether the kernel names each part if it is asked about its first byte.

        Linux 6.2 and 6.3 leave some out if they are asked about the whole extent.
        """
        known = set()
        for part in parts:
            at = extent.start + (0 if part.encoding else part.offset)
            found = kernel.references(self._fd, at, ignore_offset=False) or ()
            known.add(_reference(part))
            if _reference(part) not in found:
                return False
        return named <= known

    def _parts(self, extent: Extent, named: Iterable[Reference]) -> tuple[FilePart, ...]:
        """Return the parts of the file extents that refer to the extent at this moment."""
        found = set()
        for reference in named:
            part: FileExtent | None = None
            raw = kernel.file_extent(self._fd, reference)
            item = None if raw is None else parse_file_extent(raw)
            if item is None:
                continue
            # An item that misfits belongs to later data at the same place.
            with suppress(CorruptError):
                part = part_of(extent, item)
            if part is not None:
                inode, file_offset, subvolume = reference
                found.add(FilePart.of(subvolume, inode, file_offset, part))
        return tuple(sorted(found))


def _reference(part: FilePart) -> Reference:
    return Reference(part.inode, part.file_offset, part.subvolume)
