"""For which files a copy counts: data never crosses from one user to another.

A user who may read a file can share its blocks with a file of her own, and have a backup hold other
bytes for that file.  So a copy counts only for files of the user who could have written it, and for
no file that grants more than this user has.
"""

import contextlib
import os
import stat
from typing import Final, NamedTuple

from whoseblock.media.mounts import fuse_user

__all__ = ["Standing", "standing_of", "user_of", "why_controlled_by_others"]

_ACL: Final = "system.posix_acl_access"
_CAPABILITY: Final = "security.capability"
#: A setgid bit without this one means mandatory locks, and grants nothing.
_SETGID: Final = stat.S_ISGID | stat.S_IXGRP


class Standing(NamedTuple):
    """The user of a damaged file, and what decides for which other files its data counts.

    ``writable_by_others``: the group or all users may write the file.  ``grants_more``: it runs
    with a group or capabilities that its user does not have, and that a write would take away.
    """

    uid: int
    writable_by_others: bool
    grants_more: bool

    def counts_for(self, other: "Standing") -> bool:
        """Return whether data of this file may be given to another file that shares the block."""
        return self.uid == other.uid and not self.writable_by_others and not other.grants_more

    def why_not_given(self, user: int, *, single_user: bool) -> str:
        """Return why a named copy of a ``user`` does not count for this file, "" if it does.

        A copy of root counts for files of other users only if ``single_user``: all files that share
        the block belong to one user.  Otherwise it is unknown whose bytes it has.
        """
        if user == self.uid or (user == 0 and single_user):
            return self.why_not_owner(user)
        return (
            f"belongs to user {user}, and counts only for files of that user, not of user"
            f" {self.uid}"
        )

    def why_not_owner(self, user: int) -> str:
        """Return why a copy of a ``user`` must not be one of this file, "" if it may."""
        if self.grants_more and user != 0:
            return f"belongs to user {user}, and the file runs with rights that only root may grant"
        return ""


def standing_of(fd: int) -> Standing:
    """Return the standing of an open file."""
    status = os.fstat(fd)
    capability = False
    with contextlib.suppress(OSError):
        capability = bool(os.getxattr(fd, _CAPABILITY))
    more = status.st_mode & _SETGID == _SETGID or capability
    return Standing(
        status.st_uid,
        writable_by_others=bool(status.st_mode & (stat.S_IWGRP | stat.S_IWOTH)),
        grants_more=more and status.st_uid != 0,
    )


def user_of(status: os.stat_result) -> int:
    """Return the user who controls a file: that of a FUSE filesystem, or else its owner."""
    return fuse_user(status.st_dev) or status.st_uid


def why_controlled_by_others(name: int, damaged: int) -> str:
    """Return why other users than root and that of a damaged file control a copy, "" if none do.

    ``name`` is a descriptor, O_PATH or not, of the copy or of a folder on its path.  A group may
    write it if it may write the damaged file, too.
    """
    copy, file = os.fstat(name), os.fstat(damaged)
    if (user := user_of(copy)) not in (0, file.st_uid):
        return f"belongs to user {user}, and not to root or to user {file.st_uid}"
    if stat.S_ISDIR(copy.st_mode) and copy.st_mode & stat.S_ISVTX:
        # Others cannot replace what is in it.
        return ""
    if copy.st_mode & ~file.st_mode & stat.S_IWOTH:
        return "all users may write"
    if copy.st_mode & stat.S_IWGRP:
        return _why_group_writes(name, damaged)
    return ""


def _why_group_writes(name: int, damaged: int) -> str:
    copy, file = os.fstat(name), os.fstat(damaged)
    acl = _acl(name)
    # With a list, the bits of the group are the limit of all who are in it.
    if acl and acl != _acl(damaged):
        return "users in its access control list may write"
    if copy.st_gid == 0 or (file.st_mode & stat.S_IWGRP and file.st_gid == copy.st_gid):
        return ""
    return f"group {copy.st_gid} may write"


def _acl(fd: int) -> bytes:
    """Return the access control list of a file, b"" if it has none."""
    try:
        # An O_PATH descriptor cannot be asked itself.
        return os.getxattr(f"/proc/self/fd/{fd}", _ACL)
    except OSError:
        return b""
