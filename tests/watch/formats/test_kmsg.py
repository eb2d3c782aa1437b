"""Records of /dev/kmsg."""

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from whoseblock.watch.formats.kmsg import KmsgRecord, count_suppressed, is_from_kernel, read_kmsg

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


def test_messages_of_programs_are_distinguished_from_the_kernels() -> None:
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
def test_messages_that_the_kernel_suppressed(text: str, count: int) -> None:
    assert count_suppressed(text) == count


@given(st.binary(max_size=300))
def test_arbitrary_messages_are_parsed_or_ignored(data: bytes) -> None:
    record = read_kmsg(data)
    assert record is None or record.sequence >= 0


@given(st.integers(0, 2**31), st.integers(0, 2**63), st.integers(0, 2**63), st.text(max_size=80))
def test_messages_are_read_as_they_were_written(
    priority: int, sequence: int, microseconds: int, text: str
) -> None:
    plain = "".join(one for one in text if one.isprintable() and one != "\\")
    data = f"{priority},{sequence},{microseconds},-;{plain}\n KEY=value\n".encode()
    assert read_kmsg(data) == KmsgRecord(priority >> 3, sequence, microseconds, plain)


def test_this_machine_writes_such_messages() -> None:
    place = Path("/dev/kmsg")
    try:
        file = place.open("rb", 0)
    except OSError:
        pytest.skip("/dev/kmsg cannot be read: run the tests as root")
    with file:
        assert read_kmsg(file.read(8192)) is not None
