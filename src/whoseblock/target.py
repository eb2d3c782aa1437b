"""What the user names, as layers: a device or an image, its companions, this machine's devices."""

import os
import stat
from collections.abc import Callable, Iterable, Iterator
from contextlib import ExitStack, closing
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Final, Literal, Self

from whoseblock.errors import BlockError, NotAFilesystemError, TargetError, UnsupportedError
from whoseblock.fs import recognise
from whoseblock.fs.base import AddressSpace
from whoseblock.fs.xfs import XfsFilesystem
from whoseblock.fs.xfs.external import OtherDevice, log_owner
from whoseblock.media.base import Media
from whoseblock.media.device import FileMedia
from whoseblock.media.mounts import mount_note
from whoseblock.stack.assembly import Assembly
from whoseblock.stack.base import PHYSICAL_MEMORY, Layer
from whoseblock.stack.devices import device_layer
from whoseblock.stack.host import Host
from whoseblock.stack.nvdimm import physical_memory, region_layer

__all__ = ["Target", "TargetOptions"]


@dataclass(frozen=True)
class TargetOptions:
    """How to look at a target.

    ``members`` are further disks or images of its volume group or array.  ``at_filesystem`` takes
    the target for a filesystem's device as it is.  ``device`` says which of the kernel's devices
    the target is a copy of.  ``log_device`` and ``realtime_device`` belong to its filesystem, and
    ``address_space`` says of which of the three the ranges are.  ``root`` is where /sys and /proc
    are read.
    """

    members: tuple[str, ...] = ()
    at_filesystem: bool = False
    device: str = ""
    log_device: str | None = None
    realtime_device: str | None = None
    address_space: Literal["data", "log", "realtime"] = "data"
    through_loop: bool = False
    root: str = "/"
