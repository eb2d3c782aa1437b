"""The superblock of a medium: the first, or a copy of it if the first is lost."""

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
from whoseblock.media.base import Media

__all__ = ["OpenedSuperblock", "begins_with_superblock", "open_superblock"]

#: More groups than this are not read: 256 TiB with blocks of 4 KiB.
_MOST_GROUPS: Final = 1 << 21
#: Group 1 has a copy, unless the filesystem has the feature sparse_super2 or one group only.
_COPY_GROUP: Final = 1


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
            # Only a failed open needs the table of signatures.
            from whoseblock.fs.signatures import find_content

            content = find_content(media)
            what = f": {content.what}" if content else ""
            raise NotAFilesystemError(
                f"no ext2, ext3 or ext4 filesystem on {media.name!r}{what} (superblock: {found})",
                hint=content.hint if content else "name the device or the image of the filesystem",
            )
        notes.append(
            f"the superblock is lost ({found}); the copy in group {_COPY_GROUP} was used, which"
            " may be older"
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


def _find_copy(media: Media) -> Superblock | None:
    """Return the copy in group 1, where mke2fs puts it for each size of blocks; None without."""
    for log in range(7):
        size = 1024 << log
        first = 1 if log == 0 else 0
        per_group = min(8 * size, 65528)
        found = _read(media, (first + per_group) * size)
        if isinstance(found, str):
            continue
        sb = found[0]
        if (
            sb.block_group_nr == _COPY_GROUP
            and sb.block_size == size
            and sb.blocks_per_group == per_group
            and sb.has_super(_COPY_GROUP)
        ):
            return sb
    return None
