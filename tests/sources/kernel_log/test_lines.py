"""A kernel log in which nothing was found: is it clean, not understood, or not a kernel log?"""

import os

import pytest
from hypothesis import given
from hypothesis import strategies as st
from tests.support.tools import CHECKOUT

from whoseblock.errors import MalformedError
from whoseblock.sources.base import Reading
from whoseblock.sources.kernel_log.dmesg import REQUEST_REMARK, read_dmesg

FIXTURES = CHECKOUT / "tests" / "fixtures"


def read(text: str) -> Reading:
    reading = Reading("log")
    list(read_dmesg(text.splitlines(keepends=True), "log", reading=reading))
    return reading


def test_a_clean_log_is_counted_and_nothing_else() -> None:
    reading = read("[    1.000000] usb 1-1: new device\n" * 812)
    assert reading.summary() == "0 failures in 812 lines"


def test_an_empty_log_has_no_lines() -> None:
    assert read("").summary() == "0 failures in 0 lines"


@pytest.mark.parametrize(
    "line",
    [
        "EXT4-fs error (device sda1): ext4_find_entry:1455: inode #2: comm ls: reading directory",
        "XFS (sdb1): Corruption detected. Unmount and run xfs_repair",
        "sd 2:0:0:0: [sdb] tag#12 Sense Key : Medium Error [current]",
        "sd 2:0:0:0: [sdb] tag#12 Add. Sense: Unrecovered read error",
        "ata3.00: failed command: READ FPDMA QUEUED",
        "ata3.00: error: { UNC }",
        "mce: [Hardware Error]: Machine check events logged",
        "Memory failure: Error sending signal to a:7: -3",
        "nd_pmem namespace0.0: region0 has bad blocks",
        "blk_print_req_error: 17 callbacks suppressed",
    ],
)
def test_an_error_of_unknown_form_is_counted_and_shown(line: str) -> None:
    reading = read(f"[    1.000000] usb 1-1: new device\n[    2.000000] {line}\n")
    assert (reading.failures, reading.unrecognised) == (0, 1)
    assert reading.first.startswith(f"line 2: {line[:40]}")
    assert "1 line reports an error in a form that is not recognised: line 2: " in reading.summary()


@pytest.mark.parametrize(
    "line",
    [
        "EXT4-fs (sda1): re-mounted. Opts: errors=remount-ro",
        "sd 0:0:0:0: [sda] Mode Sense: 43 00 00 08",
        "systemd[1]: Failed to start a service.",
        "usb 1-1: device descriptor read/64, error -71",
        "RAS: Correctable Errors collector initialized.",
        "Memory: 2012340K/2096628K available",
    ],
)
def test_unrelated_lines_are_not_counted(line: str) -> None:
    assert read(f"[    1.000000] {line}\n").summary() == "0 failures in 1 line"


def test_further_lines_about_a_parsed_failure_are_not_counted() -> None:
    reading = read(
        "[1.0] ata3.00: error: { UNC }\n"
        "[1.0] sd 2:0:0:0: [sdb] tag#12 Sense Key : Medium Error [current]\n"
        "[1.0] critical medium error, dev sdb, sector 8 op 0x0:(READ) flags 0x0\n"
        "[1.0] Buffer I/O error on dev sdb1, logical block 1, async page read\n"
    )
    assert reading.is_silent
    assert reading.failures == 1


def test_errors_of_other_disks_are_counted() -> None:
    reading = read(
        "[1.0] critical medium error, dev sdb, sector 8 op 0x0:(READ) flags 0x0\n"
        "[1.0] sd 3:0:0:0: [sdbc] tag#1 Sense Key : Medium Error [current]\n"
        "[1.0] Buffer I/O error on dev sdc1, logical block 1, async page read\n"
        "[1.0] mce: [Hardware Error]: TSC 0 ADDR 3710b3400 MISC 86\n"
    )
    assert (reading.failures, reading.unrecognised) == (1, 1)
    assert [one.count for one in reading.unplaced.values()] == [1, 1]
    assert "line 2: sd 3:0:0:0: [sdbc]" in reading.summary()


def test_transport_errors_are_reported_if_nothing_else_is_found() -> None:
    path = "[1.0] timeout error, dev sda, sector 8 op 0x0:(READ) flags 0x0\n"
    assert "1 line reports an error of the path" in read(path).summary()
    assert read(f"{path}[1.0] I/O error, dev sda, sector 8\n").is_silent


@pytest.mark.parametrize("begin", [b"", b"{", b"\n\x1e{", b"{\n", b"data: {\n"])
def test_random_bytes_are_not_a_kernel_log(begin: bytes) -> None:
    text = (begin + os.urandom(200_000)).decode("utf-8", "surrogateescape")
    with pytest.raises(MalformedError, match="expected a kernel log as text"):
        read(text)


@pytest.mark.parametrize(
    ("begin", "word"),
    [(b"\x1f\x8b\x08", "zcat"), (b"\xfd7zXZ\x00", "xzcat"), (b"LPKSHHRH\x00", "journalctl")],
)
def test_the_hint_for_a_compressed_log_names_the_command(begin: bytes, word: str) -> None:
    with pytest.raises(MalformedError) as caught:
        read((begin + bytes(range(200))).decode("utf-8", "surrogateescape"))
    assert word in caught.value.hint


def test_a_log_with_the_zeros_that_a_crash_leaves_is_read() -> None:
    reading = read("\0\0\0\n[    1.000000] I/O error, dev sda, sector 8\n\0\0")
    assert reading.failures == 1
    assert read("\0\0\0\n[    1.000000] usb 1-1: new device\n").failures == 0


def test_text_without_any_kernel_line_is_reported() -> None:
    assert "no line has the time or the prefix" in read("dear diary\n").summary()


def test_a_long_line_is_cut_and_no_more_is_kept() -> None:
    reading = read("[1.0] XFS (sda): Corruption detected " + "x" * 50_000)
    assert len(reading.first) < 100


def test_a_remark_warns_that_the_request_may_be_longer() -> None:
    (sector,) = read_dmesg(["I/O error, dev sda, sector 8"], "log")
    (page,) = read_dmesg(["Memory failure: 0x2: recovery action for x: y"], "log")
    assert (sector.remark, page.remark) == (REQUEST_REMARK, "")


@pytest.mark.parametrize("name", ["loop", "loop-decoded", "loop-raw", "loop-time"])
def test_a_parsed_real_log_is_silent(name: str) -> None:
    assert read((FIXTURES / f"sources/{name}.dmesg.txt").read_text()).is_silent


@given(
    st.text()
    | st.lists(st.sampled_from(["[1.0] ", "sda", " error ", "\n", "\0", "I/O"])).map("".join)
)
def test_every_line_is_counted(text: str) -> None:
    reading = Reading("log")
    lines = text.splitlines(keepends=True)
    try:
        list(read_dmesg(lines, "log", reading=reading))
    except MalformedError:
        return
    assert reading.read == len(lines)
    assert reading.unrecognised <= len(lines)
    assert "\n" not in reading.first
