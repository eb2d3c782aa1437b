"""Parse fanotify events about filesystem errors (linux/fanotify.h)."""

from collections.abc import Iterator
from struct import Struct
from struct import error as StructError  # noqa: N812 - the module calls it so
from typing import Final, NamedTuple

__all__ = ["FAN_FS_ERROR", "FAN_Q_OVERFLOW", "FanotifyError", "read_fanotify"]

FAN_FS_ERROR: Final = 0x8000
FAN_Q_OVERFLOW: Final = 0x4000
_VERSION: Final = 3
_FID: Final = 1
_ERROR: Final = 5
#: event_len, vers, metadata_len, mask, fd, pid
_EVENT: Final = Struct("=IBxHQii")
#: info_type, len
_INFO: Final = Struct("=BxH")
#: fsid; handle_bytes, handle_type
_HANDLE: Final = Struct("=8sIi")
#: error, error_count
_COUNT: Final = Struct("=iI")
#: By the type of a file handle (enum fid_type): inode and generation.
_INODES: Final = {
    1: Struct("=II"),
    2: Struct("=II"),
    # With 0x80, the inode number has 64 bits.
    0x81: Struct("=QI"),
    0x82: Struct("=QI"),
}


class FanotifyError(NamedTuple):
    """An error found by a filesystem: ``error`` is an errno that occurred ``times`` times.

    ``fsid`` is the filesystem as in statfs(2); ``inode`` is 0 if the error is not of a file.
    """

    fsid: bytes
    inode: int
    generation: int
    error: int
    times: int


def read_fanotify(data: bytes) -> Iterator[FanotifyError | None]:
    """Yield the reported errors; None where the queue overflowed."""
    at = 0
    while at + _EVENT.size <= len(data):
        length, version, head, mask, _, _ = _EVENT.unpack_from(data, at)
        if length < _EVENT.size or version != _VERSION or not _EVENT.size <= head <= length:
            return
        if mask & FAN_Q_OVERFLOW:
            yield None
        if mask & FAN_FS_ERROR:
            yield _error(data[at + head : at + length])
        at += length


def _error(infos: bytes) -> FanotifyError:
    fsid, inode, generation, error, count = b"", 0, 0, 0, 1
    at = 0
    while at + _INFO.size <= len(infos):
        kind, length = _INFO.unpack_from(infos, at)
        if length < _INFO.size:
            break
        body = infos[at + _INFO.size : at + length]
        try:
            if kind == _FID:
                fsid, size, form = _HANDLE.unpack_from(body)
                if size and form in _INODES:
                    inode, generation = _INODES[form].unpack_from(body, _HANDLE.size)
            elif kind == _ERROR:
                error, count = _COUNT.unpack_from(body)
        except StructError:
            break
        at += length
    return FanotifyError(fsid, inode, generation, abs(error), count)
