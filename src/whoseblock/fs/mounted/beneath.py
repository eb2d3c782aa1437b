"""Open a path below a directory, through no symbolic link and into no other mount.

openat2(2) does so in one system call. Where it is missing, which RestrictSUIDSGID of systemd and
kernels before 5.6 have in common, the path is opened name by name.
"""

import ctypes
import errno
import os
import stat
from functools import cache
from typing import Final

from whoseblock.fs.mounted.format import open_how

__all__ = ["mount_id", "open_beneath"]

#: The same number on every architecture but Alpha.
_SYS_OPENAT2: Final = 437
_RESOLVE_NO_XDEV, _RESOLVE_NO_SYMLINKS, _RESOLVE_BENEATH = 0x01, 0x04, 0x08
#: Names a file, and a symbolic link itself.
_NAME: Final = os.O_PATH | os.O_NOFOLLOW


@cache
def _libc() -> ctypes.CDLL:
    return ctypes.CDLL(None, use_errno=True)


def open_beneath(directory: int, path: bytes, flags: int) -> int:
    """Open a relative path, through no symbolic link and into no other mount.

    ``flags`` contain O_PATH or O_DIRECTORY.  Raises OSError: EXDEV for a way into another mount or
    out of the directory, ELOOP or ENOTDIR for a symbolic link.
    """
    resolve = _RESOLVE_NO_XDEV | _RESOLVE_NO_SYMLINKS | _RESOLVE_BENEATH
    how = open_how(flags | os.O_CLOEXEC, resolve)
    fd: int = _libc().syscall(_SYS_OPENAT2, directory, path, how, ctypes.c_size_t(len(how)))
    if fd >= 0:
        return fd
    number = ctypes.get_errno()
    if number != errno.ENOSYS:
        raise OSError(number, os.strerror(number))
    return _open_by_names(directory, path, flags)


def mount_id(fd: int) -> int:
    """Return the mount that a descriptor is on, without touching it (proc_pid_fdinfo(5))."""
    with open(f"/proc/self/fdinfo/{fd}", "rb") as lines:  # noqa: PTH123 - a name of ours
        return next(int(line.split()[1]) for line in lines if line.startswith(b"mnt_id:"))


def _open_by_names(directory: int, path: bytes, flags: int) -> int:
    """Open a path name by name, each only with O_PATH until its mount is known.

    No ``..`` is allowed, which a path from directory entries never contains.
    """
    names = [name or b"." for name in path.split(b"/")]
    if path.startswith(b"/") or b".." in names:
        raise OSError(errno.EXDEV, os.strerror(errno.EXDEV))
    if not path:
        raise OSError(errno.ENOENT, os.strerror(errno.ENOENT))
    mount = mount_id(directory)
    at = os.open(".", _NAME | os.O_DIRECTORY, dir_fd=directory)
    try:
        for name in names:
            # Not even a FIFO on another mount waits, and no automount is triggered.
            below = os.open(name, _NAME, dir_fd=at)
            os.close(at)
            at = below
            if mount_id(at) != mount:
                raise OSError(errno.EXDEV, os.strerror(errno.EXDEV))
        if flags & _NAME != _NAME and stat.S_ISLNK(os.fstat(at).st_mode):
            raise OSError(errno.ELOOP, os.strerror(errno.ELOOP))
        if flags & os.O_DIRECTORY:
            return os.open(".", flags | os.O_CLOEXEC, dir_fd=at)
        return os.dup(at)
    finally:
        os.close(at)
