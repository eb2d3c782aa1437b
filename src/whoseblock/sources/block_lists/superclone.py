"""Parse the progress log of HDDSuperClone, a map of a rescue in sectors.

The form is that of "Log file" in the manual of HDDSuperClone. After the comments, which name the
size of a sector, a line has the position and the phase. Then come lines ``POSITION SIZE STATUS INFO
ERROR``, ascending and without gaps, in sectors. The statuses correspond to those of ddrescue, to
which the program exports them; bit 7 marks a bad head.
"""

import re
from collections.abc import Iterator
from typing import Final

from whoseblock.errors import MalformedError
from whoseblock.sources.base import MAX_OFFSET, Reading, parse_number

__all__ = ["find_sector_size", "read_superclone"]

_SECTOR_SIZE: Final = re.compile(r"# sectorsize\s+(\d{1,6})\s*", re.ASCII)
_SIZES: Final = range(512, 1 << 17)
#: The part of a status that the program exports, and the status of ddrescue.
_MASK: Final = 0x70
_STATUSES: Final = {0x00: "?", 0x10: "*", 0x20: "*", 0x30: "/", 0x40: "-", 0x70: "+"}
_LINE: Final = "POSITION SIZE STATUS INFO ERROR, as HDDSuperClone writes them"


def find_sector_size(comment: str) -> int | None:
    """Return the size of a sector that a comment names, None if it names none."""
    match = _SECTOR_SIZE.fullmatch(comment)
    if match is None or int(match[1]) not in _SIZES or int(match[1]) % 512:
        return None
    return int(match[1])


def read_superclone(
    numbered: Iterator[tuple[int, str]],
    name: str,
    statuses: str,
    sector: int | None,
    reading: Reading,
) -> Iterator[tuple[int, int, int]]:
    """Yield the start, size and line of each block of a log, from the line after the phase.

    Only blocks with one of ``statuses`` are yielded.  ``sector`` is the size of a sector in bytes.
    Raises `MalformedError`.
    """
    if sector is None:
        raise MalformedError(name, None, "the size of a sector, in a line # sectorsize")
    expected = -1
    for number, line in numbered:
        fields = line.partition("#")[0].split()
        if not fields:
            continue
        numbers = [parse_number(field) for field in fields[:3]]
        status = None
        if len(fields) == 5 and None not in numbers:  # noqa: PLR2004
            status = _STATUSES.get((numbers[2] or 0) & _MASK)
        if status is None:
            raise MalformedError(name, number, _LINE)
        start, size = ((one or 0) * sector for one in numbers[:2])
        if start + size > MAX_OFFSET or (not size and start):
            raise MalformedError(name, number, _LINE)
        if expected not in (-1, start):
            raise MalformedError(
                name, number, f"the block after the last one, at {expected // sector:#x}"
            )
        expected = start + size
        reading.read += 1
        if status in statuses and size:
            reading.failures += 1
            yield start, size, number
