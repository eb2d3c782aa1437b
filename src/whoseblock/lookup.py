"""The main job: a failure in, findings out."""

import os
from collections.abc import Iterable, Iterator
from contextlib import ExitStack, closing

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
    with ExitStack() as undo:
        media = _open_media(target, undo)
        log_media = None if log_device is None else _open_media(log_device, undo)
        filesystem = XfsFilesystem(media, log_media)
        undo.pop_all()
    return filesystem


def _open_media(given: str | os.PathLike[str] | Media, undo: ExitStack) -> Media:
    """Open what is named by its path; ``undo`` closes it, but nothing that was given open."""
    if isinstance(given, str | os.PathLike):
        return undo.enter_context(closing(FileMedia(given)))
    return given


def lookup(
    filesystem: Filesystem, ranges: Iterable[ByteRange], *, paths: bool = True
) -> Iterator[Answer]:
    """Say whose each range is, in the order asked."""
    return filesystem.owners_many(ranges, paths=paths)
