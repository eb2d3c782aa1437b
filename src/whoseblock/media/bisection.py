"""Bisect a failed read down to single sectors."""

import errno
import os
from collections.abc import Callable
from typing import Final, NamedTuple

from whoseblock.ranges import ByteRange, merge

__all__ = ["MEDIA_ERRNOS", "PartialRead", "read_bisected"]

#: Error numbers of read(2) for errors of the medium: EIO from nearly every device, the others where
#: the block layer is more specific (``blk_errors`` in the kernel's blk-core.c).
MEDIA_ERRNOS: Final = frozenset(
    {errno.EIO, errno.ENODATA, errno.EILSEQ, errno.EREMOTEIO, errno.ETIMEDOUT}
)


class PartialRead(NamedTuple):
    """The result of a read: readable pieces by offset, and unreadable ranges with the reason.

    Both are disjoint and ascending.
    """

    pieces: list[tuple[int, bytes]]
    lost: list[ByteRange]
    reason: str

    @property
    def data(self) -> bytes:
        """The readable bytes, joined."""
        return b"".join(data for _, data in self.pieces)


def read_bisected(
    read: Callable[[int, int], bytes], start: int, length: int, *, size: int, sector: int
) -> PartialRead:
    """Read ``length`` bytes from ``start`` in pieces as large as possible.

    ``read`` takes an offset and a length. It returns fewer bytes or raises `OSError` where it
    fails; errors other than those of the medium are passed on. Failing pieces are halved down to
    sectors of ``sector`` bytes. Everything past ``size``, the end of the medium, counts as failed.
    """
    pieces: list[tuple[int, bytes]] = []
    lost: list[ByteRange] = []
    reason = ""
    inside = min(start + length, size) - start
    if inside < length:
        past = max(start, size)
        lost.append(ByteRange(past, start + length - past))
    pending = [(start, inside)] if inside > 0 else []
    while pending:
        at, count = pending.pop()
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
            pending += [(middle, at + count - middle), (at, middle - at)]
    if not reason:
        reason = "past the end of the device" if inside < length else "short read"
    return PartialRead(pieces, merge(lost), reason)
