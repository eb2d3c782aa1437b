"""Which filesystem is on a medium."""

from whoseblock.fs.base import Filesystem
from whoseblock.fs.xfs import XfsFilesystem
from whoseblock.fs.xfs.volume import begins_with_superblock
from whoseblock.media.base import Media

__all__ = ["begins_with_filesystem", "open_filesystem"]


def begins_with_filesystem(media: Media) -> bool:
    """Tell whether a filesystem that we know begins where the medium does, and verifies.

    Nothing is searched for: on a disk with partitions one would find the filesystem of one of them.
    """
    return begins_with_superblock(media)


def open_filesystem(media: Media, log_media: Media | None = None) -> Filesystem:
    """Open the filesystem on ``media``, which is closed with it; so is ``log_media``.

    Raises `NotAFilesystemError` or `UnsupportedError`.
    """
    return XfsFilesystem(media, log_media)
