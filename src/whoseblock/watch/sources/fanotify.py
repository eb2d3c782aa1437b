"""Watch for filesystem errors through fanotify, which names files but no blocks.

A mark does not keep a filesystem busy and ends with it. Filesystems that never report errors can be
marked too.
"""

import ctypes
import errno
import os
import re
import time
from collections.abc import Iterable, Iterator
from contextlib import suppress
from functools import cache
from pathlib import Path
from typing import Final

from whoseblock.watch.formats.fanotify import FAN_FS_ERROR, read_fanotify
from whoseblock.watch.sources.mount_probe import MountProbe, ProbeResult
from whoseblock.watch.sources.mounts import MountedFilesystem
from whoseblock.watch.store.reports import EventsLost, FilesystemError, Report

__all__ = ["FilesystemErrorSource"]

# linux/fanotify.h
_FAN_CLOEXEC, _FAN_NONBLOCK, _FAN_REPORT_FID = 0x1, 0x2, 0x200
_FAN_MARK_ADD, _FAN_MARK_FILESYSTEM = 0x1, 0x100
_AT_FDCWD: Final = -100
_PIECE: Final = 1 << 16
#: The errnos of a filesystem that can never be marked.
_FINAL: Final = (errno.ENODEV, errno.EXDEV, errno.EOPNOTSUPP, errno.EINVAL)
#: A mark of a whole filesystem in /proc/PID/fdinfo.
_MARK: Final = re.compile(r"^fanotify sdev:([0-9a-f]+) ", re.MULTILINE)


@cache
def _libc() -> ctypes.CDLL:
    return ctypes.CDLL(None, use_errno=True)


def _check(result: int) -> int:
    if result < 0:
        number = ctypes.get_errno()
        raise OSError(number, os.strerror(number))
    return result


class FilesystemErrorSource:
    """Watches every mounted filesystem for errors that it detects itself.

    Raises OSError before Linux 5.16, which has no such events, or without CAP_SYS_ADMIN.
    """

    name = "fanotify"

    def __init__(self) -> None:
        flags = _FAN_CLOEXEC | _FAN_NONBLOCK | _FAN_REPORT_FID
        self._fd = _check(_libc().fanotify_init(flags, os.O_RDONLY))
        self._probe = MountProbe()
        self._wanted: dict[int, MountedFilesystem] = {}
        #: The statfs fsid of each marked filesystem, by device number.
        self._marked: dict[int, bytes] = {}
        self._refused: dict[int, OSError] = {}

    @property
    def is_watching(self) -> bool:
        """Whether any failure would be noticed; if not, ``health`` has the reason."""
        return bool(self._marked) or not self._refused

    @property
    def health(self) -> str:
        """The state of the source in a few words."""
        marked = f"{len(self._marked)} filesystems marked"
        refused = {f"{self._wanted[at].point}: {e.strerror}" for at, e in self._refused.items()}
        return "; ".join([marked, *sorted(refused)])

    def fileno(self) -> int:
        """Return the descriptor of the fanotify group."""
        return self._fd

    def mounts_changed(self, mounts: Iterable[MountedFilesystem]) -> None:
        """Mark the mounted filesystems."""
        # FUSE detects no errors itself, and sends every request to a server.
        self._wanted = {one.device: one for one in mounts if not one.kind.startswith("fuse")}
        self._refused = {at: why for at, why in self._refused.items() if at in self._wanted}
        self._mark_missing()

    def _mark_missing(self) -> None:
        """Mark the filesystems that have no mark, except where the kernel cannot."""
        # A filesystem that was unmounted and mounted again has lost its mark, but looks the same in
        # the mount table.
        marked = self._read_marks()
        self._marked = {device: fsid for device, fsid in self._marked.items() if device in marked}
        missing = [
            one
            for device, one in self._wanted.items()
            if device not in self._marked
            and getattr(self._refused.get(device), "errno", None) not in _FINAL
        ]
        for mounted, result in self._probe.probe(missing, self._mark, keep=(self._fd,)):
            if isinstance(result, OSError):
                self._refused[mounted.device] = result
            else:
                self._refused.pop(mounted.device, None)
                self._marked[mounted.device] = result[0]

    def _read_marks(self) -> set[int]:
        """Return the device numbers of the filesystems that this group has marked."""
        text = Path(f"/proc/self/fdinfo/{self._fd}").read_text("ascii")
        numbers = (int(number, 16) for number in _MARK.findall(text))
        # The kernel's internal form of a device number (MKDEV).
        return {os.makedev(number >> 20, number & 0xFFFFF) for number in numbers}

    def _mark(self, mounted: MountedFilesystem) -> ProbeResult:
        """Mark one filesystem, and return its fsid."""
        flags = _FAN_MARK_ADD | _FAN_MARK_FILESYSTEM
        mask = ctypes.c_uint64(FAN_FS_ERROR)
        place = mounted.open()
        try:
            path = b"/proc/self/fd/%d" % place
            _check(_libc().fanotify_mark(self._fd, flags, mask, _AT_FDCWD, path))
            return _fsid(place), ()
        finally:
            os.close(place)

    def read(self) -> Iterator[Report]:
        """Yield the errors that were reported."""
        data = b""
        with suppress(BlockingIOError):
            data = os.read(self._fd, _PIECE)
        now = time.time()
        for event in read_fanotify(data):
            if event is None:
                what = "the fanotify queue overflowed"
                yield EventsLost(source=self.name, at=now, count=0, what=what)
                continue
            points = [
                self._wanted[device].point
                for device, fsid in self._marked.items()
                if fsid == event.fsid and device in self._wanted
            ]
            about = f"inode {event.inode}" if event.inode else "no single file"
            code = errno.errorcode.get(event.error, str(event.error))
            yield FilesystemError(
                source=self.name,
                at=now,
                place=points[0] if len(points) == 1 else "",
                what=f"the filesystem reports {code} for {about}",
                detail={
                    "inode": event.inode,
                    "generation": event.generation,
                    "error": code,
                    "count": event.times,
                },
            )

    def sweep(self) -> Iterator[Report]:
        """Yield nothing, since events cannot be read again; retry refused marks."""
        self._mark_missing()
        return iter(())

    def close(self) -> None:
        """Close the fanotify group."""
        os.close(self._fd)


class _Statfs(ctypes.Structure):
    # linux/asm-generic/statfs.h on 64-bit machines; only the fields up to the fsid matter.
    _fields_ = [
        ("head", ctypes.c_long * 7),
        ("fsid", ctypes.c_int * 2),
        ("rest", ctypes.c_long * 16),
    ]


def _fsid(descriptor: int) -> bytes:
    """Return a filesystem's fsid as in statfs(2), which is that of fanotify events."""
    found = _Statfs()
    _check(_libc().fstatfs(descriptor, ctypes.byref(found)))
    return bytes(found.fsid)
