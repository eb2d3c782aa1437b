"""An emulated medium as files, through FUSE, so that a real kernel and real programs meet it.

mfusepy calls the methods of `EmulatedFolder` by the names of libfuse's operations, each with the
path from the folder on; an ``OSError`` becomes the error of the system call.
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
from whoseblock.media.control import control_lines, parse_control
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

    ``served`` is called once, when the folder is mounted.
    """

    #: What mfusepy wants to know: times are in nanoseconds.
    use_ns: Final = True

    def __init__(self, medium: EmulatedPmem, served: Callable[[], None]) -> None:
        self.mounted = False
        self._medium = medium
        self._served = served
        self._texts: dict[str, Callable[[], str]] = {
            _CONTROL: lambda: control_lines(*medium.lists()),
            "/badblocks": lambda: medium.badblocks,
            "/statistics": lambda: "".join(f"{key} {n}\n" for key, n in medium.counts.items()),
        }
        # What a reader sees is of one moment, in however many pieces it is read.
        self._shown: dict[int, bytes] = {}
        self._handles = count(1)

    def init(self, _path: str) -> None:
        """Take note that the folder is mounted."""
        self.mounted = True
        self._served()

    def getattr(self, path: str, _handle: int | None = None) -> dict[str, int]:
        """Give what stat(2) says."""
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
        blocks = size // 512  # what st_blocks counts, everywhere
        more = {"st_mode": stat.S_IFREG | mode, "st_nlink": 1, "st_size": size, "st_blocks": blocks}
        return owner | more

    def readdir(self, _path: str, _handle: int) -> list[str]:
        """Give the names."""
        return [".", "..", _DEVICE[1:], *(path[1:] for path in self._texts)]

    def open(self, path: str, flags: int) -> int:
        """Give a handle; like a device, and like files of sysfs, none is truncated."""
        writing = flags & os.O_ACCMODE != os.O_RDONLY
        if writing and path not in (_DEVICE, _CONTROL):
            raise OSError(errno.EACCES, os.strerror(errno.EACCES))
        return next(self._handles)

    def truncate(self, path: str, length: int, _handle: int | None = None) -> int:
        """Accept what a shell does before it writes to ``control``, and nothing else."""
        if path != _CONTROL and length != self._medium.size:
            raise OSError(errno.EINVAL, os.strerror(errno.EINVAL))
        return 0

    def read(self, path: str, length: int, offset: int, handle: int) -> bytes:
        """Give bytes, fewer at the end; EIO if any of them is of a bad sector."""
        if path != _DEVICE:
            if offset == 0 or handle not in self._shown:
                self._shown[handle] = self._texts[path]().encode()
            return self._shown[handle][offset : offset + length]
        length = min(length, self._medium.size - offset)
        if length <= 0:
            return b""
        try:
            return self._medium.pread(offset, length)
        except MediaError as error:
            raise OSError(errno.EIO, str(error)) from error

    def write(self, path: str, data: bytes, offset: int, _handle: int) -> int:
        """Take bytes for the device (EIO if they cannot be written), or lines for its sectors."""
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
        """Have what was written outlast a failure of the machine."""
        if path == _DEVICE:
            self._medium.sync()
        return 0

    def release(self, _path: str, handle: int) -> int:
        """Forget a handle."""
        self._shown.pop(handle, None)
        return 0


def serve(medium: EmulatedPmem, folder: Path, served: Callable[[], None] = lambda: None) -> None:
    """Serve ``medium`` at ``folder``, an empty one, until it is unmounted or a signal says to stop.

    SIGINT, SIGTERM and SIGHUP unmount it.  ``served`` is called when it is mounted.  Raises
    `TargetError` where FUSE does not work.
    """
    # Of the libraries that mfusepy takes, the older one would cut writes into pages.
    os.environ.setdefault("FUSE_LIBRARY_NAME", "fuse3")
    try:
        import_extra("emulate")
        import mfusepy
    except (ImportError, OSError, AttributeError) as error:
        hint = "install the package libfuse3-3"
        raise TargetError(f"FUSE cannot be used: {error}", hint=hint) from error
    if not os.access("/dev/fuse", os.R_OK | os.W_OK):
        hint = "load the kernel module fuse, and in a container ask for the device"
        raise TargetError("FUSE cannot be used: /dev/fuse is not here, or not for us", hint=hint)
    _say_that_writeback_comes_here()
    options = {"allow_other": True} if os.geteuid() == 0 else {}
    operations = EmulatedFolder(medium, served)
    try:
        mfusepy.FUSE(
            operations,
            str(folder.absolute()),
            foreground=True,
            # The page cache would ask for more than the reader does, and fail for the neighbours.
            direct_io=True,
            # Lists change without the kernel's doing.
            attr_timeout=0,
            # Who may open what is told by the modes, once others may come in at all.
            default_permissions=True,
            # libfuse 3.14 complains of its own default.
            max_idle_threads=_IDLE_THREADS,
            fsname="whoseblock",
            subtype="whoseblock",
            **options,
        )
    except RuntimeError as error:
        # libfuse gives an error for the end by a signal, too.
        if operations.mounted:
            return
        hint = "" if os.geteuid() == 0 else "without root it needs the package fuse3"
        raise TargetError(f"FUSE cannot serve {str(folder)!r}", hint=hint) from error


def _say_that_writeback_comes_here() -> None:
    """Tell the kernel not to wait for writeback to us while we ask it for memory.

    With a filesystem mounted on our device that would be waiting for ourselves.
    """
    # Without the privilege it is as with any other file that FUSE serves.
    with suppress(OSError, AttributeError):
        ctypes.CDLL(None).prctl(_PR_SET_IO_FLUSHER, 1, 0, 0, 0)
