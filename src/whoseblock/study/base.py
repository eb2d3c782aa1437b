"""What every tracker can do, and how owners are named.

An owner of a page is a mapping, which stands for a file's ``struct address_space`` and is its inode
number here, and an index, the page of the file.  Both make one number, the key: comparing keys
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
    """Put mapping and index together."""
    return mapping << INDEX_BITS | index


def owner_of(key: int) -> PageOwner:
    """Take a key apart."""
    return PageOwner(key >> INDEX_BITS, key & _INDEX_MASK)


class LookupResult(NamedTuple):
    """What a tracker says of a failed page.

    ``kind`` is ``files``, ``free``, ``metadata``, or ``unknown``, which is all that a tracker can
    say of a page that nobody has faulted.  The ``keys`` ascend.  ``stops`` tells whether it is
    metadata that has Linux shut the filesystem down.
    """

    kind: str
    keys: list[int]
    stops: bool = False

    @property
    def owners(self) -> tuple[PageOwner, ...]:
        """The owners, in order."""
        return tuple(map(owner_of, self.keys))


class Watcher(Protocol):
    """Whoever hears of each entry.

    ``count`` pages from ``page`` become, or are no longer, those from ``index`` of the file: as
    many as the entry has that was put into the file's mapping, or taken out of it.
    """

    def associate(self, page: int, mapping: int, index: int, count: int = 1) -> None:
        """Take note of an owner; it is not one yet."""

    def disassociate(self, page: int, mapping: int, index: int, count: int = 1) -> None:
        """Forget an owner."""


class Tracker(Watcher, Protocol):
    """One of the designs."""

    name: str
    counts: Counts

    def find(self, page: int) -> LookupResult:
        """Say whose a page is."""

    def owners(self, page: int) -> tuple[PageOwner, ...]:
        """Give the owners of a page, in order."""

    def keys(self, page: int) -> list[int]:
        """Give the keys of the owners, ascending."""

    def recount(self) -> int:
        """Count the bytes held now anew, from the structures themselves."""
