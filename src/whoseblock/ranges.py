"""Byte ranges, and the syntax in which users and programs write them.

``START[+LENGTH]``: each number is decimal or ``0x…`` with an optional suffix; see `parse_range`.
Inside whoseblock, offsets and lengths are bytes, half-open, from the start of the device named.
"""

import re
from array import array
from collections.abc import Iterable, Iterator, Sequence
from operator import itemgetter
from typing import Final, overload

from whoseblock.byte_range import ByteRange
from whoseblock.errors import RangeSyntaxError

__all__ = [
    "PHYSICAL_MEMORY",
    "ByteRange",
    "RangeList",
    "merge",
    "merge_list",
    "parse_range",
    "parse_range_text",
    "parse_ranges",
    "subtract",
]

#: The name of the address space that page frame numbers and physical addresses count in.
PHYSICAL_MEMORY: Final = "physical-memory"

#: The end of the largest offset that a ``loff_t`` holds.
_MAX_OFFSET = 1 << 63

#: Bytes in a unit of each suffix, except ``b``, which depends on the filesystem.
_UNITS = {"": 1, "K": 1 << 10, "M": 1 << 20, "G": 1 << 30, "T": 1 << 40, "s": 512, "p": 4096}

#: The default LENGTH: one unit, or one byte for the powers of 1024.
_DEFAULT_LENGTHS = _UNITS | dict.fromkeys("KMGT", 1)

#: Limit on the quoted part of an invalid range, in characters.
_SHOWN = 72

#: Fewer ranges are not worth loading NumPy.
_MANY: Final = 1 << 10

# ASCII only: \d would also match digits of other scripts. The length is limited because int() takes
# quadratic time.
_NUMBER = r"(0[xX][0-9a-fA-F]{1,32}|[0-9]{1,32})([KMGTspb]?)"
_RANGE = re.compile(rf"{_NUMBER}(?:\+{_NUMBER})?")
#: Lines of a long list: bytes, in so few digits that no sum can be too large.
_PLAIN_LINES = re.compile(r"(?:[0-9]{1,18}\+[0-9]{1,18}\n)++")


class RangeList(Sequence[tuple[int, int]]):
    """Many ranges in two arrays of 64-bit integers: 16 bytes for each range."""

    __slots__ = ("lengths", "starts")

    def __init__(self, starts: "array[int]", lengths: "array[int]") -> None:
        self.starts = starts
        self.lengths = lengths

    @classmethod
    def of(cls, ranges: Iterable[tuple[int, int]]) -> "RangeList":
        """Return the list of ``ranges``; raises OverflowError for a number past 64 bits."""
        pairs = list(ranges)
        starts, lengths = map(itemgetter(0), pairs), map(itemgetter(1), pairs)
        return cls(array("Q", starts), array("Q", lengths))

    def __len__(self) -> int:
        return len(self.starts)

    def __iter__(self) -> Iterator[tuple[int, int]]:
        return zip(self.starts, self.lengths, strict=True)

    @overload
    def __getitem__(self, index: int) -> tuple[int, int]: ...
    @overload
    def __getitem__(self, index: slice) -> "RangeList": ...
    def __getitem__(self, index: int | slice) -> "tuple[int, int] | RangeList":
        if isinstance(index, slice):
            return RangeList(self.starts[index], self.lengths[index])
        return self.starts[index], self.lengths[index]

    def append(self, start: int, length: int) -> None:
        """Append a range."""
        self.starts.append(start)
        self.lengths.append(length)

    def extend(self, ranges: "RangeList") -> None:
        """Append other ranges."""
        self.starts.extend(ranges.starts)
        self.lengths.extend(ranges.lengths)


def _value(digits: str, unit: int) -> int:
    return (int(digits) if digits.isdecimal() else int(digits, 16)) * unit


def parse_range(text: str, block_size: int | None = None) -> ByteRange:
    """Parse ``START[+LENGTH]``.

    Suffixes: none for bytes, ``K M G T`` for powers of 1024, ``s`` for 512-byte sectors, ``p`` for
    4096-byte pages, ``b`` for filesystem blocks of ``block_size`` bytes. Blocks count from the
    start of the device; after ``0x``, a ``b`` is a digit. LENGTH defaults to one unit of START's
    suffix, and to one byte for ``K M G T``.

    >>> parse_range("307p")
    ByteRange(start=1257472, length=4096)

    Raises `RangeSyntaxError` for other text, for an empty range, and for one past 2**63.
    """
    text = text.strip()
    match = _RANGE.fullmatch(text)
    if match is None:
        quoted = text if len(text) <= _SHOWN else f"{text[:_SHOWN]}…"
        raise RangeSyntaxError(
            f"{quoted!r} is not a range",
            hint="write START[+LENGTH], with K M G T s p b as units: 1257472+4096, 307p, 2456s+8s",
        )
    start_digits, start_suffix, length_digits, length_suffix = match.groups()
    units, defaults = _UNITS, _DEFAULT_LENGTHS
    if start_suffix == "b" or length_suffix == "b":
        if block_size is None:
            raise RangeSyntaxError(
                f"{text!r} counts in filesystem blocks, whose size is unknown here",
                hint="give the range in bytes, sectors (s) or 4096-byte pages (p)",
            )
        units, defaults = units | {"b": block_size}, defaults | {"b": block_size}
    start = _value(start_digits, units[start_suffix])
    length = (
        _value(length_digits, units[length_suffix]) if length_digits else defaults[start_suffix]
    )
    if length == 0:
        raise RangeSyntaxError(
            f"{text!r} is an empty range", hint="give a length of one byte or more"
        )
    if start + length > _MAX_OFFSET:
        raise RangeSyntaxError(f"{text!r} ends past the largest offset, 2**63 bytes")
    return ByteRange(start, length)


def parse_ranges(
    lines: Iterable[str], name: str, block_size: int | None = None, first_line: int = 1
) -> Iterator[ByteRange]:
    """Parse one range per line; ``#`` starts a comment, empty lines are skipped.

    Raises `RangeSyntaxError` with ``name`` and the line, counted from ``first_line``.
    """
    for number, line in enumerate(lines, first_line):
        text = line.partition("#")[0].strip()
        if not text:
            continue
        try:
            yield parse_range(text, block_size)
        except RangeSyntaxError as error:
            raise RangeSyntaxError(f"{name}, line {number}: {error}", hint=error.hint) from None


def parse_range_text(
    text: str, name: str, block_size: int | None = None, first_line: int = 1
) -> RangeList:
    """Parse whole lines like `parse_ranges`, all at once if every line is plain."""
    if _PLAIN_LINES.fullmatch(text):
        numbers = array("Q", map(int, text.replace("+", "\n").split()))
        lengths = numbers[1::2]
        if all(lengths):
            return RangeList(numbers[::2], lengths)
    return RangeList.of(parse_ranges(text.split("\n"), name, block_size, first_line))


def merge(ranges: Iterable[ByteRange]) -> list[ByteRange]:
    """Return the same bytes as disjoint ranges, ascending, with adjacent ones joined."""
    merged: list[ByteRange] = []
    for start, length in sorted(ranges):
        if merged and start <= merged[-1].end:
            last = merged[-1]
            merged[-1] = ByteRange(last.start, max(last.end, start + length) - last.start)
        else:
            merged.append(ByteRange(start, length))
    return merged


def merge_list(ranges: RangeList, longest: int) -> RangeList:
    """Return the same bytes as `merge` does, in ranges of at most ``longest`` bytes."""
    if len(ranges) < _MANY:
        return RangeList.of(
            (at, min(longest, one.end - at))
            for one in merge(ByteRange(*pair) for pair in ranges)
            for at in range(one.start, one.end, longest)
        )
    import numpy as np

    starts = np.array(ranges.starts, np.uint64)
    ends = starts + np.array(ranges.lengths, np.uint64)
    # Stable: see the sort in `whoseblock.fs.xfs.owners.bulk`.
    order = np.argsort(starts, kind="stable")
    starts, reach = starts[order], np.maximum.accumulate(ends[order])
    begins = np.append(True, starts[1:] > reach[:-1])[: starts.size]
    low = starts[begins]
    high = reach[np.append(begins[1:], True)[: starts.size]]
    pieces = -(-(high - low).astype(np.int64) // longest)
    number = np.arange(pieces.sum()) - np.repeat(np.cumsum(pieces) - pieces, pieces)
    at = np.repeat(low, pieces) + (number * longest).astype(np.uint64)
    lengths = np.minimum(np.repeat(high, pieces) - at, np.uint64(longest))
    return RangeList(array("Q", at.tobytes()), array("Q", lengths.tobytes()))


def subtract(ranges: Iterable[ByteRange], cut: ByteRange) -> list[ByteRange]:
    """Return each of ``ranges`` without the bytes of ``cut``."""
    left = []
    for part in ranges:
        before = ByteRange(part.start, min(part.end, cut.start) - part.start)
        start = max(part.start, cut.end)
        after = ByteRange(start, part.end - start)
        left += [piece for piece in (before, after) if piece.length > 0]
    return left
