"""Output of results: to standard output, and to a file that is written completely or not."""

import os
import stat
import sys
import tempfile
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import BinaryIO, Final

from whoseblock.errors import OutputError

__all__ = ["OutputFile", "write_chunks", "write_lines"]

#: The approximate number of bytes in one write.
_BYTES_A_WRITE: Final = 1 << 18
#: The mode of a new file, before the umask.
_MODE: Final = 0o666


def write_chunks(chunks: Iterable[bytes]) -> None:
    """Write bytes to standard output, many chunks at once."""
    pending: list[bytes] = []
    size = 0
    for chunk in chunks:
        pending.append(chunk)
        size += len(chunk)
        if size >= _BYTES_A_WRITE:
            sys.stdout.buffer.write(b"".join(pending))
            pending.clear()
            size = 0
    sys.stdout.buffer.write(b"".join(pending))
    sys.stdout.buffer.flush()


def write_lines(lines: Iterable[bytes]) -> None:
    """Write lines to standard output, many at once."""
    write_chunks(line + b"\n" for line in lines)


class OutputFile:
    """The file of ``--output``, which appears under its name when it is complete.

    It is written to a temporary file in the same folder, and renamed.  If the name is not a regular
    file, such as a pipe, it is written directly.  A symbolic link stays one.
    """

    def __init__(self, path: str) -> None:
        self.path = path
        self._place = Path(os.path.realpath(path))

    def check(self) -> None:
        """Raise `OutputError` if the file cannot be made, before anything is read for it."""
        with self._faults():
            if self._is_special:
                return
            descriptor, name = self._temporary()
            os.close(descriptor)
            os.unlink(name)  # noqa: PTH108 - a name of tempfile

    def write(self, content: Iterable[bytes]) -> None:
        """Write all of ``content``, or nothing; raises `OutputError`."""
        with self._faults():
            if self._is_special:
                with self._place.open("wb") as file:
                    file.writelines(content)
                return
            descriptor, name = self._temporary()
            try:
                with os.fdopen(descriptor, "wb") as file:
                    file.writelines(content)
                    self._settle(file)
                os.rename(name, self._place)  # noqa: PTH104
            except BaseException:
                with suppress(OSError):
                    os.unlink(name)  # noqa: PTH108
                raise

    @property
    def _is_special(self) -> bool:
        try:
            return not stat.S_ISREG(self._place.stat().st_mode)
        except FileNotFoundError:
            return False

    def _temporary(self) -> tuple[int, str]:
        return tempfile.mkstemp(dir=self._place.parent, prefix=f".{self._place.name[:64]}.")

    def _settle(self, file: BinaryIO) -> None:
        """Set the mode of the file that it replaces, or of a new one, and sync it."""
        try:
            mode = stat.S_IMODE(self._place.stat().st_mode)
        except FileNotFoundError:
            mask = os.umask(0)
            os.umask(mask)
            mode = _MODE & ~mask
        os.fchmod(file.fileno(), mode)
        file.flush()
        os.fsync(file.fileno())

    @contextmanager
    def _faults(self) -> Iterator[None]:
        try:
            yield
        except OSError as error:
            raise OutputError(f"cannot write {self.path!r}: {error.strerror}") from error
