"""Errors of filesystems as fanotify tells of them: a source that knows files, and no blocks.

A mark holds no filesystem busy, and ends with it.  Filesystems that never report can be marked too.
"""

import ctypes
import errno
import os
import time
from collections.abc import Iterable, Iterator
from contextlib import suppress
from functools import cache
from typing import Final

from whoseblock.watch.formats.fanotify import FAN_FS_ERROR, read_fanotify
from whoseblock.watch.mounted import Mounted
from whoseblock.watch.reports import Ill, Lost, Report

__all__ = ["FilesystemErrorSource"]

# linux/fanotify.h
_FAN_CLOEXEC, _FAN_NONBLOCK, _FAN_REPORT_FID = 0x1, 0x2, 0x200
_FAN_MARK_ADD, _FAN_MARK_FILESYSTEM = 0x1, 0x100
_AT_FDCWD: Final = -100
_PIECE: Final = 1 << 16


@cache
def _libc() -> ctypes.CDLL:
    return ctypes.CDLL(None, use_errno=True)


def _checked(result: int) -> int:
    if result < 0:
        number = ctypes.get_errno()
        raise OSError(number, os.strerror(number))
    return result


class FilesystemErrorSource:
    """Watches every mounted filesystem for errors that it finds itself.

    Raises OSError where the kernel has no such events (before Linux 5.16), or for want of
    CAP_SYS_ADMIN.
    """

    name = "fanotify"

    def __init__(self) -> None:
        flags = _FAN_CLOEXEC | _FAN_NONBLOCK | _FAN_REPORT_FID
        self._fd = _checked(_libc().fanotify_init(flags, os.O_RDONLY))
        #: What is marked, by the number of its device, with the statfs fsid of each.
        self._marked: dict[int, tuple[Mounted, bytes]] = {}
        self._refused: dict[int, str] = {}

    @property
    def health(self) -> str:
        """Say how the source is."""
        told = f"{len(self._marked)} filesystems marked"
        return "; ".join([told, *sorted(set(self._refused.values()))])

    def fileno(self) -> int:
        """Give the descriptor of the group."""
        return self._fd

    def mounts_changed(self, mounts: Iterable[Mounted]) -> None:
        """Mark what is mounted now."""
        wanted = {one.device: one for one in mounts}
        # What was unmounted and mounted again has lost its mark, and may look the same.
        self._marked.clear()
        self._refused.clear()
        for device, mounted in wanted.items():
            try:
                self._mark(mounted)
                self._marked[device] = mounted, _fsid(mounted.point)
            except OSError as error:
                self._refused[device] = f"{mounted.point}: {error.strerror}"

    def _mark(self, mounted: Mounted) -> None:
        flags = _FAN_MARK_ADD | _FAN_MARK_FILESYSTEM
        mask = ctypes.c_uint64(FAN_FS_ERROR)
        path = os.fsencode(mounted.point)
        _checked(_libc().fanotify_mark(self._fd, flags, mask, _AT_FDCWD, path))

    def read(self) -> Iterator[Report]:
        """Give the errors that have been told of."""
        data = b""
        with suppress(BlockingIOError):
            data = os.read(self._fd, _PIECE)
        now = time.time()
        for event in read_fanotify(data):
            if event is None:
                what = "fanotify's queue was full"
                yield Lost(source=self.name, at=now, count=0, what=what)
                continue
            points = [one.point for one, fsid in self._marked.values() if fsid == event.fsid]
            about = f"inode {event.inode}" if event.inode else "no single file"
            code = errno.errorcode.get(event.error, str(event.error))
            yield Ill(
                source=self.name,
                at=now,
                place=points[0] if len(points) == 1 else "",
                what=f"the filesystem reports {code}, about {about}",
                detail={
                    "inode": event.inode,
                    "generation": event.generation,
                    "error": code,
                    "count": event.times,
                },
            )

    def sweep(self) -> Iterator[Report]:
        """Give nothing: what was read is not read again."""
        return iter(())

    def close(self) -> None:
        """Let go of all filesystems."""
        os.close(self._fd)


class _Statfs(ctypes.Structure):
    # linux/asm-generic/statfs.h on 64-bit machines; what is before the fsid is all that matters.
    _fields_ = [
        ("head", ctypes.c_long * 7),
        ("fsid", ctypes.c_int * 2),
        ("rest", ctypes.c_long * 16),
    ]


def _fsid(point: str) -> bytes:
    """Give a filesystem's fsid as statfs(2) has it, which is that of fanotify's events."""
    found = _Statfs()
    _checked(_libc().statfs(os.fsencode(point), ctypes.byref(found)))
    return bytes(found.fsid)
