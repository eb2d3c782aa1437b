"""Parts of inode tables as columns of words: which inodes may matter, without decoding all.

Nothing here is verified.  A scan that ends at the owner need only verify the inodes that it uses.
Offsets are those of ``struct ext4_inode``, in words of 32 bits.
"""

import stat
import sys
from array import array
from collections.abc import Iterable, Sequence
from typing import Final

from whoseblock.fs.ext4.format.extents import EXT4_EXT_MAGIC, EXT_INIT_MAX_LEN

__all__ = ["Columns"]

_WORD: Final = 4
_MODE: Final = 0
#: The header of a root: magic and entries, then the most entries and the depth.
_ENTRIES: Final = 10
_DEPTH: Final = 11
#: The first extent: its logical block, its length, the low half of its start.
_EXTENT: Final = 13
_EACH: Final = 3
_ROOT_ENTRIES: Final = 4
_HALF: Final = 16
_LOW: Final = (1 << _HALF) - 1
_WORD_MAX: Final = (1 << 32) - 1


class Columns:
    """The inodes of ``size`` bytes in a part of a table."""

    def __init__(self, data: bytes, size: int) -> None:
        self._words = memoryview(data).cast("I")
        self._step = size // _WORD

    def _column(self, word: int) -> "array[int]":
        found = array("I")
        found.frombytes(self._words[word :: self._step].tobytes())
        if sys.byteorder == "big":
            found.byteswap()
        return found

    def directories(self) -> list[int]:
        """Return the places of inodes with the mode of a directory."""
        kind = stat.S_IFDIR
        return [place for place, word in enumerate(self._column(_MODE)) if word & 0xF000 == kind]

    def with_tree(self) -> list[int]:
        """Return the places of inodes whose extents are in blocks below the root."""
        deep = [place for place, word in enumerate(self._column(_DEPTH)) if word > _LOW]
        if not deep:
            return []
        heads = self._column(_ENTRIES)
        return [place for place in deep if heads[place] & _LOW == EXT4_EXT_MAGIC]

    def mapping(self, ranges: Iterable[tuple[int, int]]) -> list[int]:
        """Return the places of inodes with an extent in the root that touches one of ``ranges``.

        ``ranges`` are blocks, as first and past the last.
        """
        counts = [head >> _HALF for head in set(self._column(_ENTRIES)) if _is_root(head)]
        found: set[int] = set()
        wanted = list(ranges)
        for number in range(max(counts, default=0)):
            word = _EXTENT + _EACH * number
            lengths = self._column(word + 1)
            starts = self._column(word + 2)
            for low, high in wanted:
                found.update(
                    place
                    for place in _begun_before(starts, low, high)
                    if _touches(starts[place], lengths[place], low, high)
                )
        return sorted(found)


def _is_root(head: int) -> bool:
    return head & _LOW == EXT4_EXT_MAGIC and head >> _HALF <= _ROOT_ENTRIES


def _begun_before(starts: Sequence[int], low: int, high: int) -> list[int]:
    """Return where a start is near enough to a range, by its low 32 bits."""
    first, last = low - EXT_INIT_MAX_LEN + 1, high - 1
    if last - first >= _WORD_MAX:
        return list(range(len(starts)))
    first &= _WORD_MAX
    last &= _WORD_MAX
    if first <= last:
        return [place for place, start in enumerate(starts) if first <= start <= last]
    return [place for place, start in enumerate(starts) if start >= first or start <= last]


def _touches(start: int, length: int, low: int, high: int) -> bool:
    """Return whether an extent touches a range; ``length`` is its second word."""
    start |= (length >> _HALF) << 32
    length &= _LOW
    if length > EXT_INIT_MAX_LEN:
        length -= EXT_INIT_MAX_LEN
    return start < high and start + length > low
