"""What was merged: nothing is tracked, and the filesystem is asked when a page has failed."""

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

from whoseblock.fs.base import FileOwner, Free, MetadataOwner, Outside
from whoseblock.study.base import Found, Owner, key_of, owner_of
from whoseblock.study.counts import Counts
from whoseblock.study.sizes import PAGE

if TYPE_CHECKING:
    from whoseblock.fs.base import Filesystem
    from whoseblock.study.space import Space

__all__ = ["DiskLookup", "OnDemand", "SpaceLookup"]


class OnDemand:
    """Asks; ``find`` is who knows."""

    name = "on demand"

    def __init__(self, find: Callable[[int], Found]) -> None:
        self.counts = Counts()
        self._find = find

    def associate(self, page: int, mapping: int, index: int, count: int = 1) -> None:
        """Do nothing."""

    def disassociate(self, page: int, mapping: int, index: int, count: int = 1) -> None:
        """Do nothing."""

    def find(self, page: int) -> Found:
        """Ask the filesystem whose a page is, under the lock of its allocation group."""
        self.counts.locks += 1
        return self._find(page)

    def keys(self, page: int) -> list[int]:
        """Give the keys of the owners, ascending."""
        return self.find(page).keys

    def owners(self, page: int) -> tuple[Owner, ...]:
        """Give every file that has the page, faulted or not, in order."""
        return tuple(map(owner_of, self.keys(page)))

    def recount(self) -> int:
        """Count the bytes held now: none."""
        return 0


class SpaceLookup:
    """Answers from what the study's filesystem keeps in memory: for extents that are made up."""

    def __init__(self, space: "Space") -> None:
        self._space = space

    def __call__(self, page: int) -> Found:
        """Say whose a page is."""
        keys = self._space.keys(page)
        return Found("files" if keys else "free", keys)


class DiskLookup:
    """Answers from the reverse mapping of a real filesystem.

    What the workload has changed since stands before what is on the disk, like transactions that
    are in the log and not yet written back.  The disk is asked all the same, so that time and
    blocks are those of a real question.
    """

    def __init__(self, filesystem: "Filesystem", space: "Space") -> None:
        self._filesystem = filesystem
        self._space = space

    def __call__(self, page: int) -> Found:
        """Say whose a page is."""
        answer = self._filesystem.owners(page * PAGE, PAGE, paths=False)
        if page in self._space.changed:
            return SpaceLookup(self._space)(page)
        rows = answer.owners
        if not answer.complete:
            return Found("unknown", _keys(rows))
        if all(isinstance(row, Free) for row in rows):
            return Found("free", [])
        if any(_is_metadata(row) for row in rows):
            return Found("metadata", [])
        return Found("files", _keys(rows))


def _is_metadata(row: object) -> bool:
    if isinstance(row, FileOwner):
        return row.fork != "data" or row.what in ("directory", "symlink", "extent-map")
    return isinstance(row, (MetadataOwner, Outside))


def _keys(rows: Sequence[object]) -> list[int]:
    return sorted(
        key_of(row.inode, row.file_offset // PAGE)
        for row in rows
        if isinstance(row, FileOwner) and row.file_offset is not None and not _is_metadata(row)
    )
