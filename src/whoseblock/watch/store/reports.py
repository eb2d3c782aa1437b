"""Define the reports of sources, as the spool stores them.

``at`` is in seconds since 1970. ``key`` identifies the event: one that is read twice is journaled
once; if it is "", the spool sets it. ``detail`` holds what JSON can hold.
"""

from typing import Any

from msgspec import Struct, field

from whoseblock.ranges import ByteRange

__all__ = [
    "BadBlockList",
    "EventsLost",
    "FailedFileRange",
    "FailedRange",
    "FilesystemError",
    "Report",
]


class _Report(Struct, frozen=True, kw_only=True, omit_defaults=True, tag_field="report"):
    source: str
    at: float
    key: str = ""
    detail: dict[str, Any] = field(default_factory=dict)


class FailedRange(_Report, frozen=True, tag="failed"):
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


class BadBlockList(_Report, frozen=True, tag="listed"):
    """The present content of a device's bad-block list, ascending; ``origin`` is its file.

    A range that was listed before and is no longer has been healed.
    """

    device: str
    ranges: tuple[ByteRange, ...]
    origin: str = ""


class FailedFileRange(_Report, frozen=True, tag="file"):
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


Report = FailedRange | BadBlockList | FailedFileRange | FilesystemError | EventsLost
