"""Emulated handling of a failed page: page frame → dax device → holder → owners → processes.

The steps and their names are the kernel's (``memory_failure``, ``dax_holder_notify_failure``,
``xfs_dax_notify_failure``, ``mf_dax_kill_procs``). A last step was
proposed in the discussion, but no kernel has it: free space is zeroed, which clears the poison.
"""

from collections import defaultdict
from collections.abc import Callable, Container, Iterable
from typing import NamedTuple, Protocol

from whoseblock.errors import OutOfDeviceError
from whoseblock.media.base import WritableMedia
from whoseblock.study.base import INDEX_BITS, LookupResult, Tracker
from whoseblock.study.sizes import PAGE

__all__ = [
    "DaxDevice",
    "Holder",
    "LinuxHolder",
    "Outcome",
    "Pagemap",
    "Processes",
    "TrackingHolder",
]


class Outcome(NamedTuple):
    """The result of handling a failed page.

    ``kind`` and ``keys`` are what the tracker found, ``processes`` those that were notified,
    and ``cleared`` whether the page can be used again.
    """

    kind: str
    keys: tuple[int, ...]
    processes: frozenset[int]
    cleared: bool


class Processes:
    """The page tables of processes: the pages of files in them.

    Linux goes through all processes that have the file mapped (``i_mmap``), and passes over those
    whose page tables do not have the page (``dev_pagemap_mapping_shift``). A page is in page
    tables only while its file has an entry for it: who takes the entry out unmaps it first.
    """

    def __init__(self) -> None:
        #: By file and process: the keys of what the process has touched.
        self._tables: dict[int, dict[int, set[int]]] = defaultdict(dict)

    def map(self, process: int, mapping: int) -> None:
        """Map a file."""
        self._tables[mapping][process] = set()

    def unmap(self, process: int, mapping: int) -> None:
        """Unmap a file. No tracker hears of it: the entries stay."""
        self._tables[mapping].pop(process, None)

    def mapped(self, mapping: int) -> bool:
        """Return whether a process has a file mapped."""
        return bool(self._tables.get(mapping))

    def touch(self, process: int, key: int, count: int = 1) -> None:
        """Put pages of a file, which have entries, into the page tables of a process."""
        self._tables[key >> INDEX_BITS][process].update(range(key, key + count))

    def with_page(self, key: int) -> list[int]:
        """Return the processes with a page of a file in their page tables."""
        of = self._tables.get(key >> INDEX_BITS, {})
        return [process for process, touched in of.items() if key in touched]

    def associate(self, page: int, mapping: int, index: int, count: int = 1) -> None:
        """Return without effect: the process that faulted touches the page next."""

    def disassociate(self, _page: int, mapping: int, index: int, count: int = 1) -> None:
        """Remove pages from all page tables."""
        key = mapping << INDEX_BITS | index
        for touched in self._tables.get(mapping, {}).values():
            touched.difference_update(range(key, key + count))


class Holder(Protocol):
    """A holder of a dax device, which is notified of failures."""

    def notify_failure(self, device: "DaxDevice", offset: int, length: int) -> Outcome:
        """Handle the loss of ``length`` bytes from ``offset``."""


class DaxDevice:
    """Persistent memory that a holder, a filesystem, has claimed."""

    def __init__(self, media: WritableMedia, holder: Holder | None = None) -> None:
        self.media = media
        self.holder = holder

    def notify_failure(self, offset: int, length: int) -> Outcome:
        """Pass a failure on to the holder; without one the owners are unknown."""
        if self.holder is None:
            return Outcome("unknown", (), frozenset(), cleared=False)
        return self.holder.notify_failure(self, offset, length)

    def zero(self, offset: int, length: int) -> None:
        """Write zeros, which clears poison."""
        self.media.pwrite(offset, bytes(length))


class Pagemap:
    """The pages of a device as physical memory: ``struct dev_pagemap``."""

    def __init__(self, first_pfn: int, device: DaxDevice) -> None:
        self.first_pfn = first_pfn
        self.device = device

    def memory_failure(self, pfn: int) -> Outcome:
        """Handle the failure of a page frame; raises `OutOfDeviceError`."""
        offset = (pfn - self.first_pfn) * PAGE
        if not 0 <= offset <= self.device.media.size - PAGE:
            raise OutOfDeviceError(f"page frame {pfn:#x} is not of {self.device.media.name!r}")
        return self.device.notify_failure(offset, PAGE)


class TrackingHolder:
    """A filesystem that finds the owners of what failed by one of the designs."""

    def __init__(self, tracker: Tracker, processes: Processes) -> None:
        self._tracker = tracker
        self._processes = processes

    def notify_failure(self, device: DaxDevice, offset: int, length: int) -> Outcome:
        """Notify the processes of every owner; zero free pages."""
        found = self._tracker.find(offset // PAGE)
        cleared = found.kind == "free"
        if cleared:
            device.zero(offset, length)
        return Outcome(found.kind, tuple(found.keys), _notify(self._processes, found.keys), cleared)


class LinuxHolder:
    """XFS as it is in Linux, which asks on demand and does less with the answer.

    It passes over files whose inodes are not in memory (``XFS_IGET_INCORE``), does nothing about
    free pages, and shuts down for metadata.
    """

    def __init__(
        self, find: Callable[[int], LookupResult], in_core: Container[int], processes: Processes
    ) -> None:
        self._find = find
        self._in_core = in_core
        self._processes = processes

    def notify_failure(self, _device: DaxDevice, offset: int, _length: int) -> Outcome:
        """Notify the processes of every owner in memory."""
        found = self._find(offset // PAGE)
        if found.stops:
            return Outcome("metadata", (), frozenset(), cleared=False)
        keys = tuple(key for key in found.keys if key >> INDEX_BITS in self._in_core)
        kind = "files" if keys else "unknown"
        return Outcome(kind, keys, _notify(self._processes, keys), cleared=False)


def _notify(processes: Processes, keys: Iterable[int]) -> frozenset[int]:
    return frozenset(process for key in keys for process in processes.with_page(key))
