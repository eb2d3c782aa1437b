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
from array import array
from collections.abc import Iterable, Iterator
from itertools import chain, compress, count, repeat
from operator import add
from typing import Final, NamedTuple

from whoseblock.errors import MalformedError
from whoseblock.ranges import RangeList
from whoseblock.sources.base import MAX_OFFSET, Failure, Reading, quote
from whoseblock.sources.block_lists.failure_list import FailureList, NumberedText

__all__ = ["LOST", "check_statuses", "find_map_end", "read_map_lists", "read_mapfile"]

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

#: Many of them.
_WRITTEN_LINES: Final = re.compile(r"(?:0x[0-9A-F]{8,16}  0x[0-9A-F]{8,16}  [?*/+-]\n)++", re.ASCII)

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
    numbered = enumerate(lines, 1)
    blocks = _Blocks(name, statuses, reading)
    head = _read_state(numbered, name)
    if head.is_superclone:
        found = _read_superclone(numbered, blocks, head)
    else:
        found = _read_blocks(chain(head.first, numbered), blocks, head)
    for start, size, number in found:
        yield Failure(start, size, "", f"{name}, line {number}")
    blocks.check_end()


def read_map_lists(
    pieces: Iterable[str], name: str, statuses: str = LOST, reading: Reading | None = None
) -> Iterator[FailureList]:
    """Yield the blocks that `read_mapfile` yields, many at once.

    ``pieces`` of the text are of whole lines.  Raises what `read_mapfile` does.
    """
    reading = reading or Reading(name)
    text = NumberedText(pieces)
    blocks = _Blocks(name, statuses, reading)
    head = _read_state(text, name)
    if head.is_superclone:
        yield from FailureList.many_of(name, _read_superclone(text, blocks, head))
    elif head.is_old:
        found = _read_blocks(chain(head.first, text), blocks, head)
        yield from FailureList.many_of(name, found)
    else:
        for number, lines in text.rest():
            yield blocks.add_lines(number, lines)
    blocks.check_end()


def _read_blocks(
    numbered: Iterable[tuple[int, str]], blocks: "_Blocks", head: "_Head"
) -> Iterator[tuple[int, int, int]]:
    """Yield the start, the size and the line of each block that is wanted."""
    for number, line in numbered:
        if head.is_old and blocks.add_open_block(line):
            break
        if (block := blocks.add_line(number, line)) is not None:
            yield block


def _read_superclone(
    numbered: Iterator[tuple[int, str]], blocks: "_Blocks", head: "_Head"
) -> Iterator[tuple[int, int, int]]:
    from whoseblock.sources.block_lists.superclone import read_superclone

    return read_superclone(numbered, blocks.name, blocks.statuses, head.sector, blocks.reading)


class _Blocks:
    """The blocks of a map, which must be ascending and without gaps.

    Those whose status is one of ``statuses`` are returned; ``reading`` counts all.
    """

    def __init__(self, name: str, statuses: str, reading: Reading) -> None:
        self.name = name
        self.statuses = check_statuses(statuses)
        self.reading = reading
        reading.unit, reading.units = "block", "blocks"
        self._wanted = frozenset(statuses)
        #: The end of the last block, which is the start of the next one.
        self._end = -1

    def add_line(self, number: int, line: str) -> tuple[int, int, int] | None:
        """Return the start, the size and the line of a block, if it is wanted."""
        # A map may have millions of lines, nearly all in this form.
        match = _WRITTEN.fullmatch(line)
        if match is not None:
            position, length, status = match.groups()
            start, size = int(position, 16), int(length, 16)
        else:
            fields = _strip_comment(line.split())
            if not fields:
                return None
            start, size, status = _parse_block(fields, self.name, number)
        # For an empty file, ddrescue writes one empty block.
        if start + size > MAX_OFFSET or (not size and start):
            raise MalformedError(self.name, number, _LINE)
        if self._end not in (-1, start):
            expected = f"the block after the last one, at {self._end:#x}, not {start:#x}"
            raise MalformedError(self.name, number, expected)
        self._end = start + size
        self.reading.read += 1
        if status not in self._wanted or not size:
            return None
        self.reading.failures += 1
        return start, size, number

    def add_lines(self, number: int, lines: str) -> FailureList:
        """Return the wanted blocks of whole lines, the first of which has a number."""
        return self._add_written(number, lines) or FailureList.of(
            self.name,
            filter(None, map(self.add_line, count(number), lines.removesuffix("\n").split("\n"))),
        )

    def _add_written(self, number: int, lines: str) -> FailureList | None:
        """Return the same, all at once; None for lines in another form, and for wrong ones."""
        if not _WRITTEN_LINES.fullmatch(lines):
            return None
        fields = lines.split()
        starts = array("Q", map(int, fields[::3], repeat(16)))
        sizes = array("Q", map(int, fields[1::3], repeat(16)))
        ends = list(map(add, starts, sizes))
        if ends[-1] > MAX_OFFSET or not all(sizes) or self._end not in (-1, starts[0]):
            return None
        if ends[:-1] != starts[1:].tolist():
            return None
        self._end = ends[-1]
        self.reading.read += len(ends)
        wanted = list(map(self._wanted.__contains__, fields[2::3]))
        found = RangeList(array("Q", compress(starts, wanted)), array("Q", compress(sizes, wanted)))
        self.reading.failures += len(found)
        return FailureList(found, self.name, array("Q", compress(count(number), wanted)))

    def add_open_block(self, line: str) -> bool:
        """Report the last block of an old map, which ends at the unknown end of the device.

        Return whether the line is one.
        """
        fields = _strip_comment(line.split())
        if len(fields) != 3 or fields[1] != "-1":  # noqa: PLR2004
            return False
        self.reading.read += 1
        if fields[2] in self._wanted:
            what = f"the block at {fields[0][:_MAX_LENGTH]} with the status {fields[2][:1]}"
            remark = f"{what} has no end; give the range from there as an argument"
            self.reading.remarks.append(remark)
        return True

    def check_end(self) -> None:
        """Raise `MalformedError` if there was no block; add a remark if none was wanted."""
        if not self.reading.read:
            expected = "at least one block, in a line POSITION SIZE STATUS"
            raise MalformedError(self.reading.name, None, expected)
        if not self.reading.failures:
            statuses = " ".join(dict.fromkeys(self.statuses))
            self.reading.remarks.append(f"no block has a status of {statuses}")


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


def _parse_block(fields: list[str], name: str, number: int) -> tuple[int, int, str]:
    try:
        position, length, status = fields
        start, size = _parse_number(position), _parse_number(length)
    except ValueError:
        raise MalformedError(name, number, _LINE) from None
    if status not in _STATUSES:
        raise MalformedError(name, number, _LINE)
    return start, size, status


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
