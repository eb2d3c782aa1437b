"""Parse the bad-block lists of members of md arrays.

They are read from ``/sys/block/md*/md/dev-*/bad_blocks``, in lines ``SECTOR COUNT``
(badblocks_show), or from ``mdadm --examine-badblocks``, in lines ``SECTOR for COUNT sectors``. Both
count 512-byte sectors from the start of the member, not of its data: rdev_set_badblocks() in the
kernel's drivers/md/md.c adds the data offset.
"""

import re
from collections.abc import Iterable, Iterator
from typing import Final

from whoseblock.errors import MalformedError
from whoseblock.sources.base import Failure, Reading

__all__ = ["read_md_badblocks"]

_SECTOR: Final = 512
_BLOCKS: Final = re.compile(r"\s*(\d{1,20})(?: (\d{1,10})| for (\d{1,10}) sectors)\s*", re.ASCII)
_DEVICE: Final = re.compile(
    r"(?:Bad-blocks on (?:/dev/)?(?P<device>\S{1,255}):|Bad-blocks list is empty in .{1,255}"
    r"|No bad-blocks list configured on .{1,255})\s*",
    re.ASCII,
)


def read_md_badblocks(
    lines: Iterable[str], name: str, reading: Reading | None = None
) -> Iterator[Failure]:
    """Yield every range; those of mdadm are of the member it names, others of the target.

    ``name`` is the file in messages; ``reading`` counts the lines. Raises `MalformedError`.
    """
    reading = reading or Reading(name)
    device = ""
    for number, line in enumerate(lines, 1):
        reading.read = number
        if not line.strip():
            continue
        if match := _DEVICE.fullmatch(line):
            device = match["device"] or ""
            continue
        match = _BLOCKS.fullmatch(line)
        if match is None:
            raise MalformedError(name, number, "SECTOR COUNT, or SECTOR for COUNT sectors")
        sector, count = int(match[1]), int(match[2] or match[3])
        if not count or sector + count > 1 << 54:
            raise MalformedError(name, number, "one sector or more, below 2**63 bytes")
        reading.failures += 1
        yield Failure(sector * _SECTOR, count * _SECTOR, device, f"{name}, line {number}")
