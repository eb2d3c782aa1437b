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
from whoseblock.fs.mounted.fiemap import maps_run
from whoseblock.ranges import ByteRange, merge
from whoseblock.respond.exceptions import ChangedError, RefusedError

__all__ = [
    "QUARANTINE",
    "FilePosition",
    "OpenOwner",
    "OpenOwners",
    "is_unowned",
    "owners_now",
    "positions_of",
    "raised_file_limit",
    "still_maps",
    "whole_blocks",
]

#: The folder below the root of a filesystem whose files keep failed blocks out of use.
QUARANTINE: Final = ".whoseblock-quarantine"

_WHY: Final = {
    errno.ETXTBSY: "it is being executed, or is swap space",
    errno.EPERM: "it is immutable, or sealed",
    errno.EACCES: "it may not be written",
    errno.EROFS: "the filesystem is mounted read-only",
    errno.ENOENT: "it no longer exists",
}


class FilePosition(NamedTuple):
    """The place of a run of blocks in a file: inode, generation, and offset in bytes."""

    inode: int
    generation: int
    offset: int


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
        if (
            not isinstance(row, FileOwner)
            or row.what != "data"
            or row.unwritten
            or (row.start, row.length) != run
            or row.file_offset is None
            or not isinstance(row.generation, int)
        ):
            raise ChangedError(f"{run} is not file data alone: {row.kind}")
        positions.add(FilePosition(row.inode, row.generation, row.file_offset))
    return positions


def is_unowned(rows: Iterable[Owner]) -> bool:
    """Return whether a range holds no data: it is free, or allocated and never written."""
    return all(
        isinstance(row, Free) or (isinstance(row, FileOwner) and row.unwritten) for row in rows
    )


class _OwnerFile(Closing):
    """A file that is open for a change; raises `RefusedError` if it must not be changed."""

    def __init__(self, fs: MountedVolume, inode: int, generation: int) -> None:
        file = FileId(0, inode)
        facts = fs.files((file,)).get(file)
        if facts is None or facts.generation != generation:
            raise ChangedError(f"inode {inode} no longer exists")
        if facts.immutable or facts.append_only:
            raise RefusedError(f"inode {inode}: it is immutable or append-only")
        self.size = facts.size
        try:
            flags = os.O_RDWR | os.O_NOATIME | os.O_NOFOLLOW
            self.fd = fs.open_file(file, generation, flags)
        except (OSError, WhoseblockError) as error:
            why = _WHY.get(getattr(error, "errno", None) or 0) or str(error)
            raise RefusedError(f"inode {inode}: {why}") from error

    def close(self) -> None:
        """Close the file."""
        os.close(self.fd)


class OpenOwner(NamedTuple):
    """A position in a file that is open for a change."""

    position: FilePosition
    fd: int
    size: int


def still_maps(owner: OpenOwner, run: ByteRange) -> bool:
    """Return whether an owner still has all of a run as written data at its position.

    Only this file's mapping is read: a run may have thousands of owners, and each is checked.
    """
    return maps_run(owner.fd, owner.position.offset, run)


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
        self._files: dict[int, _OwnerFile] = {}

    def open(self, position: FilePosition) -> OpenOwner:
        """Open the file of a position; raise `RefusedError` with the reason if it must not be."""
        file = self._files.get(position.inode)
        if file is None:
            file = self._files[position.inode] = _OwnerFile(
                self._fs, position.inode, position.generation
            )
        return OpenOwner(position, file.fd, file.size)

    def close(self) -> None:
        """Close the files."""
        for file in self._files.values():
            file.close()
