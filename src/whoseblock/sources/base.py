"""What every source of failures gives."""

from typing import NamedTuple

__all__ = ["Failure"]


class Failure(NamedTuple):
    """``length`` bytes from ``start`` of a device that failed.

    ``device`` is the kernel's name of it (``sda``, ``pmem0``, ``region0``, ``physical-memory``), or
    "" for the one that the user named.  ``origin`` says where that was read: file and line.
    """

    start: int
    length: int
    device: str = ""
    origin: str = ""
