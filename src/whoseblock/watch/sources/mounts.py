"""Read the mount table and notice its changes, for sources that watch each filesystem."""

import errno
import os
import select
from pathlib import Path
from typing import Final, NamedTuple

from whoseblock.media.mounts import read_mounts

__all__ = ["MountTable", "MountedFilesystem"]

_PLACE: Final = Path("/proc/self/mountinfo")
_PIECE: Final = 1 << 20
#: How many mount points of a filesystem are tried: containers have hundreds of some.
_MOST_POINTS: Final = 8


class MountedFilesystem(NamedTuple):
    """A filesystem on a block device: its number, its kind, and some of its mount points."""

    device: int
    kind: str
    points: tuple[str, ...]

    @property
    def point(self) -> str:
        """The first mount point, for messages."""
        return self.points[0]

    def open(self) -> int:
        """Open one of the mount points with O_PATH; raises OSError.

        The lookup may hang for ever, at a server on the way or at a disk.
        """
        fault = OSError(errno.ESTALE, "covered by another mount")
        for point in self.points:
            try:
                place = os.open(point, os.O_PATH | os.O_CLOEXEC)
            except OSError as error:
                fault = error
                continue
            if os.fstat(place).st_dev == self.device:
                return place
            os.close(place)
        raise fault


class MountTable:
    """The mounted filesystems; the kernel notifies of changes.

    Raises OSError.
    """

    def __init__(self, place: Path = _PLACE) -> None:
        self._fd = os.open(place, os.O_RDONLY | os.O_CLOEXEC)
        self._poll = select.epoll()
        self._poll.register(self._fd, select.EPOLLPRI)

    def fileno(self) -> int:
        """Return a descriptor that is readable when the table has changed."""
        return self._poll.fileno()

    def read(self) -> dict[int, MountedFilesystem]:
        """Return every filesystem once, by its device number."""
        self._poll.poll(0)
        os.lseek(self._fd, 0, os.SEEK_SET)
        pieces = []
        while piece := os.read(self._fd, _PIECE):
            pieces.append(piece)
        places: dict[tuple[int, str], list[str]] = {}
        mounts = read_mounts(os.fsdecode(b"".join(pieces)))
        # Prefer a mount of the whole tree to one of a part; major 0 is not a block device.
        for mount in sorted(mounts, key=lambda one: one.root != "/"):
            if os.major(mount.device):
                places.setdefault((mount.device, mount.kind), []).append(mount.point)
        return {
            device: MountedFilesystem(device, kind, tuple(points[:_MOST_POINTS]))
            for (device, kind), points in places.items()
        }

    def close(self) -> None:
        """Close the table."""
        self._poll.close()
        os.close(self._fd)
