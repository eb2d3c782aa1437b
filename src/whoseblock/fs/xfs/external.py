"""The other devices of an XFS filesystem: an external log, and a realtime section.

Each is an address space of its own: byte 0 of a log device is not byte 0 of the filesystem.
"""

from collections.abc import Iterable, Iterator
from typing import Final
from uuid import UUID

from whoseblock.errors import BlockError
from whoseblock.fs.arguments import check_open, checked_ranges
from whoseblock.fs.base import (
    Answer,
    MetadataOwner,
    Outside,
    Owner,
    Progress,
    Unknown,
    no_progress,
)
from whoseblock.fs.driver import AddressSpace
from whoseblock.fs.xfs.format.log import BBSIZE, LOG_RECORD, XLOG_HEADER_MAGIC_NUM
from whoseblock.fs.xfs.volume import Volume
from whoseblock.media.base import Media

__all__ = ["OtherDevice", "log_owner"]

_NO_REALTIME_RMAP: Final = (
    "who owns the realtime section is not known: the reverse mapping that it may have is not read"
)


def log_owner(media: Media) -> str:
    """Return the UUID of the filesystem whose log begins on ``media``; "" if none does.

    mkfs.xfs writes an unmount record at the start of the log, and any later pass over it begins
    there with a record or in the middle of one; in the latter case nothing is recognised.
    """
    try:
        head = media.pread(0, min(BBSIZE, media.size))
    except BlockError:
        return ""
    if len(head) < BBSIZE:
        return ""
    record = LOG_RECORD.unpack_from(head, 0)
    return str(UUID(bytes=record.fs_uuid)) if record.magicno == XLOG_HEADER_MAGIC_NUM else ""


class OtherDevice(AddressSpace):
    """The device with the external log, or the realtime section, of the filesystem of ``volume``.

    Closing it closes ``media``, not the filesystem.
    """

    name = "xfs"

    def __init__(self, volume: Volume, media: Media, role: str) -> None:
        blocks = volume.sb.logblocks if role == "log" else volume.sb.rblocks
        self.block_size = volume.block_size
        self.device_size = media.size
        self.progress: Progress = no_progress
        self._role = role
        self._size = blocks * volume.block_size
        self._media = media
        self._closed = False

    def owners_many(
        self, ranges: Iterable[tuple[int, int]], *, paths: bool = True
    ) -> Iterator[Answer]:
        """Answer many ``(start, length)`` in the order asked; raises `OutOfDeviceError`."""
        del paths  # no file is named here
        for start, length in checked_ranges(ranges, self._media.name, self.device_size):
            check_open(self._media.name, closed=self._closed)
            rows: list[Owner] = []
            inside = max(min(length, self._size - start), 0)
            notes = (_NO_REALTIME_RMAP,) if inside and self._role == "realtime" else ()
            if inside and self._role == "realtime":
                rows.append(Unknown(start, inside))
            elif inside:
                rows.append(MetadataOwner(start, inside, "log", detail="external log"))
            if inside < length:
                beyond = "past the end of the filesystem"
                rows.append(Outside(start + inside, length - inside, beyond))
            yield Answer(start, length, not notes, notes, tuple(rows))

    #: No answer has more than two rows.
    owners_stream = owners_many

    def close(self) -> None:
        """Close the device."""
        self._closed = True
        self._media.close()
