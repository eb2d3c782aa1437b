"""Parse the map (mapfile) of GNU ddrescue.

The form is that of "Mapfile structure" in the manual of GNU ddrescue. A comment begins with ``#``
at the start of a line or after whitespace. One line has the state of the program. Then come lines
``POSITION SIZE STATUS``, ascending and without gaps. Before version 1.20 the file was called a
logfile; before 1.22 the state had no third field. Versions 1.0 to 1.5 wrote no state, and a size of
-1 for a last block whose end they did not know.

The progress log of HDDSuperClone is recognised by its comment, and read by
`whoseblock.sources.block_lists.superclone`.
"""

import re
from collections.abc import Iterable, Iterator
from itertools import chain
from typing import Final, NamedTuple

from whoseblock.errors import MalformedError
from whoseblock.sources.base import MAX_OFFSET, Failure, Reading, quote

__all__ = ["LOST", "check_statuses", "find_map_end", "read_mapfile"]

#: All statuses except ``+`` (finished): not tried, not trimmed, not scraped, bad.
LOST: Final = "?*/-"
_STATUSES: Final = frozenset("?*/-+")
#: The second field of the state: the phase of the rescue.
_PHASES: Final = frozenset("?*/-FG+")
#: Limit on the characters of a number; int() takes quadratic time.
_MAX_LENGTH: Final = 24

#: The comments of versions that wrote no state, and of HDDSuperClone.
_OLD: Final = re.compile(
    r"# Rescue Logfile\. Created by GNU ddrescue version 1\.[0-5]\s*\Z", re.ASCII
)
_SUPERCLONE: Final = re.compile(r"# Disk progress log file created by \w{0,8}SuperClone", re.ASCII)
_HEX: Final = re.compile(r"0x[0-9a-f]{1,4}", re.ASCII)
#: The third field of the state, ``current_pass``: decimal and positive.
_PASS: Final = re.compile(r"0*[1-9][0-9]{0,8}", re.ASCII)

#: A line in the form that ddrescue writes.
_WRITTEN: Final = re.compile(r"0x([0-9A-F]{8,16})  0x([0-9A-F]{8,16})  ([?*/+-])\s*", re.ASCII)

_LINE: Final = "POSITION SIZE STATUS, as ddrescue writes them"


def check_statuses(text: str) -> str:
    """Return *text* unchanged; raises `MalformedError` unless each character is a status."""
    if not text or not set(text) <= _STATUSES:
        raise MalformedError(
            "the statuses of a map", None, f"one or more of ? * / - and +, and not {quote(text)}"
        )
    return text


def read_mapfile(
    lines: Iterable[str], name: str, statuses: str = LOST, reading: Reading | None = None
) -> Iterator[Failure]:
    """Yield every block of a map whose status is one of ``statuses``.

    ``name`` is the file in messages; ``reading`` counts the blocks. Raises `MalformedError` for a
    line of another form, and for gaps and overlaps between blocks, as ddrescue itself does.
    """
    reading = reading or Reading(name)
    reading.unit, reading.units = "block", "blocks"
    wanted = frozenset(check_statuses(statuses))
    numbered = enumerate(lines, 1)
    head = _read_state(numbered, name)
    if head.is_superclone:
        from whoseblock.sources.block_lists.superclone import read_superclone

        yield from read_superclone(numbered, name, statuses, head.sector, reading)
        _check_end(reading, statuses)
        return
    expected = -1
    for number, line in chain(head.first, numbered):
        # A map may have millions of lines, nearly all in this form.
        match = _WRITTEN.fullmatch(line)
        if match is not None:
            position, length, status = match.groups()
            start, size = int(position, 16), int(length, 16)
        else:
            fields = _strip_comment(line.split())
            if not fields:
                continue
            if head.is_old and len(fields) == 3 and fields[1] == "-1":  # noqa: PLR2004
                _add_open_block(reading, fields, wanted)
                break
            start, size, status = _parse_block(fields, name, number)
        # For an empty file, ddrescue writes one empty block.
        if start + size > MAX_OFFSET or (not size and start):
            raise MalformedError(name, number, _LINE)
        if expected not in (-1, start):
            raise MalformedError(
                name, number, f"the block after the last one, at {expected:#x}, not {start:#x}"
            )
        expected = start + size
        reading.read += 1
        if status in wanted and size:
            reading.failures += 1
            yield Failure(start, size, "", f"{name}, line {number}")
    _check_end(reading, statuses)


def find_map_end(tail: str) -> int | None:
    """Return the end of the last block of a map, which is the size of its device.

    ``tail`` is the end of the file. Returns None if it has no whole block: `read_mapfile` reports
    the line.
    """
    for line in reversed(tail.splitlines()):
        fields = _strip_comment(line.split())
        if fields:
            try:
                position, length, _ = fields
                return _parse_number(position) + _parse_number(length)
            except ValueError:
                return None
    return None


def _check_end(reading: Reading, statuses: str) -> None:
    """Raise `MalformedError` if there was no block; add a remark if none was lost."""
    if not reading.read:
        expected = "at least one block, in a line POSITION SIZE STATUS"
        raise MalformedError(reading.name, None, expected)
    if not reading.failures:
        reading.remarks.append(f"no block has a status of {' '.join(dict.fromkeys(statuses))}")


def _parse_block(fields: list[str], name: str, number: int) -> tuple[int, int, str]:
    try:
        position, length, status = fields
        start, size = _parse_number(position), _parse_number(length)
    except ValueError:
        raise MalformedError(name, number, _LINE) from None
    if status not in _STATUSES:
        raise MalformedError(name, number, _LINE)
    return start, size, status


def _add_open_block(reading: Reading, fields: list[str], wanted: frozenset[str]) -> None:
    """Report the last block of an old map, which ends at the unknown end of the device."""
    reading.read += 1
    if fields[2] in wanted:
        what = f"the block at {fields[0][:_MAX_LENGTH]} with the status {fields[2][:1]}"
        reading.remarks.append(f"{what} has no end; give the range from there as an argument")


class _Head(NamedTuple):
    """The form of a map, from the lines before its blocks, and the first block if it was read.

    ``is_old`` is whether it has no state, and ``sector`` the size of a sector of HDDSuperClone.
    """

    is_old: bool = False
    is_superclone: bool = False
    sector: int | None = None
    first: tuple[tuple[int, str], ...] = ()


def _read_state(numbered: Iterator[tuple[int, str]], name: str) -> _Head:
    """Read the lines up to the state: position, phase and, since 1.22, pass."""
    expected = "a line POSITION PHASE [PASS], with which ddrescue begins its map"
    is_old = is_superclone = False
    sector = None
    for number, line in numbered:
        fields = _strip_comment(line.split())
        if not fields:
            is_old = is_old or _OLD.search(line) is not None
            is_superclone = is_superclone or _SUPERCLONE.match(line) is not None
            if is_superclone and "sectorsize" in line:
                from whoseblock.sources.block_lists.superclone import find_sector_size

                sector = find_sector_size(line) or sector
            continue
        if is_superclone and len(fields) == 2 and _HEX.fullmatch(fields[1]):  # noqa: PLR2004
            return _Head(is_superclone=True, sector=sector)
        if is_old and len(fields) == 3 and fields[1] not in _PHASES:  # noqa: PLR2004
            return _Head(is_old=True, first=((number, line),))
        if len(fields) not in (2, 3) or fields[1] not in _PHASES:
            raise MalformedError(name, number, expected)
        try:
            _parse_number(fields[0])
        except ValueError:
            raise MalformedError(name, number, expected) from None
        if not _PASS.fullmatch(*fields[2:] or ("1",)):
            raise MalformedError(name, number, expected)
        return _Head()
    raise MalformedError(name, None, expected)


def _strip_comment(fields: list[str]) -> list[str]:
    """Return the fields of a line before a comment."""
    for number, field in enumerate(fields):
        if field[0] == "#":
            return fields[:number]
    return fields


def _parse_number(text: str) -> int:
    """Parse a number as C does: ``0x`` for hexadecimal, a leading 0 for octal."""
    # int() would also accept underscores and digits of other scripts.
    if len(text) > _MAX_LENGTH or not text.isascii() or not text.isalnum():
        raise ValueError(text)
    if text[:2] in ("0x", "0X"):
        return int(text, 16)
    return int(text, 8 if text[0] == "0" else 10)
