"""Data of the kernel as bytes: records that it wrote, and malformed ones."""

import struct
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from whoseblock.watch.formats.fanotify import FanotifyError, read_fanotify
from whoseblock.watch.formats.kmsg import KmsgRecord, count_suppressed, is_from_kernel, read_kmsg
from whoseblock.watch.formats.trace import (
    BlockError,
    LostEvents,
    MemoryFailure,
    read_trace_line,
)

BLOCK_MESSAGE = (
    b"3,1234,5678901234,-;I/O error, dev loop0, sector 2456 op 0x0:(READ) flags 0x80700 phys_seg 1"
    b" prio class 2\n SUBSYSTEM=block\n DEVICE=b7:0\n"
)


def test_a_message_of_the_kernel() -> None:
    record = read_kmsg(BLOCK_MESSAGE)
    assert record is not None
    assert record[:3] == (0, 1234, 5678901234)
    assert record.text.endswith("prio class 2")
    assert is_from_kernel(record)


def test_a_message_of_a_program_is_told_apart() -> None:
    record = read_kmsg(b"12,7,8,-;I/O error, dev sda, sector 1\n")
    assert record == KmsgRecord(1, 7, 8, "I/O error, dev sda, sector 1")
    assert not is_from_kernel(record)


def test_bytes_that_the_kernel_escapes_are_given_back() -> None:
    record = read_kmsg(b"6,1,2,-,caller=T1;a \\x5c b \\x0a c \\xc3\\xa9 \\xe9\n")
    assert record is not None
    assert record.text == "a \\ b \n c \u00e9 \udce9"


@pytest.mark.parametrize(
    ("text", "count"),
    [
        ("blk_print_req_error: 117 callbacks suppressed", 117),
        ("print_req_error: 9 callbacks suppressed", 9),
        ("blk_update_request: 1 callbacks suppressed", 1),
        ("net_ratelimit: 40 callbacks suppressed", 0),
        ("blk_print_req_error: many callbacks suppressed", 0),
    ],
)
def test_what_the_kernel_kept_to_itself(text: str, count: int) -> None:
    assert count_suppressed(text) == count


@given(st.binary(max_size=300))
def test_anything_may_be_a_message(data: bytes) -> None:
    record = read_kmsg(data)
    assert record is None or record.sequence >= 0


@given(st.integers(0, 2**31), st.integers(0, 2**63), st.integers(0, 2**63), st.text(max_size=80))
def test_messages_are_read_as_they_were_written(
    priority: int, sequence: int, microseconds: int, text: str
) -> None:
    plain = "".join(one for one in text if one.isprintable() and one != "\\")
    data = f"{priority},{sequence},{microseconds},-;{plain}\n KEY=value\n".encode()
    assert read_kmsg(data) == KmsgRecord(priority >> 3, sequence, microseconds, plain)


# ------------------------------------------------------------------ tracepoints

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
def test_anything_may_be_a_line(line: bytes) -> None:
    read_trace_line(line)


# ------------------------------------------------------------------ fanotify


def fanotify_event(mask: int, infos: bytes) -> bytes:
    return struct.pack("=IBBHQii", 24 + len(infos), 3, 0, 24, mask, -1, 1) + infos


FSID = bytes(range(8))
INFO_ERROR = struct.pack("=BBHiI", 5, 0, 12, 117, 3)
INFO_EXT4 = struct.pack("=BBH8sIiII", 1, 0, 28, FSID, 8, 1, 12, 4711)
INFO_XFS = struct.pack("=BBH8sIiQI", 1, 0, 32, FSID, 12, 0x81, 2**40, 9)
INFO_NO_FILE = struct.pack("=BBH8sIi", 1, 0, 20, FSID, 0, 0)


@pytest.mark.parametrize(
    ("infos", "event"),
    [
        (INFO_ERROR + INFO_EXT4, FanotifyError(FSID, 12, 4711, 117, 3)),
        (INFO_XFS + INFO_ERROR, FanotifyError(FSID, 2**40, 9, 117, 3)),
        (INFO_ERROR + INFO_NO_FILE, FanotifyError(FSID, 0, 0, 117, 3)),
    ],
)
def test_errors_of_filesystems(infos: bytes, event: FanotifyError) -> None:
    full = fanotify_event(0x4000, b"")
    assert list(read_fanotify(fanotify_event(0x8000, infos) + full)) == [event, None]


@given(st.binary(max_size=200))
def test_anything_may_come_from_fanotify(data: bytes) -> None:
    list(read_fanotify(data))
    list(read_fanotify(fanotify_event(0x8000, data)))


def test_this_machine_writes_such_messages() -> None:
    place = Path("/dev/kmsg")
    try:
        file = place.open("rb", 0)
    except OSError:
        pytest.skip("/dev/kmsg cannot be read: run the tests as root")
    with file:
        assert read_kmsg(file.read(8192)) is not None
