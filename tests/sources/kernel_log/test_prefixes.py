"""The prefixes of kernel messages, and what mail, grep and editors add before them."""

from pathlib import Path

import pytest
from tests.support.tools import program, run

from whoseblock.sources.base import Reading
from whoseblock.sources.kernel_log.dmesg import read_dmesg

MESSAGE = "I/O error, dev sda, sector 2048 op 0x0:(READ) flags 0x0 phys_seg 1 prio class 2"


def count(*lines: str) -> int:
    return len(list(read_dmesg([f"{line}\n" for line in lines], "log")))


@pytest.mark.parametrize(
    "prefix",
    [
        # journalctl -o short in other languages.
        "Dez 24 17:19:55 host kernel: ",
        "déc. 24 17:19:55 host kernel: ",
        "12月 24 17:19:55 host kernel: ",
        "дек 04 17:19:55 host kernel: ",
        # journalctl --no-hostname, -o short-full with and without names of zones, -o short-delta.
        "Nov 24 17:19:55 kernel: ",
        "2026-11-24T17:19:55+0000 kernel: ",
        "1764004795.123456 kernel: ",
        "Di 2026-11-24 17:19:55 CET host kernel: ",
        "Tue 2026-11-24 17:19:55 +03 host kernel: ",
        "Tue 2026-11-24 17:19:55 -0330 host kernel: ",
        "火 2026-11-24 17:19:55 JST host kernel: ",
        "[   12.345678 <    0.000010 >] host kernel: ",
        # busybox syslogd and OpenWrt's logread.
        "Nov 24 17:19:55 host kern.err kernel: [   12.345678] ",
        "Tue Nov 24 17:19:55 2026 kern.err kernel: [   12.345678] ",
        # SONiC's rsyslog, and a page that shows one space before the day.
        "2025 Jul  2 06:56:57.749644 sonic_testbed ERR kernel: [  993.622973] ",
        "Oct 2 15:24:19 it kernel: [1687112.817845] ",
        # dmesg -x --ctime of a kernel that names the thread.
        "kern  :err   : [  +0.000001] [Tue Jan 13 04:33:10 2026] [T88870] ",
        # RFC 5424, with structured data and a byte order mark.
        '<3>1 2026-11-24T17:19:55.123Z host kernel - - [meta sequenceId="1"] ',
        '<3>1 2026-11-24T17:19:55.1Z host kernel - - [a@1 b="\\"]"][c@2 d="e"] \ufeff',
        "1 2026-11-24T17:19:55.123+01:00 host kernel - kmsg - ",
        # A host by its address.
        "Nov 24 17:19:55 192.0.2.1 kernel: ",
        "Nov 24 17:19:55 2001:db8::1 kernel: ",
        # Colours.
        "\x1b[32m[   12.345678] \x1b[0m\x1b[33msd 2:0:0:0: \x1b[0m",
    ],
)
def test_every_form_of_prefix_is_parsed(prefix: str) -> None:
    message = "\x1b[31mI/O error\x1b[0m, dev sda, sector 8" if "\x1b" in prefix else MESSAGE
    assert count(prefix.replace("sd 2:0:0:0: ", "") + message) == 1


@pytest.mark.parametrize(
    "added",
    [
        "    ",
        "\t",
        "> ",
        ">> ",
        "> > ",
        "12:",
        "kern.log:",
        "kern.log:12:",
        "kern.log-12-",
        "> 12:",
    ],
)
def test_what_mail_and_grep_add_is_removed(added: str) -> None:
    line = f"[   12.345678] {MESSAGE}"
    assert count(f"{added}{line}") == 1
    # Text around the log, and lines that mail does not quote.
    assert count("Dear list,", "", f"{added}[   12.0] usb 1-1: x", f"{added}{line}", "bye") == 1


@pytest.mark.parametrize("option", ["--color=always", "--ctime", "--decode", "--show-delta"])
def test_the_colours_and_times_of_dmesg_are_removed(tmp_path: Path, option: str) -> None:
    raw = tmp_path / "raw"
    xfs = 'XFS (sdb1): metadata I/O error in "xfs_x [xfs]" at daddr 0x8 len 8 error 5'
    raw.write_text(f"<3>[    1.000001] {MESSAGE}\n<3>[    2.000001] {xfs}\n")
    text = run([program("dmesg"), "--file", raw, option]).decode()
    assert ("\x1b[" in text) == (option == "--color=always")
    assert count(*text.splitlines()) == 2


def test_a_byte_order_mark_is_removed() -> None:
    assert count(f"\ufeff[   12.345678] {MESSAGE}") == 1


@pytest.mark.parametrize(
    ("first", "second"),
    [
        # The second line of a message, as dmesg prints it; any user can choose a name with it.
        ("[   12.3] x[1]: segfault in x", f"           [1.0] {MESSAGE}"),
        ("[   12.3] x[1]: segfault in x", f"12:[1.0] {MESSAGE}"),
        ("    [   12.3] x[1]: segfault in x", f"               [1.0] {MESSAGE}"),
        ("> [   12.3] x[1]: segfault in x", f">     [1.0] {MESSAGE}"),
        # Programs, also where there is no name of a host.
        ("Nov 24 17:19:55 kernel: x", f"Nov 24 17:19:55 prog[7]: kernel: {MESSAGE}"),
        ("Nov 24 17:19:55 kernel: x", f"Nov 24 17:19:55 prog: kernel: {MESSAGE}"),
        ("Nov 24 17:19:55 host kernel: x", f"Nov 24 17:19:55 host kernel[7]: {MESSAGE}"),
    ],
)
def test_what_a_user_may_write_is_not_taken_for_a_message(first: str, second: str) -> None:
    assert count(first, second) == 0


def test_a_damaged_line_costs_that_line() -> None:
    lines = [
        f"[1.0] {MESSAGE}\n",
        "[2.0] I/O error, dev sda, sect\n",
        "[3.0] Memory failure: 0x\n",
        "[4.0] critical medium error, dev sdb, sector 8\n",
    ]
    reading = Reading("log")
    assert [one.device for one in read_dmesg(lines, "log", reading=reading)] == ["sda", "sdb"]
    assert reading.broken == 2
    expected = "2 lines were passed over as damaged: the first is line 2: I/O error, dev sda, sect"
    assert expected in reading.summary()
    assert not reading.is_silent
