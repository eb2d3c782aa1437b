"""The first proposal: a red-black tree on every shared page.

Modelled on the RFC "dax: Add a dax-rmap tree to support reflink".  The first owner costs nothing:
``page->mapping`` and ``page->index`` hold it.  The second makes a root, behind ``page->private``,
and a node for each of the two.  An entry of 2 MiB does so for each of its 512 pages.  When all but
one have left, that one's node stays, and the root; both go with the last.

Taken for granted here, since the RFC does not say: a lock for each page, because the files that
share it are locked one by one.
"""

from whoseblock.study.base import INDEX_BITS, Found, Owner, owner_of
from whoseblock.study.counts import Counts
from whoseblock.study.rbtree import Tree
from whoseblock.study.sizes import RB_ROOT_CACHED, SHARED_FILE

__all__ = ["PerPage"]


class PerPage:
    """Tracks the owners of each page that is faulted in."""

    name = "per page"

    def __init__(self) -> None:
        self.counts = Counts()
        #: What ``struct page`` has: the only owner, or the tree of them.
        self._pages: dict[int, int | Tree] = {}

    def associate(self, page: int, mapping: int, index: int, count: int = 1) -> None:
        """Take note of an owner."""
        pages, counts = self._pages, self.counts
        key = mapping << INDEX_BITS | index
        counts.locks += count
        for _ in range(count):
            held = pages.get(page)
            if held is None:
                pages[page] = key
            elif isinstance(held, int):
                counts.take(RB_ROOT_CACHED)
                tree = pages[page] = Tree(counts)
                for one in (held, key):
                    counts.take(SHARED_FILE)
                    tree.insert(one)
            elif held.insert(key):
                counts.take(SHARED_FILE)
            page += 1
            key += 1

    def disassociate(self, page: int, mapping: int, index: int, count: int = 1) -> None:
        """Forget an owner."""
        pages, counts = self._pages, self.counts
        key = mapping << INDEX_BITS | index
        counts.locks += count
        for _ in range(count):
            held = pages.get(page)
            if isinstance(held, Tree):
                if held.erase(key):
                    counts.give(SHARED_FILE)
                if not held.size:
                    counts.give(RB_ROOT_CACHED)
                    del pages[page]
            elif held == key:
                del pages[page]
            page += 1
            key += 1

    def keys(self, page: int) -> list[int]:
        """Give the keys of the owners, ascending."""
        held = self._pages.get(page)
        if held is None:
            return []
        return [held] if isinstance(held, int) else held.keys()

    def find(self, page: int) -> Found:
        """Say whose a page is: without an owner nobody knows, it may be free or never faulted."""
        self.counts.locks += 1
        keys = self.keys(page)
        return Found("files" if keys else "unknown", keys)

    def owners(self, page: int) -> tuple[Owner, ...]:
        """Give the owners that have faulted the page, in order."""
        return tuple(map(owner_of, self.keys(page)))

    def recount(self) -> int:
        """Count the bytes held now anew."""
        trees = [held for held in self._pages.values() if isinstance(held, Tree)]
        return sum(RB_ROOT_CACHED + SHARED_FILE * len(tree.keys()) for tree in trees)
