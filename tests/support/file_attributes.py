"""Times, owners, modes, capabilities and project ids of files, for tests of what keeps them."""

import fcntl
import os
import random
from pathlib import Path
from struct import Struct
from typing import NamedTuple

__all__ = ["CAPABILITY", "Attributes", "adorn"]

#: ``struct vfs_cap_data`` of version 2: cap_net_bind_service, permitted and effective.
CAPABILITY = bytes.fromhex("0100000200040000000000000000000000000000")
_NAME = "security.capability"
_FS_IOC_FSGETXATTR, _FS_IOC_FSSETXATTR = 0x801C581F, 0x401C5820
#: ``struct fsxattr``: xflags, extsize, nextents, projid, cowextsize
_FSXATTR = Struct("=5I8x")
_MODES = (0o644, 0o4755, 0o2755, 0o6711, 0o400, 0o2640)


class Attributes(NamedTuple):
    """The state of a file besides its content; ``capability`` is None if it has none."""

    mode: int
    uid: int
    gid: int
    links: int
    atime: int
    mtime: int
    project: int
    xflags: int
    note: bytes
    capability: bytes | None

    @classmethod
    def of(cls, path: Path) -> "Attributes":
        status = path.stat()
        names = os.listxattr(path)
        file = os.open(path, os.O_RDONLY | os.O_NOATIME)
        try:
            xflags, _, _, project, _ = _FSXATTR.unpack(_fsxattr(file))
        finally:
            os.close(file)
        return cls(
            status.st_mode,
            status.st_uid,
            status.st_gid,
            status.st_nlink,
            status.st_atime_ns,
            status.st_mtime_ns,
            project,
            xflags,
            os.getxattr(path, "user.note") if "user.note" in names else b"",
            os.getxattr(path, _NAME) if _NAME in names else None,
        )


def adorn(path: Path, copy: Path, chance: random.Random, *, capable: bool) -> Attributes:
    """Set attributes that a change easily loses, and the times of the copy, which is root's.

    ``capable`` gives it a capability, which costs a repair some steps more.
    """
    uid, gid = (chance.randrange(1000, 60000) if chance.random() < 0.4 else 0 for _ in range(2))
    times = (chance.randrange(2**62), chance.randrange(1, 2**61))
    os.chown(path, uid, gid)
    path.chmod(chance.choice(_MODES))
    os.setxattr(path, "user.note", chance.randbytes(chance.choice((7, 700))))
    if capable:
        os.setxattr(path, _NAME, CAPABILITY)
    _set_project(path, chance.choice((0, 0, 7, 2**32 - 2)))
    os.utime(path, ns=times)
    os.utime(copy, ns=times)
    return Attributes.of(path)


def _fsxattr(file: int) -> bytearray:
    answer = bytearray(_FSXATTR.size)
    fcntl.ioctl(file, _FS_IOC_FSGETXATTR, answer)
    return answer


def _set_project(path: Path, number: int) -> None:
    file = os.open(path, os.O_RDONLY | os.O_NOATIME)
    try:
        xflags, extent, extents, _, cow = _FSXATTR.unpack(_fsxattr(file))
        request = _FSXATTR.pack(xflags, extent, extents, number, cow)
        fcntl.ioctl(file, _FS_IOC_FSSETXATTR, request)
    finally:
        os.close(file)
