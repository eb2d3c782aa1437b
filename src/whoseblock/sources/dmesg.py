"""Failures in a kernel log, however it was saved: dmesg, journalctl -k, a syslog file.

The messages are those of mm/memory-failure.c (``Memory failure: 0x10140a: …``) and of
block/blk-core.c (``I/O error, dev sda, sector 2048 …`` and the media errors beside it).  All other
lines are passed over; those of them that report an error of storage or memory are counted.
``Buffer I/O error`` is one of them: it counts in blocks of a size that it does not tell.  So are
the machine check and what firmware says of it: whatever of that is about a page that is lost, the
kernel hands on to memory-failure.c.  Such a line does not count beside one about the same device,
or the memory, that was read.

A message has to begin with these words.  The kernel quotes names that anybody may choose, as in
``x[1]: segfault … in NAME[…]``, and NAME may be ``Memory failure: 0x10140a: ``.
"""

import re
from collections.abc import Iterable, Iterator
from typing import Final

from whoseblock.errors import MalformedError
from whoseblock.sources.base import Failure, Reading
from whoseblock.sources.log_lines import HINTS, PREFIX, LogForm, OtherErrors
from whoseblock.stack.base import PHYSICAL_MEMORY

__all__ = ["REQUEST_REMARK", "read_dmesg", "read_message"]

#: What is not known of a line of the block layer: blk_print_req_error() prints where the request,
#: or what is left of it, begins, and a driver without the address of the fault fails all of it.
REQUEST_REMARK: Final = (
    "the failed request, or the rest of it, begins at this sector; the bad sector may lie further"
    " on, and the log does not say how far"
)

_SECTOR: Final = 512
_MEMORY_WORDS: Final = "Memory failure: 0x"
_MEMORY: Final = re.compile(rf"{_MEMORY_WORDS}([0-9a-f]{{1,16}}):", re.ASCII)
#: The words of blk_errors that blame the medium, in all versions since 4.13; the oldest only had
#: "I/O error".  Errors of the path, the target or the time say nothing of the sector.
_BLOCK_WORDS: Final = re.compile(
    r"(?:(?:end_request|blk_update_request|print_req_error): )?"
    r"(?:I/O|critical medium|protection) error, dev ",
)
#: Kernels before 5.2 do not tell the operation.
_BLOCK: Final = re.compile(
    r"([^\s,]{1,64}), sector (\d{1,20})\b(?: op 0x[0-9a-f]{1,8}:\((\w{1,32})\))?", re.ASCII
)
#: The other operations of blk_op_name, such as FLUSH and DISCARD, carry no data that could be lost.
_OPERATIONS: Final = frozenset({None, "READ", "WRITE", "WRITE_SAME", "WRITE_ZEROES", "ZONE_APPEND"})


def read_dmesg(
    lines: Iterable[str], name: str, page_size: int = 4096, reading: Reading | None = None
) -> Iterator[Failure]:
    """Yield every page and every sector that the log reports as failed, each once.

    ``name`` is the file's, for messages; ``reading`` counts the lines, and those that report an
    error in another form.  Raises `MalformedError` for a line that begins to report a failure and
    does not end, and for binary data in which no line is the kernel's.
    """
    reading = reading or Reading(name)
    seen: set[tuple[str, int]] = set()
    others = OtherErrors()
    form = LogForm()
    number = 0
    for number, line in enumerate(lines, 1):
        reading.read = number
        if not form.is_log:
            form.look_at(number, line)
        # A few searches in C for nearly every line.
        if _MEMORY_WORDS not in line and " error, dev " not in line:
            if any(word in line.lower() for word in HINTS):
                others.look_at(number, line)
            continue
        text = PREFIX.sub("", line, count=1)
        found = read_message(text, name, number, page_size)
        if found is None:
            others.look_at(number, line)
        else:
            form.is_log = True
            others.known.add(found.device)
            if (found.device, found.start) not in seen:
                seen.add((found.device, found.start))
                reading.failures += 1
                yield found
    form.check(name)
    others.count_in(reading)
    if number and not form.is_log:
        reading.remarks.append("no line has the time or the prefix of a kernel log")


def read_message(text: str, name: str, number: int = 1, page_size: int = 4096) -> Failure | None:
    """Return the page or sector that a message reports as failed, None if it reports none.

    A message names where the request that failed begins, and not how far into it the fault was:
    hence one sector, and `REQUEST_REMARK`.  ``name`` and ``number`` are those of its file and
    line.  Raises `MalformedError` for one that begins to report a failure and does not end.
    """
    if text.startswith(_MEMORY_WORDS):
        match = _MEMORY.match(text)
        if match is None:
            raise MalformedError(name, number, "a page frame number after 'Memory failure:'")
        device, start, length = PHYSICAL_MEMORY, int(match[1], 16) * page_size, page_size
        remark = ""
    elif words := _BLOCK_WORDS.match(text):
        match = _BLOCK.match(text, words.end())
        if match is None:
            raise MalformedError(name, number, "DEVICE, sector NUMBER after 'error, dev'")
        # The kernel writes ? for a request without a disk.
        if match[3] not in _OPERATIONS or match[1] == "?":
            return None
        device, start, length = match[1], int(match[2]) * _SECTOR, _SECTOR
        remark = REQUEST_REMARK
    else:
        return None
    # The kernel says (sector_t) -1 where there is none.
    if start + length > 1 << 63:
        return None
    return Failure(start, length, device, f"{name}, line {number}", remark)
