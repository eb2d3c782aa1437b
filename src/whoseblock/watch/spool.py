"""What was reported and is not dealt with yet: a folder of files, each a batch of reports.

Most sources give an event once.  It is durable here before it is read from the source again, and
gone from here only when the journal has it.  Whoever is killed in between finds it again, under
the same key, by which the journal knows it.
"""

import time
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Final, NamedTuple

import msgspec
from msgspec.structs import replace

from whoseblock.watch.reports import Lost, Report
from whoseblock.watch.state import write_whole

__all__ = ["Batch", "Spool"]

_SUFFIX: Final = ".reports"
_DIGITS: Final = 20
#: The folder, in that of the spool, of what nobody could deal with.
ASIDE: Final = "aside"
#: More than the longest burst that anybody has seen; beyond it, reports are dropped and counted.
MOST_BYTES: Final = 256 << 20


class Batch(NamedTuple):
    """Reports that wait, those of each of the ``files`` by themselves."""

    groups: tuple[tuple[Report, ...], ...]
    files: tuple[Path, ...]


class Spool:
    """The folder ``path``; only one process puts into it, and only one takes from it.

    Keys ascend, from ``least`` on, though the clock be set back.
    """

    def __init__(self, path: Path, most_bytes: int = MOST_BYTES, least: int = 0) -> None:
        self._path = path
        self._most = most_bytes
        self._encoder = msgspec.json.Encoder()
        self._decoder = msgspec.json.Decoder(tuple[Report, ...])
        path.mkdir(0o700, exist_ok=True)
        for left in path.glob(".*"):
            # A file that a crash kept from getting its name.
            left.unlink()
        self._files = {file: file.stat().st_size for file in self._waiting()}
        self._dropped = 0
        self._last = max([least, *map(_number, self._files)])

    def _waiting(self) -> list[Path]:
        return sorted(self._path.glob(f"*{_SUFFIX}"))

    def put(self, reports: Sequence[Report]) -> int:
        """Keep reports, durably; give how many there was no room for.

        Each that has no key gets one.
        """
        if not reports:
            return 0
        if sum(self._files.values()) > self._most:
            self._forget_gone()
        if sum(self._files.values()) > self._most:
            self._dropped += len(reports)
            return len(reports)
        if self._dropped:
            now, count, what = time.time(), self._dropped, "the spool was full"
            reports = [*reports, Lost(source="spool", at=now, count=count, what=what)]
            self._dropped = 0
        self._last = max(time.time_ns(), self._last + 1)
        name = f"{self._last:0{_DIGITS}d}"
        keyed = [
            one if one.key else replace(one, key=f"{name}:{number}")
            for number, one in enumerate(reports)
        ]
        data = self._encoder.encode(keyed)
        file = self._path / f"{name}{_SUFFIX}"
        write_whole(file, data)
        self._files[file] = len(data)
        return 0

    def _forget_gone(self) -> None:
        """Notice what the other process has taken."""
        waiting = set(self._waiting())
        self._files = {file: size for file, size in self._files.items() if file in waiting}

    @property
    def backlog(self) -> int:
        """How many batches wait."""
        self._forget_gone()
        return len(self._files)

    @property
    def has_more(self) -> bool:
        """Whether anything waits."""
        return any(self._path.glob(f"*{_SUFFIX}"))

    def take(self, most: int) -> Batch:
        """Give the oldest reports, about ``most`` of them; they stay until `drop`."""
        groups: list[tuple[Report, ...]] = []
        files: list[Path] = []
        taken = 0
        for file in self._waiting():
            if taken >= most:
                break
            try:
                group = self._decoder.decode(file.read_bytes())
            except FileNotFoundError:
                continue
            except (OSError, msgspec.DecodeError) as error:
                what = f"a file of the spool cannot be read: {error}"
                now = time.time()
                group = (Lost(source="spool", at=now, key=file.name, count=0, what=what),)
            groups.append(group)
            files.append(file)
            taken += len(group)
        return Batch(tuple(groups), tuple(files))

    def drop(self, files: Iterable[Path]) -> None:
        """Forget what was dealt with."""
        for file in files:
            try:
                file.unlink(missing_ok=True)
            except OSError:
                # Damaged, it must not come again and again.
                self.set_aside(file)

    def set_aside(self, file: Path) -> None:
        """Keep a file that nobody can deal with where nobody waits for it."""
        folder = self._path / ASIDE
        folder.mkdir(0o700, exist_ok=True)
        file.rename(folder / file.name)


def _number(file: Path) -> int:
    digits = file.name.removesuffix(_SUFFIX)
    return int(digits) if digits.isascii() and digits.isdecimal() else 0
