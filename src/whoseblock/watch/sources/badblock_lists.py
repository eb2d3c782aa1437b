"""Watch the kernel's bad-block lists in sysfs.

Persistent memory notifies of changes (``sysfs_notify_dirent`` in drivers/nvdimm: after a machine
check, a scrub, a clear). Writes to the file by hand and other disks' lists send no notification, so
every sweep reads all lists.
"""

import select
import time
from collections.abc import Iterator, Mapping
from typing import BinaryIO, Final

from whoseblock.errors import MalformedError
from whoseblock.ranges import ByteRange, merge, subtract
from whoseblock.sources.block_lists.sysfs import TRUNCATED, parse_bad_block_list
from whoseblock.stack.kernel.host import Host
from whoseblock.watch.store.reports import BadBlockList, FilesystemError, Report

__all__ = ["BadBlockListSource"]

#: Where the lists are below the root; the folder has the device's name.
_PATTERNS: Final = ("sys/block/*/badblocks", "sys/bus/nd/devices/region*/badblocks")
#: The devices whose lists notify of changes.
_NOTIFYING: Final = ("pmem", "region")
#: More than the page that sysfs shows at most.
_MOST: Final = 1 << 16


class BadBlockListSource:
    """Watches every bad-block list of a machine.

    ``known`` is the content of the lists that were processed before; an unchanged list is not
    reported.
    """

    name = "sysfs"

    def __init__(self, host: Host, known: Mapping[str, tuple[ByteRange, ...]]) -> None:
        self._host = host
        self._known = dict(known)
        self._poll = select.epoll()
        #: The lists with change notification, by descriptor and by device.
        self._files: dict[int, tuple[str, BinaryIO]] = {}
        self._open: dict[str, int] = {}
        self._lists = 0
        #: Devices that vanished: a device of that name may now be another one with the same list.
        self._gone: set[str] = set()
        #: The last error reported about each list.
        self._errors: dict[str, str] = {}

    @property
    def is_watching(self) -> bool:
        """Whether any failure would be noticed; if not, ``health`` has the reason."""
        return True

    @property
    def health(self) -> str:
        """The state of the source in a few words."""
        lists = "1 list" if self._lists == 1 else f"{self._lists} lists"
        return f"{lists}, {len(self._files)} with change notification"

    def fileno(self) -> int:
        """Return a descriptor that is readable when a list has changed."""
        return self._poll.fileno()

    def read(self) -> Iterator[Report]:
        """Yield the lists that notified of a change, if they changed."""
        for descriptor, _ in self._poll.poll(0):
            device, file = self._files[descriptor]
            try:
                file.seek(0)
                text = file.read(_MOST)
            except OSError:
                # The device is gone.
                self._forget(descriptor)
                continue
            yield from self._report_change(device, text.decode("ascii", "replace"))

    def sweep(self) -> Iterator[Report]:
        """Yield every list that has changed, and poll new ones."""
        seen = set()
        for place in _PATTERNS:
            for path in sorted(self._host.root.glob(place)):
                device = path.parent.name
                seen.add(device)
                if device.startswith(_NOTIFYING) and device not in self._open and self._host.live:
                    self._watch(device, str(path))
                text = self._host.read_text(path)
                if text is not None:
                    yield from self._report_change(device, text)
        self._lists = len(seen)
        self._gone |= self._known.keys() - seen
        for device in self._open.keys() - seen:
            self._forget(self._open[device])

    def _watch(self, device: str, path: str) -> None:
        try:
            file = open(path, "rb", 0)  # noqa: PTH123, SIM115 - kept open as long as it is watched
        except OSError:
            return
        # A list must be read once before it notifies of changes.
        file.read(_MOST)
        self._poll.register(file, select.EPOLLPRI)
        self._files[file.fileno()] = (device, file)
        self._open[device] = file.fileno()

    def _forget(self, descriptor: int) -> None:
        device, file = self._files.pop(descriptor)
        self._gone.add(device)
        del self._open[device]
        self._poll.unregister(descriptor)
        file.close()

    def _report_change(self, device: str, text: str) -> Iterator[Report]:
        """Yield a list if it has changed."""
        origin = f"{device}/badblocks"
        known = self._known.get(device, ())
        try:
            found, cut = parse_bad_block_list(text, self._host.page_size, device, origin)
            ranges = merge(ByteRange(one.start, one.length) for one in found)
        except MalformedError as error:
            yield from self._report_error(device, str(error))
            return
        if cut:
            # Known ranges behind the last range shown are not known to be good again.
            end = ranges[-1].end if ranges else 0
            ranges = merge([*ranges, *subtract(known, ByteRange(0, end))])
        yield from self._report_error(device, TRUNCATED if cut else "")
        if tuple(ranges) != known or device in self._gone:
            self._gone.discard(device)
            self._known[device] = tuple(ranges)
            yield BadBlockList(
                source=self.name,
                at=time.time(),
                device=device,
                ranges=self._known[device],
                origin=origin,
            )

    def _report_error(self, device: str, what: str) -> Iterator[FilesystemError]:
        """Yield a report of what is wrong with a list, once; "" if nothing is."""
        if what != self._errors.get(device, ""):
            self._errors[device] = what
            if what:
                yield FilesystemError(source=self.name, at=time.time(), place=device, what=what)

    def close(self) -> None:
        """Close all lists."""
        for descriptor in list(self._files):
            self._forget(descriptor)
        self._poll.close()
