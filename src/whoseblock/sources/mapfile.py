"""GNU ddrescue's map of what it rescued, and what not.

The form is that of "Mapfile structure" in the manual of GNU ddrescue: comments, one line with the
state of the program, then lines ``POSITION SIZE STATUS``, ascending and without gaps.
"""

from collections.abc import Iterable, Iterator
from typing import Final

from whoseblock.errors import MalformedError
from whoseblock.sources.base import Failure

__all__ = ["LOST", "read_mapfile"]

#: Every status but ``+``, finished: not tried, not trimmed, not scraped, bad.
LOST: Final = "?*/-"
_STATUSES: Final = frozenset("?*/-+")
#: The second field of the line that says what ddrescue was doing.
_PHASES: Final = frozenset("?*/-FG+")
_MOST: Final = 1 << 63
#: int() of a long text takes quadratic time, and no offset has more digits.
_LONGEST: Final = 24

_LINE: Final = "POSITION SIZE STATUS, as ddrescue writes them"


def read_mapfile(lines: Iterable[str], name: str, statuses: str = LOST) -> Iterator[Failure]:
    """Give every block of a map whose status is one of ``statuses``.

    ``name`` is the file's, for messages.  Raises `MalformedError` for a line of another form, and
    where the blocks leave a gap or overlap, as ddrescue itself does.
    """
    if not statuses or not set(statuses) <= _STATUSES:
        raise MalformedError(name, None, f"statuses among ?*/-+, and not {statuses!r}")
    numbered = enumerate(lines, 1)
    _read_state(numbered, name)
    expected = -1
    for number, line in numbered:
        fields = line.split()
        # A short test for the ordinary line; comments may stand behind the fields.
        if len(fields) != 3 or line[0] == "#":  # noqa: PLR2004
            fields = line.partition("#")[0].split()
            if not fields:
                continue
        try:
            position, length, status = fields
            start, size = _number(position), _number(length)
        except ValueError:
            raise MalformedError(name, number, _LINE) from None
        if status not in _STATUSES or size <= 0 or start + size > _MOST:
            raise MalformedError(name, number, _LINE)
        if expected not in (-1, start):
            raise MalformedError(
                name, number, f"the block after the last one, at {expected:#x}, not {start:#x}"
            )
        expected = start + size
        if status in statuses:
            yield Failure(start, size, "", f"{name}, line {number}")
    if expected == -1:
        raise MalformedError(name, None, "at least one block, in a line POSITION SIZE STATUS")


def _read_state(numbered: Iterator[tuple[int, str]], name: str) -> None:
    """Take the lines up to the one with the state: position, phase and, since 1.22, pass."""
    expected = "a line POSITION PHASE [PASS], with which ddrescue begins its map"
    for number, line in numbered:
        fields = line.partition("#")[0].split()
        if not fields:
            continue
        if len(fields) not in (2, 3) or fields[1] not in _PHASES:
            raise MalformedError(name, number, expected)
        try:
            _number(fields[0])
            _number(fields[-1] if len(fields) == 3 else "0")  # noqa: PLR2004
        except ValueError:
            raise MalformedError(name, number, expected) from None
        return
    raise MalformedError(name, None, expected)


def _number(text: str) -> int:
    """Read a number as C does: ``0x`` for hexadecimal, a leading 0 for octal."""
    if text[:2] == "0x" and len(text) <= _LONGEST:
        return int(text, 16)
    if not text.isascii() or not text.isdecimal() or len(text) > _LONGEST:
        raise ValueError(text)
    return int(text, 8 if text[0] == "0" else 10)
