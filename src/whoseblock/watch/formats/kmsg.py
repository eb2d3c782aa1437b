"""Records of /dev/kmsg (Documentation/ABI/testing/dev-kmsg), and what is lost of them.

``PRIORITY,SEQUENCE,MICROSECONDS,FLAGS[,…];TEXT``, then lines of properties.  What the lines of a
failure look like is known to `whoseblock.sources.dmesg`.  A message is what it begins with: further
on the kernel quotes names that anybody may choose.
"""

import re
from typing import Final, NamedTuple

__all__ = ["KmsgRecord", "is_from_kernel", "read_kmsg", "suppressed"]

_HEAD: Final = re.compile(rb"([0-9]{1,10}),([0-9]{1,20}),([0-9]{1,20}),[^;\n]{0,200};")
_ESCAPE: Final = re.compile(rb"\\x([0-9a-f]{2})")
#: The functions of block/blk-core.c and blk-mq.c that have printed errors of requests, and how
#: many of them the kernel kept to itself (lib/ratelimit.c).
_SUPPRESSED: Final = re.compile(
    r"(?:blk_update_request|print_req_error|blk_print_req_error): ([0-9]{1,10}) callbacks"
    r" suppressed",
    re.ASCII,
)
_FACILITY: Final = 3


class KmsgRecord(NamedTuple):
    """One message: ``facility`` 0 is the kernel's, ``microseconds`` count from the boot."""

    facility: int
    sequence: int
    microseconds: int
    text: str


def read_kmsg(record: bytes) -> KmsgRecord | None:
    """Read what one read(2) gives; None if it is no record."""
    head = _HEAD.match(record)
    if head is None:
        return None
    text = record[head.end() :].partition(b"\n")[0]
    plain = _ESCAPE.sub(lambda match: bytes([int(match[1], 16)]), text)
    words = plain.decode(errors="surrogateescape")
    return KmsgRecord(int(head[1]) >> _FACILITY, int(head[2]), int(head[3]), words)


def is_from_kernel(record: KmsgRecord) -> bool:
    """Tell whether the kernel said it: programs write to the log too, and quote what they like."""
    return record.facility == 0


def suppressed(text: str) -> int:
    """Say how many errors of requests the kernel did not print, by its own word."""
    match = _SUPPRESSED.match(text)
    return int(match[1]) if match else 0
