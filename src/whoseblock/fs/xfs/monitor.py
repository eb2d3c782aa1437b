"""XFS's health monitor (Linux 7.0): the kernel reports media errors and damage as they happen.

The kernel allows one monitor for a mount.
"""

import errno
import fcntl
from collections.abc import Iterator
from typing import Final

from whoseblock.fs.base import FileId
from whoseblock.fs.monitor import (
    MEDIUM_ERRORS,
    DroppedEvents,
    FailedDeviceRange,
    FailedFilePart,
    FilesystemTrouble,
    Monitor,
    MonitorEvent,
    Unmounted,
)
from whoseblock.fs.xfs.mounted.health_events import (
    EVENT_BYTES,
    XFS_IOC_HEALTH_MONITOR,
    DeviceRange,
    EventDomain,
    EventKind,
    FileRange,
    HealthEvent,
    LostHealthEvents,
    monitor_request,
    read_health,
)

__all__ = ["MONITOR", "HealthMonitor"]

_MOST_EVENTS: Final = 256
_NANO: Final = 10**9
#: Events without a range, with their texts.
_WORDS: Final = {
    EventKind.SICK: "metadata is sick",
    EventKind.CORRUPT: "metadata is corrupt",
    EventKind.SHUTDOWN: "the filesystem was shut down",
}


class HealthMonitor(Monitor):
    """The monitor of mounted XFS filesystems."""

    read_size = EVENT_BYTES * _MOST_EVENTS

    def subscribe(self, root: int) -> int:
        """Return a descriptor of the events of the filesystem with an open root directory."""
        # With a mutable buffer, ioctl returns the kernel's return value: a descriptor.
        descriptor: int = fcntl.ioctl(root, XFS_IOC_HEALTH_MONITOR, bytearray(monitor_request()))
        return descriptor

    def parse(self, data: bytes) -> Iterator[MonitorEvent]:
        """Parse what a read from the descriptor returned."""
        for event in read_health(data):
            yield from _convert(event)


def _convert(event: HealthEvent) -> Iterator[MonitorEvent]:
    at = event.nanoseconds / _NANO
    what = event.what
    if isinstance(what, LostHealthEvents):
        yield DroppedEvents(what.events)
    elif isinstance(what, DeviceRange) and event.domain == EventDomain.DATADEV:
        yield FailedDeviceRange(at, what.start, what.length)
    elif isinstance(what, DeviceRange):
        text = f"{what.length} bytes from {what.start} of its {_device_word(event.domain)}"
        yield FilesystemTrouble(at, f"media error: {text} failed")
    # A full disk, an exceeded quota or a request to retry loses no data.
    elif isinstance(what, FileRange) and (
        event.kind == EventKind.DATALOST or what.error in MEDIUM_ERRORS
    ):
        detail = {
            "error": errno.errorcode.get(what.error, str(what.error)),
            "event": _kind_word(event.kind),
        }
        file = FileId(0, what.inode)
        yield FailedFilePart(at, file, what.generation, what.start, what.length, detail)
    elif event.kind in _WORDS:
        text = f"{_WORDS[EventKind(event.kind)]} ({_domain_word(event.domain)})"
        yield FilesystemTrouble(at, text)
    if event.kind == EventKind.UNMOUNT:
        yield Unmounted()


def _device_word(domain: int) -> str:
    return "realtime device" if domain == EventDomain.RTDEV else "log device"


def _kind_word(kind: int) -> str:
    return EventKind(kind).name.lower() if kind in list(EventKind) else str(kind)


def _domain_word(domain: int) -> str:
    return EventDomain(domain).name.lower() if domain in list(EventDomain) else str(domain)


MONITOR: Final = HealthMonitor()
