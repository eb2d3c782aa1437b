"""Parse lines of a tracefs trace_pipe: memory failures, failed requests, lost events.

``trace_print_context`` in kernel/trace/trace_output.c prints the head. The events are those of
include/ras/ras_event.h (in some versions include/trace/events/memory-failure.h) and
include/trace/events/block.h. A process chooses the name at the front of a line; its 15 bytes are
too few to imitate the rest.
"""

import re
from typing import Final, NamedTuple

__all__ = ["BlockError", "LostEvents", "MemoryFailure", "is_event", "read_trace_line"]

_HEAD: Final = re.compile(
    rb"-[0-9]{1,10} +(?:\([-0-9 ]{1,10}\) )?\[[0-9]{1,5}\] [^ ]{4,8} +([0-9]{1,12}\.[0-9]{1,9}):"
    rb" (memory_failure_event|block_rq_error): "
)
_MEMORY: Final = re.compile(
    rb"pfn 0x([0-9a-f]{1,13}): recovery action for ([^:\n]{1,80}): ([A-Za-z]{1,40})"
)
_BLOCK: Final = re.compile(
    rb"([0-9]{1,4}),([0-9]{1,7}) ([A-Z]{1,9}) \(.{0,400}\) ([0-9]{1,20}) \+ ([0-9]{1,10})"
    rb"(?: [a-z]{1,10},[0-9]{1,5},[0-9]{1,5})? \[(-[0-9]{1,4})\]$",
    re.DOTALL,
)
_LOST: Final = re.compile(rb"CPU:[0-9]{1,5} \[LOST(?: ([0-9]{1,20}))? EVENTS\]")


class MemoryFailure(NamedTuple):
    """A page of memory that failed; ``result`` is the kernel's verdict (action_name)."""

    seconds: float
    pfn: int
    kind: str
    result: str


class BlockError(NamedTuple):
    """A failed request: ``sectors`` from ``sector`` of a disk, with a negative errno.

    ``operation`` begins with the letter of the operation (R, W, D, F …).
    """

    seconds: float
    major: int
    minor: int
    operation: str
    sector: int
    sectors: int
    error: int


class LostEvents(NamedTuple):
    """The number of events that a full buffer dropped, 0 if it is unknown."""

    events: int


def is_event(line: bytes) -> bool:
    """Return whether a line holds an event, even one that cannot be parsed."""
    return _HEAD.search(line) is not None


def read_trace_line(line: bytes) -> MemoryFailure | BlockError | LostEvents | None:
    """Parse one line without its end; None if it holds nothing of interest.

    ``seconds`` are those of the trace clock.
    """
    if lost := _LOST.match(line):
        return LostEvents(int(lost[1] or 0))
    head = _HEAD.search(line)
    if head is None:
        return None
    seconds, body = float(head[1]), line[head.end() :]
    if head[2] == b"memory_failure_event":
        memory = _MEMORY.match(body)
        if memory is None:
            return None
        return MemoryFailure(
            seconds,
            int(memory[1], 16),
            memory[2].decode("ascii", "replace"),
            memory[3].decode("ascii"),
        )
    block = _BLOCK.match(body)
    if block is None:
        return None
    major, minor, operation, sector, sectors, error = block.groups()
    return BlockError(
        seconds,
        int(major),
        int(minor),
        operation.decode("ascii"),
        int(sector),
        int(sectors),
        int(error),
    )
