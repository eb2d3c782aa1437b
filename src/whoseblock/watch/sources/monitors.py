"""Watch filesystems whose kernel driver reports failures: one descriptor for each of them.

The drivers of the filesystems know the interface (`whoseblock.fs.monitor`).
"""

import errno
import os
import select
import time
from collections.abc import Iterable, Iterator

from whoseblock.fs.monitor import (
    DroppedEvents,
    FailedDeviceRange,
    FailedFilePart,
    FailureEvent,
    FilesystemTrouble,
    Monitor,
    Unmounted,
)
from whoseblock.fs.registry import MonitorRegistration
from whoseblock.stack.kernel.host import Host
from whoseblock.watch.sources.base import device_name
from whoseblock.watch.sources.mount_probe import MountProbe, ProbeResult
from whoseblock.watch.sources.mounts import MountedFilesystem
from whoseblock.watch.store.reports import (
    EventsLost,
    FailedFileRange,
    FailedRange,
    FilesystemError,
    Report,
)

__all__ = ["MonitorSource"]


class MonitorSource:
    """Watches every mounted filesystem of the registered kinds whose kernel has the monitor."""

    def __init__(self, host: Host, registered: MonitorRegistration) -> None:
        self.name = registered.name
        self._registered = registered
        self._monitor: Monitor = registered.monitor
        self._host = host
        self._poll = select.epoll()
        self._probe = MountProbe()
        self._wanted: dict[int, MountedFilesystem] = {}
        self._monitors: dict[int, MountedFilesystem] = {}
        #: The filesystems that are not watched, and why.
        self._refused: dict[int, OSError] = {}

    @property
    def is_watching(self) -> bool:
        """Whether any failure would be noticed; if not, ``health`` has the reason."""
        return bool(self._monitors) or not self._refused

    @property
    def health(self) -> str:
        """The state of the source in a few words."""
        refused = {self._why(self._wanted[at], error) for at, error in self._refused.items()}
        return "; ".join([f"monitoring {len(self._monitors)} filesystems", *sorted(refused)])

    def fileno(self) -> int:
        """Return a descriptor that is readable when any filesystem has an event."""
        return self._poll.fileno()

    def mounts_changed(self, mounts: Iterable[MountedFilesystem]) -> None:
        """Watch the mounted filesystems."""
        self._wanted = {one.device: one for one in mounts if one.kind in self._registered.kinds}
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
        for mounted, result in self._probe.probe(missing, self._open_monitor):
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
                data = os.read(descriptor, self._monitor.read_size)
            except BlockingIOError:
                continue
            except OSError:
                data = b""
            if not data:
                self._close_monitor(descriptor)
            for event in self._monitor.parse(data):
                if isinstance(event, Unmounted):
                    if descriptor in self._monitors:
                        self._close_monitor(descriptor)
                else:
                    yield self._report_of(event, mounted)
        if len(self._monitors) < before:
            # It may have been mounted again before the end was read.
            self._watch_missing()

    def _close_monitor(self, descriptor: int) -> None:
        del self._monitors[descriptor]
        self._poll.unregister(descriptor)
        os.close(descriptor)

    def _report_of(self, event: FailureEvent, mounted: MountedFilesystem) -> Report:
        device = device_name(self._host, mounted.block_device or mounted.device)
        origin = f"health monitor of {mounted.point}"
        match event:
            case DroppedEvents(number):
                text = f"the kernel dropped events of {mounted.point}"
                return EventsLost(source=self.name, at=time.time(), count=number, what=text)
            case FailedDeviceRange(at, start, length):
                return FailedRange(
                    source=self.name,
                    at=at,
                    device=device,
                    start=start,
                    length=length,
                    origin=origin,
                )
            case FailedFilePart(at, file, generation, start, length, detail):
                return FailedFileRange(
                    source=self.name,
                    at=at,
                    device=device,
                    place=mounted.point,
                    inode=file.inode,
                    subvolume=file.subvolume,
                    generation=generation,
                    start=start,
                    length=length,
                    origin=origin,
                    detail=detail,
                )
            case FilesystemTrouble(at, what):
                return FilesystemError(source=self.name, at=at, place=mounted.point, what=what)

    def sweep(self) -> Iterator[Report]:
        """Yield nothing, since events cannot be read again; retry refused monitors."""
        self._watch_missing()
        return iter(())

    def close(self) -> None:
        """Close all monitors."""
        for descriptor in list(self._monitors):
            self._close_monitor(descriptor)
        self._poll.close()

    def _open_monitor(self, mounted: MountedFilesystem) -> ProbeResult:
        """Open a monitor, and return its descriptor."""
        place = mounted.open()
        try:
            root = os.open(".", os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC, dir_fd=place)
        finally:
            os.close(place)
        try:
            return b"", (self._monitor.subscribe(root),)
        finally:
            os.close(root)

    def _why(self, mounted: MountedFilesystem, error: OSError) -> str:
        if _is_final(error):
            return f"this kernel has no health monitor for {self._registered.title}"
        if error.errno == errno.EEXIST:
            return f"{mounted.point}: another program already monitors it"
        return f"{mounted.point}: {error.strerror}"


def _is_final(error: OSError | None) -> bool:
    """Return whether the kernel has no monitor for this filesystem."""
    return error is not None and error.errno in (errno.ENOTTY, errno.EOPNOTSUPP, errno.EINVAL)
