"""Failures in a kernel log, however it was saved: dmesg, journalctl -k, a syslog file.

The messages are those of mm/memory-failure.c (``Memory failure: 0x10140a: …``) and of
block/blk-core.c (``I/O error, dev sda, sector 2048 …`` and the media errors beside it).  All other
lines are passed over.  ``Buffer I/O error`` is passed over too: it counts in blocks of a size that
it does not tell.  So are the machine check and what firmware says of it: whatever of that is about
a page that is lost, the kernel hands on to memory-failure.c.

A message has to begin with these words.  The kernel quotes names that anybody may choose, as in
``x[1]: segfault … in NAME[…]``, and NAME may be ``Memory failure: 0x10140a: ``.
"""

import re
from collections.abc import Iterable, Iterator
from typing import Final

from whoseblock.errors import MalformedError
from whoseblock.sources.base import Failure
from whoseblock.stack.base import PHYSICAL_MEMORY

__all__ = ["read_dmesg", "read_message"]

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

#: What stands before a message in a log that was saved.
_PREFIX: Final = re.compile(
    r"""\A
    (?:<\d{1,3}>)?                                      # dmesg --raw, /proc/kmsg
    (?:[a-z][a-z0-9]{1,8}\ *:[a-z]{1,8}\ *:\ )?         # dmesg --decode
    (?:
        \d{1,4},\d{1,20},\d{1,20},[^;]{1,200};          # /dev/kmsg
      | (?:1\ )?                                        # syslog, and journalctl -o short…
        (?: [A-Z][a-z]{2}\ [ \d]\d\ [\d:.]{8,20}
          | (?:[A-Z][a-z]{2}\ )?\d{4}-\d\d-\d\d[T ]\d\d:\d\d:[-+\d.,:Z]{2,25}(?:\ [A-Z]{2,5})?
          | \d{1,12}\.\d{1,9}
          | \[[ \d.]{1,25}\]
        )
        \ \S{1,255}\ kernel(?::|\ -\ -\ -)[ ]
      | \d{4}-\d\d-\d\dT\d\d:\d\d:[-+\d.,:Z]{2,25}[ ]   # dmesg --time-format=iso
    )?
    (?:\[[^]]{1,60}\]\ ?){0,3}                          # the time; who spoke
    """,
    re.ASCII | re.VERBOSE,
)


def read_dmesg(lines: Iterable[str], name: str, page_size: int = 4096) -> Iterator[Failure]:
    """Give every page and every sector that the log says has failed, each once.

    ``name`` is the file's, for messages.  Raises `MalformedError` for a line that begins to tell of
    a failure and does not end.
    """
    seen: set[tuple[str, int]] = set()
    for number, line in enumerate(lines, 1):
        # Two searches in C for nearly every line.
        if _MEMORY_WORDS not in line and " error, dev " not in line:
            continue
        found = read_message(_PREFIX.sub("", line, count=1), name, number, page_size)
        if found is not None and (found.device, found.start) not in seen:
            seen.add((found.device, found.start))
            yield found


def read_message(text: str, name: str, number: int = 1, page_size: int = 4096) -> Failure | None:
    """Give the page or sector that a message says has failed, None if it is about something else.

    A message tells where the request that failed begins, and not how far into it the fault was:
    hence one sector.  ``name`` and ``number`` are those of its file and line.  Raises
    `MalformedError` for one that begins to tell of a failure and does not end.
    """
    if text.startswith(_MEMORY_WORDS):
        match = _MEMORY.match(text)
        if match is None:
            raise MalformedError(name, number, "a page frame number after 'Memory failure:'")
        device, start, length = PHYSICAL_MEMORY, int(match[1], 16) * page_size, page_size
    elif words := _BLOCK_WORDS.match(text):
        match = _BLOCK.match(text, words.end())
        if match is None:
            raise MalformedError(name, number, "DEVICE, sector NUMBER after 'error, dev'")
        # The kernel writes ? for a request without a disk.
        if match[3] not in _OPERATIONS or match[1] == "?":
            return None
        device, start, length = match[1], int(match[2]) * _SECTOR, _SECTOR
    else:
        return None
    # The kernel says (sector_t) -1 where there is none.
    if start + length > 1 << 63:
        return None
    return Failure(start, length, device, f"{name}, line {number}")
