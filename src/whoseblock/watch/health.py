"""XFS's health monitor as a source: one descriptor for each mounted filesystem that has it.

The kernel allows one monitor for a mount: where another program has it, we say so and go on.
"""

import errno
import fcntl
import os
import select
import time
from collections.abc import Iterable, Iterator
from typing import Final

from whoseblock.stack.host import Host
from whoseblock.watch import reports
from whoseblock.watch.formats.health import (
    EVENT_BYTES,
    XFS_IOC_HEALTH_MONITOR,
    Domain,
    FileRange,
    HealthEvent,
    Kind,
    Lost,
    Media,
    monitor_request,
    read_health,
)
from whoseblock.watch.mounted import Mounted
from whoseblock.watch.reports import Failed, FileFailed, Ill, Report

__all__ = ["HealthSource"]

_MOST_EVENTS: Final = 256
_NANO: Final = 10**9
#: Errors of these kinds say which data could not be had or kept; others are told as they are.
_WORDS: Final = {
    Kind.SICK: "metadata is sick",
    Kind.CORRUPT: "metadata is corrupt",
    Kind.SHUTDOWN: "the filesystem was shut down",
}


class HealthSource:
    """Watches every mounted XFS whose kernel has the monitor."""

    name = "xfs-health"

    def __init__(self, host: Host) -> None:
        self._host = host
        self._poll = select.epoll()
        self._monitors: dict[int, Mounted] = {}
        #: What is not watched, and why.
        self._refused: dict[int, str] = {}
        #: Where another program has the monitor, which may end.
        self._taken: dict[int, Mounted] = {}

    @property
    def health(self) -> str:
        """Say how the source is."""
        told = f"monitoring {len(self._monitors)} filesystems"
        return "; ".join([told, *sorted(set(self._refused.values()))])

    def fileno(self) -> int:
        """Give a descriptor that is readable when there is an event of any filesystem."""
        return self._poll.fileno()

    def mounts_changed(self, mounts: Iterable[Mounted]) -> None:
        """Watch what is mounted now."""
        wanted = {one.device: one for one in mounts if one.kind == "xfs"}
        watched = {one.device for one in self._monitors.values()}
        self._refused = {at: why for at, why in self._refused.items() if at in wanted}
        self._taken = {at: one for at, one in self._taken.items() if at in wanted}
        for device, mounted in wanted.items():
            if device not in watched and device not in self._refused:
                self._monitor(mounted)

    def _monitor(self, mounted: Mounted) -> None:
        try:
            place = os.open(mounted.point, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        except OSError as error:
            self._refused[mounted.device] = f"{mounted.point}: {error.strerror}"
            return
        try:
            if os.fstat(place).st_dev != mounted.device:
                self._refused[mounted.device] = f"{mounted.point}: covered by another mount"
                return
            # Of a buffer that it may change, ioctl gives what the kernel returned: a descriptor.
            descriptor = fcntl.ioctl(place, XFS_IOC_HEALTH_MONITOR, bytearray(monitor_request()))
        except OSError as error:
            self._refused[mounted.device] = self._why(mounted, error)
            if error.errno == errno.EEXIST:
                self._taken[mounted.device] = mounted
            return
        finally:
            os.close(place)
        os.set_blocking(descriptor, False)
        self._monitors[descriptor] = mounted
        self._poll.register(descriptor, select.EPOLLIN)

    @staticmethod
    def _why(mounted: Mounted, error: OSError) -> str:
        if error.errno in (errno.ENOTTY, errno.EOPNOTSUPP, errno.EINVAL):
            return "this kernel has no health monitor for XFS"
        if error.errno == errno.EEXIST:
            return f"{mounted.point}: another program is its monitor"
        return f"{mounted.point}: {error.strerror}"

    def read(self) -> Iterator[Report]:
        """Give the events that have come."""
        for descriptor, _ in self._poll.poll(0):
            mounted = self._monitors[descriptor]
            try:
                data = os.read(descriptor, EVENT_BYTES * _MOST_EVENTS)
            except BlockingIOError:
                continue
            except OSError:
                data = b""
            if not data:
                self._forget(descriptor)
            for event in read_health(data):
                yield from self._told(event, mounted)
                if event.kind == Kind.UNMOUNT and descriptor in self._monitors:
                    self._forget(descriptor)

    def _forget(self, descriptor: int) -> None:
        del self._monitors[descriptor]
        self._poll.unregister(descriptor)
        os.close(descriptor)

    def _told(self, event: HealthEvent, mounted: Mounted) -> Iterator[Report]:
        at = event.nanoseconds / _NANO
        device = self._host.device_numbered(mounted.device) or ""
        origin = f"health monitor of {mounted.point}"
        what = event.what
        if isinstance(what, Lost):
            told = f"events of {mounted.point} found no room"
            yield reports.Lost(source=self.name, at=time.time(), count=what.events, what=told)
        elif isinstance(what, Media) and event.domain == Domain.DATADEV and device:
            yield Failed(
                source=self.name,
                at=at,
                device=device,
                start=what.start,
                length=what.length,
                origin=origin,
            )
        elif isinstance(what, Media):
            told = f"{what.length} bytes from {what.start} of its {_device_word(event.domain)}"
            yield Ill(
                source=self.name, at=at, place=mounted.point, what=f"media error: {told} failed"
            )
        elif isinstance(what, FileRange):
            yield FileFailed(
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
            told = f"{_WORDS[Kind(event.kind)]} ({_domain_word(event.domain)})"
            yield Ill(source=self.name, at=at, place=mounted.point, what=told)

    def sweep(self) -> Iterator[Report]:
        """Give nothing, for what was read is not read again; try where others had the monitor."""
        taken, self._taken = self._taken, {}
        for device, mounted in taken.items():
            del self._refused[device]
            self._monitor(mounted)
        return iter(())

    def close(self) -> None:
        """Let go of all filesystems."""
        for descriptor in list(self._monitors):
            self._forget(descriptor)
        self._poll.close()


def _device_word(domain: int) -> str:
    return "realtime device" if domain == Domain.RTDEV else "log device"


def _kind_word(kind: int) -> str:
    return Kind(kind).name.lower() if kind in list(Kind) else str(kind)


def _domain_word(domain: int) -> str:
    return Domain(domain).name.lower() if domain in list(Domain) else str(domain)
