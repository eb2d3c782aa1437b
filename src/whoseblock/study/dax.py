"""The way of a failed page, emulated: page frame → dax device → holder → owners → processes.

The steps and their names are the kernel's (``memory_failure``, ``dax_holder_notify_failure``,
``xfs_dax_notify_failure``).  The last one is what the discussion wanted and no kernel does yet:
space that nobody has is zeroed, which clears the poison.
"""

from collections import defaultdict
from typing import NamedTuple, Protocol

from whoseblock.errors import OutOfDeviceError
from whoseblock.media.base import WritableMedia
from whoseblock.study.base import INDEX_BITS, Tracker
from whoseblock.study.sizes import PAGE

__all__ = ["DaxDevice", "Holder", "Outcome", "Pagemap", "Processes", "TrackingHolder"]


class Outcome(NamedTuple):
    """What became of a failed page.

    ``kind`` and ``keys`` are what the tracker found, ``processes`` those that were told, and
    ``cleared`` whether the page can be used again.
    """

    kind: str
    keys: tuple[int, ...]
    processes: frozenset[int]
    cleared: bool


class Processes:
    """Who has which part of which file in its memory: every file's ``i_mmap``."""

    def __init__(self) -> None:
        self._of: dict[int, list[tuple[int, int, int]]] = defaultdict(list)

    def map(self, process: int, mapping: int, index: int, count: int) -> None:
        """Map ``count`` pages from ``index`` of a file."""
        first = mapping << INDEX_BITS | index
        self._of[mapping].append((process, first, first + count))

    def unmap(self, process: int, mapping: int) -> None:
        """Unmap all of a file.  No tracker hears of it: the entries stay."""
        self._of[mapping] = [one for one in self._of[mapping] if one[0] != process]

    def with_page(self, key: int) -> list[int]:
        """Give the processes that have a page of a file mapped."""
        of = self._of.get(key >> INDEX_BITS, ())
        return [process for process, first, end in of if first <= key < end]


class Holder(Protocol):
    """Who has a dax device, and wants to know of its failures."""

    def notify_failure(self, device: "DaxDevice", offset: int, length: int) -> Outcome:
        """Deal with the loss of ``length`` bytes from ``offset``."""


class DaxDevice:
    """Persistent memory that a holder, a filesystem, has claimed."""

    def __init__(self, media: WritableMedia, holder: Holder | None = None) -> None:
        self.media = media
        self.holder = holder

    def notify_failure(self, offset: int, length: int) -> Outcome:
        """Pass a failure on to the holder; without one nothing is known."""
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
        """Deal with the failure of the page of a number; raises `OutOfDeviceError`."""
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
        """Tell the processes of every owner; zero what nobody has."""
        found = self._tracker.find(offset // PAGE)
        told = frozenset(
            process for key in found.keys for process in self._processes.with_page(key)
        )
        cleared = found.kind == "free"
        if cleared:
            device.zero(offset, length)
        return Outcome(found.kind, tuple(found.keys), told, cleared)
