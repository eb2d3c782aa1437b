"""Parse records of /dev/kmsg (Documentation/ABI/testing/dev-kmsg).

``PRIORITY,SEQUENCE,MICROSECONDS,FLAGS[,…];TEXT``, then lines of properties.
`whoseblock.sources.kernel_log` knows the text of failures. Only the beginning of a message counts:
further on the kernel quotes names that any user may choose.
"""

import re
from typing import Final, NamedTuple

__all__ = ["KmsgRecord", "count_suppressed", "is_from_kernel", "read_kmsg"]

_HEAD: Final = re.compile(rb"([0-9]{1,10}),([0-9]{1,20}),([0-9]{1,20}),[^;\n]{0,200};")
_ESCAPE: Final = re.compile(rb"\\x([0-9a-f]{2})")
#: The functions of block/blk-core.c and blk-mq.c that have printed request errors, and the number
#: of messages that rate limiting suppressed (lib/ratelimit.c).
_SUPPRESSED: Final = re.compile(
    r"(?:blk_update_request|print_req_error|blk_print_req_error): ([0-9]{1,10}) callbacks"
    r" suppressed",
    re.ASCII,
)
_FACILITY: Final = 3


class KmsgRecord(NamedTuple):
    """One message; ``facility`` 0 is the kernel, ``microseconds`` count from the boot."""

    facility: int
    sequence: int
    microseconds: int
    text: str


def read_kmsg(record: bytes) -> KmsgRecord | None:
    """Parse the result of one read(2); None if it is not a record."""
    head = _HEAD.match(record)
    if head is None:
        return None
    text = record[head.end() :].partition(b"\n")[0]
    plain = _ESCAPE.sub(lambda match: bytes([int(match[1], 16)]), text)
    words = plain.decode(errors="surrogateescape")
    return KmsgRecord(int(head[1]) >> _FACILITY, int(head[2]), int(head[3]), words)


def is_from_kernel(record: KmsgRecord) -> bool:
    """Return whether the kernel wrote the message: programs write to the log too."""
    return record.facility == 0


def count_suppressed(text: str) -> int:
    """Return how many messages about failed requests the kernel says it suppressed."""
    match = _SUPPRESSED.match(text)
    return int(match[1]) if match else 0
