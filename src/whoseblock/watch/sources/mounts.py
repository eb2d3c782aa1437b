"""Read the mount table and notice its changes, for sources that watch each filesystem."""

import errno
import os
import select
from pathlib import Path
from typing import Final, NamedTuple

from whoseblock.fs.mounted.beneath import mount_id
from whoseblock.media.mounts import Mount, devices_of, read_mounts

__all__ = ["MountTable", "MountedFilesystem", "parse_filesystems"]

_PLACE: Final = Path("/proc/self/mountinfo")
_PIECE: Final = 1 << 20
#: How many mount points of a filesystem are tried: containers have hundreds of some.
_MOST_POINTS: Final = 8


class MountedFilesystem(NamedTuple):
    """A filesystem on block devices: its number, its kind, and some of its mount points.

    ``device`` is its number in the mount table, and ``mounts`` are the ids of its mounts there.
    ``block_device`` is the number of one of its devices, if ``device`` is none.
    """

    device: int
    kind: str
    points: tuple[str, ...]
    mounts: frozenset[int] = frozenset()
    block_device: int | None = None

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
            if self._is_on(place):
                return place
            os.close(place)
        raise fault

    def _is_on(self, place: int) -> bool:
        """Return whether an open mount point shows this filesystem."""
        if os.fstat(place).st_dev == self.device:
            return True
        # A filesystem with subvolumes gives its files other numbers than its mounts.
        return os.major(self.device) == 0 and mount_id(place) in self.mounts


def _block_device(mount: Mount) -> int | None:
    """Return the number of a block device that a mount is on, None if there is none."""
    if os.major(mount.device):
        return mount.device
    # Filesystems of several devices have a number of their own, and name one of them.
    return next((number for number in sorted(devices_of(mount)) if os.major(number)), None)


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
        return parse_filesystems(os.fsdecode(b"".join(pieces)))

    def close(self) -> None:
        """Close the table."""
        self._poll.close()
        os.close(self._fd)


def parse_filesystems(text: str) -> dict[int, MountedFilesystem]:
    """Parse a mount table; return every filesystem on a block device, by its number there."""
    found: dict[tuple[int, str], list[Mount]] = {}
    # Prefer a mount of the whole tree to one of a part.
    for mount in sorted(read_mounts(text), key=lambda one: one.root != "/"):
        found.setdefault((mount.device, mount.kind), []).append(mount)
    filesystems = {}
    for (device, kind), mounts in found.items():
        block_device = _block_device(mounts[0])
        if block_device is not None:
            filesystems[device] = MountedFilesystem(
                device,
                kind,
                tuple(mount.point for mount in mounts[:_MOST_POINTS]),
                frozenset(mount.id for mount in mounts),
                block_device,
            )
    return filesystems
