"""Parse lists of bad blocks as badblocks(8) and ``dumpe2fs -b`` print and ``e2fsck -l`` reads them.

Each line is one decimal block number. The list does not record the block size.
"""

from collections.abc import Iterable, Iterator
from typing import Final

from whoseblock.errors import MalformedError
from whoseblock.sources.base import MAX_OFFSET, Failure, Reading

__all__ = ["read_block_numbers"]

#: The digits of the largest 64-bit number.
_MAX_DIGITS: Final = 20


def read_block_numbers(
    lines: Iterable[str], name: str, block_size: int, reading: Reading | None = None
) -> Iterator[Failure]:
    """Yield every block of a list; ``block_size`` is in bytes.

    ``name`` is the file in messages; ``reading`` counts the lines. Raises `MalformedError` for a
    line that is not a number.
    """
    reading = reading or Reading(name)
    for number, line in enumerate(lines, 1):
        reading.read = number
        text = line.strip()
        if not text:
            continue
        if not (text.isascii() and text.isdecimal()) or len(text) > _MAX_DIGITS:
            raise MalformedError(name, number, "one block number")
        start = int(text) * block_size
        if start + block_size > MAX_OFFSET:
            raise MalformedError(name, number, "the number of a block below 2**63 bytes")
        reading.failures += 1
        yield Failure(start, block_size, "", f"{name}, line {number}")
