"""The kernel's lists of bad blocks in sysfs as a source.

Persistent memory tells when its list changes (``sysfs_notify_dirent`` in drivers/nvdimm: after a
machine check, a scrub, a clearing).  Nobody is told of what is written to the file by hand, nor of
the lists of other disks: all lists are read again at every sweep.
"""

import select
import time
from collections.abc import Iterator, Mapping
from typing import BinaryIO, Final

from whoseblock.errors import MalformedError
from whoseblock.ranges import ByteRange, merge, subtract
from whoseblock.sources.sysfs import CUT_OFF, read_sysfs_badblocks, whole_lines
from whoseblock.stack.host import Host
from whoseblock.watch.store.reports import BadBlockList, FilesystemError, Report

__all__ = ["BadBlockListSource"]

#: Where lists are, below the root: the device's name is that of the folder.
_PLACES: Final = ("sys/block/*/badblocks", "sys/bus/nd/devices/region*/badblocks")
#: Which of them tell of changes.
_TELL: Final = ("pmem", "region")
#: sysfs shows no more than a page.
_MOST: Final = 1 << 16


class BadBlockListSource:
    """Watches every list of bad blocks of a machine.

    ``known`` is what the lists of devices held that have been dealt with already; what is as it was
    is not reported.
    """

    name = "sysfs"

    def __init__(self, host: Host, known: Mapping[str, tuple[ByteRange, ...]]) -> None:
        self._host = host
        self._known = dict(known)
        self._poll = select.epoll()
        #: The lists that tell of changes, by descriptor and by device.
        self._files: dict[int, tuple[str, BinaryIO]] = {}
        self._open: dict[str, int] = {}
        self._lists = 0
        #: Devices that had gone: whoever has the name now may be another one, with the same list.
        self._gone: set[str] = set()
        #: What was last said to be wrong with a list.
        self._wrong: dict[str, str] = {}

    @property
    def health(self) -> str:
        """Say how the source is."""
        return f"{self._lists} lists, of which {len(self._files)} tell of changes"

    def fileno(self) -> int:
        """Give a descriptor that is readable when a list has told of a change."""
        return self._poll.fileno()

    def read(self) -> Iterator[Report]:
        """Give the lists that have told of a change, if they have changed."""
        for descriptor, _ in self._poll.poll(0):
            device, file = self._files[descriptor]
            try:
                file.seek(0)
                text = file.read(_MOST)
            except OSError:
                # The device has gone.
                self._forget(descriptor)
                continue
            yield from self._listed(device, text.decode("ascii", "replace"))

    def sweep(self) -> Iterator[Report]:
        """Give every list that has changed, and watch those that are new."""
        seen = set()
        for place in _PLACES:
            for path in sorted(self._host.root.glob(place)):
                device = path.parent.name
                seen.add(device)
                if device.startswith(_TELL) and device not in self._open and self._host.live:
                    self._watch(device, str(path))
                text = self._host.text(path)
                if text is not None:
                    yield from self._listed(device, text)
        self._lists = len(seen)
        self._gone |= self._known.keys() - seen
        for device in self._open.keys() - seen:
            self._forget(self._open[device])

    def _watch(self, device: str, path: str) -> None:
        try:
            file = open(path, "rb", 0)  # noqa: PTH123, SIM115 - kept open as long as it is watched
        except OSError:
            return
        # Only what was read once tells of what comes after.
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

    def _listed(self, device: str, text: str) -> Iterator[Report]:
        """Give a list if it is not as it was."""
        origin = f"{device}/badblocks"
        known = self._known.get(device, ())
        lines, cut = whole_lines(text, self._host.page_size)
        try:
            found = read_sysfs_badblocks(lines, device, origin)
            ranges = merge(ByteRange(one.start, one.length) for one in found)
        except MalformedError as error:
            yield from self._ill(device, str(error))
            return
        if cut:
            # Nobody says that what was known behind the last range shown is good again.
            end = ranges[-1].end if ranges else 0
            ranges = merge([*ranges, *subtract(known, ByteRange(0, end))])
        yield from self._ill(device, CUT_OFF if cut else "")
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

    def _ill(self, device: str, what: str) -> Iterator[FilesystemError]:
        """Say what is wrong with a list, once; "" if nothing is."""
        if what != self._wrong.get(device, ""):
            self._wrong[device] = what
            if what:
                yield FilesystemError(source=self.name, at=time.time(), place=device, what=what)

    def close(self) -> None:
        """Close all lists."""
        for descriptor in list(self._files):
            self._forget(descriptor)
        self._poll.close()
