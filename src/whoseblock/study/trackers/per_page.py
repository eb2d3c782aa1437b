"""The first proposal: a red-black tree on every shared page.

Modelled on the RFC "dax: Add a dax-rmap tree to support reflink".  The first owner costs nothing:
``page->mapping`` and ``page->index`` hold it. The second makes a root, behind ``page->private``,
and a node for each of the two. An owner who is there already is not put in again. An entry of
2 MiB does so for each of its 512 pages. When all but one have left, that one's node stays, and the
root; both go with the last.

Taken for granted here, since the RFC does not say: a lock for each page that is shared, because the
files that share it are locked one by one. A fault knows from the filesystem's answer whether it is
(``IOMAP_F_SHARED``); all else is known by whether there is a tree.
"""

from typing import TYPE_CHECKING

from whoseblock.study.base import INDEX_BITS, LookupResult, PageOwner, owner_of
from whoseblock.study.counts import Counts
from whoseblock.study.sizes import RB_ROOT_CACHED, SHARED_FILE
from whoseblock.study.trackers.rbtree import Tree

if TYPE_CHECKING:
    from collections.abc import Callable

    from whoseblock.study.simulation.space import Segment

__all__ = ["PerPage"]


class PerPage:
    """Tracks the owners of each page that is faulted in.

    ``segment_at`` is the filesystem's answer to a fault; without it every page may be shared.
    """

    name = "per page"

    def __init__(self, segment_at: "Callable[[int], Segment] | None" = None) -> None:
        self.counts = Counts()
        self._segment_at = segment_at
        #: What ``struct page`` has: the only owner, or the tree of them.
        self._pages: dict[int, int | Tree] = {}

    def associate(self, page: int, mapping: int, index: int, count: int = 1) -> None:
        """Add an owner."""
        pages, counts = self._pages, self.counts
        key = mapping << INDEX_BITS | index
        segment_at = self._segment_at
        for _ in range(count):
            held = pages.get(page)
            if isinstance(held, Tree) or segment_at is None or len(segment_at(page).keys) > 1:
                counts.locks += 1
            if held is None:
                pages[page] = key
            elif isinstance(held, Tree):
                if held.insert(key):
                    counts.count_allocation(SHARED_FILE)
            elif held != key:
                counts.count_allocation(RB_ROOT_CACHED)
                tree = pages[page] = Tree(counts)
                for one in (held, key):
                    counts.count_allocation(SHARED_FILE)
                    tree.insert(one)
            page += 1
            key += 1

    def disassociate(self, page: int, mapping: int, index: int, count: int = 1) -> None:
        """Remove an owner."""
        pages, counts = self._pages, self.counts
        key = mapping << INDEX_BITS | index
        for _ in range(count):
            held = pages.get(page)
            if isinstance(held, Tree):
                counts.locks += 1
                if held.erase(key):
                    counts.count_free(SHARED_FILE)
                if not held.size:
                    counts.count_free(RB_ROOT_CACHED)
                    del pages[page]
            elif held == key:
                del pages[page]
            page += 1
            key += 1

    def keys(self, page: int) -> list[int]:
        """Return the keys of the owners, ascending."""
        held = self._pages.get(page)
        if held is None:
            return []
        return [held] if isinstance(held, int) else held.keys()

    def find(self, page: int) -> LookupResult:
        """Return the owners of a page; without an owner it is unknown: free or never faulted."""
        self.counts.locks += 1
        keys = self.keys(page)
        return LookupResult("files" if keys else "unknown", keys)

    def owners(self, page: int) -> tuple[PageOwner, ...]:
        """Return the owners that have faulted the page, in order."""
        return tuple(map(owner_of, self.keys(page)))

    def recount(self) -> int:
        """Count the bytes held now anew."""
        trees = [held for held in self._pages.values() if isinstance(held, Tree)]
        return sum(RB_ROOT_CACHED + SHARED_FILE * len(tree.keys()) for tree in trees)
