"""Parse lists of bad blocks as badblocks(8) and ``dumpe2fs -b`` print and ``e2fsck -l`` reads them.

Each line is one decimal block number. The list does not record the block size. Lists that people
keep also have comments after ``#`` and ranges ``FIRST-LAST``.
"""

import re
from array import array
from collections.abc import Iterable, Iterator
from itertools import repeat
from operator import mul
from typing import Final

from whoseblock.errors import MalformedError
from whoseblock.ranges import RangeList
from whoseblock.sources.base import MAX_OFFSET, Failure, Reading
from whoseblock.sources.block_lists.failure_list import FailureList, NumberedText

__all__ = ["read_block_number_lists", "read_block_numbers"]

#: A block number or a range, with the digits of the largest 64-bit number.
_LINE: Final = re.compile(r"([0-9]{1,20})(?: ?- ?([0-9]{1,20}))?", re.ASCII)

#: Lines of one number each, which in blocks of 1 MiB is below 2**63 bytes.
_PLAIN_LINES: Final = re.compile(r"(?:[0-9]{1,12}\n)++", re.ASCII)
_LARGEST_BLOCK: Final = 1 << 20


def read_block_numbers(
    lines: Iterable[str], name: str, block_size: int, reading: Reading | None = None
) -> Iterator[Failure]:
    """Yield every block and range of a list; ``block_size`` is in bytes.

    ``name`` is the file in messages; ``reading`` counts the lines. Raises `MalformedError` for a
    line that is neither a number nor a range.
    """
    reading = reading or Reading(name)
    for start, length, number in _parse(enumerate(lines, 1), name, block_size, reading):
        yield Failure(start, length, "", f"{name}, line {number}")


def read_block_number_lists(
    pieces: Iterable[str], name: str, block_size: int, reading: Reading | None = None
) -> Iterator[FailureList]:
    """Yield the failures that `read_block_numbers` yields, many at once.

    ``pieces`` of the text are of whole lines.  Raises what `read_block_numbers` does.
    """
    reading = reading or Reading(name)
    for number, lines in NumberedText(pieces).rest():
        if block_size > _LARGEST_BLOCK or not _PLAIN_LINES.fullmatch(lines):
            numbered = enumerate(lines.removesuffix("\n").split("\n"), number)
            yield FailureList.of(name, _parse(numbered, name, block_size, reading))
            continue
        blocks = array("Q", map(int, lines.split()))
        starts = array("Q", map(mul, blocks, repeat(block_size)))
        reading.read += len(blocks)
        reading.failures += len(blocks)
        lengths = array("Q", [block_size]) * len(blocks)
        here = array("Q", range(number, number + len(blocks)))
        yield FailureList(RangeList(starts, lengths), name, here)


def _parse(
    numbered: Iterable[tuple[int, str]], name: str, block_size: int, reading: Reading
) -> Iterator[tuple[int, int, int]]:
    """Yield the start, the length and the line of each failure."""
    for number, line in numbered:
        reading.read = number
        text = line.partition("#")[0].strip()
        if not text:
            continue
        match = _LINE.fullmatch(text)
        if match is None:
            raise MalformedError(name, number, "one block number, or a range FIRST-LAST")
        first = int(match[1])
        last = int(match[2] or first)
        if last < first:
            raise MalformedError(name, number, "a range FIRST-LAST in ascending order")
        if (last + 1) * block_size > MAX_OFFSET:
            raise MalformedError(name, number, "the number of a block below 2**63 bytes")
        reading.failures += 1
        yield first * block_size, (last + 1 - first) * block_size, number
