"""Failures in a kernel log, however it was saved: dmesg, journalctl -k, a syslog file.

The messages are those of mm/memory-failure.c (``Memory failure: 0x10140a: …``) and of
block/blk-core.c (``I/O error, dev sda, sector 2048 …`` and the media errors beside it).  All other
lines are passed over.  ``Buffer I/O error`` is passed over too: it counts in blocks of a size that
it does not tell.  So are the machine check and what firmware says of it: whatever of that is about
a page that is lost, the kernel hands on to memory-failure.c.
"""

import re
from collections.abc import Iterable, Iterator
from typing import Final

from whoseblock.errors import MalformedError
from whoseblock.sources.base import Failure
from whoseblock.stack.base import PHYSICAL_MEMORY

__all__ = ["read_dmesg"]

_SECTOR: Final = 512
_MEMORY: Final = re.compile(r"Memory failure: 0x([0-9a-f]{1,16})\b", re.ASCII)
#: The words of blk_errors that blame the medium, in all versions since 4.13; the oldest only had
#: "I/O error".  Errors of the path, the target or the time say nothing of the sector.
#: Kernels before 5.2 do not tell the operation.
_BLOCK: Final = re.compile(
    r"(?:I/O|critical medium|protection) error, dev ([^\s,]{1,64}), sector (\d{1,20})\b"
    r"(?: op 0x[0-9a-f]{1,8}:\((\w{1,32})\))?",
    re.ASCII,
)
#: The other operations of blk_op_name, such as FLUSH and DISCARD, carry no data that could be lost.
_OPERATIONS: Final = frozenset({None, "READ", "WRITE", "WRITE_SAME", "WRITE_ZEROES", "ZONE_APPEND"})


def read_dmesg(lines: Iterable[str], name: str, page_size: int = 4096) -> Iterator[Failure]:
    """Give every page and every sector that the log says has failed, each once.

    A line tells where the request that failed begins, and not how far into it the fault was: hence
    one sector.  ``name`` is the file's, for messages.  Raises `MalformedError` for a line that
    begins to tell of a failure and does not end.
    """
    seen: set[tuple[str, int]] = set()
    for number, line in enumerate(lines, 1):
        # Two searches in C for nearly every line.
        if "Memory failure: 0x" in line:
            match = _MEMORY.search(line)
            if match is None:
                raise MalformedError(name, number, "a page frame number after 'Memory failure:'")
            device, start, length = PHYSICAL_MEMORY, int(match[1], 16) * page_size, page_size
        elif " error, dev " in line:
            match = _BLOCK.search(line)
            if match is None:
                if any(word in line for word in ("I/O error", "medium error", "protection error")):
                    raise MalformedError(name, number, "DEVICE, sector NUMBER after 'error, dev'")
                continue
            # The kernel writes ? for a request without a disk.
            if match[3] not in _OPERATIONS or match[1] == "?":
                continue
            device, start, length = match[1], int(match[2]) * _SECTOR, _SECTOR
        else:
            continue
        # The kernel says (sector_t) -1 where there is none.
        if start + length <= 1 << 63 and (device, start) not in seen:
            seen.add((device, start))
            yield Failure(start, length, device, f"{name}, line {number}")
