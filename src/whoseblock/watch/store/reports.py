"""What a source reports, in the words in which it waits in the spool.

``at`` is in seconds since 1970.  ``key`` names the event itself: an event that is read twice is
journaled once; "" has the spool name it.  ``detail`` is what JSON can hold.
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


class _Report(Struct, frozen=True, kw_only=True, tag_field="report"):
    source: str
    at: float
    key: str = ""
    detail: dict[str, Any] = field(default_factory=dict)


class FailedRange(_Report, frozen=True, tag="failed"):
    """``length`` bytes from ``start`` of a device failed; ``origin`` is where that was read."""

    device: str
    start: int
    length: int
    origin: str = ""


class BadBlockList(_Report, frozen=True, tag="listed"):
    """All that the kernel's list of a device holds at present, ascending; ``origin`` is its file.

    What was listed before and is not now has been healed.
    """

    device: str
    ranges: tuple[ByteRange, ...]
    origin: str = ""


class FailedFileRange(_Report, frozen=True, tag="file"):
    """``length`` bytes from ``start`` of a file failed; ``device`` is the one its filesystem is on.

    ``place`` is where that is mounted.
    """

    device: str
    place: str
    inode: int
    generation: int
    start: int
    length: int


class FilesystemError(_Report, frozen=True, tag="ill"):
    """Something is wrong with what is mounted at ``place``, and nobody says with which bytes."""

    place: str
    what: str


class EventsLost(_Report, frozen=True, tag="lost"):
    """``count`` events of the source are gone, 0 if nobody knows how many."""

    count: int
    what: str


Report = FailedRange | BadBlockList | FailedFileRange | FilesystemError | EventsLost
