"""Failures from kernel logs."""

import pytest
from hypothesis import given
from hypothesis import strategies as st
from tests.support.machine_snapshots import FIXTURES as MACHINES
from tests.support.machine_snapshots import facts
from tests.support.tools import CHECKOUT

from whoseblock.errors import MalformedError
from whoseblock.ranges import PHYSICAL_MEMORY
from whoseblock.sources.base import Failure, Reading
from whoseblock.sources.kernel_log.dmesg import read_dmesg, read_message, read_signal_page

FIXTURES = CHECKOUT / "tests" / "fixtures" / "sources"
Place = tuple[str, int, int]

SECTOR = "sector 2048 op 0x0:(READ) flags 0x80700 phys_seg 1 prio class 2"
WRITE = "op 0x1:(WRITE) flags 0x800"


def found(text: str) -> list[Place]:
    lines = text.splitlines(keepends=True)
    return [(one.device, one.start, one.length) for one in read_dmesg(lines, "log")]


@pytest.mark.parametrize("form", ["loop", "loop-decoded", "loop-raw", "loop-time"])
def test_failed_sectors_of_a_loop_device_are_found(form: str) -> None:
    text = (FIXTURES / f"{form}.dmesg.txt").read_text()
    # The disk reports the second one twice, and the page cache once more, in other units.
    assert found(text) == [("loop0", 40960, 512), ("loop0", 3145728, 512)]


def test_a_poisoned_page_is_found() -> None:
    text = (MACHINES / "pmem.dmesg.txt").read_text()
    assert found(text) == [(PHYSICAL_MEMORY, int(facts("pmem")["pfn"], 16) * 4096, 4096)]


def test_a_failed_sector_of_a_disk_is_found() -> None:
    text = (MACHINES / "disk.dmesg.txt").read_text()
    known = facts("disk")
    assert found(text) == [(known["failing"], known["request_sector"] * 512, 512)]


@pytest.mark.parametrize(
    "prefix",
    [
        "",
        "[   12.345678] ",
        "<3>[   12.345678] ",
        "kern  :err   : [   12.345678] ",
        "kern  :err   : [Tue Nov 24 17:19:55 2026] ",
        "[Tue Nov 24 17:19:55 2026] ",
        "2026-11-24T17:19:55,123456+00:00 ",
        "Nov 24 17:19:55 host kernel: ",
        "Nov 24 17:19:55 host kernel: [   12.345678] ",
        "3,1234,12345678,-;",
        "[   12.345678][  T123] ",
        "[Nov24 17:19] ",
        "[  +0.000010] ",
        "[<    0.000010>] ",
        "[Tue Nov 24 17:19:55 2026 <    0.000010>] ",
        "Nov  4 17:19:55.123456 host kernel: ",
        "2026-11-24T17:19:55+0000 host kernel: ",
        "2026-11-24T17:19:55.123456+00:00 host.example kernel: [   12.345678] ",
        "Tue 2026-11-24 17:19:55 UTC host kernel: ",
        "[   12.345678] host kernel: ",
        "1764004795.123456 host kernel: ",
        "<3>1 2026-11-24T17:19:55.123Z host kernel - - - ",
    ],
)
def test_every_form_of_prefix_is_parsed(prefix: str) -> None:
    text = f"{prefix}Memory failure: 0x10140a: recovery action for dax page: Recovered\n"
    assert found(text) == [(PHYSICAL_MEMORY, 0x10140A000, 4096)]
    assert found(f"{prefix}I/O error, dev sda, {SECTOR}\n") == [("sda", 1 << 20, 512)]


@pytest.mark.parametrize("prefix", ["", "[   12.345678] ", "Nov 24 17:19:55 host kernel: "])
@pytest.mark.parametrize(
    "message",
    [
        # The kernel quotes the name of a program that crashed; any user may choose it.
        "Memory failure:[3]: segfault at 0 ip 5628 sp 7ffe in Memory failure: 0x2: a[1,5+1]",
        f"critical medium[4]: segfault at 0 in critical medium error, dev sda, {SECTOR}[1,5+1]",
        "process '/tmp/kernel: Memory failure: 0x2: x' started with executable stack",
        "process '[1.0] Memory failure: 0x2: x' started with executable stack",
        f"process '<3>I/O error, dev sda, {SECTOR}' started with executable stack",
        # What dmesg makes of a name of two lines.
        "               Memory failure: 0x2: recovery",
    ],
)
def test_a_process_name_that_looks_like_a_failure_is_ignored(prefix: str, message: str) -> None:
    assert found(f"{prefix}{message}\n") == []


@pytest.mark.parametrize(
    "message",
    [
        # The kernel begins these messages with the name of a process, which has 15 bytes.
        "I/O error, dev [4242]: segfault at 0 ip 5628 sp 7ffe error 4 in x[1,5+1]",
        "I/O error, dev [4242] general protection fault ip:5628 sp:7ffe error:0",
        "I/O error, dev  invoked oom-killer: gfp_mask=0xcc0(GFP_KERNEL), order=0",
        "I/O error, dev invoked oom-killer: gfp_mask=0xcc0(GFP_KERNEL), order=0",
        "I/O error, dev  (4242): drop_caches: 3",
    ],
)
def test_a_process_name_cannot_invalidate_a_log(message: str) -> None:
    log = [f"[1.0] {message}\n", f"[2.0] I/O error, dev sda, {SECTOR}\n"]
    reading = Reading("log")
    assert [one.device for one in read_dmesg(log, "log", reading=reading)] == ["sda"]
    assert reading.first == f"line 1: {message}"
    assert read_message(message, "kmsg") is None


def test_messages_of_programs_are_ignored() -> None:
    assert found("Nov 24 17:19:55 host x: kernel: Memory failure: 0x2: recovery\n") == []
    assert found("Nov 24 17:19:55 host x[7]: Memory failure: 0x2: recovery\n") == []


def test_read_message_takes_no_prefix() -> None:
    text = "Memory failure: 0x2: recovery action for dax page: Recovered"
    assert read_message(text, "log") == Failure(8192, 4096, PHYSICAL_MEMORY, "log, line 1")
    assert read_message(f"[1.0] {text}", "log") is None


@pytest.mark.parametrize(
    "message",
    [
        # 4.19, 5.2, 5.16 and later.
        "print_req_error: I/O error, dev sda, sector 2048",
        "print_req_error: I/O error, dev sda, sector 2048 flags 80700",
        f"blk_update_request: I/O error, dev sda, {SECTOR}",
        f"I/O error, dev sda, {SECTOR}",
        "end_request: I/O error, dev sda, sector 2048",
        f"blk_update_request: critical medium error, dev sda, {SECTOR}",
        "print_req_error: critical medium error, dev sda, sector 2048",
        f"protection error, dev sda, {SECTOR}",
        f"I/O error, dev sda, sector 2048 {WRITE}",
        "I/O error, dev sda, sector 2048 op 0x9:(WRITE_ZEROES) flags 0x0",
    ],
)
def test_medium_errors_of_every_kernel_version_are_parsed(message: str) -> None:
    assert found(f"[1.0] {message}\n") == [("sda", 1 << 20, 512)]


@pytest.mark.parametrize(
    "message",
    [
        f"critical target error, dev sda, {SECTOR}",
        f"timeout error, dev sda, {SECTOR}",
        f"recoverable transport error, dev sda, {SECTOR}",
        f"operation not supported error, dev loop2, {SECTOR}",
        f"device offline error, dev sda, {SECTOR}",
        "I/O error, dev sda, sector 0 op 0x2:(FLUSH) flags 0x0 phys_seg 0 prio class 0",
        "I/O error, dev sda, sector 8 op 0x3:(DISCARD) flags 0x0 phys_seg 1 prio class 0",
        "I/O error, dev sda, sector 18446744073709551615 op 0x0:(READ) flags 0x0",
        "I/O error, dev sda, sector 18446744073709551615",
        "I/O error, dev ?, sector 8",
        "Buffer I/O error on dev sda1, logical block 768, async page read",
        "Buffer I/O error on dev dm-0, logical block 9, lost async page write",
        "Memory failure: Error sending signal to a:7: -3",
        "Injecting memory failure for pfn 0x100e0d at process virtual address 0x7f6ac5605000",
        "soft offline: 0x10140a: page already poisoned",
        "Unpoison: Software-unpoisoned page 0x10140a",
        "mce: [Hardware Error]: TSC 0 ADDR 3710b3400 MISC 86",
        "{1}[Hardware Error]:   physical_address: 0x00000003710b3400",
        "EDAC MC0: 1 CE memory read error on CPU_SrcID#0 (page:0x3710b3 offset:0x400)",
        "sd 0:0:0:0: [sda] tag#0 Sense Key : Medium Error [current]",
    ],
)
def test_messages_without_a_failed_range_are_ignored(message: str) -> None:
    assert found(f"[1.0] {message}\n") == []


def test_repeated_messages_are_one_failure_of_the_first_line() -> None:
    log = [
        "Memory failure: 0x2: Sending SIGBUS to a:1 due to hardware memory corruption",
        "I/O error, dev sda, sector 8",
        "Memory failure: 0x2: recovery action for dirty LRU page: Recovered",
        "I/O error, dev sdb, sector 8",
        "I/O error, dev sda, sector 8",
        "Memory failure: 0x3: already hardware poisoned",
    ]
    assert [one.origin for one in read_dmesg(log, "log")] == [
        f"log, line {number}" for number in (2, 3, 4, 6)
    ]


@pytest.mark.parametrize(
    "words",
    [
        "Sending SIGBUS to recovery action for x: y:1 due to hardware memory corruption",
        "Killing a.out:1 due to hardware memory corruption",
        "forcibly killing a:1 because of failure to unmap corrupted page",
        "Cannot send advisory machine check signal to a:1",
    ],
)
def test_a_signal_names_no_page(words: str) -> None:
    # Of a huge page with DAX the kernel prints the first, and then the one that failed.
    log = [
        f"Memory failure: 0x100e00: {words}\n",
        "Memory failure: 0x100e0d: recovery action for dax page: Recovered\n",
    ]
    reading = Reading("log")
    assert [one.start for one in read_dmesg(log, "log", reading=reading)] == [0x100E0D000]
    assert not reading.unplaced
    assert read_signal_page(log[0]) == 0x100E00
    assert read_signal_page(log[1]) is None
    assert list(read_dmesg(log[:1], "log", reading=reading)) == []
    assert reading.unplaced


def test_a_page_has_the_page_size_given() -> None:
    (failure,) = read_dmesg(["Memory failure: 0x2: recovery action for x: y"], "log", 65536)
    assert (failure.start, failure.length) == (131072, 65536)


@pytest.mark.parametrize(
    "line",
    [
        "Memory failure: 0x",
        "Memory failure: 0xz: recovery",
        "Memory failure: 0x10140",
        f"Memory failure: 0x{'f' * 5000}: recovery",
        "I/O error, dev sda, sector",
        "I/O error, dev sda, sector x",
        "I/O error, dev sda",
        "I/O error, dev sda, sector " + "9" * 5000,
        "critical medium error, dev , sector 7",
        f"I/O error, dev {'a' * 5000}, sector 7",
    ],
)
def test_a_message_with_a_malformed_number_costs_its_line(line: str) -> None:
    log = ["noise\n", f"[1.0] {line}\n", "[2.0] I/O error, dev sdb, sector 8\n"]
    reading = Reading("log")
    assert [one.device for one in read_dmesg(log, "log", reading=reading)] == ["sdb"]
    assert reading.broken == 1
    assert reading.first_broken.startswith(f"line 2: {line[:40]}")
    assert len(reading.summary()) < 300
    # The daemon reports it.
    with pytest.raises(MalformedError, match="log, line 2:"):
        read_message(line, "log", 2)


@given(
    st.lists(
        st.sampled_from(
            [
                *("Memory failure: ", "0x", "12", "f", ": ", "I/O", "critical medium"),
                *(" error, dev ", "sda", ", sector ", " op 0x1:(", "WRITE", "FLUSH)"),
                *(" ", "\n", "\u0661", "\0", "\udc80"),
            ]
        )
    ).map("".join)
    | st.text()
)  # fmt: skip
def test_arbitrary_text_is_parsed_or_refused(text: str) -> None:
    try:
        places = found(text)
    except MalformedError:
        return
    assert all(length > 0 and start + length <= 1 << 63 for _, start, length in places)


@given(st.lists(st.integers(0, 1 << 51), unique=True), st.lists(st.integers(0, 1 << 54)))
def test_every_generated_message_is_parsed(pfns: list[int], sectors: list[int]) -> None:
    log = [f"Memory failure: {pfn:#x}: recovery action for dax page: Recovered" for pfn in pfns]
    log += [f"I/O error, dev nvme0n1, sector {sector} {WRITE}" for sector in sectors]
    assert found("\n".join(log)) == [
        *((PHYSICAL_MEMORY, pfn * 4096, 4096) for pfn in pfns if pfn < 1 << 51),
        *(("nvme0n1", sector * 512, 512) for sector in dict.fromkeys(sectors) if sector < 1 << 54),
    ]
