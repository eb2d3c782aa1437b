"""The pages of files that are faulted in: the DAX entries of every file's ``i_pages``.

They are there in all three designs, and counted in none. An entry stays when the process that
faulted it in unmaps the file, and goes when the file is cut, copied elsewhere, or forgotten.
"""

from array import array
from collections.abc import Iterable
from typing import TYPE_CHECKING, Final

from whoseblock.study.base import INDEX_BITS

if TYPE_CHECKING:
    import numpy as np

__all__ = ["Entries"]

#: Entries come in chunks of so many, like the nodes of an xarray: what is near in the file is near
#: in memory.
_CHUNK_BITS: Final = 9
_CHUNK: Final = 1 << _CHUNK_BITS
_LAST: Final = _CHUNK - 1
_INDEX_MASK: Final = (1 << INDEX_BITS) - 1
_PRESENT: Final = b"\1"
_NO_PAGE: Final = -1
_EMPTY: Final = array("q", [_NO_PAGE]) * _CHUNK


class Entries:
    """The page behind each key that is faulted in."""

    def __init__(self) -> None:
        self._count = 0
        #: By chunk: the page of each key, and which of them there are, which is quick to search.
        self._pages: dict[int, array[int]] = {}
        self._marks: dict[int, bytearray] = {}
        #: The chunks of each file.
        self._of: dict[int, set[int]] = {}

    def __len__(self) -> int:
        return self._count

    def __contains__(self, key: int) -> bool:
        marks = self._marks.get(key >> _CHUNK_BITS)
        return marks is not None and marks[key & _LAST] != 0

    def insert(self, key: int, page: int) -> None:
        """Insert an entry where there is none."""
        chunk = key >> _CHUNK_BITS
        marks = self._marks.get(chunk)
        if marks is None:
            marks = self._marks[chunk] = bytearray(_CHUNK)
            self._pages[chunk] = _EMPTY[:]
            self._of.setdefault(key >> INDEX_BITS, set()).add(chunk)
        marks[key & _LAST] = 1
        self._pages[chunk][key & _LAST] = page
        self._count += 1

    def remove(self, key: int) -> int | None:
        """Remove an entry; return its page, None if there was none."""
        if key not in self:
            return None
        chunk = key >> _CHUNK_BITS
        self._marks[chunk][key & _LAST] = 0
        page = self._pages[chunk][key & _LAST]
        self._pages[chunk][key & _LAST] = _NO_PAGE
        self._count -= 1
        return page

    def those_at(self, page: int, keys: Iterable[int]) -> list[int]:
        """Return those keys whose entry is for this page."""
        chunks = self._pages
        return [key for key in keys if chunks.get(key >> _CHUNK_BITS, _EMPTY)[key & _LAST] == page]

    def those_of(self, page: int, owners: Iterable[int]) -> list[int]:
        """Return the keys of owners, each a key less the page, whose entry is for this page."""
        chunks = self._pages
        return [
            key
            for owner in owners
            if chunks.get((key := owner + page) >> _CHUNK_BITS, _EMPTY)[key & _LAST] == page
        ]

    def any_within(self, key: int, count: int) -> bool:
        """Return whether any of ``count`` keys from ``key`` is faulted in, as ``xa_find`` does."""
        end = key + count
        while key < end:
            chunk, at = key >> _CHUNK_BITS, key & _LAST
            upto = min(at + end - key, _CHUNK)
            marks = self._marks.get(chunk)
            if marks is not None and marks.find(_PRESENT, at, upto) >= 0:
                return True
            key += upto - at
        return False

    def seek(self, key: int, page: int, count: int) -> tuple[bool, int]:
        """Search ``count`` keys from ``key`` for one that is of the page as far behind ``page``.

        Gives whether there is one, and how many entries were looked at.
        """
        end, looked = key + count, 0
        while key < end:
            chunk, at = key >> _CHUNK_BITS, key & _LAST
            upto = min(at + end - key, _CHUNK)
            marks = self._marks.get(chunk)
            if marks is not None:
                pages = self._pages[chunk]
                found = marks.find(_PRESENT, at, upto)
                while found >= 0:
                    looked += 1
                    if pages[found] == page + found - at:
                        return True, looked
                    found = marks.find(_PRESENT, found + 1, upto)
            key += upto - at
            page += upto - at
        return False, looked

    def within(self, key: int, count: int) -> list[tuple[int, int]]:
        """Return those of ``count`` keys from ``key`` that are faulted in, and their pages.

        They ascend.
        """
        end = key + count
        first, last = key >> _CHUNK_BITS, end - 1 >> _CHUNK_BITS
        of = self._of.get(key >> INDEX_BITS, ())
        found = []
        # Those asked for, or those that there are, whichever are fewer.
        for chunk in range(first, last + 1) if last - first < len(of) else sorted(of):
            pages, start = self._pages.get(chunk), chunk << _CHUNK_BITS
            if pages is not None:
                part = range(max(key - start, 0), min(end - start, _CHUNK))
                found += [(start + at, pages[at]) for at in part if pages[at] != _NO_PAGE]
        return found

    def of(self, mapping: int) -> list[tuple[int, int]]:
        """Return the keys of a file that are faulted in, ascending, each with its page."""
        return self.within(mapping << INDEX_BITS, 1 << INDEX_BITS)

    def arrays(self) -> "tuple[np.ndarray, np.ndarray, np.ndarray]":
        """Return file, index and page of all entries, unordered."""
        import numpy as np

        chunks = list(self._pages)
        files = np.array([chunk >> INDEX_BITS - _CHUNK_BITS for chunk in chunks], np.int64)
        first = np.array([chunk << _CHUNK_BITS & _INDEX_MASK for chunk in chunks], np.int64)
        pages = np.array(list(self._pages.values()), np.int64).reshape(len(chunks), _CHUNK)
        which, at = np.nonzero(pages != _NO_PAGE)
        return files[which], first[which] + at, pages[which, at]
