"""A device, or a file on a filesystem, read and written past the page cache (O_DIRECT).

What is read is what the medium gives at this moment, not what the kernel remembers; and a read
fails for the logical sectors that are bad, not for the whole page around them.
"""

import ctypes
import errno
import fcntl
import mmap
import os
import stat
import struct
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import cache
from typing import Final, NamedTuple

from whoseblock.closing import Closing
from whoseblock.errors import MediaError, TargetError
from whoseblock.media.halves import MEDIA_ERRNOS, Reading, read_by_halves
from whoseblock.ranges import ByteRange, merge

__all__ = ["DirectMedia"]

#: Read and written at once.
_PIECE: Final = 1 << 20

_BLKSSZGET: Final = 0x1268  # linux/fs.h

# linux/stat.h
_AT_EMPTY_PATH: Final = 0x1000
_STATX_DIOALIGN: Final = 0x2000
_STATX_DIO_READ_ALIGN: Final = 0x20000
#: Of ``struct statx`` the mask, ``dio_offset_align``, and ``dio_read_offset_align`` (since 6.16).
_STATX: Final = struct.Struct("=I152xI20xI72x")

#: What is tried where the kernel (before 6.1) or the filesystem does not say.
_SECTORS: Final = (512, 4096)


class _Alignment(NamedTuple):
    # What offsets and lengths must be multiples of.
    read: int
    write: int


class DirectMedia(Closing):
    """A block device or a regular file, opened with O_DIRECT.

    It is given by its path, or by a descriptor, through which it is opened once more: flags and
    offset of the descriptor stay as they are, and whoever opened it closes it.  Not to open it
    again, as whoever holds a lease on a file must not, ``reopen`` is False: then the descriptor
    itself has O_DIRECT until this is closed.  Opened read-only unless ``writable``.  Reading leaves
    the time of the last access alone where we may say so.

    ``align`` is the logical sector, by which reads succeed or fail.  Raises `TargetError` if it
    cannot be opened, is neither of the two, or is on a filesystem without O_DIRECT.
    """

    def __init__(
        self, given: int | str | os.PathLike[str], *, writable: bool = False, reopen: bool = True
    ) -> None:
        self.name = os.fspath(given) if not isinstance(given, int) else f"descriptor {given}"
        self._borrowed = False
        try:
            if isinstance(given, int) and not reopen:
                self._fd = os.dup(given)
                self._borrowed = _set_direct(self._fd)
            else:
                self._fd = _open_direct(given, writable=writable)
        except OSError as error:
            raise TargetError(
                f"cannot open {self.name!r} past the page cache: {error.strerror}"
            ) from error
        try:
            self._is_device = self._check_kind()
            self.align = self._alignment().read
        except BaseException:
            self.close()
            raise

    @property
    def size(self) -> int:
        """Its size in bytes at this moment."""
        return os.lseek(self._fd, 0, os.SEEK_END)

    @property
    def write_align(self) -> int:
        """What is written must begin and end at multiples of this.

        It is ``align``, but for a file that shares blocks: of those a filesystem writes none in
        part without reading the rest.  Files become such at any moment.
        """
        return self._alignment().write

    def pread(self, offset: int, length: int) -> bytes:
        """Give exactly ``length`` bytes from ``offset``, aligned or not.

        Raises `MediaError` with exactly the bytes asked for that are in sectors that failed; past
        the end counts as failed.
        """
        pieces: list[bytes] = []
        lost: list[ByteRange] = []
        reason = ""
        for found in self._readings(offset, length):
            if found.lost:
                lost += found.lost
                reason = reason or found.reason
            pieces.append(found.data)
        if lost:
            raise MediaError(merge(lost), reason)
        return b"".join(pieces)

    def failing(self, start: int, length: int) -> list[ByteRange]:
        """Give the sectors that cannot be read, of those that any byte of the range is in.

        They are whole, but for the last one of a file, merged and ascending.  Past the end, what
        was asked for counts as failed.
        """
        first = start // self.align * self.align
        end = start + length
        end = max(end, min(-(-end // self.align) * self.align, self.size))
        return merge(lost for found in self._readings(first, end - first) for lost in found.lost)

    def readable(self, start: int, length: int) -> Iterator[tuple[int, bytes]]:
        """Give what can be read of a range, in pieces of at most 1 MiB, each with its offset."""
        for found in self._readings(start, length):
            yield from found.pieces

    def pwrite(self, offset: int, data: bytes | bytearray | memoryview) -> None:
        """Write all of ``data`` at ``offset``.

        Raises `ValueError` unless both are multiples of ``write_align``, and `OSError` if the
        medium does not take it.
        """
        align = self.write_align
        if offset % align or len(data) % align:
            raise ValueError(f"{offset}+{len(data)} is not aligned to {align} bytes")
        view = memoryview(data)
        with _buffer(min(len(view), _PIECE)) as buffer:
            while view:
                count = min(len(view), len(buffer))
                buffer[:count] = view[:count]
                with _part(buffer, count) as part:
                    written = os.pwritev(self._fd, [part], offset)
                if written <= 0 or written % align:
                    raise OSError(errno.EIO, f"only {written} bytes of {count} were written")
                view = view[written:]
                offset += written

    def sync(self) -> None:
        """Have what was written outlast a failure of the machine."""
        os.fdatasync(self._fd)

    def close(self) -> None:
        """Close it."""
        if self._borrowed:
            flags = fcntl.fcntl(self._fd, fcntl.F_GETFL)
            fcntl.fcntl(self._fd, fcntl.F_SETFL, flags & ~os.O_DIRECT)
        os.close(self._fd)

    def _check_kind(self) -> bool:
        """Say whether it is a device; raises `TargetError` if it is no file either."""
        mode = os.fstat(self._fd).st_mode
        if not (stat.S_ISREG(mode) or stat.S_ISBLK(mode)):
            raise TargetError(f"{self.name!r} is neither a regular file nor a block device")
        return stat.S_ISBLK(mode)

    def _readings(self, start: int, length: int) -> Iterator[Reading]:
        """Read piece by piece, each by halves if it fails."""
        size, end = self.size, start + length
        room = max(min(end, size) - start, 0) // self.align * self.align + 2 * self.align
        with _buffer(min(room, _PIECE)) as buffer:
            while start < min(end, size):
                # All pieces but the first begin with a sector, and fill the buffer.
                stop = min(start // self.align * self.align + len(buffer), end, size)
                yield self._by_halves(buffer, start, stop - start, size)
                start = stop
            if start < end:
                yield self._by_halves(buffer, start, end - start, size)

    def _by_halves(self, buffer: mmap.mmap, start: int, length: int, size: int) -> Reading:
        def read(at: int, count: int) -> bytes:
            first = at // self.align * self.align
            end = -(-(at + count) // self.align) * self.align
            with _part(buffer, end - first) as part:
                done = os.preadv(self._fd, [part], first)
            return buffer[at - first : min(at - first + count, done)]

        return read_by_halves(read, start, length, size=size, sector=self.align)

    def _alignment(self) -> _Alignment:
        if self._is_device:
            answer = bytearray(4)
            fcntl.ioctl(self._fd, _BLKSSZGET, answer)
            (sector,) = struct.unpack("=I", answer)
            return _Alignment(sector, sector)
        told = _told_alignment(self._fd)
        if told is None:
            found = _found_alignment(self._fd)
            return _Alignment(found, found)
        if not told.write:
            raise TargetError(
                f"{self.name!r} is on a filesystem that cannot go past the page cache"
            )
        return told


def _open_direct(given: int | str | os.PathLike[str], *, writable: bool) -> int:
    path = f"/proc/self/fd/{given}" if isinstance(given, int) else given
    # O_NONBLOCK: opening a FIFO by mistake must not wait for its writer.
    flags = (os.O_RDWR if writable else os.O_RDONLY) | os.O_CLOEXEC | os.O_NONBLOCK | os.O_DIRECT
    try:
        return os.open(path, flags | os.O_NOATIME)
    except PermissionError:
        # Only the owner of a file may leave its time alone.
        return os.open(path, flags)


def _set_direct(fd: int) -> bool:
    """Have a descriptor of our own go past the page cache; closes it if it cannot.

    So do then all descriptors that were made from the same one.  Says whether they did not before.
    """
    try:
        flags = fcntl.fcntl(fd, fcntl.F_GETFL)
        fcntl.fcntl(fd, fcntl.F_SETFL, flags | os.O_DIRECT)
    except BaseException:
        os.close(fd)
        raise
    return not flags & os.O_DIRECT


@contextmanager
def _buffer(size: int) -> Iterator[mmap.mmap]:
    """Give memory that is aligned to pages, as no device asks for more."""
    pages = -(-max(size, 1) // mmap.PAGESIZE)
    with mmap.mmap(-1, pages * mmap.PAGESIZE) as buffer:
        yield buffer


@contextmanager
def _part(buffer: mmap.mmap, count: int) -> Iterator[memoryview]:
    """Give the beginning of a buffer; a view that an error keeps would keep it from closing."""
    with memoryview(buffer) as whole, whole[:count] as part:
        yield part


@cache
def _statx() -> "Callable[..., int] | None":
    libc = ctypes.CDLL(None, use_errno=True)
    return getattr(libc, "statx", None)


def _told_alignment(fd: int) -> _Alignment | None:
    """Ask for the alignment of a regular file; 0 is a file without O_DIRECT, None no answer."""
    statx = _statx()
    answer = ctypes.create_string_buffer(_STATX.size)
    wanted = _STATX_DIOALIGN | _STATX_DIO_READ_ALIGN
    if statx is None or statx(fd, b"", _AT_EMPTY_PATH, wanted, answer) != 0:
        return None
    mask, write, read = _STATX.unpack(answer.raw)
    if not mask & _STATX_DIOALIGN:
        return None
    return _Alignment(read if mask & _STATX_DIO_READ_ALIGN and read else write, write)


def _found_alignment(fd: int) -> int:
    """Try with which alignment a regular file can be read; holes would take any."""
    try:
        at = os.lseek(fd, 0, os.SEEK_DATA) // max(_SECTORS) * max(_SECTORS)
    except OSError:
        return max(_SECTORS)
    with _buffer(max(_SECTORS)) as buffer:
        for sector in _SECTORS:
            try:
                with _part(buffer, sector) as part:
                    os.preadv(fd, [part], at)
            except OSError as error:
                if error.errno == errno.EINVAL:
                    continue
                if error.errno not in MEDIA_ERRNOS:
                    raise
            return sector
    return max(_SECTORS)
