"""Read the structured forms of a kernel log: journalctl's and dmesg's JSON, export and verbose.

journalctl writes one object of fields for each message (systemd's logs-show.c); the text is in
``MESSAGE``, and ``_TRANSPORT`` is ``kernel``. A text that is not UTF-8 is an array of bytes. dmesg
--json writes ``pri``, ``time`` and ``msg``. All are read line by line.
"""

import json
import re
from collections.abc import Callable, Iterable, Iterator
from itertools import chain
from typing import Any, Final

from whoseblock.sources.base import MAX_LINE, Reading

__all__ = ["Message", "find_record_reader"]

#: The number of a line and the text of a message of the kernel.
Message = tuple[int, str]
_Reader = Callable[[Iterable[tuple[int, str]], Reading], Iterator[Message]]

_MAX_FIELDS: Final = 4096
_FIELD: Final = re.compile(r"[A-Z_][A-Z0-9_]{0,63}", re.ASCII)
_VERBOSE: Final = re.compile(r"\S.{9,80} \[s=[0-9a-f]{1,32};i=", re.ASCII)
_FACILITY: Final = 3


def find_record_reader(line: str) -> _Reader | None:
    """Return the reader for a log whose first line is this, None for lines of text."""
    line = line.strip().removeprefix("\ufeff")
    if line.startswith(("{", "data: {", "\x1e{")):
        return _read_json
    name, equals, _ = line.partition("=")
    if equals and name in ("__CURSOR", "__REALTIME_TIMESTAMP", "__SEQNUM"):
        return _read_export
    return _read_verbose if _VERBOSE.match(line) else None


def _read_json(lines: Iterable[tuple[int, str]], reading: Reading) -> Iterator[Message]:
    """Read objects that are in one line each, or in lines of their own without nested ones."""
    parts: list[str] = []
    begin = size = 0
    for number, line in lines:
        text = line.strip().removeprefix("\ufeff").removeprefix("data: ").strip("\x1e")
        if not text:
            continue
        if text[0] == "{" and text[-1] == "}" and len(text) > 1 and text != "},{":
            yield from _parse(number, text, reading)
            continue
        if text[0] == "}":
            if parts:
                yield from _parse(begin, "{" + "".join(parts) + "}", reading)
            parts, size = [], 0
        elif text[-1] == "{":
            # What is before belongs to the object and the list around all objects.
            parts, size = [], 0
        elif (parts or text[0] != "]") and size < MAX_LINE:
            begin = begin if parts else number
            parts.append(text)
            size += len(text)
    if parts:
        reading.count_broken(f"line {begin}", "".join(parts)[:MAX_LINE], "a whole JSON object")


def _parse(number: int, text: str, reading: Reading) -> Iterator[Message]:
    try:
        fields = json.loads(text)
    except (ValueError, RecursionError):
        reading.count_broken(f"line {number}", text, "a JSON object")
        return
    if "msg" in fields:
        # dmesg --json, with --decode the facility is a name.
        priority, facility = fields.get("pri"), fields.get("fac", "kern")
        if facility != "kern" or (isinstance(priority, int) and priority >> _FACILITY):
            return
        message = fields["msg"]
    elif _is_from_kernel(fields):
        message = fields.get("MESSAGE")
    else:
        return
    if isinstance(message, list):
        message = _decode(message)
    if isinstance(message, str):
        yield number, message
    elif "MESSAGE" in fields:
        # journalctl writes null for a text of more than 4096 bytes, without --all.
        reading.count_broken(f"line {number}", text, "a MESSAGE; see journalctl --all")


def _is_from_kernel(fields: dict[str, Any]) -> bool:
    return fields.get("_TRANSPORT") == "kernel" and fields.get("SYSLOG_FACILITY") in (None, "0")


def _decode(numbers: list[Any]) -> str | None:
    """Decode an array of bytes; None if it is another list."""
    if not all(type(one) is int and 0 <= one < 256 for one in numbers):  # noqa: PLR2004
        return None
    return bytes(numbers).decode(errors="surrogateescape")


def _read_export(lines: Iterable[tuple[int, str]], reading: Reading) -> Iterator[Message]:
    """Read records of lines FIELD=VALUE that end with an empty line.

    A value with a line feed follows the line with the name of its field, after its length in eight
    bytes (systemd's "Journal Export Formats").
    """
    del reading
    fields: dict[str, str] = {}
    begin = 0
    numbered = iter(lines)
    for number, line in numbered:
        text = line.rstrip("\n")
        begin = begin if fields else number
        if not text:
            yield from _end_record(begin, fields)
            fields = {}
            continue
        name, equals, value = text.partition("=")
        if not equals and _FIELD.fullmatch(name):
            value = _read_binary(numbered)
        if name in ("MESSAGE", "_TRANSPORT", "SYSLOG_FACILITY"):
            fields[name] = value
    yield from _end_record(begin, fields)


def _read_binary(numbered: Iterator[tuple[int, str]]) -> str:
    """Read the lines of a binary value; return its first bytes."""
    data = b""
    length = 8
    for _, line in numbered:
        data += line.encode(errors="surrogateescape")
        if len(data) >= length == 8:  # noqa: PLR2004
            length = 8 + min(int.from_bytes(data[:8], "little"), MAX_LINE)
        # The value ends with a line feed of its own.
        if (length > 8 and len(data) > length) or len(data) > 2 * MAX_LINE:  # noqa: PLR2004
            break
    return data[8:length].decode(errors="surrogateescape")


def _read_verbose(lines: Iterable[tuple[int, str]], reading: Reading) -> Iterator[Message]:
    """Read records of indented lines FIELD=VALUE below a line with the time and the cursor."""
    del reading
    fields: dict[str, str] = {}
    begin = 0
    for number, line in chain(lines, ((0, "end"),)):
        if line[:1] not in (" ", "\t", "\n", ""):
            yield from _end_record(begin, fields)
            fields, begin = {}, number
            continue
        name, equals, value = line.strip().partition("=")
        if equals and name in ("MESSAGE", "_TRANSPORT", "SYSLOG_FACILITY"):
            fields.setdefault(name, value)


def _end_record(begin: int, fields: dict[str, str]) -> Iterator[Message]:
    if "MESSAGE" in fields and _is_from_kernel(fields):
        yield begin, fields["MESSAGE"]
