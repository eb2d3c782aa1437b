"""Which pages of the files are faulted in: the DAX entries of every file's ``i_pages``.

They are there in all three designs, and counted in none.  An entry stays when the process that
faulted it in unmaps the file, and goes when the file is cut, written elsewhere, or forgotten.
"""

from typing import Final

from whoseblock.study.base import INDEX_BITS

__all__ = ["Entries"]

_CHUNK_BITS: Final = 9
_CHUNK: Final = 1 << _CHUNK_BITS
_LAST: Final = _CHUNK - 1
_PRESENT: Final = b"\1"


class Entries:
    """The page behind each key that is faulted in."""

    def __init__(self) -> None:
        self.pages: dict[int, int] = {}
        self._marks: dict[int, bytearray] = {}
        self._of: dict[int, set[int]] = {}

    def __len__(self) -> int:
        return len(self.pages)

    def insert(self, key: int, page: int) -> None:
        """Put an entry in, or in the place of another."""
        self.pages[key] = page
        chunk = key >> _CHUNK_BITS
        marks = self._marks.get(chunk)
        if marks is None:
            marks = self._marks[chunk] = bytearray(_CHUNK)
            self._of.setdefault(key >> INDEX_BITS, set()).add(chunk)
        marks[key & _LAST] = 1

    def remove(self, key: int) -> int | None:
        """Take an entry out; gives its page, None if there was none."""
        page = self.pages.pop(key, None)
        if page is not None:
            self._marks[key >> _CHUNK_BITS][key & _LAST] = 0
        return page

    def any_within(self, key: int, count: int) -> bool:
        """Tell whether any of ``count`` keys from ``key`` is faulted in, as ``xa_find`` does."""
        end = key + count
        while key < end:
            chunk, at = key >> _CHUNK_BITS, key & _LAST
            upto = min(at + end - key, _CHUNK)
            marks = self._marks.get(chunk)
            if marks is not None and marks.find(_PRESENT, at, upto) >= 0:
                return True
            key += upto - at
        return False

    def of(self, mapping: int) -> list[int]:
        """Give the keys of a file that are faulted in, ascending."""
        return [
            (chunk << _CHUNK_BITS) + at
            for chunk in sorted(self._of.get(mapping, ()))
            for at, present in enumerate(self._marks[chunk])
            if present
        ]
