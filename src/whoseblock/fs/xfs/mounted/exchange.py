"""The atomic exchange of file ranges on XFS (``xfs_fs.h`` of Linux 6.10 and later)."""

import errno
import fcntl
from struct import Struct
from typing import Final

from whoseblock.fs.driver import ExchangeSample

__all__ = ["exchange_range", "sample_file"]

_XFS_IOC_START_COMMIT, _XFS_IOC_COMMIT_RANGE = 0x80585882, 0x40585883
#: ``struct xfs_commit_range``: fd, offset in it, offset in the file changed, length, flags; then
#: the kernel's own record of the file's state.
_COMMIT: Final = Struct("=i4x4Q")
_COMMIT_BYTES: Final = 88
_XFS_EXCHANGE_RANGE_DSYNC: Final = 1 << 1


def sample_file(file: int) -> ExchangeSample | None:
    """Sample the present state of a file for `exchange_range`.

    Returns None if the kernel or the filesystem does not support it.
    """
    request = bytearray(_COMMIT_BYTES)
    try:
        fcntl.ioctl(file, _XFS_IOC_START_COMMIT, request)
    except OSError as error:
        if error.errno in (errno.ENOTTY, errno.EOPNOTSUPP, errno.EINVAL):
            return None
        raise
    return ExchangeSample(bytes(request))


def exchange_range(file: int, start: int, length: int, other: int, sample: ExchangeSample) -> bool:
    """Exchange blocks of ``file`` with those that ``other`` has from its byte 0 on.

    The exchange is atomic.  Returns False if the filesystem was made without that feature.  Raises
    OSError, with EBUSY if the file has changed since the sample, perhaps in another part.
    """
    request = bytearray(sample.state)
    _COMMIT.pack_into(request, 0, other, 0, start, length, _XFS_EXCHANGE_RANGE_DSYNC)
    try:
        fcntl.ioctl(file, _XFS_IOC_COMMIT_RANGE, request)
    except OSError as error:
        # The kernel samples files also where it cannot exchange their ranges.
        if error.errno == errno.EOPNOTSUPP:
            return False
        raise
    return True
