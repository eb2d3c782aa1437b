"""The lines with which the bad sectors of an emulated medium are listed and changed.

``bad RANGE``, ``stubborn RANGE``, ``good RANGE`` and ``clear``.  A listing is in the same form, so
that writing one back brings the same sectors back.
"""

from collections.abc import Iterable
from heapq import merge as in_order
from typing import Final

from whoseblock.errors import RangeSyntaxError
from whoseblock.media.sectors import Change, Mark
from whoseblock.ranges import ByteRange, parse_range

__all__ = ["control_lines", "parse_control"]

#: No program's buffer is smaller.
_BUFFER: Final = 4096

_MARKS: Final[dict[str, Mark]] = {"good": "good", "bad": "bad", "stubborn": "stubborn"}


def control_lines(poison: Iterable[ByteRange], stubborn: Iterable[ByteRange]) -> str:
    """List bad sectors, a line for each range, ascending."""
    marked = in_order(((bad, "bad") for bad in poison), ((bad, "stubborn") for bad in stubborn))
    return "".join(f"{mark} {bad}\n" for bad, mark in marked)


def parse_control(text: str, size: int) -> list[Change]:
    """Read what was written to change the sectors of a device of ``size`` bytes.

    The last newline may be missing, but not from a long text: a program that writes much may cut it
    anywhere, and half a number is a number, too.  Empty lines and comments from ``#`` on are passed
    over.  Raises `RangeSyntaxError`.
    """
    if len(text) >= _BUFFER and not text.endswith("\n"):
        raise RangeSyntaxError("the last line is cut", hint="write whole lines at once")
    changes = []
    for line in text.splitlines():
        word, _, rest = line.partition("#")[0].strip().partition(" ")
        if word == "clear" and not rest:
            changes.append(Change("good", ByteRange(0, size)))
        elif word in _MARKS:
            changes.append(Change(_MARKS[word], parse_range(rest)))
        elif word:
            raise RangeSyntaxError(
                f"{line!r} is none of bad RANGE, stubborn RANGE, good RANGE, and clear"
            )
    return changes
