"""Define the reports of sources, as the spool stores them.

``at`` is in seconds since 1970. ``key`` identifies the event: one that is read twice is journaled
once; if it is "", the spool sets it. ``detail`` holds what JSON can hold.
"""

from datetime import UTC, datetime
from typing import Any, TypeVar

from msgspec import Struct, field
from msgspec.structs import replace

from whoseblock.ranges import ByteRange

__all__ = [
    "BadBlockList",
    "EventsLost",
    "FailedFileRange",
    "FailedRange",
    "FilesystemError",
    "Report",
    "as_former",
    "as_past",
]


class _Report(Struct, frozen=True, kw_only=True, omit_defaults=True, tag_field="report"):
    source: str
    at: float
    key: str = ""
    detail: dict[str, Any] = field(default_factory=dict)


class _Failed(_Report, frozen=True, kw_only=True):
    # ``past`` is why the failure is history, "" if it is not: it happened before the daemon watched
    # its device, so the present owners may be others. ``disk`` is the number of the disk that had
    # the name of the device when the report was read, 0 if it is unknown.
    past: str = ""
    disk: int = 0


class FailedRange(_Failed, frozen=True, kw_only=True, tag="failed"):
    """A failed range of a device, in bytes; ``origin`` is where it was read.

    ``times`` is how often its source reported it in a batch, at ``at`` first, and at ``last`` last;
    0 is the time of the only report.
    """

    device: str
    start: int
    length: int
    origin: str = ""
    times: int = 1
    last: float = 0.0

    @property
    def where(self) -> tuple[str, int, int]:
        """The device, the start and the length."""
        return self.device, self.start, self.length

    @property
    def range(self) -> ByteRange:
        """The bytes that failed."""
        return ByteRange(self.start, self.length)


class BadBlockList(_Report, frozen=True, tag="listed"):
    """The present content of a device's bad-block list, ascending; ``origin`` is its file.

    A range that was listed before and is no longer has been healed.
    """

    device: str
    ranges: tuple[ByteRange, ...]
    origin: str = ""


class FailedFileRange(_Failed, frozen=True, kw_only=True, tag="file"):
    """A failed range of a file, in bytes; ``device`` is the device of its filesystem.

    ``place`` is the mount point, and ``origin`` where the range was read.
    """

    device: str
    place: str
    inode: int
    generation: int
    start: int
    length: int
    origin: str = ""
    subvolume: int = 0


class FilesystemError(_Report, frozen=True, tag="ill"):
    """An error of the filesystem mounted at ``place``, whose bytes are unknown."""

    place: str
    what: str


class EventsLost(_Report, frozen=True, tag="lost"):
    """``count`` events of the source are lost, 0 if their number is unknown."""

    count: int
    what: str


_Any = TypeVar("_Any", FailedRange, FailedFileRange)


def as_past(one: _Any, why: str) -> _Any:
    """Return a report as history: it failed ``why``, such as "before the daemon watched"."""
    at = datetime.fromtimestamp(one.at, UTC).isoformat(timespec="seconds")
    return replace(one, past=f"it failed at {at}, {why}")


def as_former(one: _Any) -> _Any:
    """Return a report as one of a disk that no longer has its name.

    It becomes one of ``NAME#NUMBER``, as no device is called.
    """
    past = as_past(one, f"on another disk than the one that is called {one.device} now")
    return replace(past, device=f"{one.device}#{one.disk}", disk=0)


Report = FailedRange | BadBlockList | FailedFileRange | FilesystemError | EventsLost
