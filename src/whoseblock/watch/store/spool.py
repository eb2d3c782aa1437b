"""Store reports until they are processed: a folder of files, each a batch of reports.

Most sources report an event once. It is durable here before the source is read on, and removed only
when the journal has it. After a kill in between it is found again under the same key, by which the
journal recognizes it.
"""

import errno
import time
from collections import deque
from collections.abc import Iterable, Sequence
from contextlib import suppress
from itertools import islice
from pathlib import Path
from typing import Any, Final, NamedTuple

import msgspec
from msgspec.structs import replace

from whoseblock.watch.store.reports import EventsLost, Report
from whoseblock.watch.store.state import write_atomically

__all__ = ["Backlog", "Batch", "Spool"]

_SUFFIX: Final = ".reports"
_DIGITS: Final = 20
#: The folder inside the spool for files that cannot be processed.
ASIDE: Final = "aside"
#: More than the longest burst seen so far; a fuller spool takes no reports.
MAX_BYTES: Final = 256 << 20


class Batch(NamedTuple):
    """Waiting reports, one group for each of the ``files``."""

    groups: tuple[tuple[Report, ...], ...]
    files: tuple[Path, ...]


class Backlog(NamedTuple):
    """The number of waiting batches, and the age of the oldest in seconds."""

    batches: int
    seconds: float


class Spool:
    """The folder ``path``; one process writes to it, and one takes from it.

    Keys ascend from ``least`` on, even if the clock is set back.
    """

    def __init__(self, path: Path, most_bytes: int = MAX_BYTES, least: int = 0) -> None:
        self._path = path
        self._most = most_bytes
        self._encoder = msgspec.json.Encoder()
        self._decoder = msgspec.json.Decoder(tuple[Report, ...])
        path.mkdir(0o700, exist_ok=True)
        for left in path.glob(".*"):
            # A crash kept this file from being renamed.
            left.unlink()
        #: Files that wait to be taken, the oldest first, as of the last listing.
        self._listed: deque[Path] = deque()
        #: An upper bound of the waiting bytes: files taken since the count make it less.
        self._bytes = self._count()
        self._last = max([least, *map(_number, self._waiting())])

    def _count(self) -> int:
        total = 0
        for file in self._waiting():
            # It may be removed meanwhile.
            with suppress(FileNotFoundError):
                total += file.stat().st_size
        return total

    def _waiting(self) -> list[Path]:
        return sorted(self._path.glob(f"*{_SUFFIX}"))

    def put(self, reports: Sequence[Report]) -> None:
        """Store reports durably; raises OSError, and stores none, if there is no room.

        A report without a key gets one.
        """
        if not reports:
            return
        if self._bytes > self._most:
            self._bytes = self._count()
        if self._bytes > self._most:
            raise OSError(errno.ENOSPC, "the spool is full")
        self._last = max(time.time_ns(), self._last + 1)
        name = f"{self._last:0{_DIGITS}d}"
        keyed = [
            one if one.key else replace(one, key=f"{name}:{number}")
            for number, one in enumerate(reports)
        ]
        data = self._encode(keyed)
        # It may have been removed; the folder that it is in is watched by the daemon.
        self._path.mkdir(0o700, exist_ok=True)
        write_atomically(self._path / f"{name}{_SUFFIX}", data)
        self._bytes += len(data)

    def _encode(self, reports: Sequence[Report]) -> bytes:
        try:
            return self._encoder.encode(reports)
        except UnicodeEncodeError:
            # A name that is not UTF-8, such as a mount point's. Such names are only for people to
            # read: no file is looked up by them.
            return self._encoder.encode(_readable(msgspec.to_builtins(reports)))

    @property
    def backlog(self) -> Backlog:
        """The batches that wait to be processed."""
        waiting = self._waiting()
        if not waiting:
            return Backlog(0, 0.0)
        # The numbers ascend even if the clock was set back.
        return Backlog(len(waiting), max(time.time() - _number(waiting[0]) / 1e9, 0.0))

    @property
    def has_more(self) -> bool:
        """Whether any batch waits."""
        return any(self._path.glob(f"*{_SUFFIX}"))

    def take(self, most: int) -> Batch:
        """Return the oldest reports, about ``most``; they stay until `drop`."""
        groups: list[tuple[Report, ...]] = []
        files: list[Path] = []
        taken = 0
        if len(self._listed) < most:
            # Of thousands of files, those that come later have higher numbers.
            self._listed = deque(self._waiting())
        for file in tuple(islice(self._listed, most)):
            if taken >= most:
                break
            try:
                group = self._decoder.decode(file.read_bytes())
            except FileNotFoundError:
                self._forget(file)
                continue
            except (OSError, msgspec.DecodeError) as error:
                what = f"cannot read a spool file: {error}"
                now = time.time()
                group = (EventsLost(source="spool", at=now, key=file.name, count=0, what=what),)
            groups.append(group)
            files.append(file)
            taken += len(group)
        return Batch(tuple(groups), tuple(files))

    def drop(self, files: Iterable[Path]) -> None:
        """Remove processed files."""
        for file in files:
            self._forget(file)
            try:
                file.unlink(missing_ok=True)
            except OSError:
                # A file that cannot be removed must not be processed again and again.
                self.set_aside(file)

    def _forget(self, file: Path) -> None:
        if self._listed and self._listed[0] == file:
            self._listed.popleft()
        else:
            with suppress(ValueError):
                self._listed.remove(file)

    def set_aside(self, file: Path) -> None:
        """Move a file that cannot be processed out of the way."""
        self._forget(file)
        folder = self._path / ASIDE
        folder.mkdir(0o700, exist_ok=True)
        file.rename(folder / file.name)


def _readable(value: Any) -> Any:  # noqa: ANN401 - whatever JSON can hold
    r"""Write lone surrogates, which JSON cannot hold, in all texts as Python does: ``\udce9``."""
    match value:
        case str():
            return value.encode(errors="backslashreplace").decode()
        case dict():
            return {_readable(key): _readable(one) for key, one in value.items()}
        case list() | tuple():
            return [_readable(one) for one in value]
        case _:
            return value


def _number(file: Path) -> int:
    digits = file.name.removesuffix(_SUFFIX)
    return int(digits) if digits.isascii() and digits.isdecimal() else 0
