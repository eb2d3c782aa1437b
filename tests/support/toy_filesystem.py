"""A filesystem of one page of code, with its mkfs: what a driver needs at least.

Block 0 has the header and the table of files, each with one extent.  All else is free.
"""

from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from struct import Struct
from typing import Final

from whoseblock.closing import Closing
from whoseblock.errors import NotAFilesystemError
from whoseblock.fs.arguments import checked_ranges
from whoseblock.fs.base import (
    Answer,
    FileId,
    FileOwner,
    Free,
    MetadataOwner,
    Outside,
    Owner,
    Paths,
    no_progress,
)
from whoseblock.fs.driver import Driver, FileFacts, Probe, ReverseMap, Volume
from whoseblock.fs.registry import Registration
from whoseblock.media.base import Media

__all__ = ["BLOCK", "DRIVER", "REGISTRATION", "make_toy"]

BLOCK: Final = 4096
_MAGIC: Final = b"TOYFS\0\0\1"
#: magic, blocks, files
_HEADER: Final = Struct("<8sII")
#: subvolume, inode, first block, blocks, size, name
_FILE: Final = Struct("<4IQ24s")
REGISTRATION: Final = Registration(__name__, "ToyFS", ("toyfs",), ((0, _MAGIC),))


def make_toy(
    image: Path, blocks: int, files: Sequence[tuple[int, int, int, int, int, str]]
) -> Path:
    """Make an image."""
    table = b"".join(_FILE.pack(*rest, name.encode()) for *rest, name in files)
    head = _HEADER.pack(_MAGIC, blocks, len(files)) + table
    image.write_bytes(head.ljust(blocks * BLOCK, b"\0"))
    return image


class ToyVolume(Closing, Volume):
    """A toy filesystem on ``media``."""

    name = "toyfs"
    block_size = BLOCK

    def __init__(self, media: Media) -> None:
        head = media.pread(0, min(BLOCK, media.size))
        if not head.startswith(_MAGIC):
            raise NotAFilesystemError(f"no ToyFS on {media.name!r}")
        _, blocks, count = _HEADER.unpack_from(head)
        table = head[_HEADER.size : _HEADER.size + count * _FILE.size]
        self.table = sorted(_FILE.iter_unpack(table), key=lambda file: file[2])
        self.media = media
        self.size = blocks * BLOCK
        self.device_size = media.size
        self.progress = no_progress

    @property
    def identity(self) -> str:
        """The identity of the only toy."""
        return "toyfs the only one"

    @property
    def reverse_map(self) -> ReverseMap:
        """The way to find owners: the table is read."""
        return "scan"

    @property
    def reads(self) -> Counter[str]:
        """The number of reads."""
        return Counter(table=1)

    def owners_stream(
        self, ranges: Iterable[tuple[int, int]], *, paths: bool = True
    ) -> Iterator[Answer]:
        """Answer each range from the table."""
        for start, length in checked_ranges(ranges, self.media.name, self.device_size):
            end = start + length
            rows = (row for row in self._rows(paths=paths) if row[0] < end and start < row[1])
            owners = tuple(_clip(*row, start, end) for row in rows)
            yield Answer(start, length, complete=True, notes=(), owners=owners)

    def _rows(self, *, paths: bool) -> Iterator[tuple[int, int, Owner]]:
        yield 0, BLOCK, MetadataOwner(0, BLOCK, "static")
        at = BLOCK
        for subvolume, inode, first, blocks, _, name in self.table:
            low, high = first * BLOCK, (first + blocks) * BLOCK
            if at < low:
                yield at, low, Free(at, low - at)
            row = FileOwner(
                low, high - low, inode, "data", "data", 0, unwritten=False, shared=False
            )
            more: dict[str, object] = {"subvolume": subvolume} if subvolume else {}
            if paths:
                more["paths"] = (_path(name),)
            yield low, high, _replace(row, **more)
            at = high
        if at < self.size:
            yield at, self.size, Free(at, self.size - at)
        yield self.size, 1 << 62, Outside(self.size, 0, "past the end of the filesystem")

    def files(self, files: Iterable[FileId]) -> dict[FileId, FileFacts]:
        """Return the facts of files."""
        known = {
            FileId(file[0], file[1]): FileFacts(0o100644, file[4], 1, 1) for file in self.table
        }
        return {file: known[file] for file in files if file in known}

    def paths_of(self, files: Iterable[FileId]) -> dict[FileId, Paths]:
        """Return the only path of each file."""
        known = {FileId(file[0], file[1]): Paths((_path(file[5]),)) for file in self.table}
        return {file: known.get(file, Paths(complete=False)) for file in files}

    def close(self) -> None:
        """Close the medium."""
        self.media.close()


def _path(name: bytes) -> str:
    return "/" + name.rstrip(b"\0").decode()


def _replace(row: Owner, **changes: object) -> Owner:
    from msgspec.structs import replace

    return replace(row, **changes)


def _clip(low: int, high: int, row: Owner, start: int, end: int) -> Owner:
    begin, stop = max(low, start), min(high, end)
    if isinstance(row, FileOwner):
        return _replace(row, start=begin, length=stop - begin, file_offset=begin - low)
    return _replace(row, start=begin, length=stop - begin)


class ToyDriver(Driver):
    """Knows the toy."""

    name = "toyfs"

    def probe(self, media: Media) -> Probe | None:
        """Identify the toy at the beginning of a medium."""
        return Probe(self.name, "the only one") if media.pread(0, 8) == _MAGIC else None

    def open(
        self, members: Sequence[Media], companions: Mapping[str, Media], doubts: Iterable[str] = ()
    ) -> Volume:
        """Open the toy on the first member."""
        del companions, doubts  # it knows of none
        return ToyVolume(members[0])


DRIVER = ToyDriver()
