"""Questions to the kernel about a mounted ext4: one function each, errors as `OSError`.

Sources: ``linux/exportfs.h`` (FILEID_INO32_GEN), ``linux/fs.h`` (FS_IOC_GETVERSION).
"""

import contextlib
import fcntl
import os
import stat
from contextlib import ExitStack
from struct import Struct
from typing import Final

from whoseblock.errors import PrivilegeError
from whoseblock.fs.ext4.scan import EXT4_ROOT_INO
from whoseblock.fs.mounted.format import file_handle
from whoseblock.fs.mounted.kernel import READ_DIRECTORY, open_handle

__all__ = ["generation_of", "name_inode", "open_data", "open_inode", "open_root"]

_FILEID_INO32_GEN: Final = 1
_FID32: Final = Struct("=2I")
_FS_IOC_GETVERSION: Final = 0x80087601
_VERSION: Final = Struct("=I4x")


def open_inode(mount: int, inode: int, generation: int, flags: int = READ_DIRECTORY) -> int:
    """Open an inode by its number, wherever it is; ``mount`` is a descriptor on its filesystem.

    Generation 0 stands for any.  ``flags`` are those of open(2).  Raises FileNotFoundError if it is
    gone, or one of the reserved inodes.
    """
    return open_handle(mount, file_handle(_FILEID_INO32_GEN, _FID32.pack(inode, generation)), flags)


def name_inode(mount: int, inode: int, generation: int) -> int:
    """Return a descriptor that only names an inode: neither its device nor its FIFO is opened."""
    return open_inode(mount, inode, generation, os.O_PATH | os.O_NOFOLLOW)


def open_data(mount: int, inode: int, generation: int) -> int:
    """Open a regular file or a directory, to ask for its extents; raises OSError.

    ``inode`` was seen to be one with this ``generation``.  The access time stays as it is.  Raises
    FileNotFoundError if its kind or generation is another.
    """
    if generation:
        # An inode of this generation has the kind that was seen.
        with contextlib.suppress(PrivilegeError):
            return open_inode(mount, inode, generation, os.O_RDONLY | os.O_NOATIME)
    # Without a generation, the handle leads to any inode of the number, a FIFO, too.
    named = name_inode(mount, inode, generation)
    try:
        mode = os.fstat(named).st_mode
        if not (stat.S_ISREG(mode) or stat.S_ISDIR(mode)):
            raise FileNotFoundError
        flags = os.O_RDONLY | os.O_NOATIME | os.O_NONBLOCK | os.O_CLOEXEC
        found = os.open(f"/proc/self/fd/{named}", flags)
    finally:
        os.close(named)
    with ExitStack() as undo:
        undo.callback(os.close, found)
        if generation_of(found) == generation:
            undo.pop_all()
            return found
    raise FileNotFoundError


def generation_of(fd: int) -> int:
    """Return the generation of an open file."""
    answer = bytearray(_VERSION.size)
    fcntl.ioctl(fd, _FS_IOC_GETVERSION, answer)
    return int(_VERSION.unpack(answer)[0])


def open_root(mount: int) -> int:
    """Open the root directory of a filesystem, whatever part of it is mounted."""
    return open_inode(mount, EXT4_ROOT_INO, 0)
