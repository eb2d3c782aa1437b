"""The mounts of this machine, and when they change: some sources watch each filesystem."""

import os
import select
from pathlib import Path
from typing import Final, NamedTuple

from whoseblock.media.mounts import read_mounts

__all__ = ["MountTable", "Mounted"]

_PLACE: Final = Path("/proc/self/mountinfo")
_PIECE: Final = 1 << 20


class Mounted(NamedTuple):
    """A filesystem on a block device: its number, its kind, and one place where it is mounted."""

    device: int
    kind: str
    point: str


class MountTable:
    """The filesystems that are mounted; the kernel tells when the table changes.

    Raises OSError.
    """

    def __init__(self, place: Path = _PLACE) -> None:
        self._fd = os.open(place, os.O_RDONLY | os.O_CLOEXEC)
        self._poll = select.epoll()
        self._poll.register(self._fd, select.EPOLLPRI)

    def fileno(self) -> int:
        """Give a descriptor that is readable when the table has changed."""
        return self._poll.fileno()

    def read(self) -> dict[int, Mounted]:
        """Give every filesystem once, by the number of its device."""
        self._poll.poll(0)
        os.lseek(self._fd, 0, os.SEEK_SET)
        pieces = []
        while piece := os.read(self._fd, _PIECE):
            pieces.append(piece)
        found: dict[int, Mounted] = {}
        for mount in read_mounts(os.fsdecode(b"".join(pieces))):
            # A mount of the whole tree is better than one of a part; major 0 is no block device.
            if os.major(mount.device) and (mount.root == "/" or mount.device not in found):
                found[mount.device] = Mounted(mount.device, mount.kind, mount.point)
        return found

    def close(self) -> None:
        """Close the table."""
        self._poll.close()
        os.close(self._fd)
