"""What every source of failures yields, and the record of what it read."""

from dataclasses import dataclass, field
from typing import Final, NamedTuple

__all__ = ["Failure", "Reading"]

#: How much of a line that is not recognised is kept, in characters.
_SHOWN: Final = 72


class Failure(NamedTuple):
    """``length`` bytes from ``start`` of a device that failed.

    ``device`` is the kernel's name of it (``sda``, ``pmem0``, ``region0``, ``physical-memory``), or
    "" for the one that the user named.  ``origin`` is where that was read: file and line.
    ``remark`` limits what the report says about the place; it becomes a note of the answer.
    """

    start: int
    length: int
    device: str = ""
    origin: str = ""
    remark: str = ""


@dataclass
class Reading:
    """What was read of one input; a parser fills it while its failures are consumed.

    ``units`` is what ``read`` counts, in the plural; ``unit`` is the singular.  ``unrecognised``
    counts the units that report an error in a form that the parser does not read, and ``first`` is
    the first of them.  ``remarks`` explain an input without failures.
    """

    name: str
    unit: str = "line"
    units: str = "lines"
    read: int = 0
    failures: int = 0
    unrecognised: int = 0
    first: str = ""
    remarks: list[str] = field(default_factory=list)

    @property
    def is_silent(self) -> bool:
        """Whether the failures that were found speak for themselves."""
        return bool(self.failures) and not self.unrecognised and not self.remarks

    def count_unrecognised(self, where: str, text: str, count: int = 1) -> None:
        """Count units that report an error and are not recognised; keep the first."""
        if not self.unrecognised:
            self.first = f"{where}: {_shortened(text)}" if where else _shortened(text)
        self.unrecognised += count

    def summary(self) -> str:
        """Return what was read and found, as one line; names and text are not yet printable."""
        parts = [f"{_counted(self.failures, 'failure', 'failures')} in {self._read}"]
        if self.unrecognised:
            reports = "reports an error" if self.unrecognised == 1 else "report errors"
            what = _counted(self.unrecognised, self.unit, self.units)
            first = "" if self.unrecognised == 1 else "the first is "
            parts.append(f"{what} {reports} in a form that is not recognised: {first}{self.first}")
        return "; ".join([*parts, *self.remarks])

    @property
    def _read(self) -> str:
        return _counted(self.read, self.unit, self.units)


def _counted(number: int, one: str, many: str) -> str:
    return f"{number} {one if number == 1 else many}"


def _shortened(text: str) -> str:
    text = text.strip()
    return text if len(text) <= _SHOWN else f"{text[:_SHOWN]}…"
