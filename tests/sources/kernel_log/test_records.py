"""The structured forms of a kernel log: JSON, export and verbose."""

import json
from collections.abc import Callable

import pytest

from whoseblock.sources.base import Reading
from whoseblock.sources.kernel_log.dmesg import read_dmesg

MESSAGE = "I/O error, dev sda, sector 8 op 0x0:(READ)"


def read(text: str) -> tuple[list[str], Reading]:
    reading = Reading("log")
    lines = text.splitlines(keepends=True)
    return [one.device for one in read_dmesg(lines, "log", reading=reading)], reading


def record(message: object, **fields: object) -> dict[str, object]:
    """Return a message as journalctl -o json prints it."""
    head = {"__REALTIME_TIMESTAMP": "1764004795123456", "PRIORITY": "3", "_BOOT_ID": "0" * 32}
    kernel = {"_TRANSPORT": "kernel", "SYSLOG_FACILITY": "0", "SYSLOG_IDENTIFIER": "kernel"}
    return {**head, **kernel, "MESSAGE": message, **fields}


OTHER = record("usb 1-1: new device")
USER = record(MESSAGE, _TRANSPORT="syslog", SYSLOG_FACILITY="1")


@pytest.mark.parametrize(
    "encode",
    [
        lambda all_of_them: "".join(json.dumps(one) + "\n" for one in all_of_them),
        # -o json-pretty, -o json-sse and -o json-seq.
        lambda all_of_them: "".join(json.dumps(one, indent="\t") + "\n" for one in all_of_them),
        lambda all_of_them: "".join(f"data: {json.dumps(one)}\n\n" for one in all_of_them),
        lambda all_of_them: "".join(f"\x1e{json.dumps(one)}\n" for one in all_of_them),
    ],
)
def test_the_json_of_journalctl_is_parsed(encode: Callable[[list[dict[str, object]]], str]) -> None:
    assert read(encode([OTHER, record(MESSAGE), USER, OTHER]))[0] == ["sda"]
    # A text that is not UTF-8.
    numbers = list(MESSAGE.replace("sda", "sdb").encode() + b"\xff")
    assert read(encode([record(numbers)]))[0] == ["sdb"]
    found, reading = read(encode([record(None), record(MESSAGE)]))
    assert (found, reading.broken) == (["sda"], 1)


@pytest.mark.parametrize("extra", [{}, {"fac": "kern", "pri": "err"}])
def test_the_json_of_dmesg_is_parsed(extra: dict[str, str]) -> None:
    entries = [
        {"pri": 6, "time": 0.0, "msg": "Linux version 6.1"} | extra,
        {"pri": 3, "time": 12.5, "msg": MESSAGE} | extra,
        # Written by a program.
        {"pri": 11, "time": 13.5, "msg": MESSAGE.replace("sda", "sdz")}
        | (extra and {"fac": "user", "pri": "err"}),
    ]
    inner = "},{\n".join(
        ",\n".join(f'         "{key}": {json.dumps(value)}' for key, value in one.items()) + "\n"
        for one in entries
    )
    # As util-linux 2.39 prints it.
    assert read(f'{{\n   "dmesg": [\n      {{\n{inner}      }}\n   ]\n}}\n')[0] == ["sda"]


def export(fields: dict[str, object]) -> str:
    return "".join(f"{key}={value}\n" for key, value in fields.items()) + "\n"


def test_the_export_of_journalctl_is_parsed() -> None:
    head = {"__CURSOR": "s=1;i=2"}
    text = export(head | OTHER) + export(head | record(MESSAGE)) + export(head | USER)
    assert read(text)[0] == ["sda"]
    binary = (MESSAGE + "\nx").encode()
    one = {key: value for key, value in record("").items() if key != "MESSAGE"}
    size = len(binary).to_bytes(8, "little")
    value = (b"MESSAGE\n" + size + binary + b"\n").decode("utf-8", "surrogateescape")
    assert read("__CURSOR=x\n" + value + export(one) + export(head | USER))[0] == ["sda"]
    # Other lengths, one of them with a byte that is a line feed.
    for length in (10, 255, 2570):
        data = b"y" * length
        value = (b"X\n" + length.to_bytes(8, "little") + data + b"\n").decode("latin-1")
        encoded = value.encode("latin-1").decode("utf-8", "surrogateescape")
        assert read("__CURSOR=x\n" + encoded + export(record(MESSAGE)))[0] == ["sda"]


def test_the_verbose_form_of_journalctl_is_parsed() -> None:
    def verbose(fields: dict[str, object]) -> str:
        time = "Tue 2026-11-24 17:19:55.123456 UTC [s=0a;i=1;b=2;m=3;t=4;x=5]\n"
        return time + "".join(f"    {key}={value}\n" for key, value in fields.items())

    assert read(verbose(OTHER) + verbose(record(MESSAGE)) + verbose(USER))[0] == ["sda"]


@pytest.mark.parametrize(
    "line", ["{", "{]", '{"MESSAGE": ', "[" * 100_000, '{"a": 1}', "{}", "},{"]
)
def test_a_damaged_object_costs_that_object(line: str) -> None:
    found, reading = read(f"{json.dumps(OTHER)}\n{line}\n{json.dumps(record(MESSAGE))}\n")
    assert found in (["sda"], [])
    assert found or reading.broken
    assert len(reading.summary()) < 400
