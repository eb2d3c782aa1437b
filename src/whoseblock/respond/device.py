"""Find the failed sectors of a device, and write exactly those."""

import contextlib
import errno
import os
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

from whoseblock.closing import Closing
from whoseblock.errors import MediaError, TargetError
from whoseblock.media.claims import check_unused, claim
from whoseblock.media.direct import DirectMedia
from whoseblock.media.loops import FileIdentity
from whoseblock.ranges import ByteRange, merge, subtract
from whoseblock.respond.exceptions import NotHealedError, NotNowError

__all__ = ["Content", "Device", "in_bad_list"]

_SECTOR = 512


class Content(NamedTuple):
    """The readable bytes of a run of blocks; ``data`` has zeros where sectors fail."""

    run: ByteRange
    failing: tuple[ByteRange, ...]
    data: bytes

    def with_lost(self, read: Callable[[int, int], bytes]) -> bytes:
        """Return the data with failed sectors filled by ``read(offset in the run, length)``."""
        data = bytearray(self.data)
        for start, length in self.failing:
            at = start - self.run.start
            data[at : at + length] = read(at, length)
        return bytes(data)


class Device(Closing):
    """A block device or an image; byte 0 is byte ``shift`` of the file at ``path``.

    ``exclusive`` needs a device that is neither mounted nor part of a volume, or an image that
    nothing else uses; see `whoseblock.media.claims`.  Raises `NotNowError` if it cannot be opened
    so.
    """

    def __init__(
        self, path: str, shift: int = 0, *, writable: bool = False, exclusive: bool = False
    ) -> None:
        self.path = path
        self._shift = shift
        self._claimed: int | None = None
        self._undo = contextlib.ExitStack()
        with contextlib.ExitStack() as undo:
            undo.callback(self._undo.close)
            try:
                if exclusive:
                    self._claimed = claim(path)
                    self._undo.callback(os.close, self._claimed)
            except TargetError as error:
                raise NotNowError(str(error)) from error
            try:
                # Another file may have the name by now.
                given = path if self._claimed is None else self._claimed
                self.media = DirectMedia(given, writable=writable)
            except TargetError as error:
                # Kernels with CONFIG_BLK_DEV_WRITE_MOUNTED=n refuse to write to a mounted device.
                why = " for writing, perhaps because it is mounted" if writable else ""
                raise NotNowError(f"cannot open {path!r}{why}: {error}") from error
            self._undo.callback(self.media.close)
            undo.pop_all()
        self.align = self.media.align

    @property
    def claimed(self) -> FileIdentity | None:
        """The file that is open exclusively, None if none is."""
        return None if self._claimed is None else FileIdentity.of(self._claimed)

    def failing(self, ranges: Iterable[ByteRange]) -> list[ByteRange]:
        """Return the sectors in ``ranges`` that are unreadable, or that the kernel lists as bad.

        They are whole sectors, merged and ascending.
        """
        bad: list[ByteRange] = []
        for start, length in merge(ranges):
            low = start // self.align * self.align
            high = -(-(start + length) // self.align) * self.align
            found = self.media.failing(low + self._shift, high - low)
            found += in_bad_list(self.path, ByteRange(low + self._shift, high - low), self.align)
            bad += (ByteRange(one.start - self._shift, one.length) for one in found)
        return merge(bad)

    def read(self, start: int, length: int) -> bytes:
        """Return bytes of the device; raise `MediaError`."""
        return self.media.pread(start + self._shift, length)

    def content(self, run: ByteRange, failing: Sequence[ByteRange] | None = None) -> Content:
        """Read a run of whole sectors, zeros for those that fail; ``failing`` if they are known."""
        if failing is None:
            failing = self.failing([run])
        data = bytearray(run.length)
        good = [run]
        for bad in failing:
            good = subtract(good, bad)
        for start, length in good:
            at = start - run.start
            data[at : at + length] = self.read(start, length)
        return Content(run, tuple(failing), bytes(data))

    def zero(self, sectors: Sequence[ByteRange]) -> None:
        """Write zeros over sectors, and verify them.

        Raises `NotHealedError` if they do not read back, or are still listed as bad.  Raises
        `NotNowError` if the kernel refuses to open the device for writing, or if an image that is
        open exclusively is behind a loop device by now.
        """
        if self._claimed is not None:
            try:
                check_unused(self._claimed, self.path)
            except TargetError as error:
                raise NotNowError(str(error)) from error
        try:
            for start, length in sectors:
                self.media.pwrite(start + self._shift, bytes(length))
            self.media.sync()
        except MediaError as error:
            raise NotHealedError(f"the device refuses the write: {error}") from error
        except OSError as error:
            if error.errno in (errno.EPERM, errno.EACCES, errno.EBUSY, errno.EROFS):
                raise NotNowError(
                    f"the kernel does not allow writes to {self.path!r} while it is mounted:"
                    f" {error.strerror}"
                ) from error
            raise NotHealedError(f"the device refuses the write: {error.strerror}") from error
        self.check_zero(sectors)

    def check_zero(self, sectors: Sequence[ByteRange]) -> None:
        """Raise `NotHealedError` unless sectors read as zeros, and are not listed as bad."""
        for start, length in sectors:
            try:
                data = self.read(start, length)
            except MediaError as error:
                raise NotHealedError(f"still unreadable after the write: {error}") from error
            if any(data):
                raise NotHealedError(f"{start}+{length} does not read back as zeros")
        self.check_list(sectors)

    def check_list(self, sectors: Iterable[ByteRange]) -> None:
        """Raise `NotHealedError` if the kernel still lists any of these sectors as bad."""
        for start, length in sectors:
            place = ByteRange(start + self._shift, length)
            if listed := in_bad_list(self.path, place, self.align):
                raise NotHealedError(f"the kernel still lists {listed[0]} of {self.path!r} as bad")

    def close(self) -> None:
        """Close the device."""
        self._undo.close()


def in_bad_list(path: str, wanted: ByteRange, align: int = _SECTOR) -> list[ByteRange]:
    """Return the sectors of a range that the kernel lists as bad blocks of the device.

    Only persistent memory, md and a few other drivers keep such a list
    (Documentation/ABI/stable/sysfs-block); others yield none.  A partition has that of its disk.
    """
    try:
        number = Path(path).stat().st_rdev
        folder = Path(f"/sys/dev/block/{os.major(number)}:{os.minor(number)}").resolve()
        shift = 0
        if (folder / "partition").exists():
            shift = int((folder / "start").read_text()) * _SECTOR
            folder = folder.parent
        text = (folder / "badblocks").read_text()
    except (OSError, ValueError):
        return []
    return list(_listed(text, shift, wanted, align))


def _listed(text: str, shift: int, wanted: ByteRange, align: int) -> Iterator[ByteRange]:
    for line in text.splitlines():
        fields = line.split()
        if len(fields) != 2 or not all(field.isdecimal() for field in fields):  # noqa: PLR2004 - SECTOR COUNT
            continue
        start = int(fields[0]) * _SECTOR - shift
        low = max(start, wanted.start) // align * align
        high = -(-min(start + int(fields[1]) * _SECTOR, wanted.end) // align) * align
        if low < high:
            yield ByteRange(low, high - low)
