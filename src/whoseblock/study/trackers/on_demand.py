"""The merged design: track nothing, and query the filesystem when a page has failed."""

from collections.abc import Callable, Sequence
from itertools import pairwise
from typing import TYPE_CHECKING

from whoseblock.fs.arrays import FORKS, KINDS, WHATS
from whoseblock.fs.base import FileOwner, Free, MetadataOwner, Outside
from whoseblock.study.base import INDEX_BITS, LookupResult, PageOwner, key_of, owner_of
from whoseblock.study.counts import Counts
from whoseblock.study.sizes import PAGE

if TYPE_CHECKING:
    from whoseblock.fs.driver import Volume
    from whoseblock.study.simulation.space import Space

__all__ = ["DiskAnswers", "DiskLookup", "OnDemand", "SpaceLookup", "ask_all"]

_FILE, _DATA_FORK, _DATA = KINDS.index("file"), FORKS.index("data"), WHATS.index("data")


class OnDemand:
    """Queries ``find`` when a page fails.

    Linux counts the entries of each page, in ``page->share`` since 6.2, so as to know the last one
    that goes. That is in ``struct page``, and does not say whose they are.
    """

    name = "on demand"

    def __init__(self, find: Callable[[int], LookupResult]) -> None:
        self.counts = Counts()
        self._find = find
        #: What ``struct page`` has: by how many entries it is faulted in.
        self.share: dict[int, int] = {}

    def associate(self, page: int, _mapping: int, _index: int, count: int = 1) -> None:
        """Count a new entry."""
        share = self.share
        for one in range(page, page + count):
            share[one] = share.get(one, 0) + 1

    def disassociate(self, page: int, _mapping: int, _index: int, count: int = 1) -> None:
        """Count a removed entry."""
        share = self.share
        for one in range(page, page + count):
            if share[one] > 1:
                share[one] -= 1
            else:
                del share[one]

    def find(self, page: int) -> LookupResult:
        """Query the owners of a page, under the lock of its allocation group."""
        self.counts.locks += 1
        return self._find(page)

    def keys(self, page: int) -> list[int]:
        """Return the keys of the owners, ascending."""
        return self._find(page).keys

    def owners(self, page: int) -> tuple[PageOwner, ...]:
        """Return every file with the page, faulted or not, in order."""
        return tuple(map(owner_of, self.keys(page)))

    def recount(self) -> int:
        """Count the bytes held now: none."""
        return 0


class SpaceLookup:
    """Answers from what the study's filesystem keeps in memory: for extents that are made up."""

    def __init__(self, space: "Space") -> None:
        self._space = space

    def __call__(self, page: int) -> LookupResult:
        """Return the owners of a page, or its other use."""
        keys = self._space.keys(page)
        return LookupResult("files" if keys else "free", keys)


class DiskLookup:
    """Answers from the reverse mapping of a real filesystem.

    What the workload has changed since stands before what is on the disk, like transactions that
    are in the log and not yet written back. The disk is asked all the same, so that time and
    blocks are those of a real question.
    """

    def __init__(self, filesystem: "Volume", space: "Space") -> None:
        self._filesystem = filesystem
        self._space = space

    def __call__(self, page: int) -> LookupResult:
        """Return the owners of a page, or its other use."""
        answer = self._filesystem.owners(page * PAGE, PAGE, paths=False)
        if page in self._space.changed:
            return SpaceLookup(self._space)(page)
        rows = answer.owners
        if not answer.complete:
            return LookupResult("unknown", _keys(rows))
        if all(isinstance(row, Free) for row in rows):
            return LookupResult("free", [])
        if any(_is_metadata(row) for row in rows):
            return LookupResult("metadata", [], stops=any(_stops(row) for row in rows))
        return LookupResult("files", _keys(rows))


class DiskAnswers:
    """The answers of on demand for all pages of files, to compare after each step.

    A query of the image is too slow to repeat after every step. The image does not change, so each
    page is queried once (`ask_all`), with the same answer as `DiskLookup`. For pages that the
    workload has changed, the memory of the filesystem is queried each time, as in `DiskLookup`.
    """

    def __init__(self, told: dict[int, list[int]], space: "Space") -> None:
        self._space = space
        self._of = told

    def __call__(self, page: int) -> list[int]:
        """Return the keys of the owners, ascending."""
        if self._space.rmap_updates and page in self._space.changed:
            return self._space.keys(page)
        # Other pages were not of files at the beginning, and have not been allocated since.
        return self._of.get(page, [])


def ask_all(filesystem: "Volume", space: "Space") -> dict[int, list[int]]:
    """Ask a filesystem about every page that files have; gives the keys of the owners of each."""
    import numpy as np

    pages = [page for one in space.segments() for page in range(one.start, one.end)]
    rows = filesystem.owners_of([page * PAGE for page in pages], [PAGE] * len(pages))
    index = rows.file_offset // PAGE
    data = (rows.kind == _FILE) & (rows.fork == _DATA_FORK) & (rows.what == _DATA)
    order = np.lexsort((index, rows.inode, rows.question))
    order = order[data[order]]
    inodes, indexes = rows.inode[order].tolist(), index[order].tolist()
    keys = [inode << INDEX_BITS | at for inode, at in zip(inodes, indexes, strict=True)]
    bounds = np.searchsorted(rows.question[order], np.arange(len(pages) + 1)).tolist()
    each = (keys[start:end] for start, end in pairwise(bounds))
    return dict(zip(pages, each, strict=True))


def _is_metadata(row: object) -> bool:
    if isinstance(row, FileOwner):
        return row.fork != "data" or row.what in ("directory", "symlink", "extent-map")
    return isinstance(row, (MetadataOwner, Outside))


def _stops(row: object) -> bool:
    """Return whether Linux shuts down: not for the data fork of any inode, even a directory's."""
    return not isinstance(row, FileOwner) or row.fork != "data" or row.what == "extent-map"


def _keys(rows: Sequence[object]) -> list[int]:
    return sorted(
        key_of(row.inode, row.file_offset // PAGE)
        for row in rows
        if isinstance(row, FileOwner) and row.file_offset is not None and not _is_metadata(row)
    )
