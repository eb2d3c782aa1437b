"""Byte ranges, and the one syntax in which people and programs write them.

``START[+LENGTH]``: each number decimal or ``0x…`` with an optional suffix; see `parse_range`.
Inside whoseblock everything is bytes, half-open, from the start of the device named.
"""

import re
from collections.abc import Iterable, Iterator
from typing import NamedTuple

from whoseblock.errors import RangeSyntaxError

__all__ = ["ByteRange", "merge", "parse_range", "parse_ranges", "subtract"]

#: Beyond what a ``loff_t`` holds nothing can be addressed.
_MAX_OFFSET = 1 << 63

#: Bytes in one unit of each suffix; ``b`` is known only once the filesystem is open.
_UNITS = {"": 1, "K": 1 << 10, "M": 1 << 20, "G": 1 << 30, "T": 1 << 40, "s": 512, "p": 4096}

#: What LENGTH defaults to: one unit, but for the powers of 1024 one byte.
_DEFAULT_LENGTHS = _UNITS | dict.fromkeys("KMGT", 1)

# ASCII only: \d would also take digits of other scripts.
_NUMBER = re.compile(r"(0[xX][0-9a-fA-F]+|[0-9]+)([KMGTspb]?)")


class ByteRange(NamedTuple):
    """``length`` bytes from byte ``start`` of some device."""

    start: int
    length: int

    @property
    def end(self) -> int:
        """The first byte past the range."""
        return self.start + self.length

    def __str__(self) -> str:
        """Write the range as it is parsed."""
        return f"{self.start}+{self.length}"


def _parse_number(text: str, whole: str, block_size: int | None) -> tuple[int, str]:
    """Give the value in bytes and the suffix of one number of the range ``whole``."""
    match = _NUMBER.fullmatch(text)
    if match is None or len(text) > 40:  # noqa: PLR2004 - int() of a long text is quadratic
        raise RangeSyntaxError(
            f"{whole!r} is not a range: {text!r} is no number, with or without a unit",
            hint="write START[+LENGTH], with K M G T s p b as units: 1257472+4096, 307p, 2456s+8s",
        )
    digits, suffix = match.groups()
    if suffix == "b" and block_size is None:
        raise RangeSyntaxError(
            f"{whole!r} counts in filesystem blocks, and no filesystem says how large they are",
            hint="give the range in bytes, sectors (s) or 4096-byte pages (p)",
        )
    unit = _UNITS[suffix] if suffix != "b" else block_size or 0
    return int(digits, 16 if digits[:2] in ("0x", "0X") else 10) * unit, suffix


def parse_range(text: str, block_size: int | None = None) -> ByteRange:
    """Read ``START[+LENGTH]``.

    Suffixes: none for bytes, ``K M G T`` for powers of 1024, ``s`` for 512-byte sectors, ``p`` for
    4096-byte pages, ``b`` for filesystem blocks of ``block_size`` bytes (counted straight from the
    start of the device; after ``0x`` a ``b`` is a digit).  LENGTH defaults to one unit of START's
    suffix, and to one byte for ``K M G T``.

    >>> parse_range("307p")
    ByteRange(start=1257472, length=4096)

    Raises `RangeSyntaxError` for anything else, for an empty range, and for one past 2**63.
    """
    whole = text.strip()
    start_text, plus, length_text = whole.partition("+")
    start, suffix = _parse_number(start_text, whole, block_size)
    if plus:
        length, _ = _parse_number(length_text, whole, block_size)
    else:
        length = _DEFAULT_LENGTHS[suffix] if suffix != "b" else block_size or 0
    if length == 0:
        raise RangeSyntaxError(f"{whole!r} is an empty range", hint="ask for one byte or more")
    if start + length > _MAX_OFFSET:
        raise RangeSyntaxError(f"{whole!r} ends past the largest offset, 2**63 bytes")
    return ByteRange(start, length)


def parse_ranges(
    lines: Iterable[str], name: str, block_size: int | None = None
) -> Iterator[ByteRange]:
    """Read one range a line; ``#`` starts a comment, empty lines are passed over.

    Raises `RangeSyntaxError` that names ``name`` and the line.
    """
    for number, line in enumerate(lines, 1):
        text = line.partition("#")[0].strip()
        if not text:
            continue
        try:
            yield parse_range(text, block_size)
        except RangeSyntaxError as error:
            raise RangeSyntaxError(f"{name}, line {number}: {error}", hint=error.hint) from None


def merge(ranges: Iterable[ByteRange]) -> list[ByteRange]:
    """Give the same bytes as disjoint ranges, ascending, adjacent ones joined."""
    merged: list[ByteRange] = []
    for start, length in sorted(ranges):
        if merged and start <= merged[-1].end:
            last = merged[-1]
            merged[-1] = ByteRange(last.start, max(last.end, start + length) - last.start)
        else:
            merged.append(ByteRange(start, length))
    return merged


def subtract(ranges: Iterable[ByteRange], cut: ByteRange) -> list[ByteRange]:
    """Give what is left of each of ``ranges`` without the bytes of ``cut``."""
    left = []
    for part in ranges:
        before = ByteRange(part.start, min(part.end, cut.start) - part.start)
        start = max(part.start, cut.end)
        after = ByteRange(start, part.end - start)
        left += [piece for piece in (before, after) if piece.length > 0]
    return left
