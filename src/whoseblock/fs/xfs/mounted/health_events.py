"""Parse XFS health monitor events (struct xfs_health_monitor_event in xfs_fs.h)."""

from enum import IntEnum
from struct import Struct
from typing import Final, NamedTuple

__all__ = [
    "EVENT_BYTES",
    "XFS_IOC_HEALTH_MONITOR",
    "DeviceRange",
    "EventDomain",
    "EventKind",
    "FileRange",
    "HealthEvent",
    "LostHealthEvents",
    "monitor_request",
    "read_health",
]

XFS_IOC_HEALTH_MONITOR: Final = 0x40205844
EVENT_BYTES: Final = 64
_VERBOSE: Final = 1
#: flags, format, padding
_REQUEST: Final = Struct("=QB23x")
#: domain, type, time in nanoseconds, and the data of the domain
_EVENT: Final = Struct("=IIQ32s16x")
_MEDIA: Final = Struct("=QQ16x")
#: pos, len, ino, gen, error
_FILE: Final = Struct("=QQQII")
_COUNT: Final = Struct("=Q24x")
_SECTOR: Final = 512


class EventDomain(IntEnum):
    """The XFS_HEALTH_MONITOR_DOMAIN_* values: the object of an event."""

    MOUNT = 0
    FS = 1
    AG = 2
    INODE = 3
    RTGROUP = 4
    DATADEV = 5
    RTDEV = 6
    LOGDEV = 7
    FILERANGE = 8


class EventKind(IntEnum):
    """The XFS_HEALTH_MONITOR_TYPE_* values: what happened."""

    RUNNING = 0
    LOST = 1
    UNMOUNT = 2
    SICK = 3
    CORRUPT = 4
    HEALTHY = 5
    SHUTDOWN = 6
    MEDIA_ERROR = 7
    BUFREAD = 8
    BUFWRITE = 9
    DIOREAD = 10
    DIOWRITE = 11
    DATALOST = 12


class DeviceRange(NamedTuple):
    """A failed range of a device of the filesystem, in bytes."""

    start: int
    length: int


class FileRange(NamedTuple):
    """A failed range of a file, in bytes; ``error`` is an errno."""

    start: int
    length: int
    inode: int
    generation: int
    error: int


class LostHealthEvents(NamedTuple):
    """The number of events that the kernel dropped."""

    events: int


class HealthEvent(NamedTuple):
    """One event; ``what`` is None if ``domain`` and ``kind``, plain numbers, say it all."""

    domain: int
    kind: int
    nanoseconds: int
    what: DeviceRange | FileRange | LostHealthEvents | None


def monitor_request() -> bytes:
    """Return the request of the ioctl that subscribes to every event."""
    return _REQUEST.pack(_VERBOSE, 0)


def read_health(data: bytes) -> list[HealthEvent]:
    """Parse whole events; ignore an incomplete one at the end."""
    whole = len(data) - len(data) % EVENT_BYTES
    return [_event(*fields) for fields in _EVENT.iter_unpack(memoryview(data)[:whole])]


def _event(domain: int, kind: int, nanoseconds: int, body: bytes) -> HealthEvent:
    what: DeviceRange | FileRange | LostHealthEvents | None = None
    if kind == EventKind.LOST:
        what = LostHealthEvents(*_COUNT.unpack(body))
    elif kind == EventKind.MEDIA_ERROR and domain in (
        EventDomain.DATADEV,
        EventDomain.RTDEV,
        EventDomain.LOGDEV,
    ):
        sector, count = _MEDIA.unpack(body)
        what = DeviceRange(sector * _SECTOR, count * _SECTOR)
    elif domain == EventDomain.FILERANGE:
        start, length, inode, generation, error = _FILE.unpack(body)
        what = FileRange(start, length, inode, generation, error)
    return HealthEvent(domain, kind, nanoseconds, what)
