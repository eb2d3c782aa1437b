"""A range of bytes, the unit of every question and answer."""

from typing import NamedTuple

__all__ = ["ByteRange"]


class ByteRange(NamedTuple):
    """``length`` bytes from byte ``start`` of a device."""

    start: int
    length: int

    @property
    def end(self) -> int:
        """The first byte past the range."""
        return self.start + self.length

    def __str__(self) -> str:
        """Format the range as `whoseblock.ranges.parse_range` reads it."""
        return f"{self.start}+{self.length}"
