"""Serve an emulated medium as files through FUSE, for use by a real kernel and real programs.

mfusepy calls the methods of `EmulatedFolder` by the names of libfuse's operations. Paths are
relative to the folder. An ``OSError`` becomes the error of the system call.
"""

import ctypes
import errno
import os
import stat
from collections.abc import Callable
from contextlib import suppress
from itertools import count
from pathlib import Path
from typing import Final

from whoseblock.errors import MediaError, OutOfDeviceError, RangeSyntaxError, TargetError
from whoseblock.extras import import_extra
from whoseblock.media.control import format_control, parse_control
from whoseblock.media.pmem import EmulatedPmem

__all__ = ["EmulatedFolder", "serve"]

_DEVICE: Final = "/device"
_CONTROL: Final = "/control"
_READ_ONLY: Final = 0o400
_READ_WRITE: Final = 0o600

_IDLE_THREADS: Final = 4

_PR_SET_IO_FLUSHER: Final = 57  # linux/prctl.h


class EmulatedFolder:
    """The folder with the files ``device``, ``control``, ``badblocks`` and ``statistics``.

    ``served`` is called once, after the folder is mounted.
    """

    #: For mfusepy: times are in nanoseconds.
    use_ns: Final = True

    def __init__(self, medium: EmulatedPmem, served: Callable[[], None]) -> None:
        self.mounted = False
        self._medium = medium
        self._served = served
        self._texts: dict[str, Callable[[], str]] = {
            _CONTROL: lambda: format_control(*medium.lists()),
            "/badblocks": lambda: medium.badblocks,
            "/statistics": lambda: "".join(f"{key} {n}\n" for key, n in medium.counts.items()),
        }
        # The content read through each handle, so that several reads see the same moment.
        self._contents: dict[int, bytes] = {}
        self._handles = count(1)

    def init(self, _path: str) -> None:
        """Report that the folder is mounted."""
        self.mounted = True
        self._served()

    def getattr(self, path: str, _handle: int | None = None) -> dict[str, int]:
        """Return the status of a file, as stat(2)."""
        owner = {"st_uid": os.geteuid(), "st_gid": os.getegid()}
        if path == "/":
            return owner | {"st_mode": stat.S_IFDIR | 0o700, "st_nlink": 2}
        if path == _DEVICE:
            size = self._medium.size
        elif path in self._texts:
            size = len(self._texts[path]())
        else:
            raise OSError(errno.ENOENT, os.strerror(errno.ENOENT))
        mode = _READ_WRITE if path in (_DEVICE, _CONTROL) else _READ_ONLY
        blocks = size // 512  # the unit of st_blocks
        more = {"st_mode": stat.S_IFREG | mode, "st_nlink": 1, "st_size": size, "st_blocks": blocks}
        return owner | more

    def readdir(self, _path: str, _handle: int) -> list[str]:
        """Return the names."""
        return [".", "..", _DEVICE[1:], *(path[1:] for path in self._texts)]

    def open(self, path: str, flags: int) -> int:
        """Return a handle; like a device or a file of sysfs, no file is truncated."""
        writing = flags & os.O_ACCMODE != os.O_RDONLY
        if writing and path not in (_DEVICE, _CONTROL):
            raise OSError(errno.EACCES, os.strerror(errno.EACCES))
        return next(self._handles)

    def truncate(self, path: str, length: int, _handle: int | None = None) -> int:
        """Accept the truncation of ``control`` by a shell, and no other."""
        if path != _CONTROL and length != self._medium.size:
            raise OSError(errno.EINVAL, os.strerror(errno.EINVAL))
        return 0

    def read(self, path: str, length: int, offset: int, handle: int) -> bytes:
        """Return bytes, fewer at the end; EIO if any of them is in a bad sector."""
        if path != _DEVICE:
            if offset == 0 or handle not in self._contents:
                self._contents[handle] = self._texts[path]().encode()
            return self._contents[handle][offset : offset + length]
        length = min(length, self._medium.size - offset)
        if length <= 0:
            return b""
        try:
            return self._medium.pread(offset, length)
        except MediaError as error:
            raise OSError(errno.EIO, str(error)) from error

    def write(self, path: str, data: bytes, offset: int, _handle: int) -> int:
        """Write to the device (EIO if that fails), or change sectors by lines of ``control``."""
        if path != _DEVICE:
            try:
                self._medium.change(parse_control(data.decode(), self._medium.size))
            except (RangeSyntaxError, OutOfDeviceError, UnicodeDecodeError) as error:
                raise OSError(errno.EINVAL, str(error)) from error
            return len(data)
        data = data[: max(self._medium.size - offset, 0)]
        if not data:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        try:
            self._medium.pwrite(offset, data)
        except MediaError as error:
            raise OSError(errno.EIO, str(error)) from error
        return len(data)

    def fsync(self, path: str, _datasync: int, _handle: int) -> int:
        """Flush written data to stable storage."""
        if path == _DEVICE:
            self._medium.sync()
        return 0

    def release(self, _path: str, handle: int) -> int:
        """Forget a handle."""
        self._contents.pop(handle, None)
        return 0


def serve(medium: EmulatedPmem, folder: Path, served: Callable[[], None] = lambda: None) -> None:
    """Serve ``medium`` at an empty folder until it is unmounted or a signal arrives.

    SIGINT, SIGTERM and SIGHUP unmount it. ``served`` is called after it is mounted. Raises
    `TargetError` if FUSE is unavailable.
    """
    # mfusepy also accepts libfuse 2, which splits writes into pages.
    os.environ.setdefault("FUSE_LIBRARY_NAME", "fuse3")
    try:
        import_extra("emulate")
        import mfusepy
    except (ImportError, OSError, AttributeError) as error:
        hint = "install the package libfuse3-3"
        raise TargetError(f"cannot use FUSE: {error}", hint=hint) from error
    if not os.access("/dev/fuse", os.R_OK | os.W_OK):
        hint = "load the kernel module fuse; in a container, pass the device through"
        raise TargetError("cannot use FUSE: /dev/fuse is missing or not accessible", hint=hint)
    _set_io_flusher()
    options = {"allow_other": True} if os.geteuid() == 0 else {}
    operations = EmulatedFolder(medium, served)
    try:
        mfusepy.FUSE(
            operations,
            str(folder.absolute()),
            foreground=True,
            # The page cache would read more than requested, and fail for neighbouring sectors.
            direct_io=True,
            # The lists change without a write by the kernel.
            attr_timeout=0,
            # The kernel checks the modes, since allow_other admits all users.
            default_permissions=True,
            # libfuse 3.14 warns about its own default.
            max_idle_threads=_IDLE_THREADS,
            fsname="whoseblock",
            subtype="whoseblock",
            **options,
        )
    except RuntimeError as error:
        # libfuse also returns an error after a signal.
        if operations.mounted:
            return
        hint = "" if os.geteuid() == 0 else "without root it needs the package fuse3"
        raise TargetError(f"cannot serve {str(folder)!r} with FUSE", hint=hint) from error


def _set_io_flusher() -> None:
    """Stop this process from waiting for writeback when it allocates memory.

    If a filesystem is mounted on the served device, this process would wait for itself.
    """
    # Without the privilege, the risk is that of any FUSE filesystem.
    with suppress(OSError, AttributeError):
        ctypes.CDLL(None).prctl(_PR_SET_IO_FLUSHER, 1, 0, 0, 0)
