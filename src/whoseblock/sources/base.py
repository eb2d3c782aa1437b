"""The failures that parsers yield, and the record of what a parser read."""

import re
from typing import Final, NamedTuple

from msgspec import Struct

__all__ = [
    "MAX_LINE",
    "MAX_OFFSET",
    "Counted",
    "Failure",
    "Reading",
    "parse_number",
    "quote",
    "shorten",
]

#: Limit on the length of a line, in characters; binary data may have no line ends.
MAX_LINE: Final = 1 << 16

#: The end of the largest offset that a ``loff_t`` holds.
MAX_OFFSET: Final = 1 << 63
#: int() alone would also accept spaces, underscores and digits of other scripts.
_NUMBER: Final = re.compile(r"0[xX][0-9a-fA-F]{1,16}|[0-9]{1,20}", re.ASCII)

#: Limit on the kept part of an unrecognised line, in characters.
_MAX_QUOTE: Final = 72
#: Limit on a quoted argument or field in an error, in characters.
_MAX_WORD: Final = 32
#: Limit on the number of reasons that are counted separately.
_MAX_REASONS: Final = 64


class Failure(NamedTuple):
    """``length`` failed bytes from ``start`` of a device.

    ``device`` is the kernel's name (``sda``, ``pmem0``, ``region0``, ``physical-memory``), or ""
    for the device that the user named. ``origin`` is the file and line of the report. ``remark``
    limits what the report says about the location; it becomes a note of the answer. ``is_above`` is
    whether a filesystem or a volume reports an error that its device may report too. With
    ``is_logical``, ``start`` is an address of the filesystem on the device, as it counts itself.
    With ``file``, a subvolume and an inode of that filesystem, ``start`` is an offset in the file.
    """

    start: int
    length: int
    device: str = ""
    origin: str = ""
    remark: str = ""
    is_above: bool = False
    is_logical: bool = False
    file: tuple[int, int] | None = None


class Counted(Struct):
    """A number of units, and the text of the first one with its place in the input."""

    count: int
    first: str


class Reading(Struct):
    """The record of reading one input, updated while the failures are consumed.

    ``read`` counts units, called ``unit`` and ``units`` in messages. ``unrecognised`` counts the
    units that report an error in an unsupported form, and ``first`` is the first of them.
    ``broken`` counts the units that were passed over because they are truncated or damaged.
    ``unplaced`` counts, by the reason, the units that report an error whose place is unknown.
    ``remarks`` explain an input without failures.
    """

    name: str
    unit: str = "line"
    units: str = "lines"
    read: int = 0
    failures: int = 0
    unrecognised: int = 0
    first: str = ""
    broken: int = 0
    first_broken: str = ""
    unplaced: dict[str, Counted] = {}
    remarks: list[str] = []

    @property
    def is_silent(self) -> bool:
        """Whether the failures were complete, so that the input needs no message."""
        silent = not (self.unrecognised or self.broken or self.unplaced or self.remarks)
        return bool(self.failures) and silent

    def count_broken(self, where: str, text: str, expected: str = "") -> None:
        """Count a unit that was passed over; keep the first, with what was expected in it."""
        if not self.broken:
            wanted = f", expected {expected}" if expected else ""
            self.first_broken = f"{where}: {_shorten(text)}{wanted}"
        self.broken += 1

    def count_unplaced(self, where: str, text: str, reason: str, count: int = 1) -> None:
        """Count units that report an error, with the reason why their place is unknown."""
        counted = self.unplaced.get(reason)
        if counted is not None:
            counted.count += count
        elif len(self.unplaced) < _MAX_REASONS:
            self.unplaced[reason] = Counted(count, f"{where}: {_shorten(text)}")
        else:
            self.count_unrecognised(where, text, count)

    def count_unrecognised(self, where: str, text: str, count: int = 1) -> None:
        """Count units that report an error in an unsupported form; keep the first."""
        if not self.unrecognised:
            self.first = f"{where}: {_shorten(text)}" if where else _shorten(text)
        self.unrecognised += count

    def summary(self) -> str:
        """Return what was read and found, as one line; names and text are not escaped."""
        parts = [f"{_format_count(self.failures, 'failure', 'failures')} in {self._read}"]
        if self.unrecognised:
            reports = "reports an error" if self.unrecognised == 1 else "report errors"
            what = _format_count(self.unrecognised, self.unit, self.units)
            first = "" if self.unrecognised == 1 else "the first is "
            parts.append(f"{what} {reports} in a form that is not recognised: {first}{self.first}")
        if self.broken:
            what = _format_count(self.broken, self.unit, self.units)
            first = "" if self.broken == 1 else "the first is "
            was = "was" if self.broken == 1 else "were"
            parts.append(f"{what} {was} passed over as damaged: {first}{self.first_broken}")
        for reason, counted in self.unplaced.items():
            reports = "reports an error" if counted.count == 1 else "report errors"
            what = _format_count(counted.count, self.unit, self.units)
            first = "" if counted.count == 1 else "the first is "
            parts.append(f"{what} {reports} at an unknown place, {reason}: {first}{counted.first}")
        return "; ".join([*parts, *self.remarks])

    @property
    def _read(self) -> str:
        return _format_count(self.read, self.unit, self.units)


def _format_count(number: int, one: str, many: str) -> str:
    return f"{number} {one if number == 1 else many}"


def _shorten(text: str) -> str:
    text = text.strip()
    return text if len(text) <= _MAX_QUOTE else f"{text[:_MAX_QUOTE]}…"


def shorten(text: str) -> str:
    """Return a field of a report for a message, cut to a few dozen characters."""
    return text if len(text) <= _MAX_WORD else f"{text[:_MAX_WORD]}…"


def quote(text: str) -> str:
    """Return a quoted argument or field for an error, shortened."""
    return repr(shorten(text))


def parse_number(text: str) -> int | None:
    """Parse a decimal or ``0x…`` number; return None if the text is none."""
    if not _NUMBER.fullmatch(text):
        return None
    return int(text, 16 if text[:2] in ("0x", "0X") else 10)
