"""Redirect writes to a temporary file, so that the medium itself does not change.

Written data go to a sparse temporary file, at the same offsets; a mark for every sector tells which
of the two to read. The file has no name, so it disappears with the process.
"""

import os
import tempfile
from collections.abc import Iterator
from typing import Final

from whoseblock.errors import MediaError
from whoseblock.media.base import Media
from whoseblock.media.device import SECTOR
from whoseblock.ranges import ByteRange, merge

__all__ = ["OverlayMedia"]

#: Sectors per array of marks, a byte each: 2 KiB of memory for 1 MiB of the device.
_SECTORS: Final = 2048
_CHUNK: Final = _SECTORS * SECTOR


class OverlayMedia:
    """The content of ``base`` with all later writes applied.

    The space needed in the folder for temporary files (``TMPDIR``) grows with the number of sectors
    written. ``base`` is closed with it.
    """

    def __init__(self, base: Media) -> None:
        self._base = base
        self.name = base.name
        self.size = base.size
        self._file = tempfile.TemporaryFile(prefix="whoseblock-", buffering=0)  # noqa: SIM115 - closed in close()
        self._marks: dict[int, bytearray] = {}

    def pread(self, offset: int, length: int) -> bytes:
        """Return exactly ``length`` bytes; raises `MediaError` for those unreadable in the base."""
        pieces: list[bytes] = []
        lost: list[ByteRange] = []
        reason = ""
        for piece, written in self._split(ByteRange(offset, length)):
            try:
                pieces.append(self._read_written(piece) if written else self._base.pread(*piece))
            except MediaError as error:
                lost += error.ranges
                reason = reason or error.reason
        if lost:
            raise MediaError(merge(lost), reason)
        return b"".join(pieces)

    def _read_written(self, piece: ByteRange) -> bytes:
        data = os.pread(self._file.fileno(), piece.length, piece.start)
        if len(data) != piece.length:
            raise OSError(f"the temporary file over {self.name!r} was truncated")
        return data

    def _split(self, asked: ByteRange) -> Iterator[tuple[ByteRange, bool]]:
        """Yield the pieces of a range, each with whether it was written."""
        at = asked.start
        while at < asked.end:
            chunk, within = divmod(at, _CHUNK)
            marks = self._marks.get(chunk)
            end, written = (chunk + 1) * _CHUNK, 0
            if marks is not None:
                written = marks[within // SECTOR]
                change = marks.find(1 - written, within // SECTOR)
                end = chunk * _CHUNK + change * SECTOR if change >= 0 else end
            end = min(end, asked.end)
            yield ByteRange(at, end - at), bool(written)
            at = end

    def pwrite(self, offset: int, data: bytes) -> None:
        """Write all of ``data``; the rest of partly covered sectors is read first."""
        start = offset // SECTOR * SECTOR
        end = min(-(-(offset + len(data)) // SECTOR) * SECTOR, self.size)
        after = offset + len(data)
        before = self.pread(start, offset - start) if start < offset else b""
        whole = before + data + (self.pread(after, end - after) if after < end else b"")
        view = memoryview(whole)
        while view:
            view = view[os.pwrite(self._file.fileno(), view, end - len(view)) :]
        # After the write: a partial one, as on a full disk, must not be read.
        self._mark(start // SECTOR, -(-end // SECTOR))

    def _mark(self, first: int, end: int) -> None:
        while first < end:
            chunk, within = divmod(first, _SECTORS)
            count = min(_SECTORS - within, end - first)
            marks = self._marks.setdefault(chunk, bytearray(_SECTORS))
            marks[within : within + count] = b"\1" * count
            first += count

    def sync(self) -> None:
        """Return without effect: written data do not outlast the process."""

    def close(self) -> None:
        """Discard written data and close the base."""
        self._file.close()
        self._base.close()
