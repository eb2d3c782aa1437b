"""Parse failures from a kernel log, as saved by dmesg, journalctl -k or syslog.

The messages are those of mm/memory-failure.c (``Memory failure: 0x10140a: …``) and of
block/blk-core.c (``I/O error, dev sda, sector 2048 …`` and the other errors of the medium). Other
lines that report an error of storage or memory are counted, and all others are skipped.

``Buffer I/O error`` is counted only: its unit is a block of unknown size. So are machine checks and
the firmware's reports of them: for each lost page, the kernel also logs a memory failure. A counted
line is ignored if a failure of the same device, or of memory, was read beside it.

A message must begin with the words above. The kernel also logs names that any user may choose, as
in ``x[1]: segfault … in NAME[…]``, and NAME may be ``Memory failure: 0x10140a: ``. A process may be
named ``I/O error, dev ``, and begin a message; but no name is long enough for a device and a comma.
"""

import re
from collections.abc import Iterable, Iterator
from typing import Final

from whoseblock.errors import MalformedError
from whoseblock.ranges import PHYSICAL_MEMORY
from whoseblock.sources.base import Failure, Reading
from whoseblock.sources.log_lines import HINTS, PREFIX, LogForm, OtherErrors

__all__ = ["REQUEST_REMARK", "read_dmesg", "read_message"]

#: The uncertainty of a line of the block layer: blk_print_req_error() prints where the rest of the
#: request begins, and a driver that does not know the failed sector fails all of it.
REQUEST_REMARK: Final = (
    "the failed request, or the rest of it, begins at this sector; the bad sector may lie further"
    " on, and the log does not say how far"
)

_SECTOR: Final = 512
_MEMORY_WORDS: Final = "Memory failure: 0x"
_MEMORY: Final = re.compile(rf"{_MEMORY_WORDS}([0-9a-f]{{1,16}}):", re.ASCII)
#: The words of blk_errors for errors of the medium, in all versions since 4.13; older kernels only
#: have "I/O error". Errors of the path or the target and timeouts name no failed sector.
_BLOCK_WORDS: Final = re.compile(
    r"(?:(?:end_request|blk_update_request|print_req_error): )?"
    r"(?:I/O|critical medium|protection) error, dev ",
)
#: Kernels before 5.2 do not print the operation.
_BLOCK: Final = re.compile(
    r"([^\s,]{1,64}), sector (\d{1,20})\b(?: op 0x[0-9a-f]{1,8}:\((\w{1,32})\))?", re.ASCII
)
#: A message of the block layer, or a truncated one. Others begin with the name of a process.
_BLOCK_BEGIN: Final = re.compile(r"[^\s,]*(?:,|\s*\Z)")
#: Operations with data; the others of blk_op_name, such as FLUSH and DISCARD, lose none.
_OPERATIONS: Final = frozenset({None, "READ", "WRITE", "WRITE_SAME", "WRITE_ZEROES", "ZONE_APPEND"})


def read_dmesg(
    lines: Iterable[str], name: str, page_size: int = 4096, reading: Reading | None = None
) -> Iterator[Failure]:
    """Yield every page and every sector that the log reports as failed, each once.

    ``name`` is the file in messages. ``reading`` counts the lines, and the lines that report an
    error in another form. Raises `MalformedError` for a truncated message of a failure, and for
    binary data without any line of the kernel.
    """
    reading = reading or Reading(name)
    seen: set[tuple[str, int]] = set()
    others = OtherErrors()
    form = LogForm()
    number = 0
    for number, line in enumerate(lines, 1):
        reading.read = number
        if not form.is_log:
            form.examine(number, line)
        # Nearly every line is rejected by these fast searches.
        if _MEMORY_WORDS not in line and " error, dev " not in line:
            if any(word in line.lower() for word in HINTS):
                others.examine(number, line)
            continue
        text = PREFIX.sub("", line, count=1)
        found = read_message(text, name, number, page_size)
        if found is None:
            others.examine(number, line)
        else:
            form.is_log = True
            others.known.add(found.device)
            if (found.device, found.start) not in seen:
                seen.add((found.device, found.start))
                reading.failures += 1
                yield found
    form.check(name)
    others.report_to(reading)
    if number and not form.is_log:
        reading.remarks.append("no line has the time or the prefix of a kernel log")


def read_message(text: str, name: str, number: int = 1, page_size: int = 4096) -> Failure | None:
    """Return the page or sector that a message reports as failed, None if it reports none.

    A message names the start of the failed request, not the failed sector in it: so the result is
    one sector, with `REQUEST_REMARK`. ``name`` and ``number`` are its file and line. Raises
    `MalformedError` for a truncated message.
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
            if not _BLOCK_BEGIN.match(text, words.end()):
                return None
            raise MalformedError(name, number, "DEVICE, sector NUMBER after 'error, dev'")
        # The kernel prints ? for a request without a disk.
        if match[3] not in _OPERATIONS or match[1] == "?":
            return None
        device, start, length = match[1], int(match[2]) * _SECTOR, _SECTOR
        remark = REQUEST_REMARK
    else:
        return None
    # The kernel prints (sector_t) -1 for an unknown sector.
    if start + length > 1 << 63:
        return None
    return Failure(start, length, device, f"{name}, line {number}", remark)
