"""The files behind loop devices, by device and inode and not by name.

The kernel reports the name of the file as its opener saw it.  It leads elsewhere, or nowhere, if
the file was removed, renamed, or opened in another mount namespace.

Source: ``linux/loop.h`` (LOOP_GET_STATUS64, ``struct loop_info64``).
"""

import fcntl
import os
from contextlib import suppress
from pathlib import Path
from struct import Struct
from typing import Final, NamedTuple

__all__ = ["FileIdentity", "backing_identity", "loops_beside"]

_LOOP_GET_STATUS64: Final = 0x4C05
#: lo_device, lo_inode, and the rest.
_LOOP_INFO64: Final = Struct("=QQ216x")
_SYS_BLOCK: Final = Path("/sys/block")


class FileIdentity(NamedTuple):
    """The ``st_dev`` and ``st_ino`` of a file."""

    device: int
    inode: int

    @classmethod
    def of(cls, descriptor: int) -> "FileIdentity":
        """Return which file a descriptor has open."""
        status = os.fstat(descriptor)
        return cls(status.st_dev, status.st_ino)


def backing_identity(name: str) -> FileIdentity | None:
    """Return which file is behind the loop device of a name, None if there is none.

    Without permission to open the device, the name of the file is trusted.
    """
    try:
        descriptor = os.open(f"/dev/{name}", os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK)
    except OSError:
        return _identity_by_name(name)
    info = bytearray(_LOOP_INFO64.size)
    try:
        fcntl.ioctl(descriptor, _LOOP_GET_STATUS64, info)
    except OSError:
        return None
    finally:
        os.close(descriptor)
    device, inode = _LOOP_INFO64.unpack(info)
    # Encoded as huge_encode_dev() in kdev_t.h does it.
    major, minor = (device & 0xFFF00) >> 8, device & 0xFF | (device >> 12) & 0xFFF00
    return FileIdentity(os.makedev(major, minor), inode)


def loops_beside(device: int) -> list[str]:
    """Return the other loop devices over the file of a loop device, or of one of its partitions.

    ``device`` is a number as of `os.makedev`.  None are returned for any other device.
    """
    folder = Path(f"/sys/dev/block/{os.major(device)}:{os.minor(device)}").resolve()
    if (folder / "partition").exists():
        folder = folder.parent
    file = backing_identity(folder.name) if (folder / "loop").is_dir() else None
    if file is None:
        return []
    others = (one.name for one in _SYS_BLOCK.glob("loop*") if one.name != folder.name)
    return [name for name in others if backing_identity(name) == file]


def _identity_by_name(name: str) -> FileIdentity | None:
    with suppress(OSError, ValueError):
        path = (_SYS_BLOCK / name / "loop/backing_file").read_text(errors="surrogateescape")
        status = Path(path.rstrip("\n")).stat()
        return FileIdentity(status.st_dev, status.st_ino)
    return None
