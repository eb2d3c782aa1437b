"""Finding the superblock that a filesystem can be opened with."""

from collections.abc import Iterator
from itertools import chain
from typing import Final

from whoseblock.errors import BlockError, CorruptError, NotAFilesystemError, UnsupportedError
from whoseblock.fs.xfs.format.superblock import (
    NULLFSINO,
    SUPERBLOCK,
    XFS_SB_MAGIC,
    XFS_SB_VERSION_5,
    Superblock,
    parse_superblock,
)
from whoseblock.fs.xfs.volume import DADDR
from whoseblock.media.base import Media

__all__ = ["begins_with_superblock", "open_superblock"]

_LARGEST_SECTOR: Final = 32 * 1024
#: How mkfs.xfs may have divided a device whose first superblock is lost.
_COMMON_BLOCK_SIZES: Final = (4096, 1024, 2048, 8192, 16384, 32768, 65536)
_MOST_LIKELY_GROUPS: Final = 64
#: How much of the device is searched if it was none of these, and in which steps.
_SEARCH_LIMIT: Final = 16 << 30
_SEARCH_STEP: Final = 1 << 20
_MAGIC_BYTES = XFS_SB_MAGIC.to_bytes(4, "big")


def _read_superblock(media: Media, start: int) -> Superblock:
    """Read and verify the superblock at ``start``: its sector, and no byte more."""
    head = media.pread(start, min(DADDR, media.size - start))
    sector_size = SUPERBLOCK.unpack_from(head).sectsize if len(head) == DADDR else 0
    if DADDR < sector_size <= _LARGEST_SECTOR:
        head = media.pread(start, min(sector_size, media.size - start))
    return parse_superblock(head, start)


def begins_with_superblock(media: Media) -> bool:
    """Tell whether a superblock that verifies is where the first one belongs."""
    try:
        _read_superblock(media, 0)
    except BlockError:
        return False
    return True


def open_superblock(media: Media) -> tuple[Superblock, tuple[str, ...]]:
    """Find the superblock of ``media``, a copy if the first one is lost; with notes.

    Raises `NotAFilesystemError` where there is none, and `UnsupportedError` for features that
    forbid reading to those who do not know them.
    """
    notes: tuple[str, ...] = ()
    try:
        sb = _read_superblock(media, 0)
    except BlockError as error:
        first = str(error)
        copy = _find_copy(media) if _may_be_xfs(media) else None
        if copy is None:
            raise NotAFilesystemError(
                f"no XFS filesystem on {media.name!r}: {first}",
                hint="for a disk with partitions, name the partition",
            ) from error
        sb, start = copy
        notes = (f"{first}; the copy of the superblock at byte {start} was used in its place",)
    if sb.version == XFS_SB_VERSION_5 and sb.unknown_incompat:
        raise UnsupportedError(
            f"{media.name!r} is XFS with features that this whoseblock does not know"
            f" (incompat {sb.unknown_incompat:#x})",
            hint="a newer whoseblock may know them",
        )
    return sb, notes


def _may_be_xfs(media: Media) -> bool:
    """Tell whether a search is worth it: the device begins like XFS, or its beginning is lost.

    A rescued image has zeros where nothing could be read.
    """
    try:
        head = media.pread(0, min(DADDR, media.size))
    except BlockError:
        return True
    return head.startswith(_MAGIC_BYTES) or not any(head)


def _find_copy(media: Media) -> tuple[Superblock, int] | None:
    """Search for a superblock at the start of a later group, verified against where it stands."""
    for start in chain(_likely_copies(media.size), _possible_copies(media)):
        try:
            sb = _read_copy(media, start)
        except BlockError:
            continue
        return _best_copy(media, sb, start)
    return None


def _read_copy(media: Media, start: int) -> Superblock:
    """Read a copy of the superblock; raises `BlockError` if it is none for where it stands."""
    sb = _read_superblock(media, start)
    agno, rest = divmod(start, sb.agblocks * sb.blocksize)
    if rest or not 0 < agno < sb.agcount or sb.version != XFS_SB_VERSION_5:
        raise CorruptError("copy of the superblock", start, "of another place")
    # mkfs.xfs leaves this set in the copies.
    return sb._replace(inprogress=0)


def _best_copy(media: Media, sb: Superblock, start: int) -> tuple[Superblock, int]:
    """Prefer a copy that knows the root directory.

    mkfs.xfs tells only those of the last and of the middle group.
    """
    for agno in (sb.agcount - 1, (sb.agcount - 1) // 2):
        at = agno * sb.agblocks * sb.blocksize
        try:
            copy = _read_copy(media, at)
        except BlockError:
            continue
        if copy.uuid == sb.uuid and copy.rootino != NULLFSINO:
            return copy, at
    return sb, start


def _likely_copies(size: int) -> Iterator[int]:
    """Give where the second group begins if mkfs.xfs divided the device evenly, as it does."""
    for block_size in _COMMON_BLOCK_SIZES:
        blocks = size // block_size
        for groups in range(2, _MOST_LIKELY_GROUPS + 1):
            if start := -(-blocks // groups) * block_size:
                yield start


def _possible_copies(media: Media) -> Iterator[int]:
    """Give every sector near the start of the device that begins like a superblock."""
    for base in range(0, min(media.size, _SEARCH_LIMIT), _SEARCH_STEP):
        try:
            chunk = media.pread(base, min(_SEARCH_STEP, media.size - base))
        except BlockError:
            continue
        at = chunk.find(_MAGIC_BYTES)
        while at >= 0:
            if at % DADDR == 0:
                yield base + at
            at = chunk.find(_MAGIC_BYTES, at + 1)
