"""Verify copies of damaged files.

A good copy has the size and the modification time of the damaged file.  It equals that wherever it
is readable, in a window on both sides of each loss or in the whole file.  It is read
past the page cache where that is possible: the copy must be readable from its medium.
"""

import errno
import os
import stat
from bisect import bisect_right
from collections.abc import Callable, Iterable, Iterator, Sequence
from datetime import UTC, datetime
from typing import Final, NamedTuple, TypeVar

from whoseblock.closing import Closing
from whoseblock.errors import MalformedError, MediaError, TargetError
from whoseblock.media.base import Media
from whoseblock.media.device import FileMedia
from whoseblock.media.direct import DirectMedia
from whoseblock.ranges import ByteRange, merge, subtract
from whoseblock.respond.copies.authority import why_controlled_by_others
from whoseblock.respond.copies.locations import Candidate, Copies, CopyError, open_name
from whoseblock.sources.block_lists.mapfile import read_mapfile

__all__ = ["VerifiedCopy", "time_of", "verify_copy"]

_PIECE: Final = 1 << 20
#: The unit in which rescues leave zeros.
_SECTOR: Final = 512

_KINDS: Final = {
    stat.S_IFLNK: "a symbolic link",
    stat.S_IFDIR: "a directory",
    stat.S_IFIFO: "a FIFO",
    stat.S_IFSOCK: "a socket",
    stat.S_IFBLK: "a device",
    stat.S_IFCHR: "a device",
}

_Result = TypeVar("_Result")


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


def verify_copy(
    damaged: int, candidate: Candidate, lost: Sequence[ByteRange], rules: Copies
) -> VerifiedCopy:
    """Open a copy of the file that the descriptor ``damaged`` has open, if it is a good one.

    ``lost`` are the ranges of the file to replace.  The copy must be another regular file of the
    same size, which no other user controls.  Its modification time must be the same, to the
    nanosecond, unless ``rules.older``.  It must be readable in these ranges, and hold no sector of
    zeros there, unless ``rules.zeros``, or ``rules.rescue_map`` has the sector as rescued.

    The copy must equal the readable bytes of the file around the losses: ``rules.window`` bytes on
    each side, or the ``rules.whole`` file.  Unreadable bytes are passed over.  If no byte can be
    compared, the modification times must be equal in any case.

    The descriptor must be readable; it is not opened again, and has O_DIRECT meanwhile.  Raises
    `CopyError` with the reason.
    """
    replacement = _open(candidate, damaged)
    try:
        _check_kind_and_size(damaged, replacement)
        if not rules.older:
            _check_times(damaged, replacement, "pass --accept-older to use it all the same")
        needed = _within(lost, replacement.size)
        if rules.whole:
            around = [ByteRange(0, replacement.size)]
        else:
            wide = (
                ByteRange(at - rules.window, length + 2 * rules.window) for at, length in needed
            )
            around = _within(wide, replacement.size)
        # A copy that shares the failed blocks would otherwise pass as equal.
        zeros = _zero_sectors(replacement, needed)
        replacement.compared = _compare(damaged, replacement, _without(around, needed))
        if not replacement.compared:
            why = "no byte of the damaged file is readable for a comparison"
            _check_times(damaged, replacement, why)
        _check_rescued(damaged, candidate, needed, zeros, rules)
        replacement.check_same()
    except BaseException:
        replacement.close()
        raise
    return replacement


def time_of(nanoseconds: int) -> str:
    """Return a file's time in UTC, to the nanosecond."""
    seconds, fraction = divmod(nanoseconds, 10**9)
    try:
        whole = datetime.fromtimestamp(seconds, UTC)
    except (OSError, OverflowError, ValueError):
        return f"{seconds}.{fraction:09} seconds since 1970"
    return f"{whole:%Y-%m-%d %H:%M:%S}.{fraction:09} UTC"


# ---------------------------------------------------------------------- opening


def _open(candidate: Candidate, damaged: int) -> VerifiedCopy:
    fd = _as_copy_error(candidate, lambda: open_name(candidate, damaged))
    try:
        _check_regular(candidate, os.fstat(fd).st_mode)
        _check_control(candidate, fd, damaged)
        return VerifiedCopy(candidate, _as_copy_error(candidate, lambda: _open_media(fd)), fd)
    except BaseException:
        os.close(fd)
        raise


def _check_regular(candidate: Candidate, mode: int) -> None:
    if not stat.S_ISREG(mode):
        kind = _KINDS.get(stat.S_IFMT(mode), "of another kind")
        raise CopyError(f"{candidate} is {kind}, not a regular file")


def _check_control(candidate: Candidate, fd: int, damaged: int) -> None:
    if why := why_controlled_by_others(fd, damaged):
        raise CopyError(
            f"{candidate} {why}: copy it to a file of root with cp --preserve=timestamps, and pass"
            " --restore-file"
        )


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


def _check_times(damaged: int, replacement: VerifiedCopy, why: str) -> None:
    file, copy = os.fstat(damaged), replacement.status()
    if file.st_mtime_ns != copy.st_mtime_ns:
        raise CopyError(
            f"{replacement.candidate} was modified at {time_of(copy.st_mtime_ns)}, and the damaged"
            f" file at {time_of(file.st_mtime_ns)}: {why}"
        )


def _zero_sectors(replacement: VerifiedCopy, needed: Iterable[ByteRange]) -> list[ByteRange]:
    """Read the parts of a copy that are needed; return the sectors that have only zeros."""
    zeros = []
    for part in needed:
        for start, length in _pieces(part):
            data = replacement.read(start, length)
            edges = [start, *range(start // _SECTOR * _SECTOR + _SECTOR, start + length, _SECTOR)]
            for low, high in zip(edges, [*edges[1:], start + length], strict=True):
                if not any(data[low - start : high - start]):
                    zeros.append(ByteRange(low, high - low))
    return merge(zeros)


def _check_rescued(
    damaged: int,
    candidate: Candidate,
    needed: Sequence[ByteRange],
    zeros: Sequence[ByteRange],
    rules: Copies,
) -> None:
    """Raise `CopyError` if a copy may have gaps of a rescue where data is needed."""
    if rules.rescue_map is not None and candidate == Candidate(rules.file or ""):
        gaps = list(needed)
        for rescued in _rescued(rules.rescue_map, damaged):
            gaps = [left for gap in gaps for left in subtract([gap], rescued)]
        if gaps:
            raise CopyError(f"{candidate} was not rescued at {gaps[0]}, by {rules.rescue_map!r}")
    elif zeros and not rules.zeros:
        raise CopyError(
            f"{candidate} has only zeros at {zeros[0]}, like the gaps of a rescue: pass"
            " --accept-zeros if they are data, or --restore-map"
        )


def _rescued(path: str, damaged: int) -> list[ByteRange]:
    """Return the ranges that a ddrescue map has as rescued; who controls it, controls the copy."""
    try:
        # O_NONBLOCK: do not wait for the writer of a FIFO.
        fd = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
        with open(fd, encoding="ascii", errors="replace") as lines:  # noqa: PTH123 - a descriptor
            if not stat.S_ISREG(os.fstat(fd).st_mode):
                raise CopyError(f"the map {path!r} is not a regular file")
            if why := why_controlled_by_others(fd, damaged):
                raise CopyError(f"the map {path!r} {why}")
            return [ByteRange(one.start, one.length) for one in read_mapfile(lines, path, "+")]
    except (OSError, MalformedError) as error:
        raise CopyError(f"cannot read the map {path!r}: {error}") from error


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
