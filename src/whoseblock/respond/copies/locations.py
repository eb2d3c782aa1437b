"""The places where copies may be, and opening them safely."""

import os
from collections.abc import Iterator, Sequence
from enum import StrEnum
from typing import Final, NamedTuple

from whoseblock.respond.commands import CommandError, run_shell
from whoseblock.respond.copies.authority import why_controlled_by_others

__all__ = [
    "WINDOW",
    "Candidate",
    "Copies",
    "CopyError",
    "CopyFinder",
    "FetchedCopies",
    "Preference",
    "open_name",
]

#: So many bytes are compared on each side of a loss.
WINDOW: Final = 1 << 20

_PATH_MAX: Final = 4096  # linux/limits.h
_NAME: Final = os.O_PATH | os.O_NOFOLLOW | os.O_CLOEXEC


class CopyError(Exception):
    """A copy cannot be used; the message says why."""


class Preference(StrEnum):
    """The data to use where the page cache and a copy differ."""

    CACHE = "cache"
    COPY = "copy"


class Copies(NamedTuple):
    """The places to look for copies, and what a copy must be like.

    ``folder`` has files at the same paths as the filesystem.  ``file`` is the copy itself.
    ``command`` is a shell command that reads the finding as JSON and prints the path of a copy.
    All of them are tried; with none, only the page cache is used.  ``whole`` compares the whole
    file, otherwise ``window`` bytes on each side of a loss.  ``command_s`` is how many seconds the
    command may take.

    ``older`` accepts copies with another modification time, and ``zeros`` copies that have only
    zeros where data was lost.  ``rescue_map`` is the ddrescue map of the rescue that made ``file``.
    ``prefer`` decides where the page cache and a copy differ.
    """

    folder: str | None = None
    file: str | None = None
    command: str | None = None
    whole: bool = False
    window: int = WINDOW
    command_s: float = 3600.0
    older: bool = False
    zeros: bool = False
    rescue_map: str | None = None
    prefer: Preference | None = None

    @property
    def named(self) -> bool:
        """Whether there is any place to look for copies."""
        return not self.folder is self.file is self.command is None


class Candidate(NamedTuple):
    """A file that may be a copy: ``path``, below ``folder`` if there is one.

    A path in a folder comes from the filesystem, which is untrusted: no file outside the folder is
    opened, and no symbolic link is followed.
    """

    path: str
    folder: str | None = None

    def __str__(self) -> str:
        """Return the path, with bytes that are not text escaped."""
        return repr(self.path if self.folder is None else os.path.join(self.folder, self.path))  # noqa: PTH118 - may be bytes


#: The results of the command by findings.
FetchedCopies = dict[bytes, Candidate | CopyError]


class CopyFinder:
    """Finds the files that may be copies of the owners of one finding.

    The command runs once, when its result is requested first, with ``path`` in WHOSEBLOCK_PATH.
    ``fetched`` has its results for findings, and gets that for this one.
    """

    def __init__(
        self, copies: Copies, path: str, finding_json: bytes, fetched: FetchedCopies
    ) -> None:
        self._copies = copies
        self._path = path
        self._finding = finding_json
        self._fetched = fetched

    def candidates(self, paths: Sequence[str]) -> Iterator[Candidate]:
        """Yield the files that may be copies of the one that has ``paths`` in its filesystem.

        They may not exist.  The one of the command comes last.  Raises `CopyError` if it fails.
        """
        if self._copies.file is not None:
            yield Candidate(self._copies.file)
        if self._copies.folder is not None:
            for path in paths:
                yield Candidate(path.lstrip("/"), self._copies.folder)
        if self._copies.command is not None:
            yield self._fetch(self._copies.command)

    def _fetch(self, command: str) -> Candidate:
        if self._finding not in self._fetched:
            try:
                self._fetched[self._finding] = self._run(command)
            except CopyError as error:
                self._fetched[self._finding] = error
        found = self._fetched[self._finding]
        if isinstance(found, CopyError):
            raise found
        return found

    def _run(self, command: str) -> Candidate:
        try:
            printed = run_shell(
                command,
                self._finding,
                seconds=self._copies.command_s,
                environment={"WHOSEBLOCK_PATH": self._path},
                capture=True,
            )
        except CommandError as error:
            raise CopyError(str(error)) from error
        # A name may end with a newline of its own.
        path = printed.removesuffix(b"\n")
        if not path:
            raise CopyError("the command printed no path")
        if len(path) >= _PATH_MAX:
            raise CopyError("the command printed more than a path")
        return Candidate(os.fsdecode(path))


def open_name(candidate: Candidate, damaged: int) -> int:
    """Open a candidate with O_PATH, since opening a FIFO or a device has effects.

    A path in a folder is opened one component at a time, so that it cannot lead out of the folder.
    Raises `CopyError` if another user than that of the ``damaged`` file could replace a component.
    """
    if candidate.folder is None:
        return os.open(candidate.path, _NAME)
    names = candidate.path.split("/")
    if not all(names) or "." in names or ".." in names:
        raise CopyError(f"{candidate.path!r} is not a valid path in a filesystem")
    step = os.open(candidate.folder, os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
    for place, name in enumerate(names, 1):
        kind = os.O_DIRECTORY if place < len(names) else 0
        try:
            if why := why_controlled_by_others(step, damaged):
                folder = repr("/".join([candidate.folder, *names[: place - 1]]))
                raise CopyError(f"{candidate} is in {folder}, which {why}")
            further = os.open(name, _NAME | kind, dir_fd=step)
        finally:
            os.close(step)
        step = further
    return step
