"""Lists of bad blocks: what badblocks(8) and ``dumpe2fs -b`` print, and ``e2fsck -l`` reads.

One decimal block number a line, and nothing else; the list does not say how large a block is.
"""

from collections.abc import Iterable, Iterator
from typing import Final

from whoseblock.errors import MalformedError
from whoseblock.sources.base import Failure, Reading

__all__ = ["read_badblocks"]

#: What a 64-bit block number has at most.
_MOST_DIGITS: Final = 20
_MOST: Final = 1 << 63


def read_badblocks(
    lines: Iterable[str], name: str, block_size: int, reading: Reading | None = None
) -> Iterator[Failure]:
    """Yield every block of a list; ``block_size`` is in bytes.

    ``name`` is the file's, for messages; ``reading`` counts the lines.  Raises `MalformedError` for
    a line that is no number.
    """
    reading = reading or Reading(name)
    for number, line in enumerate(lines, 1):
        reading.read = number
        text = line.strip()
        if not text:
            continue
        if not (text.isascii() and text.isdecimal()) or len(text) > _MOST_DIGITS:
            raise MalformedError(name, number, "a block number, and nothing else")
        start = int(text) * block_size
        if start + block_size > _MOST:
            raise MalformedError(name, number, "the number of a block below 2**63 bytes")
        reading.failures += 1
        yield Failure(start, block_size, "", f"{name}, line {number}")
