"""Define the protocol of all sources of events."""

import os
from collections.abc import Iterator
from typing import Protocol

from whoseblock.stack.kernel.host import Host
from whoseblock.watch.store.reports import Report

__all__ = ["Source", "device_name"]


class Source(Protocol):
    """A kernel interface that reports failures.

    ``fileno`` becomes readable when there are events. ``read`` then yields a bounded number of
    reports without waiting. ``sweep`` reads again what can be read again. ``health`` is the state
    of the source in a few words. A source may be open and watch nothing: see ``is_watching``.
    """

    name: str

    @property
    def is_watching(self) -> bool:
        """Whether any failure would be noticed; if not, ``health`` has the reason."""

    @property
    def health(self) -> str:
        """The state of the source in a few words."""

    def fileno(self) -> int:
        """Return the descriptor that becomes readable, -1 if there is none."""

    def read(self) -> Iterator[Report]:
        """Yield the reports that have arrived."""

    def sweep(self) -> Iterator[Report]:
        """Yield everything that can be read again."""

    def close(self) -> None:
        """Release the kernel's resources."""


def device_name(host: Host, number: int) -> str:
    """Return the kernel's name of a block device, or its number if it is gone.

    With the number, the failure is not attributed to a later disk that has got the name.
    """
    return host.find_device_by_number(number) or f"{os.major(number)}:{os.minor(number)}"
