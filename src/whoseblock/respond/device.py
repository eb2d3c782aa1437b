"""The device that failed: which of its sectors, and writing exactly those."""

import contextlib
import errno
import fcntl
import os
import stat
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

from whoseblock.closing import Closing
from whoseblock.errors import MediaError, TargetError
from whoseblock.media.direct import DirectMedia
from whoseblock.media.mounts import readers
from whoseblock.ranges import ByteRange, merge, subtract
from whoseblock.respond.reasons import NotHealedError, NotNowError

__all__ = ["Content", "Device", "in_bad_list"]

_SECTOR = 512


class Content(NamedTuple):
    """What can be read of a run of blocks; where its sectors fail, ``data`` has zeros."""

    run: ByteRange
    failing: tuple[ByteRange, ...]
    data: bytes

    def with_lost(self, read: Callable[[int, int], bytes]) -> bytes:
        """Fill in what fails; ``read`` gives bytes by their place in the run and their number."""
        data = bytearray(self.data)
        for start, length in self.failing:
            at = start - self.run.start
            data[at : at + length] = read(at, length)
        return bytes(data)


class Device(Closing):
    """A block device or an image, of which byte 0 is byte ``shift`` of what is opened.

    ``exclusive`` takes it for us alone: a device that nothing else may hold, mounted or part of a
    volume; an image that no loop device reads and that nobody else has locked.  Raises
    `NotNowError` if it cannot be had.
    """

    def __init__(
        self, path: str, shift: int = 0, *, writable: bool = False, exclusive: bool = False
    ) -> None:
        self.path = path
        self._shift = shift
        self._undo = contextlib.ExitStack()
        with contextlib.ExitStack() as undo:
            undo.callback(self._undo.close)
            claim = _claim(path) if exclusive else None
            if claim is not None:
                self._undo.callback(os.close, claim)
            try:
                self.media = DirectMedia(path, writable=writable)
            except TargetError as error:
                # Linux can be made to let nobody write to what is mounted.
                why = " for writing, perhaps since it is mounted" if writable else ""
                raise NotNowError(f"{path!r} cannot be opened{why}: {error}") from error
            self._undo.callback(self.media.close)
            undo.pop_all()
        self.align = self.media.align

    def failing(self, ranges: Iterable[ByteRange]) -> list[ByteRange]:
        """Give the sectors within ``ranges`` that cannot be read, or that the kernel lists as bad.

        Whole sectors, merged, ascending.
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
        """Give bytes of the device; raises `MediaError`."""
        return self.media.pread(start + self._shift, length)

    def content(self, run: ByteRange) -> Content:
        """Give what can be read of whole sectors."""
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
        """Write zeros over sectors, and see that the device gives them back.

        Raises `NotHealedError` if it does not, or still lists them as bad, and `NotNowError` if the
        kernel lets nobody write.
        """
        try:
            for start, length in sectors:
                self.media.pwrite(start + self._shift, bytes(length))
            self.media.sync()
        except MediaError as error:
            raise NotHealedError(f"the device does not take the write: {error}") from error
        except OSError as error:
            if error.errno in (errno.EPERM, errno.EACCES, errno.EBUSY, errno.EROFS):
                raise NotNowError(
                    f"the kernel lets nobody write to {self.path!r} while it is mounted:"
                    f" {error.strerror}"
                ) from error
            raise NotHealedError(f"the device does not take the write: {error.strerror}") from error
        self.check_zero(sectors)

    def check_zero(self, sectors: Sequence[ByteRange]) -> None:
        """Raise `NotHealedError` unless sectors read as zeros, and are in no list of bad ones."""
        for start, length in sectors:
            try:
                data = self.read(start, length)
            except MediaError as error:
                raise NotHealedError(f"still not readable after the write: {error}") from error
            if any(data):
                raise NotHealedError(f"{start}+{length} does not read as the zeros written")
        self.check_list(sectors)

    def check_list(self, sectors: Iterable[ByteRange]) -> None:
        """Raise `NotHealedError` if the kernel still lists any of these sectors as bad."""
        for start, length in sectors:
            place = ByteRange(start + self._shift, length)
            if listed := in_bad_list(self.path, place, self.align):
                raise NotHealedError(f"the kernel still lists {listed[0]} of {self.path!r} as bad")

    def close(self) -> None:
        """Let go of the device."""
        self._undo.close()


def _claim(path: str) -> int:
    """Take a device or an image for us alone; give the descriptor that holds it."""
    flags = os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK
    try:
        if stat.S_ISBLK(Path(path).stat().st_mode):
            # Without O_CREAT, and of a block device: EBUSY if anything has it in use (open(2)).
            return os.open(path, flags | os.O_EXCL)
        if used := readers(path):
            raise NotNowError(f"{path!r} is in use by /dev/{used[0].name}")
        descriptor = os.open(path, flags)
    except OSError as error:
        raise NotNowError(f"{path!r} cannot be had alone: {error.strerror}") from error
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as error:
        os.close(descriptor)
        raise NotNowError(f"somebody else has {path!r} locked") from error
    return descriptor


def in_bad_list(path: str, wanted: ByteRange, align: int = _SECTOR) -> list[ByteRange]:
    """Give the sectors of a range that the kernel's list of the device's bad blocks has.

    Empty where there is no such list: only persistent memory, md and a few others keep one
    (Documentation/ABI/stable/sysfs-block).  The list of a partition is that of its disk.
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
