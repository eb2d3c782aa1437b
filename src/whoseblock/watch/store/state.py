"""Keep the daemon's state between runs: a folder of small files, locked by one daemon."""

import errno
import fcntl
import os
from contextlib import suppress
from pathlib import Path
from typing import Any, Final, TypeVar

import msgspec
from msgspec import Struct, field

from whoseblock.closing import Closing
from whoseblock.errors import TargetError
from whoseblock.media.trusted_files import (
    UntrustedFileError,
    check_file,
    find_trusted,
    open_folder,
)
from whoseblock.ranges import ByteRange

__all__ = [
    "HandledLists",
    "LogPosition",
    "StateFolder",
    "usual_state_folder",
    "write_atomically",
    "write_for_others",
]

_Record = TypeVar("_Record")
#: The files that are replaced, not opened.
_REPLACED: Final = frozenset({"socket"})


class LogPosition(Struct, frozen=True):
    """The position up to which the kernel log was read: the number of a message, and its boot.

    ``skew`` is how many seconds the log's clock was behind the monotonic one, 0 if it was not
    measured.  ``at`` is when that message was logged, in seconds since 1970, 0 if that is unknown.
    """

    boot: str = ""
    sequence: int = -1
    skew: float = 0.0
    at: float = 0.0


class HandledLists(Struct):
    """The content of the bad-block lists that were processed, by device.

    ``keys`` are the keys of the last processed report of each list; they ascend. ``identities`` are
    the identities of the devices that had the names.
    """

    ranges: dict[str, tuple[ByteRange, ...]] = field(default_factory=dict)
    keys: dict[str, str] = field(default_factory=dict)
    identities: dict[str, str] = field(default_factory=dict)

    @property
    def last(self) -> int:
        """The number of the last of these reports in the spool."""
        numbers = (key.partition(":")[0] for key in self.keys.values())
        return max((int(one) for one in numbers if one.isdecimal()), default=0)


def usual_state_folder() -> Path:
    """Return the default state folder."""
    if os.geteuid() == 0:
        return Path("/var/lib/whoseblock/watch")
    state = os.environ.get("XDG_STATE_HOME", "")
    # The XDG specification says to ignore a relative path.
    folder = Path(state) if state.startswith("/") else Path("~/.local/state").expanduser()
    return folder / "whoseblock" / "watch"


class StateFolder(Closing):
    """The folder, locked.

    No other user may be able to write to it or replace it: the daemon overwrites its files, and
    believes them.  Raises `TargetError` if that is not so, if the folder is unusable, or if another
    daemon has it.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        try:
            _check_trusted(path)
            self._lock = os.open(self.lock, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        except UntrustedFileError as error:
            raise TargetError(str(error), hint=error.hint) from error
        except OSError as error:
            raise TargetError(
                f"cannot use the state folder {str(path)!r}: {error.strerror}",
                hint="choose another with --state",
            ) from error
        try:
            fcntl.flock(self._lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            os.close(self._lock)
            raise TargetError(
                f"another whoseblock watch uses the state folder {str(path)!r}",
                hint="whoseblock status shows what it does",
            ) from None

    @property
    def lock(self) -> Path:
        """The locked file. Every process of the daemon has it open, and no other process."""
        return self.path / "lock"

    @property
    def has_vanished(self) -> bool:
        """Whether the folder was removed or replaced, so that another daemon may lock the name."""
        try:
            return not os.path.samestat(self.lock.stat(), os.fstat(self._lock))
        except (FileNotFoundError, NotADirectoryError):
            return True

    def load(self, name: str, kind: type[_Record]) -> _Record | None:
        """Read a record; None if it is missing or cannot be decoded."""
        try:
            return msgspec.json.decode((self.path / name).read_bytes(), type=kind)
        except (OSError, msgspec.DecodeError):
            return None

    def save(self, name: str, record: Any, *, durable: bool = True) -> None:  # noqa: ANN401 - whatever msgspec encodes
        """Write a record so that a crash leaves either the old one or the new one.

        One that is not ``durable`` survives this process, but may not survive the machine.
        """
        write_atomically(self.path / name, msgspec.json.encode(record), durable=durable)

    def close(self) -> None:
        """Unlock the folder."""
        os.close(self._lock)


def _check_trusted(folder: Path) -> None:
    """Create the folder if it is missing; raise unless it and all in it is of this user or root."""
    title = f"the state folder {str(folder)!r}"
    lock = find_trusted(title, folder.absolute() / "lock", make=True)
    with os.scandir(lock.path.parent) as entries:
        # They may have been put there while another user could write to the folder.
        for entry in entries:
            path = Path(entry.path)
            if entry.is_dir(follow_symlinks=False):
                find_trusted(title, path / "any", make=False)
            elif entry.name not in _REPLACED:
                check_file(lock._replace(path=path))


def write_atomically(path: Path, data: bytes, mode: int = 0o600, *, durable: bool = True) -> None:
    """Write a file so that it has all of ``data`` or does not change, with fsync if ``durable``."""
    folder = os.open(path.parent, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        _write(folder, path.name, data, mode, durable=durable)
    finally:
        os.close(folder)


def write_for_others(path: Path, data: bytes) -> None:
    """Write a file that others may read, in a folder that may belong to another user.

    The file has all of ``data`` or does not change; it may not survive the machine. Raises
    `OSError`, also if another user directs the path elsewhere.
    """
    try:
        folder = open_folder(path.parent)
    except UntrustedFileError as error:
        raise OSError(errno.EPERM, str(error)) from error
    try:
        _write(folder, path.name, data, 0o644, durable=False)
    finally:
        os.close(folder)


def _write(folder: int, name: str, data: bytes, mode: int, *, durable: bool) -> None:
    """Write a file to a folder, under another name first."""
    new = f".{name}.{os.urandom(4).hex()}"
    try:
        fd = os.open(new, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, mode, dir_fd=folder)
        try:
            view = memoryview(data)
            while view:
                view = view[os.write(fd, view) :]
            if durable:
                os.fsync(fd)
        finally:
            os.close(fd)
        os.rename(new, name, src_dir_fd=folder, dst_dir_fd=folder)
    except BaseException:
        with suppress(OSError):
            os.unlink(new, dir_fd=folder)
        raise
    if durable:
        os.fsync(folder)
