"""The protocol of the trackers, and the keys of owners.

An owner of a page is a mapping, which stands for a file's ``struct address_space`` and is its inode
number here, and an index, the page of the file. Both make one number, the key: comparing keys
compares mappings first, and the next page of a file has the next key.
"""

from dataclasses import dataclass
from typing import Final, NamedTuple, Protocol

from whoseblock.study.counts import Counts

__all__ = ["INDEX_BITS", "LookupResult", "PageOwner", "Tracker", "Watcher", "key_of", "owner_of"]

#: No file has more pages than this many bits can count: its size is below 2**63 bytes.
INDEX_BITS: Final = 51
_INDEX_MASK: Final = (1 << INDEX_BITS) - 1


@dataclass(frozen=True, order=True, slots=True)
class PageOwner:
    """Page ``index`` of the file ``mapping``."""

    mapping: int
    index: int


def key_of(mapping: int, index: int) -> int:
    """Combine mapping and index into a key."""
    return mapping << INDEX_BITS | index


def owner_of(key: int) -> PageOwner:
    """Split a key into mapping and index."""
    return PageOwner(key >> INDEX_BITS, key & _INDEX_MASK)


class LookupResult(NamedTuple):
    """The answer of a tracker about a failed page.

    ``kind`` is ``files``, ``free``, ``metadata`` or ``unknown``; trackers of faults know nothing of
    pages that were not faulted. The ``keys`` ascend. ``stops`` is true for metadata whose failure
    shuts the filesystem down in Linux.
    """

    kind: str
    keys: list[int]
    stops: bool = False

    @property
    def owners(self) -> tuple[PageOwner, ...]:
        """The owners, in order."""
        return tuple(map(owner_of, self.keys))


class Watcher(Protocol):
    """A receiver of the changes of entries.

    ``count`` pages from ``page`` become, or are no longer, those from ``index`` of the file: as
    many as the entry has that was put into the file's mapping, or taken out of it.
    """

    def associate(self, page: int, mapping: int, index: int, count: int = 1) -> None:
        """Add an owner, which is not one yet."""

    def disassociate(self, page: int, mapping: int, index: int, count: int = 1) -> None:
        """Remove an owner."""


class Tracker(Watcher, Protocol):
    """One of the designs."""

    name: str
    counts: Counts

    def find(self, page: int) -> LookupResult:
        """Return the owners of a page, or its other use."""

    def owners(self, page: int) -> tuple[PageOwner, ...]:
        """Return the owners of a page, in order."""

    def keys(self, page: int) -> list[int]:
        """Return the keys of the owners, ascending."""

    def recount(self) -> int:
        """Count the bytes held now anew, from the structures themselves."""
