"""The superblock of a medium: the first, or a copy of it if the first is lost."""

from collections.abc import Iterator
from typing import Final, NamedTuple

from whoseblock.errors import BlockError, NotAFilesystemError, UnsupportedError
from whoseblock.fs.ext4.format.superblock import (
    EXT4_SUPER_MAGIC,
    INCOMPAT_JOURNAL_DEV,
    SUPERBLOCK_OFFSET,
    SUPERBLOCK_SIZE,
    Superblock,
    checksum_matches,
    geometry_fault,
    parse_superblock,
)
from whoseblock.media.base import Media, next_data

__all__ = ["OpenedSuperblock", "begins_with_superblock", "open_superblock"]

#: More groups than this are not read: 256 TiB with blocks of 4 KiB.
_MOST_GROUPS: Final = 1 << 21
#: Groups that have a copy, except with the feature sparse_super2.
_COPY_GROUPS: Final = (1, 3, 5, 7, 9, 25, 27)
#: EXT2_MAX_CLUSTERS_PER_GROUP of blocks of 64 KiB, and the largest ratio of clusters to blocks.
_MOST_CLUSTERS: Final = 65528
_MOST_LOG_RATIO: Final = 10


class OpenedSuperblock(NamedTuple):
    """A superblock that verifies, and the notes that make every answer incomplete."""

    sb: Superblock
    notes: tuple[str, ...]


def _read(media: Media, offset: int) -> tuple[Superblock, bytes] | str:
    """Return the superblock at a byte with its bytes, or why there is none."""
    if media.size < offset + SUPERBLOCK_SIZE:
        return "the device is too small"
    try:
        raw = media.pread(offset, SUPERBLOCK_SIZE)
    except BlockError as error:
        return str(error)
    sb = parse_superblock(raw)
    if sb.magic != EXT4_SUPER_MAGIC:
        return "wrong magic number"
    if not sb.incompat & INCOMPAT_JOURNAL_DEV and (fault := geometry_fault(sb)):
        return fault
    if not checksum_matches(sb, raw):
        return "checksum mismatch"
    return sb, raw


def begins_with_superblock(media: Media) -> Superblock | None:
    """Return the superblock where the medium begins, None if it does not verify."""
    found = _read(media, SUPERBLOCK_OFFSET)
    return None if isinstance(found, str) else found[0]


def open_superblock(media: Media) -> OpenedSuperblock:
    """Find and verify the superblock.

    Raises `NotAFilesystemError`, or `UnsupportedError` for features that cannot be read.
    """
    notes: list[str] = []
    found = _read(media, SUPERBLOCK_OFFSET)
    if isinstance(found, str):
        copy = _find_copy(media)
        if copy is None:
            raise NotAFilesystemError(
                f"no ext2, ext3 or ext4 filesystem on {media.name!r}",
                reason=f"superblock: {found}",
                hint=_hint(media),
            )
        notes.append(
            f"the superblock is lost ({found}); the copy in group {copy.block_group_nr} was used,"
            " which may be older"
        )
        sb = copy
    else:
        sb = found[0]
    if sb.incompat & INCOMPAT_JOURNAL_DEV:
        raise UnsupportedError(
            f"{media.name} is the external journal of an ext4 filesystem, which has no files",
            hint="name the device of the filesystem",
        )
    if sb.unsupported:
        names = ", ".join(sb.unsupported)
        raise UnsupportedError(f"{media.name}: features of ext4 that cannot be read: {names}")
    if sb.groups_count > _MOST_GROUPS:
        raise UnsupportedError(
            f"{media.name}: {sb.groups_count} block groups; at most {_MOST_GROUPS} are read"
        )
    return OpenedSuperblock(sb, tuple(notes))


def _hint(media: Media) -> str:
    """Return what to try where neither the superblock nor a copy verifies."""
    try:
        magic = parse_superblock(media.pread(SUPERBLOCK_OFFSET, SUPERBLOCK_SIZE)).magic
    except BlockError:
        magic = 0
    if magic != EXT4_SUPER_MAGIC:
        return "name the device or the image of the filesystem"
    return (
        "no copy is where mke2fs puts it by default; if it was made with -g, mke2fs -n with the"
        " same options prints the blocks N of the copies, and e2fsck -b N -B BLOCKSIZE uses one"
    )


def _find_copy(media: Media) -> Superblock | None:
    """Return the first copy that verifies, where mke2fs puts it by default; None without.

    With ``mke2fs -g``, groups have another size, and their copies are not found.
    """
    if next_data(media, 0) >= media.size:
        return None
    for offset, size, group in _copy_places(media):
        found = _read(media, offset)
        if isinstance(found, str):
            continue
        sb = found[0]
        start = (sb.first_data_block + group * sb.blocks_per_group) * sb.block_size
        if (
            sb.block_group_nr == group
            and sb.block_size == size
            and start == offset
            and sb.has_super(group)
        ):
            return sb
    return None


def _copy_places(media: Media) -> Iterator[tuple[int, int, int]]:
    """Yield ``(offset, block size, group)`` of each place for a copy, the likely ones first."""
    for groups in (_COPY_GROUPS[:1], (*_COPY_GROUPS[1:], None)):
        for log_ratio in range(_MOST_LOG_RATIO + 1):
            for log in range(7):
                size = 1024 << log
                first = 1 if log == 0 and not log_ratio else 0
                per_group = min(8 * size, _MOST_CLUSTERS) << log_ratio
                last = (media.size // size - first - 1) // per_group
                for group in groups:
                    # sparse_super2 has a copy in the last group.
                    number = last if group is None else group
                    if 0 < number <= last:
                        yield (first + number * per_group) * size, size, number
