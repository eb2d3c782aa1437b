"""Files, their entries, and the trackers that watch: every change goes through here."""

from collections.abc import Sequence
from typing import Generic, TypeVar

from whoseblock.study.base import INDEX_BITS, Watcher, key_of
from whoseblock.study.entries import Entries
from whoseblock.study.extents import Extent
from whoseblock.study.space import Space

__all__ = ["World"]


_Watcher = TypeVar("_Watcher", bound=Watcher)


class World(Generic[_Watcher]):
    """What happens to files, in the order in which the kernel does it.

    The filesystem changes first, then the entry, then the trackers hear of it.  Every method gives
    the pages of the device whose owners changed, faulted in or not, as runs.
    """

    def __init__(self, space: Space, entries: Entries, trackers: Sequence[_Watcher]) -> None:
        self.space = space
        self.entries = entries
        self.trackers = trackers
        #: Entries that were put in, and the pages that these had.
        self.faults = 0
        self.associations = 0

    def fault(self, extent: Extent) -> list[tuple[int, int]]:
        """Fault in an entry of ``extent.length`` pages, unless it is there already."""
        mapping, index, page, count = extent
        key = mapping << INDEX_BITS | index
        entries = self.entries
        if count == 1:
            if key in entries:
                return []
            entries.insert(key, page)
        else:
            if entries.any_within(key, count):
                return [
                    touched
                    for at in range(count)
                    for touched in self.fault(Extent(mapping, index + at, page + at, 1))
                ]
            for at in range(count):
                entries.insert(key + at, page + at)
        self.faults += 1
        self.associations += count
        for tracker in self.trackers:
            tracker.associate(page, mapping, index, count)
        return [(page, count)]

    def write(self, mapping: int, index: int, count: int = 1) -> list[tuple[int, int]]:
        """Write to pages of a file through its mapping: those that are shared are copied first."""
        touched = []
        for at in range(index, index + count):
            touched += self._write_page(mapping, at)
        return touched

    def _write_page(self, mapping: int, index: int) -> list[tuple[int, int]]:
        key = key_of(mapping, index)
        old = self.space.page_of(key)
        if old is None:
            return []
        if len(self.space.segment_at(old).keys) < 2:  # noqa: PLR2004 - its own already
            return self.fault(Extent(mapping, index, old, 1))
        new = self.space.allocate(1)
        if new is None:
            return []
        self.space.remove(mapping, index, 1)
        self.space.add(Extent(mapping, index, new, 1))
        self._drop(Extent(mapping, index, old, 1))
        return [(old, 1), *self.fault(Extent(mapping, index, new, 1))]

    def truncate(self, mapping: int, index: int) -> list[tuple[int, int]]:
        """Cut a file off at a page."""
        upto = (1 << INDEX_BITS) - index
        return self._drop_all(self.space.remove(mapping, index, upto))

    def punch(self, mapping: int, index: int, count: int) -> list[tuple[int, int]]:
        """Give pages of a file back."""
        return self._drop_all(self.space.remove(mapping, index, count))

    def reflink(self, source: Extent, mapping: int, index: int) -> list[tuple[int, int]]:
        """Share an extent with another file, in place of what that has there."""
        removed = self._drop_all(self.space.reflink(source, mapping, index))
        return [*removed, (source.page, source.length)]

    def evict(self, mapping: int) -> list[tuple[int, int]]:
        """Forget a file's entries, as when its inode leaves the cache; the file stays."""
        extents = [
            Extent(mapping, key - (mapping << INDEX_BITS), page, 1)
            for key, page in self.entries.of(mapping)
        ]
        return self._drop_all(extents)

    def _drop_all(self, extents: list[Extent]) -> list[tuple[int, int]]:
        for extent in extents:
            self._drop(extent)
        return [(extent.page, extent.length) for extent in extents]

    def _drop(self, extent: Extent) -> None:
        """Take entries out, and have the trackers forget those that were there."""
        mapping, index, page, count = extent
        key = key_of(mapping, index)
        for at in range(count):
            if self.entries.remove(key + at) is not None:
                for tracker in self.trackers:
                    tracker.disassociate(page + at, mapping, index + at)
