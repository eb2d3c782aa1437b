"""The present owners of failed blocks on a mounted filesystem, and opening them for a change."""

import contextlib
import errno
import os
import resource
from collections.abc import Iterable, Iterator, Sequence
from typing import Final, NamedTuple

from whoseblock.closing import Closing
from whoseblock.errors import WhoseblockError
from whoseblock.fs.base import FileId, FileOwner, Free, Owner
from whoseblock.fs.driver import MountedVolume
from whoseblock.ranges import ByteRange, merge
from whoseblock.respond.exceptions import ChangedError, RefusedError

__all__ = [
    "QUARANTINE",
    "REFUSALS",
    "FilePosition",
    "OpenOwner",
    "OpenOwners",
    "describe_file",
    "is_data",
    "is_unowned",
    "owners_now",
    "position_of",
    "positions_of",
    "raised_file_limit",
    "rows_without",
    "whole_blocks",
    "why_not_direct",
]

#: The folder below the root of a filesystem whose files keep failed blocks out of use.
QUARANTINE: Final = ".whoseblock-quarantine"

#: Errors of a file that must not be changed; the kernel reports ETXTBSY for swap space, too.
REFUSALS: Final = frozenset({errno.ETXTBSY, errno.EPERM, errno.EACCES, errno.EROFS})
_WHY: Final = {
    errno.ETXTBSY: "it is being executed, or is swap space",
    errno.EPERM: "it is immutable, or sealed",
    errno.EACCES: "it may not be written",
    errno.EROFS: "the filesystem is mounted read-only",
    errno.ENOENT: "it no longer exists",
}


class FilePosition(NamedTuple):
    """The place of a run of blocks in a file; ``offset`` is in bytes."""

    file: FileId
    generation: int
    offset: int

    def __str__(self) -> str:
        return describe_file(self.file)


def describe_file(file: FileId) -> str:
    """Name a file in messages."""
    of = f" of subvolume {file.subvolume}" if file.subvolume else ""
    return f"inode {file.inode}{of}"


def position_of(row: Owner) -> FilePosition | None:
    """Return the position of a row of file data; None if its file could not be opened again."""
    if (
        isinstance(row, FileOwner)
        and row.file_offset is not None
        and isinstance(row.generation, int)
    ):
        return FilePosition(row.file, row.generation, row.file_offset)
    return None


def whole_blocks(ranges: Iterable[ByteRange], block: int) -> list[ByteRange]:
    """Widen ranges to whole blocks of a filesystem, and merge them."""
    edges = ((one.start // block * block, -(-one.end // block) * block) for one in ranges)
    return merge(ByteRange(low, high - low) for low, high in edges)


def owners_now(fs: MountedVolume, run: ByteRange) -> Sequence[Owner]:
    """Return the present owners of a range; raise `ChangedError` if they are not certain."""
    answer = fs.owners(*run, paths=False)
    if not answer.complete:
        raise ChangedError(f"the owners of {run} are not certain: {answer.notes[0]}")
    return answer.owners


def positions_of(rows: Iterable[Owner], run: ByteRange) -> set[FilePosition]:
    """Return the positions in files that have all of a run as written data.

    Raises `ChangedError` if anything else owns a byte of it.
    """
    positions = set()
    for row in rows:
        position = position_of(row)
        if (
            position is None
            or not is_data(row)
            or (row.start, row.length) != run
            or why_not_direct(row)
        ):
            raise ChangedError(f"{run} is not file data alone: {row.kind}")
        positions.add(position)
    return positions


def rows_without(rows: Iterable[Owner], file: FileId | None) -> list[Owner]:
    """Return the rows that a file does not own."""
    return [row for row in rows if file is None or not _is_of(row, file)]


def _is_of(row: Owner, file: FileId) -> bool:
    return isinstance(row, FileOwner) and row.file == file


def is_data(row: Owner) -> bool:
    """Return whether a row is written data of a file."""
    return isinstance(row, FileOwner) and row.what == "data" and not row.unwritten


def is_unowned(rows: Iterable[Owner]) -> bool:
    """Return whether a range holds no data: it is free, or allocated and never written."""
    return all(
        not why_not_direct(row)
        and (isinstance(row, Free) or (isinstance(row, FileOwner) and row.unwritten))
        for row in rows
    )


def why_not_direct(row: Owner) -> str:
    """Return why a byte of a row is not exactly one byte of the device, "" if it is."""
    if isinstance(row, FileOwner) and isinstance(row.encoding, str):
        return f"the data is compressed or encrypted ({row.encoding})"
    if isinstance(row, FileOwner) and isinstance(row.file_length, int):
        return "the file's data has another length on the device"
    if isinstance(row.copies, tuple):
        return "the filesystem or the array keeps other copies of these bytes"
    return ""


class _OwnerFile(Closing):
    """A file that is open for a change; raises `RefusedError` if it must not be changed."""

    def __init__(self, fs: MountedVolume, position: FilePosition) -> None:
        file, generation, _ = position
        facts = fs.files((file,)).get(file)
        if facts is None or facts.generation != generation:
            raise ChangedError(f"{position} no longer exists")
        if facts.immutable or facts.append_only:
            raise RefusedError(f"{position}: it is immutable or append-only")
        self.size = facts.size
        try:
            flags = os.O_RDWR | os.O_NOATIME | os.O_NOFOLLOW
            self.fd = fs.open_file(file, generation, flags)
        except (OSError, WhoseblockError) as error:
            why = _WHY.get(getattr(error, "errno", None) or 0) or str(error)
            raise RefusedError(f"{position}: {why}") from error

    def close(self) -> None:
        """Close the file."""
        os.close(self.fd)


class OpenOwner(NamedTuple):
    """A position in a file that is open for a change."""

    position: FilePosition
    fd: int
    size: int


@contextlib.contextmanager
def raised_file_limit() -> Iterator[None]:
    """Raise the limit of open files to the hard one: all owners are open at once."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))


class OpenOwners(Closing):
    """Open owners; each file is opened once, since a lease needs the only open descriptor."""

    def __init__(self, fs: MountedVolume) -> None:
        self._fs = fs
        self._files: dict[FileId, _OwnerFile] = {}

    def open(self, position: FilePosition) -> OpenOwner:
        """Open the file of a position; raise `RefusedError` with the reason if it must not be."""
        file = self._files.get(position.file)
        if file is None:
            file = self._files[position.file] = _OwnerFile(self._fs, position)
        return OpenOwner(position, file.fd, file.size)

    def open_those_that_may_change(
        self, positions: Iterable[FilePosition]
    ) -> tuple[list[OpenOwner], dict[FilePosition, str]]:
        """Open the files of positions; return those that must not be changed with the reasons."""
        found: list[OpenOwner] = []
        left: dict[FilePosition, str] = {}
        for position in positions:
            try:
                found.append(self.open(position))
            except RefusedError as error:
                left[position] = str(error)
        return found, left

    def close(self) -> None:
        """Close the files."""
        for file in self._files.values():
            file.close()
