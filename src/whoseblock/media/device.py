"""A device or an image file, read with pread(2)."""

import errno
import os
import stat
from typing import Final

from whoseblock.errors import ClosedError, MediaError, PrivilegeError, TargetError
from whoseblock.media.bisection import MEDIA_ERRNOS, read_bisected
from whoseblock.media.loops import FileIdentity

__all__ = ["SECTOR", "FileMedia"]

#: The unit of Linux's media errors in bytes, whatever the sector size of the device.
SECTOR: Final = 512


class FileMedia:
    """A block device or an image file, opened read-only unless ``writable``.

    ``given`` is a path, or a descriptor, which is opened once more; messages name it ``name``.
    The page cache of a device is dropped first, unless ``keep_cache``. Dropping it writes what is
    dirty, and a reader must not write the metadata of a mounted filesystem.
    Raises `TargetError` if it cannot be opened or is neither of the two, and `PrivilegeError`
    without permission.
    """

    def __init__(
        self,
        given: int | str | os.PathLike[str],
        *,
        writable: bool = False,
        name: str = "",
        keep_cache: bool = False,
    ) -> None:
        path = f"/proc/self/fd/{given}" if isinstance(given, int) else os.fspath(given)
        self.name = name or path
        # O_NONBLOCK: do not wait for the writer of a FIFO that was named by mistake.
        flags = (os.O_RDWR if writable else os.O_RDONLY) | os.O_CLOEXEC | os.O_NONBLOCK
        try:
            self._fd = os.open(path, flags)
        except OSError as error:
            message = f"cannot open {self.name!r}: {error.strerror}"
            if isinstance(error, PermissionError) and os.geteuid():
                raise PrivilegeError(message) from error
            raise TargetError(message) from error
        mode = os.fstat(self._fd).st_mode
        if not (stat.S_ISREG(mode) or stat.S_ISBLK(mode)):
            os.close(self._fd)
            raise TargetError(
                f"{self.name!r} is neither an image file nor a block device",
                hint="name the device or the image of the filesystem",
            )
        self.size = os.lseek(self._fd, 0, os.SEEK_END)
        if stat.S_ISBLK(mode) and not keep_cache:
            # A filesystem may bypass the page cache of its device, which is then out of date.
            os.posix_fadvise(self._fd, 0, 0, os.POSIX_FADV_DONTNEED)

    @property
    def identity(self) -> FileIdentity:
        """The file that is open, whatever has its name by now."""
        return FileIdentity.of(self._fd)

    def reopened(self) -> "FileMedia":
        """Open the same file once more for reading, whatever has its name by now."""
        return FileMedia(self._fd, name=self.name)

    def pread(self, offset: int, length: int) -> bytes:
        """Return exactly ``length`` bytes from ``offset``.

        Raises `MediaError` with exactly the sectors that failed; past the end counts as failed.
        """
        try:
            data = os.pread(self._fd, length, offset)
        except OSError as error:
            if self._fd < 0:
                raise ClosedError(f"{self.name!r} is closed") from error
            if error.errno not in MEDIA_ERRNOS:
                raise
        else:
            if len(data) == length:
                return data
        found = read_bisected(
            lambda start, count: os.pread(self._fd, count, start),
            offset,
            length,
            size=self.size,
            sector=SECTOR,
        )
        if found.lost:
            raise MediaError(found.lost, found.reason)
        return found.data

    def next_data(self, offset: int) -> int:
        """Return an offset up to which the file has only zeros from ``offset`` on."""
        try:
            return os.lseek(self._fd, offset, os.SEEK_DATA)
        except OSError as error:
            # Devices have no holes; ENXIO is a hole up to the end of a file.
            return max(offset, self.size) if error.errno == errno.ENXIO else offset

    def pwrite(self, offset: int, data: bytes) -> None:
        """Write all of ``data`` at ``offset``; the medium must be ``writable``."""
        view = memoryview(data)
        while view:
            written = os.pwrite(self._fd, view, offset)
            view = view[written:]
            offset += written

    def sync(self) -> None:
        """Flush written data to stable storage."""
        os.fsync(self._fd)

    def close(self) -> None:
        """Close the file; a second time has no effect."""
        fd, self._fd = self._fd, -1
        if fd >= 0:
            os.close(fd)
