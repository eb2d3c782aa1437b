"""Telling the good sectors of a failed read from the bad ones, by halves."""

import errno
import os
from collections.abc import Callable
from typing import Final, NamedTuple

from whoseblock.ranges import ByteRange, merge

__all__ = ["MEDIA_ERRNOS", "Reading", "read_by_halves"]

#: What read(2) says when the medium, not the caller, is at fault: EIO from nearly every device,
#: the others where the block layer is more exact (``blk_errors`` in the kernel's blk-core.c).
MEDIA_ERRNOS: Final = frozenset(
    {errno.EIO, errno.ENODATA, errno.EILSEQ, errno.EREMOTEIO, errno.ETIMEDOUT}
)


class Reading(NamedTuple):
    """What could be read, and where, and what not, with the reason: both disjoint, ascending."""

    pieces: list[tuple[int, bytes]]
    lost: list[ByteRange]
    reason: str

    @property
    def data(self) -> bytes:
        """What could be read, joined."""
        return b"".join(data for _, data in self.pieces)


def read_by_halves(
    read: Callable[[int, int], bytes], start: int, length: int, *, size: int, sector: int
) -> Reading:
    """Read ``length`` bytes from ``start`` in as large pieces as the medium gives.

    ``read`` takes an offset and a length, and gives less or raises `OSError` where it fails; an
    error that is not the medium's fault is passed on.  Pieces are halved down to single sectors of
    ``sector`` bytes; past ``size``, the end of the medium, all counts as failed.
    """
    pieces: list[tuple[int, bytes]] = []
    lost: list[ByteRange] = []
    reason = ""
    inside = min(start + length, size) - start
    if inside < length:
        past = max(start, size)
        lost.append(ByteRange(past, start + length - past))
    todo = [(start, inside)] if inside > 0 else []
    while todo:
        at, count = todo.pop()
        try:
            data = read(at, count)
        except OSError as error:
            if error.errno not in MEDIA_ERRNOS:
                raise
            data = b""
            reason = reason or os.strerror(error.errno).lower()
        if len(data) == count:
            pieces.append((at, data))
            continue
        middle = (at + count // 2) // sector * sector
        if middle <= at:
            middle = at // sector * sector + sector
        if middle >= at + count:
            lost.append(ByteRange(at, count))
        else:
            todo += [(middle, at + count - middle), (at, middle - at)]
    if not reason:
        reason = "past the end of the device" if inside < length else "short read"
    return Reading(pieces, merge(lost), reason)
