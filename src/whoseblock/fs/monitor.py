"""The protocol of kernel interfaces that report failures of mounted filesystems of one kind.

`whoseblock.fs.registry` names the monitors; ``whoseblock watch`` reads them.
"""

import errno
from collections.abc import Iterator
from typing import Any, Final, NamedTuple, Protocol

from whoseblock.fs.base import FileId

__all__ = [
    "MEDIUM_ERRORS",
    "DroppedEvents",
    "FailedDeviceRange",
    "FailedFilePart",
    "FailureEvent",
    "FilesystemTrouble",
    "Monitor",
    "MonitorEvent",
    "Unmounted",
]

#: The errnos of requests that blame the medium; `whoseblock.sources.kernel_log` has their texts.
MEDIUM_ERRORS: Final = frozenset({errno.EIO, errno.ENODATA, errno.EILSEQ})


class FailedDeviceRange(NamedTuple):
    """A failed range of the filesystem's device, in bytes; ``at`` is in seconds since 1970."""

    at: float
    start: int
    length: int


class FailedFilePart(NamedTuple):
    """A failed part of a file, in bytes; ``detail`` holds what JSON can hold."""

    at: float
    file: FileId
    generation: int
    start: int
    length: int
    detail: dict[str, Any]


class FilesystemTrouble(NamedTuple):
    """An error of the filesystem, whose bytes are unknown."""

    at: float
    what: str


class DroppedEvents(NamedTuple):
    """The number of events that the kernel dropped."""

    number: int


class Unmounted(NamedTuple):
    """The end of the filesystem's events."""


FailureEvent = FailedDeviceRange | FailedFilePart | FilesystemTrouble | DroppedEvents
MonitorEvent = FailureEvent | Unmounted


class Monitor(Protocol):
    """The events of mounted filesystems of one kind."""

    #: How many bytes of events are read at once.
    read_size: int

    def subscribe(self, root: int) -> int:
        """Return a descriptor that is readable when a filesystem has events.

        ``root`` is its open root directory.  Raises OSError: ENOTTY, EOPNOTSUPP or EINVAL if the
        kernel has no events of this filesystem, EEXIST if another program receives them.
        """
        ...

    def parse(self, data: bytes) -> Iterator[MonitorEvent]:
        """Parse what a read from the descriptor returned."""
        ...
