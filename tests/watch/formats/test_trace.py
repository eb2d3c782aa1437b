"""Lines of the trace buffer."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from whoseblock.watch.formats.trace import (
    BlockError,
    LostEvents,
    MemoryFailure,
    read_trace_line,
)

#: From Linux 7.3 and 6.18; the last as kernels before 6.14 write it, without the priority.
TRACE_LINES = [
    (
        (
            b"          python3-742     [001] .....   152.318012: memory_failure_event: pfn"
            b" 0x10140a: recovery action for dax page: Recovered"
        ),
        MemoryFailure(152.318012, 0x10140A, "dax page", "Recovered"),
    ),
    (
        (
            b"           <...>-18649   [001] ..s1.  2207.145153: block_rq_error: 7,0 RA ()"
            b" 2456 + 64 none,0,0 [-5]"
        ),
        BlockError(2207.145153, 7, 0, "RA", 2456, 64, -5),
    ),
    (
        b"   kworker/1:1H-59      [001] d..2.  5.000000: block_rq_error: 8,16 WS () 8 + 8 [-61]",
        BlockError(5.0, 8, 16, "WS", 8, 8, -61),
    ),
    (b"CPU:1 [LOST 123 EVENTS]", LostEvents(123)),
    (b"CPU:0 [LOST EVENTS]", LostEvents(0)),
    (b"  a-1 [000] ..... 1.0: sched_switch: prev_comm=a", None),
    (b"", None),
]


@pytest.mark.parametrize(("line", "event"), TRACE_LINES)
def test_lines_of_a_trace(line: bytes, event: object) -> None:
    assert read_trace_line(line) == event


@given(st.binary(max_size=15))
def test_the_name_of_a_process_changes_nothing(name: bytes) -> None:
    line = (
        name + b"-742     [001] .....   152.318012: memory_failure_event: pfn 0x10140a:"
        b" recovery action for dax page: Recovered"
    )
    event = read_trace_line(line)
    assert event == MemoryFailure(152.318012, 0x10140A, "dax page", "Recovered")


@given(st.binary(max_size=400))
def test_arbitrary_lines_are_parsed_or_ignored(line: bytes) -> None:
    read_trace_line(line)
