"""What every source of events can do."""

import errno
import os
from collections.abc import Iterator
from typing import Final, Protocol

from whoseblock.stack.host import Host
from whoseblock.watch.store.reports import Report

__all__ = ["MEDIUM_ERRORS", "Source", "device_name"]

#: The errors of requests that blame the medium: see `whoseblock.sources.dmesg` for their words.
MEDIUM_ERRORS: Final = frozenset({errno.EIO, errno.ENODATA, errno.EILSEQ})


class Source(Protocol):
    """Somebody who notices failures.

    ``fileno`` becomes readable when there is something; ``read`` then gives what there is, without
    waiting, a bounded part of it at a time.  ``sweep`` reads anew whatever can be read anew.
    ``health`` says in a few words how the source is.
    """

    name: str

    @property
    def health(self) -> str:
        """Say how the source is."""

    def fileno(self) -> int:
        """Give the descriptor that becomes readable, -1 if there is nothing to wait for."""

    def read(self) -> Iterator[Report]:
        """Give what has come."""

    def sweep(self) -> Iterator[Report]:
        """Give everything that can be read again."""

    def close(self) -> None:
        """Let go of the kernel."""


def device_name(host: Host, number: int) -> str:
    """Give the kernel's name of a block device, or its number if it has gone meanwhile.

    Of a number no failure is taken for one of a disk that has the name by now.
    """
    return host.device_numbered(number) or f"{os.major(number)}:{os.minor(number)}"
