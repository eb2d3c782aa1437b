"""Find copies of damaged files, and verify them.

A copy is good if it is as long as the damaged file and equals it wherever that is readable, in a
window on both sides of each loss or in the whole file.  It is read past the page cache where that
is possible: the copy must be readable from its medium.
"""

import errno
import os
import stat
from bisect import bisect_right
from collections.abc import Callable, Iterable, Iterator, Sequence
from itertools import pairwise
from typing import Final, NamedTuple, TypeVar

from whoseblock.closing import Closing
from whoseblock.errors import MediaError, TargetError
from whoseblock.media.base import Media
from whoseblock.media.device import FileMedia
from whoseblock.media.direct import DirectMedia
from whoseblock.ranges import ByteRange, merge
from whoseblock.respond.commands import CommandError, run_shell

__all__ = [
    "WINDOW",
    "Candidate",
    "Copies",
    "CopyError",
    "VerifiedCopy",
    "agree",
    "find",
    "verify_copy",
]

#: So many bytes are compared on each side of a loss.
WINDOW: Final = 1 << 20

_PIECE: Final = 1 << 20

_NAME: Final = os.O_PATH | os.O_NOFOLLOW | os.O_CLOEXEC
_KINDS: Final = {
    stat.S_IFLNK: "a symbolic link",
    stat.S_IFDIR: "a directory",
    stat.S_IFIFO: "a FIFO",
    stat.S_IFSOCK: "a socket",
    stat.S_IFBLK: "a device",
    stat.S_IFCHR: "a device",
}

_Result = TypeVar("_Result")


class CopyError(Exception):
    """A copy cannot be used; the message says why."""


class Copies(NamedTuple):
    """The places to look for copies, and how much of a copy is compared.

    ``folder`` has files at the same paths as the filesystem.  ``file`` is the copy itself.
    ``command`` is a shell command that reads the finding as JSON and prints the path of a copy.
    All of them are tried.  ``whole`` compares the whole file, otherwise ``window`` bytes on each
    side of a loss.  ``command_s`` is how many seconds the command may take.
    """

    folder: str | None = None
    file: str | None = None
    command: str | None = None
    whole: bool = False
    window: int = WINDOW
    command_s: float = 3600.0


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


class _Version(NamedTuple):
    # One of these changes when the file is written.
    size: int
    mtime: int
    ctime: int


class VerifiedCopy(Closing):
    """A good copy; ``compared`` counts the bytes of the damaged file that it equals."""

    def __init__(self, candidate: Candidate, media: Media, fd: int) -> None:
        self.candidate = candidate
        self.compared = 0
        self._media = media
        self._fd = fd
        self._version = self._version_now()
        self.size = self._version.size

    def read(self, start: int, length: int) -> bytes:
        """Return bytes of the copy, zeros past its end.

        Raises `CopyError` if it cannot be read, or has changed since it was opened.
        """
        inside = max(min(start + length, self.size) - start, 0)
        try:
            data = _as_copy_error(self.candidate, lambda: self._media.pread(start, inside))
        finally:
            # A change explains a failed read, too.
            self.check_same()
        return data + bytes(length - inside)

    def check_same(self) -> None:
        """Raise `CopyError` if the copy has changed since it was opened."""
        if self._version_now() != self._version:
            raise CopyError(f"{self.candidate} changes while it is read")

    def status(self) -> os.stat_result:
        """Return the present ``fstat`` of the copy."""
        return os.fstat(self._fd)

    def close(self) -> None:
        """Close the copy."""
        self._media.close()
        os.close(self._fd)

    def _version_now(self) -> _Version:
        now = self.status()
        return _Version(now.st_size, now.st_mtime_ns, now.st_ctime_ns)


def find(copies: Copies, paths: Sequence[str], finding_json: bytes) -> Iterator[Candidate]:
    """Yield the files that may be copies of the one that has ``paths`` in its filesystem.

    They may not exist; `verify_copy` checks that.  The command comes last, and runs when its result
    is requested, with the first path in WHOSEBLOCK_PATH.  Raises `CopyError` if it fails.
    """
    if copies.file is not None:
        yield Candidate(copies.file)
    if copies.folder is not None:
        for path in paths:
            yield Candidate(path.lstrip("/"), copies.folder)
    if copies.command is not None:
        yield Candidate(_fetch(copies.command, copies.command_s, paths, finding_json))


def _fetch(command: str, seconds: float, paths: Sequence[str], finding_json: bytes) -> str:
    try:
        printed = run_shell(
            command,
            finding_json,
            seconds=seconds,
            environment={"WHOSEBLOCK_PATH": paths[0] if paths else ""},
            capture=True,
        )
    except CommandError as error:
        raise CopyError(str(error)) from error
    # A name may end with a newline of its own.
    path = os.fsdecode(printed.removesuffix(b"\n"))
    if not path:
        raise CopyError("the command printed no path")
    return path


def verify_copy(
    damaged: int,
    candidate: Candidate | str,
    lost: Sequence[ByteRange],
    *,
    whole: bool = False,
    window: int = WINDOW,
) -> VerifiedCopy:
    """Open a copy of the file that the descriptor ``damaged`` has open, if it is a good one.

    ``lost`` are the ranges of the file to replace.  The copy must be another regular file of the
    same size, be readable in these ranges, and equal the readable bytes of the file around them:
    ``window`` bytes on each side, or the ``whole`` file.  Unreadable bytes are passed over.  If no
    byte can be compared, the modification times must be equal, to the nanosecond.

    The descriptor must be readable; it is not opened again, and has O_DIRECT meanwhile.  Raises
    `CopyError` with the reason.
    """
    if isinstance(candidate, str):
        candidate = Candidate(candidate)
    replacement = _open(candidate)
    try:
        _check_kind_and_size(damaged, replacement)
        needed = _within(lost, replacement.size)
        if whole:
            around = [ByteRange(0, replacement.size)]
        else:
            wide = (ByteRange(at - window, length + 2 * window) for at, length in needed)
            around = _within(wide, replacement.size)
        for part in needed:
            # A copy that shares the failed blocks would otherwise pass as equal.
            for start, length in _pieces(part):
                replacement.read(start, length)
        replacement.compared = _compare(damaged, replacement, _without(around, needed))
        if not replacement.compared:
            _check_times(damaged, replacement)
    except BaseException:
        replacement.close()
        raise
    return replacement


def agree(replacements: Sequence[VerifiedCopy], lost: Sequence[ByteRange]) -> None:
    """Raise `CopyError` if good copies differ in the lost ranges."""
    for one, other in pairwise(replacements):
        for part in merge(lost):
            for start, length in _pieces(part):
                if one.read(start, length) != other.read(start, length):
                    raise CopyError(
                        f"the copies {one.candidate} and {other.candidate} differ"
                        f" in {ByteRange(start, length)}"
                    )


# ---------------------------------------------------------------------- opening


def _open(candidate: Candidate) -> VerifiedCopy:
    fd = _as_copy_error(candidate, lambda: _open_name(candidate))
    try:
        _check_regular(candidate, os.fstat(fd).st_mode)
        return VerifiedCopy(candidate, _as_copy_error(candidate, lambda: _open_media(fd)), fd)
    except BaseException:
        os.close(fd)
        raise


def _check_regular(candidate: Candidate, mode: int) -> None:
    if not stat.S_ISREG(mode):
        kind = _KINDS.get(stat.S_IFMT(mode), "of another kind")
        raise CopyError(f"{candidate} is {kind}, not a regular file")


def _open_name(candidate: Candidate) -> int:
    """Open a candidate with O_PATH, since opening a FIFO or a device has effects.

    A path in a folder is opened one component at a time, so that it cannot lead out of the folder.
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
            further = os.open(name, _NAME | kind, dir_fd=step)
        finally:
            os.close(step)
        step = further
    return step


def _open_media(fd: int) -> Media:
    """Open the file of an O_PATH descriptor, past the page cache if its filesystem allows it."""
    try:
        return DirectMedia(fd)
    except TargetError:
        return FileMedia(f"/proc/self/fd/{fd}")


def _as_copy_error(candidate: Candidate, function: Callable[[], _Result]) -> _Result:
    """Call a function, and turn its errors into a `CopyError`."""
    try:
        return function()
    except MediaError as error:
        lost = ", ".join(map(str, error.ranges))
        raise CopyError(f"{candidate} is unreadable itself at {lost}: {error.reason}") from error
    except (OSError, TargetError, ValueError) as error:
        cause = error.__cause__ if isinstance(error, TargetError) else error
        if isinstance(cause, OSError) and cause.errno == errno.ENOENT:
            raise CopyError(f"{candidate} does not exist") from error
        if isinstance(cause, OSError) and cause.errno == errno.ENOTDIR:
            raise CopyError(f"a parent of {candidate} is not a directory") from error
        words = cause.strerror if isinstance(cause, OSError) else str(error)
        raise CopyError(f"{candidate} cannot be opened or read: {words}") from error


# ---------------------------------------------------------------------- comparing


def _check_kind_and_size(damaged: int, replacement: VerifiedCopy) -> None:
    file, copy = os.fstat(damaged), replacement.status()
    if os.path.samestat(file, copy):
        raise CopyError(f"{replacement.candidate} is the damaged file itself")
    if copy.st_size != file.st_size:
        raise CopyError(
            f"{replacement.candidate} has {copy.st_size} bytes, the damaged file {file.st_size}"
        )


def _check_times(damaged: int, replacement: VerifiedCopy) -> None:
    file, copy = os.fstat(damaged), replacement.status()
    if file.st_mtime_ns != copy.st_mtime_ns:
        raise CopyError(
            f"{replacement.candidate} has another modification time, and no byte of the damaged"
            " file is readable for a comparison"
        )


def _compare(damaged: int, replacement: VerifiedCopy, parts: Iterable[ByteRange]) -> int:
    """Compare the readable bytes of parts of the damaged file; return how many are equal."""
    compared = 0
    try:
        with DirectMedia(damaged, reopen=False) as media:
            for start, length in parts:
                for at, data in media.readable(start, length):
                    if replacement.read(at, len(data)) != data:
                        raise CopyError(_difference(replacement, at, data))
                    compared += len(data)
    except (OSError, TargetError) as error:
        raise CopyError(f"the damaged file cannot be compared: {error}") from error
    return compared


def _difference(replacement: VerifiedCopy, at: int, data: bytes) -> str:
    other = replacement.read(at, len(data))
    place = next((n for n, (a, b) in enumerate(zip(data, other, strict=True)) if a != b), 0)
    return f"{replacement.candidate} differs from the damaged file at byte {at + place}"


def _within(ranges: Iterable[ByteRange], size: int) -> list[ByteRange]:
    """Clip ranges to a file, and merge them."""
    ends = ((max(start, 0), min(start + length, size)) for start, length in ranges)
    return merge(ByteRange(start, end - start) for start, end in ends if start < end)


def _without(parts: Sequence[ByteRange], cuts: Sequence[ByteRange]) -> Iterator[ByteRange]:
    """Yield what remains of parts without cuts; each of both is disjoint and ascending."""
    for part in parts:
        at = part.start
        first = bisect_right(cuts, at, key=lambda cut: cut.end)
        for cut in (cuts[number] for number in range(first, len(cuts))):
            if cut.start >= part.end:
                break
            if at < cut.start:
                yield ByteRange(at, cut.start - at)
            at = cut.end
        if at < part.end:
            yield ByteRange(at, part.end - at)


def _pieces(part: ByteRange) -> Iterator[ByteRange]:
    for start in range(part.start, part.end, _PIECE):
        yield ByteRange(start, min(_PIECE, part.end - start))
