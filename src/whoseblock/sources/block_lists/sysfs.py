"""Parse the kernel's bad-blocks lists in sysfs: lines ``SECTOR COUNT`` of 512-byte sectors.

The form is that of ``badblocks_show`` in the kernel's block/badblocks.c. Disks have such a list in
/sys/block/*/badblocks, regions of persistent memory in /sys/bus/nd/devices/*/badblocks. The kernel
shows one page of a list, but a list of 512 entries has up to three.
"""

from typing import Final

from whoseblock.errors import MalformedError
from whoseblock.sources.base import Failure, Reading

__all__ = ["TRUNCATED", "parse_bad_block_list"]

#: The message for a truncated list.
TRUNCATED: Final = "the list of bad blocks is longer than the page that the kernel shows"

_SECTOR: Final = 512
_MAX_DIGITS: Final = 20


def parse_bad_block_list(
    text: str, page_size: int, device: str, name: str, reading: Reading | None = None
) -> tuple[list[Failure], bool]:
    """Return every range of a list of ``device``, and whether the list may be truncated.

    ``name`` is the list in messages; ``reading`` counts the lines. Raises `MalformedError`.
    """
    reading = reading or Reading(name)
    lines, truncated = _split_lines(text, page_size)
    failures = []
    for number, line in enumerate(lines, 1):
        reading.read = number
        fields = line.split()
        if not fields:
            continue
        if len(fields) != 2 or not all(  # noqa: PLR2004
            field.isascii() and field.isdecimal() and len(field) <= _MAX_DIGITS for field in fields
        ):
            raise MalformedError(name, number, "SECTOR COUNT, two numbers")
        sector, count = map(int, fields)
        if not count or sector + count > 1 << 54:
            raise MalformedError(name, number, "one sector or more, below 2**63 bytes")
        reading.failures += 1
        failures.append(
            Failure(sector * _SECTOR, count * _SECTOR, device, f"{name}, line {number}")
        )
    return failures, truncated


def _split_lines(text: str, page_size: int) -> tuple[list[str], bool]:
    """Return the complete lines of a list, and whether it may continue after them.

    sysfs returns at most one byte less than a page, and may end within a line; half of a number is
    a valid number too.
    """
    shown = text.rstrip("\n")
    lines = shown.splitlines()
    if len(shown) == page_size - 1:
        return lines[:-1], True
    # With its line feed, the text has the maximum length: the list may or may not continue.
    return lines, len(shown) == page_size - 2
