"""Keep failed blocks in files of a hidden folder, so that they are not allocated again."""

import contextlib
import os
import stat
from typing import Final

from whoseblock.fs.driver import MountedVolume
from whoseblock.ranges import ByteRange
from whoseblock.respond import syscalls
from whoseblock.respond.exceptions import NotNowError, RefusedError
from whoseblock.respond.owners import QUARANTINE
from whoseblock.respond.relocate import Keeper

__all__ = ["QuarantineKeeper"]

_FLAGS: Final = os.O_CREAT | os.O_RDWR | os.O_NOFOLLOW | os.O_CLOEXEC


class QuarantineKeeper(Keeper):
    """A permanent keeper, named ``START+LENGTH`` in the folder `QUARANTINE`.

    The file of an interrupted run is used again; ``kept`` says whether it is immutable already.
    Raises `RefusedError` if it cannot be used, and `NotNowError` if no file can be created.
    """

    def __init__(self, fs: MountedVolume, run: ByteRange) -> None:
        self.name = f"{run.start}+{run.length}"
        with contextlib.ExitStack() as undo:
            self._folder = _open_folder(fs)
            undo.callback(os.close, self._folder)
            self.kept, fd = self._open()
            undo.callback(os.close, fd)
            super().__init__(fs, run, fd)
            if not self.has_run():
                if self.kept:
                    raise RefusedError(f"the file {run} in quarantine now has other blocks")
                os.ftruncate(fd, 0)
            # The name must be durable before any owner is changed.
            os.fsync(self._folder)
            undo.pop_all()

    def _open(self) -> tuple[bool, int]:
        try:
            return False, os.open(self.name, _FLAGS, 0o600, dir_fd=self._folder)
        except PermissionError:
            flags = os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC
            return True, os.open(self.name, flags, dir_fd=self._folder)
        except OSError as error:
            raise NotNowError(f"cannot create a file in quarantine: {error.strerror}") from error

    def keep(self) -> None:
        """Make the file immutable."""
        os.fsync(self.fd)
        syscalls.set_immutable(self.fd)
        os.fsync(self._folder)

    def release(self) -> None:
        """Remove the file; closing it frees the blocks."""
        with contextlib.suppress(FileNotFoundError):
            os.unlink(self.name, dir_fd=self._folder)
        os.fsync(self._folder)

    def close(self) -> None:
        """Close the file, and remove it if it has no blocks."""
        try:
            if not os.fstat(self.fd).st_blocks:
                self.release()
        finally:
            os.close(self.fd)
            os.close(self._folder)


def _open_folder(fs: MountedVolume) -> int:
    root = fs.root_fd
    if root is None:
        raise RefusedError("the root of the filesystem cannot be reached")
    try:
        with contextlib.suppress(FileExistsError):
            os.mkdir(QUARANTINE, 0o700, dir_fd=root)
        flags = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC
        fd = os.open(QUARANTINE, flags, dir_fd=root)
    except OSError as error:
        raise NotNowError(f"cannot create /{QUARANTINE}: {error.strerror}") from error
    status = os.fstat(fd)
    if status.st_uid != 0 or stat.S_IMODE(status.st_mode) & 0o077:
        os.close(fd)
        raise RefusedError(f"/{QUARANTINE} is accessible to users other than root")
    return fd
