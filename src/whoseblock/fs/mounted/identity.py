"""The identity of any mounted filesystem.

Sources: ``linux/fs.h`` (FS_IOC_GETFSUUID, Linux 6.9), statvfs(3).
"""

import fcntl
import os
from pathlib import Path
from struct import Struct
from typing import Final
from uuid import UUID

__all__ = ["find_identity"]

_FS_IOC_GETFSUUID: Final = 0x80111500
#: ``struct fsuuid2``: len, uuid
_FSUUID2: Final = Struct("=B16s")
_BY_UUID: Final = Path("/dev/disk/by-uuid")


def find_identity(fd: int, kind: str, device: int) -> str:
    """Return what tells a filesystem from others; never empty.

    ``fd`` is on the filesystem, ``kind`` as in mount(8), and ``device`` its number.  The UUID is
    preferred.  Without one, the id of statvfs(3) or the number of the device names it until it is
    mounted again.
    """
    if uuid := _uuid_of(fd) or _listed_uuid(device):
        return f"{kind} {uuid}"
    fsid = os.fstatvfs(fd).f_fsid
    if fsid:
        return f"{kind} fsid {fsid:016x}"
    return f"{kind} device {os.major(device)}:{os.minor(device)}"


def _uuid_of(fd: int) -> str:
    answer = bytearray(_FSUUID2.size)
    try:
        fcntl.ioctl(fd, _FS_IOC_GETFSUUID, answer)
    except OSError:
        return ""
    length, uuid = _FSUUID2.unpack(answer)
    return str(UUID(bytes=uuid)) if length == len(uuid) and any(uuid) else ""


def _listed_uuid(device: int) -> str:
    """Return the UUID by which udev lists a block device, "" if it does not."""
    try:
        for link in sorted(_BY_UUID.iterdir()):
            if link.stat().st_rdev == device:
                return link.name
    except OSError:
        pass
    return ""
