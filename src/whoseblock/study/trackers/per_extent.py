"""The second design: an address space for every shared extent.

The discussion has one sentence about it, "Create a new address_space for each shared extent", and
no code. The decisions here are in favour of the design:

- An extent is a run of pages that the same files have, as in the filesystem's own bookkeeping of
  shared blocks. A fault learns its bounds from the filesystem, which it queries anyway.
- The first fault on a shared extent creates its record: a ``struct address_space``, to which
  ``page->mapping`` of its pages points, so that finding it costs nothing. Pages that are not
  shared cost nothing, as in Linux.
- Each file that has faulted a page of a record is one owner, in a red-black tree as in the RFC:
  mapping, index of the first page, node. The owner is removed with its last entry there.
- The pages that an owner has faulted are not recorded again: they are in its own ``i_pages``.
- There is no notification of changes on the disk. When an entry is removed, the filesystem has not
  changed yet, and cannot be queried under the lock of ``i_pages``. So only faults cut and join
  records: a fault on a shared extent adjusts the records there to its bounds. After a cut, each
  part keeps the owners with entries in it. Cutting and joining write to every ``struct page`` of
  the shorter part.
- Until then a record keeps its pages, shared or not. Cutting out a page with only one file left
  would need another record, to save one owner.
- There is a lock for each record, and one for all of them while they are cut or joined.
"""

from bisect import bisect_left, bisect_right
from typing import TYPE_CHECKING

from whoseblock.study.base import INDEX_BITS, LookupResult, PageOwner, owner_of
from whoseblock.study.counts import Counts
from whoseblock.study.sizes import ADDRESS_SPACE, SHARED_FILE
from whoseblock.study.trackers.rbtree import Tree

if TYPE_CHECKING:
    from collections.abc import Callable

    from whoseblock.study.simulation.entries import Entries
    from whoseblock.study.simulation.space import Segment

__all__ = ["PerExtent"]


class _Record:
    """A shared extent, and its owners: each as what its key is more than the page.

    That stays the same wherever the extent is cut.
    """

    __slots__ = ("end", "in_order", "owners", "start")

    def __init__(self, start: int, end: int, counts: Counts) -> None:
        self.start = start
        self.end = end
        self.owners = Tree(counts)
        #: What the tree has, until it changes: it is asked more often.
        self.in_order: list[int] | None = None

    def all(self) -> list[int]:
        """Return the owners, ascending."""
        if self.in_order is None:
            self.in_order = self.owners.keys()
        return self.in_order


class PerExtent:
    """Tracks the owners of each shared extent of which a page is faulted in.

    ``segment_at`` is the filesystem's answer to a fault, ``entries`` the files' ``i_pages``.
    """

    name = "per extent"

    def __init__(self, segment_at: "Callable[[int], Segment]", entries: "Entries") -> None:
        self.counts = Counts()
        self._segment_at = segment_at
        self._entries = entries
        #: Pages that are not shared: ``page->mapping`` and ``page->index``.
        self._single: dict[int, int] = {}
        self._starts: list[int] = []
        self._records: list[_Record] = []

    # ------------------------------------------------------------------ the interface

    def associate(self, page: int, mapping: int, index: int, count: int = 1) -> None:
        """Add an owner."""
        key = mapping << INDEX_BITS | index
        end = page + count
        while page < end:
            segment = self._segment_at(page)
            upto = min(segment.end, end)
            if len(segment.keys) > 1:
                record = self._fit(segment)
                # Every page is a page to be locked and pointed at the record, but one owner.
                self.counts.locks += upto - page
                self._register(record, key - page)
            else:
                self._associate_alone(page, key, upto - page)
            key += upto - page
            page = upto

    def disassociate(self, page: int, mapping: int, index: int, count: int = 1) -> None:
        """Forget an owner, whose entries may still be there."""
        key = mapping << INDEX_BITS | index
        for at in range(count):
            self._disassociate(page + at, key + at)

    def keys(self, page: int) -> list[int]:
        """Return the keys of the owners that have faulted the page, ascending."""
        single = self._single.get(page)
        if single is not None:
            return [single]
        record = self._record_at(page)
        if record is None:
            return []
        return self._entries.those_of(page, record.all())

    def find(self, page: int) -> LookupResult:
        """Return the owners of a page; without an owner it is unknown: free or never faulted."""
        self.counts.locks += 1
        record = self._record_at(page)
        self.counts.probes += record.owners.size if record is not None else 0
        keys = self.keys(page)
        return LookupResult("files" if keys else "unknown", keys)

    def owners(self, page: int) -> tuple[PageOwner, ...]:
        """Return the owners that have faulted the page, in order."""
        return tuple(map(owner_of, self.keys(page)))

    def recount(self) -> int:
        """Count the bytes held now anew."""
        owners = sum(len(list(record.owners)) for record in self._records)
        return ADDRESS_SPACE * len(self._records) + SHARED_FILE * owners

    def records(self) -> list[tuple[int, int]]:
        """Return the start and end of each record, in order."""
        return [(record.start, record.end) for record in self._records]

    # ------------------------------------------------------------------ records

    def _record_at(self, page: int) -> _Record | None:
        at = bisect_right(self._starts, page) - 1
        if at >= 0 and page < self._records[at].end:
            return self._records[at]
        return None

    def _associate_alone(self, page: int, key: int, count: int) -> None:
        """Add the owner of pages that no other file has, unless a record has them."""
        if not self._starts:
            if count == 1:
                self._single[page] = key
            else:
                pages, keys = range(page, page + count), range(key, key + count)
                self._single.update(zip(pages, keys, strict=True))
            return
        for at in range(count):
            record = self._record_at(page + at)
            if record is None:
                self._single[page + at] = key + at
            else:
                self._register(record, key - page)

    def _disassociate(self, page: int, key: int) -> None:
        if self._single.get(page) == key:
            del self._single[page]
            return
        record = self._record_at(page)
        if record is None:
            return
        self.counts.locks += 1
        owner = key - page
        others = self._has(owner, page + 1, record.end) or self._has(owner, record.start, page)
        if not others and record.owners.erase(owner):
            record.in_order = None
            self.counts.count_free(SHARED_FILE)
            if not record.owners.size:
                self._drop(bisect_left(self._starts, record.start))

    def _has(self, owner: int, start: int, end: int) -> bool:
        """Ask an owner's ``i_pages`` for an entry that is of one of these pages."""
        found, looked = self._entries.seek(owner + start, start, end - start)
        self.counts.probes += looked
        return found

    def _fit(self, segment: "Segment") -> _Record:
        """Return the record that covers exactly a segment, made from existing records."""
        at = bisect_left(self._starts, segment.start)
        if at < len(self._starts):
            record = self._records[at]
            if record.start == segment.start and record.end == segment.end:
                return record
        self._cut(segment.start)
        self._cut(segment.end)
        first = bisect_left(self._starts, segment.start)
        last = bisect_left(self._starts, segment.end)
        self.counts.locks += 1
        for following in range(last - 1, first, -1):
            self._join(first, following)
        if first < last:
            record = self._records[first]
            self._starts[first] = record.start = segment.start
            record.end = segment.end
        else:
            record = self._insert(first, segment.start, segment.end, [])
        self._absorb(record)
        return record

    def _register(self, record: _Record, owner: int) -> None:
        if record.owners.insert(owner):
            record.in_order = None
            self.counts.count_allocation(SHARED_FILE)

    def _cut(self, page: int) -> None:
        """Split the record that crosses the start of ``page``."""
        at = bisect_left(self._starts, page) - 1
        if at < 0 or self._records[at].end <= page:
            return
        record = self._records[at]
        owners = record.owners.keys()
        left = [owner for owner in owners if self._has(owner, record.start, page)]
        right = [owner for owner in owners if self._has(owner, page, record.end)]
        self.counts.page_writes += min(page - record.start, record.end - page)
        if right:
            self._insert(at + 1, page, record.end, right)
        record.end = page
        if not left:
            self._drop(at)
            return
        for owner in owners:
            if owner not in left:
                record.owners.erase(owner)
                record.in_order = None
                self.counts.count_free(SHARED_FILE)

    def _insert(self, at: int, start: int, end: int, owners: list[int]) -> _Record:
        record = _Record(start, end, self.counts)
        self.counts.count_allocation(ADDRESS_SPACE)
        for owner in owners:
            self._register(record, owner)
        self._starts.insert(at, start)
        self._records.insert(at, record)
        return record

    def _join(self, first: int, other: int) -> None:
        """Move the owners of one record to another before it, and drop it."""
        into, record = self._records[first], self._records[other]
        self.counts.page_writes += min(into.end - into.start, record.end - record.start)
        for owner in record.owners:
            self._register(into, owner)
        self._drop(other)

    def _drop(self, at: int) -> None:
        """Free a record with all owners that it has."""
        for _ in range(self._records[at].owners.size):
            self.counts.count_free(SHARED_FILE)
        self.counts.count_free(ADDRESS_SPACE)
        del self._records[at], self._starts[at]

    def _absorb(self, record: _Record) -> None:
        """Add the owners of pages that were not shared when they were faulted in."""
        for page in range(record.start, record.end):
            key = self._single.pop(page, None)
            if key is not None:
                self.counts.page_writes += 1
                self._register(record, key - page)
