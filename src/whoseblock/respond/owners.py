"""Owners of failed blocks on a mounted XFS: who they are now, and opening them to be changed."""

import contextlib
import errno
import os
import resource
from collections.abc import Iterable, Iterator, Sequence
from typing import Final, NamedTuple

from whoseblock.closing import Closing
from whoseblock.errors import WhoseblockError
from whoseblock.fs.base import FileOwner, Free, Owner
from whoseblock.fs.live import LiveFilesystem, kernel
from whoseblock.ranges import ByteRange, merge
from whoseblock.respond.reasons import ChangedError, RefusedError
from whoseblock.stack.fiemap import extents_of

__all__ = [
    "QUARANTINE",
    "OpenOwner",
    "OpenOwners",
    "Place",
    "has_still",
    "is_nobodys",
    "many_open_files",
    "owners_now",
    "places_of",
    "whole_blocks",
]

#: The folder below the root of a filesystem whose files keep failed blocks for ever.
QUARANTINE: Final = ".whoseblock-quarantine"

_FS_XFLAG_IMMUTABLE, _FS_XFLAG_APPEND = 0x8, 0x10  # linux/fs.h
_WHY: Final = {
    errno.ETXTBSY: "it is being executed, or is swap space",
    errno.EPERM: "it is immutable, or sealed",
    errno.EACCES: "it may not be written",
    errno.EROFS: "the filesystem is mounted read-only",
    errno.ENOENT: "it is gone",
}


class Place(NamedTuple):
    """A part of a file: the inode, its generation, and where the part begins."""

    inode: int
    generation: int
    offset: int


def whole_blocks(ranges: Iterable[ByteRange], block: int) -> list[ByteRange]:
    """Widen ranges to whole blocks of a filesystem, and merge them."""
    edges = ((one.start // block * block, -(-one.end // block) * block) for one in ranges)
    return merge(ByteRange(low, high - low) for low, high in edges)


def owners_now(fs: LiveFilesystem, run: ByteRange) -> Sequence[Owner]:
    """Say who has a range; raises `ChangedError` if that cannot be said for sure."""
    answer = fs.owners(*run, paths=False)
    if not answer.complete:
        raise ChangedError(f"who owns {run} is not certain: {answer.notes[0]}")
    return answer.owners


def places_of(rows: Iterable[Owner], run: ByteRange) -> set[Place]:
    """Give the parts of files that have all of a run as their written data.

    Raises `ChangedError` if anything else has a part of it.
    """
    places = set()
    for row in rows:
        if (
            not isinstance(row, FileOwner)
            or row.what != "data"
            or row.unwritten
            or (row.start, row.length) != run
            or row.file_offset is None
            or not isinstance(row.generation, int)
        ):
            raise ChangedError(f"not only data of files has {run}: {row.kind}")
        places.add(Place(row.inode, row.generation, row.file_offset))
    return places


def is_nobodys(rows: Iterable[Owner]) -> bool:
    """Whether a range holds nobody's data: free, or allocated and never written."""
    return all(
        isinstance(row, Free) or (isinstance(row, FileOwner) and row.unwritten) for row in rows
    )


class OpenFile(Closing):
    """A file that is to be changed, open for it.

    Raises `RefusedError` with the reason why it must not be.
    """

    def __init__(self, fs: LiveFilesystem, inode: int, generation: int) -> None:
        facts = fs.inode(inode)
        if facts is None or facts.generation != generation:
            raise ChangedError(f"inode {inode} is gone")
        if facts.xflags & (_FS_XFLAG_IMMUTABLE | _FS_XFLAG_APPEND):
            raise RefusedError(f"inode {inode}: it is immutable, or may only grow")
        self.size = facts.size
        try:
            flags = os.O_RDWR | os.O_NOATIME | os.O_NOFOLLOW
            self.fd = kernel.open_inode(fs.view.fd, inode, generation, flags)
        except (OSError, WhoseblockError) as error:
            why = _WHY.get(getattr(error, "errno", None) or 0) or str(error)
            raise RefusedError(f"inode {inode}: {why}") from error

    def close(self) -> None:
        """Close the file."""
        os.close(self.fd)


class OpenOwner(NamedTuple):
    """A place in a file that is open to be changed there."""

    place: Place
    fd: int
    size: int


def has_still(owner: OpenOwner, run: ByteRange) -> bool:
    """Whether an owner still has all of a run as written data in its place.

    The file is open, so that its inode is nobody else's; it alone is asked, since a run may have
    thousands of owners, each of which is to be looked at.
    """
    at, end = owner.place.offset, owner.place.offset + run.length
    distance = run.start - at
    for extent in extents_of(owner.fd, at, run.length):
        if (
            extent.logical > at
            or not extent.is_written
            or extent.physical - extent.logical != distance
        ):
            return False
        at = extent.logical + extent.length
        if at >= end:
            return True
    return False


@contextlib.contextmanager
def many_open_files() -> Iterator[None]:
    """Let us have as many files open as we may at all: owners are open all at once."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))


class OpenOwners(Closing):
    """Owners that are open; each file once, for a lease is not given to who has it open twice."""

    def __init__(self, fs: LiveFilesystem) -> None:
        self._fs = fs
        self._files: dict[int, OpenFile] = {}

    def open(self, place: Place) -> OpenOwner:
        """Open the file of a place; raises `RefusedError` with the reason why not."""
        file = self._files.get(place.inode)
        if file is None:
            file = self._files[place.inode] = OpenFile(self._fs, place.inode, place.generation)
        return OpenOwner(place, file.fd, file.size)

    def close(self) -> None:
        """Close the files."""
        for file in self._files.values():
            file.close()
