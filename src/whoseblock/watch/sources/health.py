"""Watch XFS through its health monitor: one descriptor for each mounted filesystem.

The kernel allows one monitor for a mount.  If another program holds it, the state of the source
reports that.
"""

import errno
import fcntl
import os
import select
import time
from collections.abc import Iterable, Iterator
from typing import Final

from whoseblock.stack.kernel.host import Host
from whoseblock.watch.formats.health import (
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
from whoseblock.watch.sources.base import MEDIUM_ERRORS, device_name
from whoseblock.watch.sources.mount_probe import MountProbe, ProbeResult
from whoseblock.watch.sources.mounts import MountedFilesystem
from whoseblock.watch.store.reports import (
    EventsLost,
    FailedFileRange,
    FailedRange,
    FilesystemError,
    Report,
)

__all__ = ["HealthSource"]

_MOST_EVENTS: Final = 256
_NANO: Final = 10**9
#: Events that are logged, with their texts.
_WORDS: Final = {
    EventKind.SICK: "metadata is sick",
    EventKind.CORRUPT: "metadata is corrupt",
    EventKind.SHUTDOWN: "the filesystem was shut down",
}


class HealthSource:
    """Watches every mounted XFS filesystem whose kernel has the monitor."""

    name = "xfs-health"

    def __init__(self, host: Host) -> None:
        self._host = host
        self._poll = select.epoll()
        self._probe = MountProbe()
        self._wanted: dict[int, MountedFilesystem] = {}
        self._monitors: dict[int, MountedFilesystem] = {}
        #: The filesystems that are not watched, and why.
        self._refused: dict[int, OSError] = {}

    @property
    def health(self) -> str:
        """The state of the source in a few words."""
        refused = {_why(self._wanted[at], error) for at, error in self._refused.items()}
        return "; ".join([f"monitoring {len(self._monitors)} filesystems", *sorted(refused)])

    def fileno(self) -> int:
        """Return a descriptor that is readable when any filesystem has an event."""
        return self._poll.fileno()

    def mounts_changed(self, mounts: Iterable[MountedFilesystem]) -> None:
        """Watch the mounted filesystems."""
        self._wanted = {one.device: one for one in mounts if one.kind == "xfs"}
        self._refused = {at: why for at, why in self._refused.items() if at in self._wanted}
        for descriptor, mounted in self._monitors.items():
            self._monitors[descriptor] = self._wanted.get(mounted.device, mounted)
        self._watch_missing()

    def _watch_missing(self) -> None:
        """Watch the filesystems that are not watched yet, except where the kernel cannot."""
        watched = {one.device for one in self._monitors.values()}
        missing = [
            one
            for device, one in self._wanted.items()
            if device not in watched and not _is_final(self._refused.get(device))
        ]
        for mounted, result in self._probe.probe(missing, _open_monitor):
            if isinstance(result, OSError):
                self._refused[mounted.device] = result
                continue
            _, (descriptor,) = result
            self._refused.pop(mounted.device, None)
            os.set_blocking(descriptor, False)
            self._monitors[descriptor] = mounted
            self._poll.register(descriptor, select.EPOLLIN)

    def read(self) -> Iterator[Report]:
        """Yield the events that have arrived."""
        before = len(self._monitors)
        for descriptor, _ in self._poll.poll(0):
            mounted = self._monitors[descriptor]
            try:
                data = os.read(descriptor, EVENT_BYTES * _MOST_EVENTS)
            except BlockingIOError:
                continue
            except OSError:
                data = b""
            if not data:
                self._close_monitor(descriptor)
            for event in read_health(data):
                yield from self._convert(event, mounted)
                if event.kind == EventKind.UNMOUNT and descriptor in self._monitors:
                    self._close_monitor(descriptor)
        if len(self._monitors) < before:
            # It may have been mounted again before the end was read.
            self._watch_missing()

    def _close_monitor(self, descriptor: int) -> None:
        del self._monitors[descriptor]
        self._poll.unregister(descriptor)
        os.close(descriptor)

    def _convert(self, event: HealthEvent, mounted: MountedFilesystem) -> Iterator[Report]:
        at = event.nanoseconds / _NANO
        device = device_name(self._host, mounted.device)
        origin = f"health monitor of {mounted.point}"
        what = event.what
        if isinstance(what, LostHealthEvents):
            text = f"the kernel dropped events of {mounted.point}"
            yield EventsLost(source=self.name, at=time.time(), count=what.events, what=text)
        elif isinstance(what, DeviceRange) and event.domain == EventDomain.DATADEV:
            yield FailedRange(
                source=self.name,
                at=at,
                device=device,
                start=what.start,
                length=what.length,
                origin=origin,
            )
        elif isinstance(what, DeviceRange):
            text = f"{what.length} bytes from {what.start} of its {_device_word(event.domain)}"
            yield FilesystemError(
                source=self.name, at=at, place=mounted.point, what=f"media error: {text} failed"
            )
        elif isinstance(what, FileRange) and (
            event.kind == EventKind.DATALOST or _is_loss(what.error)
        ):
            yield FailedFileRange(
                source=self.name,
                at=at,
                device=device,
                place=mounted.point,
                inode=what.inode,
                generation=what.generation,
                start=what.start,
                length=what.length,
                detail={
                    "error": errno.errorcode.get(what.error, str(what.error)),
                    "event": _kind_word(event.kind),
                },
            )
        elif event.kind in _WORDS:
            text = f"{_WORDS[EventKind(event.kind)]} ({_domain_word(event.domain)})"
            yield FilesystemError(source=self.name, at=at, place=mounted.point, what=text)

    def sweep(self) -> Iterator[Report]:
        """Yield nothing, since events cannot be read again; retry refused monitors."""
        self._watch_missing()
        return iter(())

    def close(self) -> None:
        """Close all monitors."""
        for descriptor in list(self._monitors):
            self._close_monitor(descriptor)
        self._poll.close()


def _is_loss(error: int) -> bool:
    """Return whether an errno blames the medium.

    A full disk, an exceeded quota or a request to retry loses no data.
    """
    return error in MEDIUM_ERRORS


def _open_monitor(mounted: MountedFilesystem) -> ProbeResult:
    """Open a monitor, and return its descriptor."""
    place = mounted.open()
    try:
        root = os.open(".", os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC, dir_fd=place)
    finally:
        os.close(place)
    try:
        # With a mutable buffer, ioctl returns the kernel's return value: a descriptor.
        return b"", (fcntl.ioctl(root, XFS_IOC_HEALTH_MONITOR, bytearray(monitor_request())),)
    finally:
        os.close(root)


def _is_final(error: OSError | None) -> bool:
    """Return whether the kernel has no monitor for this filesystem."""
    return error is not None and error.errno in (errno.ENOTTY, errno.EOPNOTSUPP, errno.EINVAL)


def _why(mounted: MountedFilesystem, error: OSError) -> str:
    if _is_final(error):
        return "this kernel has no health monitor for XFS"
    if error.errno == errno.EEXIST:
        return f"{mounted.point}: another program already monitors it"
    return f"{mounted.point}: {error.strerror}"


def _device_word(domain: int) -> str:
    return "realtime device" if domain == EventDomain.RTDEV else "log device"


def _kind_word(kind: int) -> str:
    return EventKind(kind).name.lower() if kind in list(EventKind) else str(kind)


def _domain_word(domain: int) -> str:
    return EventDomain(domain).name.lower() if domain in list(EventDomain) else str(domain)
