"""Files, their entries, and the trackers that watch: every change goes through here."""

from collections.abc import Sequence
from typing import Generic, TypeVar

from whoseblock.study.base import INDEX_BITS, Watcher, key_of
from whoseblock.study.simulation.entries import Entries
from whoseblock.study.simulation.extents import PageExtent
from whoseblock.study.simulation.space import Space

__all__ = ["World"]


_Watcher = TypeVar("_Watcher", bound=Watcher)


class World(Generic[_Watcher]):
    """The operations on files, in the order in which Linux does them.

    - Entries go before the filesystem changes: ``truncate_setsize`` comes before the extents of a
      file are cut off, and ``xfs_flush_unmap_range`` before those of a hole, or of what a reflink
      replaces, are.
    - A write fault on a shared page allocates a new page and copies the data. Then
      ``dax_insert_entry`` swaps the entry: it disassociates the old page and associates the new
      one. Only then ``xfs_reflink_end_cow`` adds the new page to the file.
    - ``dax_associate_entry`` and ``dax_disassociate_entry`` are called before ``i_pages`` changes,
      under its lock.

    So a receiver of changes of entries cannot query the filesystem for the new owner of a page. A
    copied page still belongs to the file, and the copy is in the staging area for copy-on-write.
    Linux shuts the filesystem down if a page fails there; here no page fails during an operation.

    Every method returns the pages of the device whose owners changed, faulted in or not, as runs.
    """

    def __init__(self, space: Space, entries: Entries, trackers: Sequence[_Watcher]) -> None:
        self.space = space
        self.entries = entries
        self.trackers = trackers
        #: Files whose inodes are in memory: opened since they were last evicted.
        self.in_core: set[int] = set()
        #: Entries that were put in, and the pages that these had.
        self.faults = 0
        self.associations = 0

    def open(self, mapping: int) -> None:
        """Load the inode of a file into memory."""
        self.in_core.add(mapping)

    def evict(self, mapping: int) -> list[tuple[int, int]]:
        """Remove the inode of a file with its entries; the file stays."""
        self.in_core.discard(mapping)
        return self._drop(mapping, 0, 1 << INDEX_BITS)

    def fault(self, extent: PageExtent) -> list[tuple[int, int]]:
        """Fault in an entry of ``extent.length`` pages, unless it is there already."""
        mapping, index, page, count = extent
        key = mapping << INDEX_BITS | index
        entries = self.entries
        if count == 1:
            if key in entries:
                return []
        elif entries.any_within(key, count) or not self._alike(page, count):
            return [
                touched
                for at in range(count)
                for touched in self.fault(PageExtent(mapping, index + at, page + at, 1))
            ]
        self.faults += 1
        self.associations += count
        for tracker in self.trackers:
            tracker.associate(page, mapping, index, count)
        for at in range(count):
            entries.insert(key + at, page + at)
        return [(page, count)]

    def _alike(self, page: int, count: int) -> bool:
        """Return whether all pages are shared, or none.

        Where that changes the filesystem's answer to a fault ends, and an entry does not go on
        (``xfs_reflink_trim_around_shared``).
        """
        end, found = page + count, set()
        while page < end:
            segment = self.space.segment_at(page)
            found.add(len(segment.keys) > 1)
            page = segment.end
        return len(found) == 1

    def write(self, mapping: int, index: int, count: int = 1) -> list[tuple[int, int]]:
        """Write to pages of a file through its mapping: those that are shared are copied first."""
        touched = []
        for at in range(index, index + count):
            touched += self._write_page(mapping, at)
        return touched

    def _write_page(self, mapping: int, index: int) -> list[tuple[int, int]]:
        space = self.space
        old = space.page_of(key_of(mapping, index))
        if old is None:
            return []
        if len(space.segment_at(old).keys) < 2:  # noqa: PLR2004 - its own already
            return self.fault(PageExtent(mapping, index, old, 1))
        new = space.allocate(1)
        if new is None:
            return []
        copy = PageExtent(mapping, index, new, 1)
        self._drop(mapping, index, 1)
        self.fault(copy)
        space.remove(mapping, index, 1)
        space.add(copy)
        return [(old, 1), (new, 1)]

    def truncate(self, mapping: int, index: int) -> list[tuple[int, int]]:
        """Cut a file off at a page."""
        return self.punch(mapping, index, (1 << INDEX_BITS) - index)

    def punch(self, mapping: int, index: int, count: int) -> list[tuple[int, int]]:
        """Free pages of a file."""
        self._drop(mapping, index, count)
        return [(one.page, one.length) for one in self.space.remove(mapping, index, count)]

    def reflink(self, source: PageExtent, mapping: int, index: int) -> list[tuple[int, int]]:
        """Share an extent with another file, in place of what that has there."""
        self._drop(mapping, index, source.length)
        removed = self.space.reflink(source, mapping, index)
        return [*((one.page, one.length) for one in removed), (source.page, source.length)]

    def _drop(self, mapping: int, index: int, count: int) -> list[tuple[int, int]]:
        """Remove the entries of some pages of a file from the page cache and the trackers."""
        pages = []
        for key, page in self.entries.within(key_of(mapping, index), count):
            for tracker in self.trackers:
                tracker.disassociate(page, mapping, key - (mapping << INDEX_BITS))
            self.entries.remove(key)
            pages.append((page, 1))
        return pages
