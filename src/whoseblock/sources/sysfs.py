"""Bad-blocks lists as sysfs shows them: lines ``SECTOR COUNT`` of 512-byte sectors.

The form of ``badblocks_show`` in the kernel's block/badblocks.c; the kernel writes it for disks in
/sys/block/*/badblocks, and for regions of persistent memory in /sys/bus/nd/devices/*/badblocks.
It shows one page of a list, and a list of 512 entries has up to three.
"""

from collections.abc import Iterable, Iterator
from typing import Final

from whoseblock.errors import MalformedError
from whoseblock.sources.base import Failure, Reading

__all__ = ["CUT_OFF", "read_sysfs_badblocks", "whole_lines"]

CUT_OFF: Final = "the kernel shows a page of its list of bad blocks, and that is longer"

_SECTOR: Final = 512
_MOST_DIGITS: Final = 20


def whole_lines(text: str, page_size: int) -> tuple[list[str], bool]:
    """Give the lines that a list has wholly, and whether it was cut off after them.

    sysfs gives a byte less than a page, wherever in a line that ends: half a number is one, too.
    """
    shown = text.rstrip("\n")
    lines = shown.splitlines()
    if len(shown) == page_size - 1:
        return lines[:-1], True
    # With the end of its last line that is as long; whether there is more nobody can tell.
    return lines, len(shown) == page_size - 2


def read_sysfs_badblocks(
    lines: Iterable[str], device: str, name: str, reading: Reading | None = None
) -> Iterator[Failure]:
    """Yield every range of a list of ``device``; ``name`` is the file's, for messages.

    ``reading`` counts the lines.  Raises `MalformedError`.
    """
    reading = reading or Reading(name)
    for number, line in enumerate(lines, 1):
        reading.read = number
        fields = line.split()
        if not fields:
            continue
        if len(fields) != 2 or not all(  # noqa: PLR2004
            field.isascii() and field.isdecimal() and len(field) <= _MOST_DIGITS for field in fields
        ):
            raise MalformedError(name, number, "SECTOR COUNT, two numbers")
        sector, count = map(int, fields)
        if not count or sector + count > 1 << 54:
            raise MalformedError(name, number, "one sector or more, below 2**63 bytes")
        reading.failures += 1
        yield Failure(sector * _SECTOR, count * _SECTOR, device, f"{name}, line {number}")
