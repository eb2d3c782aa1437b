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
    """What happens to files, in the order in which Linux does it.

    - Entries go before the filesystem changes: ``truncate_setsize`` comes before the extents of a
      file are cut off, and ``xfs_flush_unmap_range`` before those of a hole, or of what a reflink
      replaces, are.
    - A write fault on a shared page has a new page allocated and copied to, then
      ``dax_insert_entry`` swaps the entry, disassociating the old page and associating the new one,
      and only then ``xfs_reflink_end_cow`` gives the new page to the file.
    - ``dax_associate_entry`` and ``dax_disassociate_entry`` are called before ``i_pages`` changes,
      under its lock.

    So who is told of an entry cannot see from the filesystem what becomes of its page: a page that
    was copied still is the file's, and the copy is nobody's, being in the staging area for
    copy-on-write.  Linux shuts the filesystem down if a page fails there; here nothing fails in the
    middle of something else.

    Every method gives the pages of the device whose owners changed, faulted in or not, as runs.
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
        """Have the inode of a file in memory."""
        self.in_core.add(mapping)

    def evict(self, mapping: int) -> list[tuple[int, int]]:
        """Have the inode of a file leave memory, and its entries with it; the file stays."""
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
        """Tell whether all pages are shared, or none.

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
        """Give pages of a file back."""
        self._drop(mapping, index, count)
        return [(one.page, one.length) for one in self.space.remove(mapping, index, count)]

    def reflink(self, source: PageExtent, mapping: int, index: int) -> list[tuple[int, int]]:
        """Share an extent with another file, in place of what that has there."""
        self._drop(mapping, index, source.length)
        removed = self.space.reflink(source, mapping, index)
        return [*((one.page, one.length) for one in removed), (source.page, source.length)]

    def _drop(self, mapping: int, index: int, count: int) -> list[tuple[int, int]]:
        """Take the entries of some pages of a file out, and have the trackers forget them."""
        pages = []
        for key, page in self.entries.within(key_of(mapping, index), count):
            for tracker in self.trackers:
                tracker.disassociate(page, mapping, key - (mapping << INDEX_BITS))
            self.entries.remove(key)
            pages.append((page, 1))
        return pages
