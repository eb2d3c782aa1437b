"""A device or a file, read and written past the page cache (O_DIRECT).

A read returns the present content of the medium, not that of the page cache. It fails for the bad
logical sectors only, not for the whole page around them.
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
from whoseblock.media.bisection import MEDIA_ERRNOS, PartialRead, read_bisected
from whoseblock.ranges import ByteRange, merge

__all__ = ["DirectMedia"]

#: The size of a single read or write in bytes.
_PIECE: Final = 1 << 20

_BLKSSZGET: Final = 0x1268  # linux/fs.h

# linux/stat.h
_AT_EMPTY_PATH: Final = 0x1000
_STATX_DIOALIGN: Final = 0x2000
_STATX_DIO_READ_ALIGN: Final = 0x20000
#: Of ``struct statx`` the mask, ``dio_offset_align``, and ``dio_read_offset_align`` (since 6.16).
_STATX: Final = struct.Struct("=I152xI20xI72x")

#: Alignments to try if the kernel (before 6.1) or the filesystem reports none.
_SECTORS: Final = (512, 4096)


class _Alignment(NamedTuple):
    # Offsets and lengths must be multiples of these.
    read: int
    write: int


class DirectMedia(Closing):
    """A block device or a regular file, opened with O_DIRECT, read-only unless ``writable``.

    ``given`` is a path or a descriptor. A descriptor is opened once more: its flags and offset do
    not change, and its owner closes it. If ``reopen`` is False, the descriptor itself has O_DIRECT
    until this medium is closed; a holder of a lease on a file must not open the file again. Reading
    does not change the time of the last access, if that is permitted.

    ``align`` is the logical sector size, the unit in which reads succeed or fail. Raises
    `TargetError` if it cannot be opened, is neither of the two, or is on a filesystem without
    O_DIRECT.
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
        """The present size in bytes."""
        return os.lseek(self._fd, 0, os.SEEK_END)

    @property
    def write_align(self) -> int:
        """Offsets and lengths of writes must be multiples of this.

        It is ``align``, except for a file with shared blocks: a filesystem writes no part of a
        shared block without reading the rest. A file may get shared blocks at any time.
        """
        return self._alignment().write

    def pread(self, offset: int, length: int) -> bytes:
        """Return exactly ``length`` bytes from ``offset``, aligned or not.

        Raises `MediaError` with exactly the requested bytes that are in failed sectors; bytes past
        the end count as failed.
        """
        pieces: list[bytes] = []
        lost: list[ByteRange] = []
        reason = ""
        for found in self._read_pieces(offset, length):
            if found.lost:
                lost += found.lost
                reason = reason or found.reason
            pieces.append(found.data)
        if lost:
            raise MediaError(merge(lost), reason)
        return b"".join(pieces)

    def failing(self, start: int, length: int) -> list[ByteRange]:
        """Return the unreadable sectors that overlap a range.

        They are whole sectors, except the last one of a file, merged and ascending. Bytes past the
        end count as failed.
        """
        first = start // self.align * self.align
        end = start + length
        end = max(end, min(-(-end // self.align) * self.align, self.size))
        return merge(lost for found in self._read_pieces(first, end - first) for lost in found.lost)

    def check(self, start: int, length: int) -> None:
        """Read a range once, in pieces of 1 MiB; raises `OSError` if it cannot be read."""
        end = -(-(start + length) // self.align) * self.align
        at = start // self.align * self.align
        with _buffer(min(end - at, _PIECE)) as buffer:
            while at < end:
                with _part(buffer, min(end - at, _PIECE)) as part:
                    done = os.preadv(self._fd, [part], at)
                if done <= 0:
                    raise OSError(errno.EIO, "it ends there")
                at += done

    def readable(self, start: int, length: int) -> Iterator[tuple[int, bytes]]:
        """Yield the readable pieces of a range, at most 1 MiB each, with their offsets."""
        for found in self._read_pieces(start, length):
            yield from found.pieces

    def pwrite(self, offset: int, data: bytes | bytearray | memoryview) -> None:
        """Write all of ``data`` at ``offset``.

        Raises `ValueError` unless both are multiples of ``write_align``, and `OSError` if the write
        fails.
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
        """Flush written data to stable storage."""
        os.fdatasync(self._fd)

    def close(self) -> None:
        """Close the medium."""
        if self._borrowed:
            flags = fcntl.fcntl(self._fd, fcntl.F_GETFL)
            fcntl.fcntl(self._fd, fcntl.F_SETFL, flags & ~os.O_DIRECT)
        os.close(self._fd)

    def _check_kind(self) -> bool:
        """Return whether it is a device; raises `TargetError` if it is no regular file either."""
        mode = os.fstat(self._fd).st_mode
        if not (stat.S_ISREG(mode) or stat.S_ISBLK(mode)):
            raise TargetError(f"{self.name!r} is neither a regular file nor a block device")
        return stat.S_ISBLK(mode)

    def _read_pieces(self, start: int, length: int) -> Iterator[PartialRead]:
        """Read a range in pieces, and bisect those that fail."""
        size, end = self.size, start + length
        room = max(min(end, size) - start, 0) // self.align * self.align + 2 * self.align
        with _buffer(min(room, _PIECE)) as buffer:
            while start < min(end, size):
                # All pieces except the first begin at a sector and fill the buffer.
                stop = min(start // self.align * self.align + len(buffer), end, size)
                yield self._read_bisected(buffer, start, stop - start, size)
                start = stop
            if start < end:
                yield self._read_bisected(buffer, start, end - start, size)

    def _read_bisected(self, buffer: mmap.mmap, start: int, length: int, size: int) -> PartialRead:
        def read(at: int, count: int) -> bytes:
            first = at // self.align * self.align
            end = -(-(at + count) // self.align) * self.align
            with _part(buffer, end - first) as part:
                done = os.preadv(self._fd, [part], first)
            return buffer[at - first : min(at - first + count, done)]

        return read_bisected(read, start, length, size=size, sector=self.align)

    def _alignment(self) -> _Alignment:
        if self._is_device:
            answer = bytearray(4)
            fcntl.ioctl(self._fd, _BLKSSZGET, answer)
            (sector,) = struct.unpack("=I", answer)
            return _Alignment(sector, sector)
        reported = _query_alignment(self._fd)
        if reported is None:
            found = _try_alignments(self._fd)
            return _Alignment(found, found)
        if not reported.write:
            raise TargetError(f"{self.name!r} is on a filesystem without O_DIRECT")
        return reported


def _open_direct(given: int | str | os.PathLike[str], *, writable: bool) -> int:
    path = f"/proc/self/fd/{given}" if isinstance(given, int) else given
    # O_NONBLOCK: do not wait for the writer of a FIFO that was named by mistake.
    flags = (os.O_RDWR if writable else os.O_RDONLY) | os.O_CLOEXEC | os.O_NONBLOCK | os.O_DIRECT
    try:
        return os.open(path, flags | os.O_NOATIME)
    except PermissionError:
        # Only the owner of a file may use O_NOATIME.
        return os.open(path, flags)


def _set_direct(fd: int) -> bool:
    """Set O_DIRECT on a descriptor, and close it if that fails.

    The flag applies to all descriptors duplicated from the same one. Returns whether it was unset.
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
    """Yield memory aligned to pages, the largest alignment that devices need."""
    pages = -(-max(size, 1) // mmap.PAGESIZE)
    with mmap.mmap(-1, pages * mmap.PAGESIZE) as buffer:
        yield buffer


@contextmanager
def _part(buffer: mmap.mmap, count: int) -> Iterator[memoryview]:
    """Yield the beginning of a buffer, and release the view, which would keep the buffer open."""
    with memoryview(buffer) as whole, whole[:count] as part:
        yield part


@cache
def _statx() -> "Callable[..., int] | None":
    libc = ctypes.CDLL(None, use_errno=True)
    return getattr(libc, "statx", None)


def _query_alignment(fd: int) -> _Alignment | None:
    """Return the alignment of a regular file; 0 without O_DIRECT, None if it is unknown."""
    statx = _statx()
    answer = ctypes.create_string_buffer(_STATX.size)
    wanted = _STATX_DIOALIGN | _STATX_DIO_READ_ALIGN
    if statx is None or statx(fd, b"", _AT_EMPTY_PATH, wanted, answer) != 0:
        return None
    mask, write, read = _STATX.unpack(answer.raw)
    if not mask & _STATX_DIOALIGN:
        return None
    return _Alignment(read if mask & _STATX_DIO_READ_ALIGN and read else write, write)


def _try_alignments(fd: int) -> int:
    """Return the smallest alignment with which a regular file can be read, outside of holes."""
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
