"""What the daemon remembers between its runs: a folder of small files, one daemon at a time."""

import fcntl
import os
from contextlib import suppress
from pathlib import Path
from typing import Any, Final, TypeVar

import msgspec
from msgspec import Struct, field

from whoseblock.closing import Closing
from whoseblock.errors import TargetError
from whoseblock.ranges import ByteRange

__all__ = ["HandledLists", "LogPosition", "StateFolder", "usual_state_folder", "write_atomically"]

_Record = TypeVar("_Record")
_MODE: Final = 0o700


class LogPosition(Struct, frozen=True):
    """How far the kernel's log was read: a message's number, and the boot that it belongs to.

    ``skew`` is by how many seconds its clock was behind the monotonic one.
    """

    boot: str = ""
    sequence: int = -1
    skew: float = 0.0


class HandledLists(Struct):
    """What the bad-blocks lists held that have been dealt with, by device.

    ``keys`` name the last report of each list that was dealt with; they ascend.  ``identities``
    say which device it was that had the name.
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
    """Give where the state is kept unless somebody says otherwise."""
    if os.geteuid() == 0:
        return Path("/var/lib/whoseblock/watch")
    state = os.environ.get("XDG_STATE_HOME", "")
    # The standard says to pass over a path that is not absolute.
    folder = Path(state) if state.startswith("/") else Path("~/.local/state").expanduser()
    return folder / "whoseblock" / "watch"


class StateFolder(Closing):
    """The folder, locked; raises `TargetError` if it cannot be had, or another daemon has it."""

    def __init__(self, path: Path) -> None:
        self.path = path
        try:
            path.mkdir(_MODE, parents=True, exist_ok=True)
            self._lock = os.open(self.lock, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        except OSError as error:
            raise TargetError(
                f"the state folder {str(path)!r} cannot be used: {error.strerror}",
                hint="name another with --state",
            ) from error
        try:
            fcntl.flock(self._lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            os.close(self._lock)
            raise TargetError(
                f"another whoseblock watch uses the state folder {str(path)!r}",
                hint="whoseblock status asks it how it is",
            ) from None

    @property
    def lock(self) -> Path:
        """The file that is locked.  Every process of the daemon has it open, and nobody else."""
        return self.path / "lock"

    def load(self, name: str, kind: type[_Record]) -> _Record | None:
        """Read a record; None if there is none, or none that can be read."""
        try:
            return msgspec.json.decode((self.path / name).read_bytes(), type=kind)
        except (OSError, msgspec.DecodeError):
            return None

    def save(self, name: str, record: Any, *, durable: bool = True) -> None:  # noqa: ANN401 - whatever msgspec encodes
        """Write a record so that a crash leaves the old one or the new one.

        One that is not ``durable`` outlives this process, and the machine by chance.
        """
        write_atomically(self.path / name, msgspec.json.encode(record), durable=durable)

    def close(self) -> None:
        """Let go of the folder."""
        os.close(self._lock)


def write_atomically(path: Path, data: bytes, mode: int = 0o600, *, durable: bool = True) -> None:
    """Write a file that is there with all of ``data`` or not at all, ``durable`` or not."""
    new = path.with_name(f".{path.name}.{os.urandom(4).hex()}")
    try:
        fd = os.open(new, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, mode)
        try:
            view = memoryview(data)
            while view:
                view = view[os.write(fd, view) :]
            if durable:
                os.fsync(fd)
        finally:
            os.close(fd)
        new.rename(path)
    except BaseException:
        with suppress(OSError):
            new.unlink()
        raise
    if not durable:
        return
    folder = os.open(path.parent, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(folder)
    finally:
        os.close(folder)
