"""The language of the file ``control``, which lists and changes the bad sectors of a medium.

Lines are ``bad RANGE``, ``permanent RANGE``, ``good RANGE`` and ``clear``. A listing has
the same form, so that writing it back restores the same sectors.
"""

from collections.abc import Iterable
from heapq import merge as in_order
from typing import Final, get_args

from whoseblock.errors import RangeSyntaxError
from whoseblock.media.sectors import Change, Mark
from whoseblock.ranges import ByteRange, parse_range

__all__ = ["format_control", "parse_control"]

#: The smallest buffer size of programs, in bytes.
_BUFFER: Final = 4096

_MARKS: Final[dict[str, Mark]] = {mark: mark for mark in get_args(Mark)}


def format_control(poison: Iterable[ByteRange], permanent: Iterable[ByteRange]) -> str:
    """List bad sectors, a line for each range, ascending."""
    marked = in_order(((bad, "bad") for bad in poison), ((bad, "permanent") for bad in permanent))
    return "".join(f"{mark} {bad}\n" for bad, mark in marked)


def parse_control(text: str, size: int) -> list[Change]:
    """Parse lines written to change the sectors of a device of ``size`` bytes.

    The last line feed may be missing, but not in a long text: a program may split a long text
    anywhere, and half of a number is a number too. Empty lines and comments from ``#`` on are
    skipped. Raises `RangeSyntaxError`.
    """
    if len(text) >= _BUFFER and not text.endswith("\n"):
        raise RangeSyntaxError("the last line is truncated", hint="write complete lines")
    changes = []
    for line in text.splitlines():
        word, _, rest = line.partition("#")[0].strip().partition(" ")
        if word == "clear" and not rest:
            changes.append(Change("good", ByteRange(0, size)))
        elif word in _MARKS:
            changes.append(Change(_MARKS[word], parse_range(rest)))
        elif word:
            raise RangeSyntaxError(
                f"{line!r} is not a command",
                hint="use bad, permanent or good with a RANGE, or clear",
            )
    return changes
