"""Parse lists of bad blocks as badblocks(8) and ``dumpe2fs -b`` print and ``e2fsck -l`` reads them.

Each line is one decimal block number. The list does not record the block size. Lists that people
keep also have comments after ``#`` and ranges ``FIRST-LAST``.
"""

import re
from collections.abc import Iterable, Iterator
from typing import Final

from whoseblock.errors import MalformedError
from whoseblock.sources.base import MAX_OFFSET, Failure, Reading

__all__ = ["read_block_numbers"]

#: A block number or a range, with the digits of the largest 64-bit number.
_LINE: Final = re.compile(r"([0-9]{1,20})(?: ?- ?([0-9]{1,20}))?", re.ASCII)


def read_block_numbers(
    lines: Iterable[str], name: str, block_size: int, reading: Reading | None = None
) -> Iterator[Failure]:
    """Yield every block and range of a list; ``block_size`` is in bytes.

    ``name`` is the file in messages; ``reading`` counts the lines. Raises `MalformedError` for a
    line that is neither a number nor a range.
    """
    reading = reading or Reading(name)
    for number, line in enumerate(lines, 1):
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
        length = (last + 1 - first) * block_size
        yield Failure(first * block_size, length, "", f"{name}, line {number}")
