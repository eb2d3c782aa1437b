"""Writing to a copy of what is written, so that a medium itself stays as it is.

What is written goes to a sparse temporary file, at the offsets where it belongs; a mark for every
sector says where to read it.  The file has no name: however the process ends, it is gone with it.
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

#: Sectors whose marks are kept together, a byte each: 2 KiB of memory for 1 MiB of the device.
_SECTORS: Final = 2048
_CHUNK: Final = _SECTORS * SECTOR


class OverlayMedia:
    """The bytes of ``base`` with what was written over them.

    It costs as much space in the folder for temporary files (``TMPDIR``) as is written to different
    places, and none to begin with.  ``base`` is closed with it.
    """

    def __init__(self, base: Media) -> None:
        self._base = base
        self.name = base.name
        self.size = base.size
        self._file = tempfile.TemporaryFile(prefix="whoseblock-", buffering=0)  # noqa: SIM115 - closed in close()
        self._marks: dict[int, bytearray] = {}

    def pread(self, offset: int, length: int) -> bytes:
        """Give exactly ``length`` bytes; raises `MediaError` for those that the base has lost."""
        pieces: list[bytes] = []
        lost: list[ByteRange] = []
        reason = ""
        for piece, written in self._pieces(ByteRange(offset, length)):
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
            raise OSError(f"the temporary file over {self.name!r} has been cut")
        return data

    def _pieces(self, asked: ByteRange) -> Iterator[tuple[ByteRange, bool]]:
        """Cut a range where what was written begins and ends; say of each piece which it is."""
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
        """Write all of ``data``; where it covers a sector in part, the rest is read first."""
        start = offset // SECTOR * SECTOR
        end = min(-(-(offset + len(data)) // SECTOR) * SECTOR, self.size)
        after = offset + len(data)
        before = self.pread(start, offset - start) if start < offset else b""
        whole = before + data + (self.pread(after, end - after) if after < end else b"")
        view = memoryview(whole)
        while view:
            view = view[os.pwrite(self._file.fileno(), view, end - len(view)) :]
        # Only now: a write that failed halfway, as on a full disk, must not be read.
        self._mark(start // SECTOR, -(-end // SECTOR))

    def _mark(self, first: int, end: int) -> None:
        while first < end:
            chunk, within = divmod(first, _SECTORS)
            count = min(_SECTORS - within, end - first)
            marks = self._marks.setdefault(chunk, bytearray(_SECTORS))
            marks[within : within + count] = b"\1" * count
            first += count

    def sync(self) -> None:
        """Do nothing: what was written is not meant to outlast the process."""

    def close(self) -> None:
        """Forget what was written, and close the base."""
        self._file.close()
        self._base.close()
