"""The main job: a failure in, findings out."""

import os
from collections.abc import Iterable, Iterator

from whoseblock.fs.base import Answer, Filesystem
from whoseblock.fs.xfs import XfsFilesystem
from whoseblock.media.base import Media
from whoseblock.media.device import FileMedia
from whoseblock.ranges import ByteRange

__all__ = ["lookup", "open_filesystem"]


def open_filesystem(
    target: str | os.PathLike[str] | Media,
    *,
    log_device: str | os.PathLike[str] | Media | None = None,
) -> Filesystem:
    """Recognise and open the filesystem on ``target``.

    Raises `TargetError`, `NotAFilesystemError` or `UnsupportedError`; what was opened here is then
    closed again.
    """
    media = FileMedia(target) if isinstance(target, str | os.PathLike) else target
    log_media: Media | None
    try:
        if isinstance(log_device, str | os.PathLike):
            log_media = FileMedia(log_device)
        else:
            log_media = log_device
        return XfsFilesystem(media, log_media)
    except BaseException:
        if media is not target:
            media.close()
        raise


def lookup(
    filesystem: Filesystem, ranges: Iterable[ByteRange], *, paths: bool = True
) -> Iterator[Answer]:
    """Say whose each range is, in the order asked."""
    return filesystem.owners_many(ranges, paths=paths)
