"""Find files that no other user can change or replace.

Root trusts only root here, any other user herself and root.  If every folder on the way to a file
passes these checks, no other user can put another file in its place later.  So the file can be
opened by name, as SQLite does.  The owners and modes of a FUSE filesystem are those that its server
reports: what a user has mounted is that user's, whatever they are.
"""

import contextlib
import errno
import os
import pwd
import shlex
import stat
from pathlib import Path
from typing import Final, NamedTuple

from whoseblock.media.mounts import fuse_user

__all__ = [
    "TrustedFile",
    "UntrustedFileError",
    "check_file",
    "find_trusted",
    "open_folder",
    "user_name",
]

_OTHERS_WRITE: Final = stat.S_IWGRP | stat.S_IWOTH
_MAX_LINKS: Final = 40  # as the kernel: path_resolution(7)


class UntrustedFileError(Exception):
    """Another user could have written or replaced a file; the message says how.

    ``hint`` names what to do next.
    """

    def __init__(self, message: str, *, hint: str) -> None:
        super().__init__(message)
        self.hint = hint


class TrustedFile(NamedTuple):
    """A file that may not exist yet: ``path`` is free of symbolic links.

    ``title`` names it in messages.
    """

    title: str
    path: Path


def find_trusted(title: str, path: Path, *, make: bool) -> TrustedFile:
    """Resolve an absolute path, and check every folder on the way.

    A folder must belong to this user or root.  Others may write to it only if it is sticky, as /tmp
    is, and never to the one that holds the file.  The group bits of a mode include the rights that
    an access control list grants (acl(5)).  With ``make``, missing folders are created with mode
    0700.  Raises `UntrustedFileError` for an unsafe folder, and `OSError`.
    """
    at = Path("/")
    above = _check_folder(title, at, at.lstat())
    waiting = [*reversed(path.parts[1:])]
    links = 0
    while waiting:
        name = waiting.pop()
        if name == "..":
            at = at.parent
            above = at.lstat()
            continue
        child = at / name
        status = _lstat(child, make=make and bool(waiting))
        if status is not None and stat.S_ISLNK(status.st_mode):
            if above.st_mode & _OTHERS_WRITE:
                _check_owner(title, child, status)
            links += 1
            if links > _MAX_LINKS:
                raise OSError(errno.ELOOP, os.strerror(errno.ELOOP), str(child))
            target = child.readlink()
            at = Path("/") if target.is_absolute() else at
            above = at.lstat()
            waiting += reversed(target.parts[target.is_absolute() :])
        elif waiting and status is None:
            return TrustedFile(title, child.joinpath(*reversed(waiting)))
        elif waiting and status is not None:
            above = _check_folder(title, child, status)
            at = child
        elif above.st_mode & _OTHERS_WRITE:
            raise _open_to_others(title, at, above)
        else:
            return TrustedFile(title, child)
    raise IsADirectoryError(errno.EISDIR, os.strerror(errno.EISDIR), str(path))


def check_file(file: TrustedFile, *, suffix: str = "", private: bool = False) -> None:
    """Check a file in its trusted folder, or the one next to it whose name has ``suffix``.

    It must be a regular file that belongs to this user or root, and to which no other user may
    write; a ``private`` one may not be read by others either.  A missing file passes.  Raises
    `UntrustedFileError`.
    """
    path = Path(f"{file.path}{suffix}")
    status = _lstat(path, make=False)
    if status is None:
        return
    if not stat.S_ISREG(status.st_mode):
        raise UntrustedFileError(
            f"{file.title} is not safe to use: {str(path)!r} is not a regular file",
            hint="move it away, or name another file",
        )
    _check_owner(file.title, path, status)
    if private and stat.S_IMODE(status.st_mode) & (stat.S_IRWXG | stat.S_IRWXO):
        raise UntrustedFileError(
            f"{file.title} is not secret: other users may read {str(path)!r}",
            hint=f"remove it, and a new one is made: rm {shlex.quote(str(path))}",
        )
    if status.st_mode & _OTHERS_WRITE:
        raise _open_to_others(file.title, path, status)


def open_folder(path: Path) -> int:
    """Open a folder that may belong to another user, as a descriptor for ``dir_fd``.

    A symbolic link counts only if this user or root made it. So another user cannot direct what is
    written there to a folder that he may not change himself. Raises `UntrustedFileError` for a link
    of another user, and `OSError`.
    """
    flags = os.O_PATH | os.O_NOFOLLOW | os.O_CLOEXEC
    at = os.open("/", flags)
    try:
        waiting = [*reversed(path.absolute().parts[1:])]
        links = 0
        while waiting:
            name = waiting.pop()
            child = os.open(name, flags, dir_fd=at)
            status = os.fstat(child)
            if not stat.S_ISLNK(status.st_mode):
                os.close(at)
                at = child
                continue
            try:
                _check_owner(f"the folder {str(path)!r}", Path(name), status)
                links += 1
                if links > _MAX_LINKS:
                    raise OSError(errno.ELOOP, os.strerror(errno.ELOOP), str(path))
                target = Path(os.fsdecode(os.readlink(b"", dir_fd=child)))
            finally:
                os.close(child)
            if target.is_absolute():
                os.close(at)
                at = os.open("/", flags)
            waiting += reversed(target.parts[target.is_absolute() :])
        # Raises an error unless it is a folder.
        folder = os.open(".", os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC, dir_fd=at)
        os.close(at)
    except BaseException:
        os.close(at)
        raise
    return folder


def _lstat(path: Path, *, make: bool) -> os.stat_result | None:
    """Return the status of a file, None if it does not exist; ``make`` creates a folder instead."""
    try:
        return path.lstat()
    except FileNotFoundError:
        if not make:
            return None
    with contextlib.suppress(FileExistsError):
        path.mkdir(mode=0o700)
    return path.lstat()


def _check_folder(title: str, path: Path, status: os.stat_result) -> os.stat_result:
    if not stat.S_ISDIR(status.st_mode):
        raise NotADirectoryError(errno.ENOTDIR, os.strerror(errno.ENOTDIR), str(path))
    _check_owner(title, path, status)
    if status.st_mode & _OTHERS_WRITE and not status.st_mode & stat.S_ISVTX:
        raise _open_to_others(title, path, status)
    return status


def _check_owner(title: str, path: Path, status: os.stat_result) -> None:
    owner = fuse_user(status.st_dev) or status.st_uid
    if owner in (0, os.geteuid()):
        return
    name = user_name(owner)
    raise UntrustedFileError(
        f"{title} is not safe to use: {str(path)!r} belongs to user {name}",
        hint=f"name another file in a folder of your own, or use it as that user: sudo -u"
        f" {shlex.quote(name)} whoseblock …",
    )


def _open_to_others(title: str, path: Path, status: os.stat_result) -> UntrustedFileError:
    hint = "keep it in a folder of your own"
    if not status.st_mode & stat.S_ISVTX:
        hint += f", or: chmod go-w {shlex.quote(str(path))}"
    return UntrustedFileError(
        f"{title} is not safe to use: other users may write to {str(path)!r}, mode"
        f" {stat.S_IMODE(status.st_mode):04o}",
        hint=hint,
    )


def user_name(uid: int) -> str:
    """Return the name of a user, or the number if it has no name."""
    try:
        return pwd.getpwuid(uid).pw_name
    except KeyError:
        return str(uid)
