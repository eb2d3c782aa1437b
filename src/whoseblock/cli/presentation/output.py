"""Write results to standard output, and to a file atomically."""

import os
import stat
import sys
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import BinaryIO, Final

from whoseblock.errors import OutputError

__all__ = ["OutputFile", "write_chunks", "write_lines"]

#: The approximate size of a write in bytes.
_WRITE_SIZE: Final = 1 << 18
#: The mode of a new file, before the umask.
_MODE: Final = 0o666


def write_chunks(chunks: Iterable[bytes]) -> None:
    """Write chunks of bytes to standard output, many per write."""
    pending: list[bytes] = []
    size = 0
    for chunk in chunks:
        pending.append(chunk)
        size += len(chunk)
        if size >= _WRITE_SIZE:
            sys.stdout.buffer.write(b"".join(pending))
            pending.clear()
            size = 0
    sys.stdout.buffer.write(b"".join(pending))
    sys.stdout.buffer.flush()


def write_lines(lines: Iterable[bytes]) -> None:
    """Write lines to standard output, many per write."""
    write_chunks(line + b"\n" for line in lines)


class OutputFile:
    """The file of ``--output``, which appears under its name when it is complete.

    The content goes to a temporary file in the same folder, which is then renamed. Other files than
    regular ones, such as pipes, are written directly. A symbolic link is kept.
    """

    def __init__(self, path: str) -> None:
        self.path = path
        self._target = Path(os.path.realpath(path))

    def check(self) -> None:
        """Raise `OutputError` if the file cannot be created."""
        with self._convert_errors():
            if self._is_special:
                return
            descriptor, name = self._make_temporary()
            os.close(descriptor)
            os.unlink(name)  # noqa: PTH108 - a name of tempfile

    def write(self, content: Iterable[bytes]) -> None:
        """Write all of ``content`` or nothing; raises `OutputError`."""
        with self._convert_errors():
            if self._is_special:
                with self._target.open("wb") as file:
                    file.writelines(content)
                return
            descriptor, name = self._make_temporary()
            try:
                with os.fdopen(descriptor, "wb") as file:
                    file.writelines(content)
                    self._set_mode_and_sync(file)
                os.rename(name, self._target)  # noqa: PTH104
            except BaseException:
                with suppress(OSError):
                    os.unlink(name)  # noqa: PTH108
                raise

    @property
    def _is_special(self) -> bool:
        try:
            return not stat.S_ISREG(self._target.stat().st_mode)
        except FileNotFoundError:
            return False

    def _make_temporary(self) -> tuple[int, str]:
        # Most commands write no file.
        import tempfile

        return tempfile.mkstemp(dir=self._target.parent, prefix=f".{self._target.name[:64]}.")

    def _set_mode_and_sync(self, file: BinaryIO) -> None:
        """Set the mode of the replaced file, or of a new one, and flush to stable storage."""
        try:
            mode = stat.S_IMODE(self._target.stat().st_mode)
        except FileNotFoundError:
            mask = os.umask(0)
            os.umask(mask)
            mode = _MODE & ~mask
        os.fchmod(file.fileno(), mode)
        file.flush()
        os.fsync(file.fileno())

    @contextmanager
    def _convert_errors(self) -> Iterator[None]:
        try:
            yield
        except OSError as error:
            raise OutputError(f"cannot write {self.path!r}: {error.strerror}") from error
