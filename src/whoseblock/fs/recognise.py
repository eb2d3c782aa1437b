"""Which filesystem is on a medium, and who answers for it: we ourselves, or the kernel."""

import os
from collections.abc import Iterable
from pathlib import Path
from typing import Final

from whoseblock.errors import TargetError
from whoseblock.fs.driver import Volume
from whoseblock.media.base import Media
from whoseblock.media.mounts import is_folder, mount_point_device, mounted_readers

__all__ = ["begins_with_filesystem", "mounted_device", "open_filesystem", "open_mounted"]

_SECTOR: Final = 512


def begins_with_filesystem(media: Media) -> bool:
    """Tell whether a filesystem that we know begins where the medium does, and verifies.

    Nothing is searched for: on a disk with partitions one would find the filesystem of one of them.
    """
    # Of what is mounted the kernel knows, and none of this is loaded.
    from whoseblock.fs.xfs.superblocks import begins_with_superblock

    return begins_with_superblock(media)


def open_filesystem(
    media: Media, log_media: Media | None = None, doubts: Iterable[str] = ()
) -> Volume:
    """Open the filesystem on ``media``, which is closed with it; so is ``log_media``.

    Every answer is incomplete if there are ``doubts``.  Raises `NotAFilesystemError` or
    `UnsupportedError`.
    """
    from whoseblock.fs.xfs import XfsFilesystem

    return XfsFilesystem(media, log_media, doubts)


def mounted_device(path: str | os.PathLike[str]) -> int | None:
    """Give the number of the mounted device that a path stands for; None if it is none.

    A mount point, a device, or an image that as a whole is mounted by a loop device.  Raises
    `TargetError` for a folder that is no mount point.
    """
    if is_folder(path):
        device = mount_point_device(path)
        if device is None:
            raise TargetError(
                f"{os.fspath(path)!r} is a folder, and nothing is mounted there",
                hint="name the mount point of its filesystem, which findmnt --target shows",
            )
        return device
    return next((reader.device for reader in mounted_readers(path) if reader.whole), None)


def open_mounted(device: int, size: int | None = None) -> Volume | None:
    """Open what is mounted of the device of a number, for the kernel to answer; None if nothing is.

    ``size`` is that of the image which the device reads, if it reads one.  Raises
    `PrivilegeError`, `UnsupportedError`, `TargetError`, or `BlockError` if the kernel gives no
    answers.
    """
    # Only where something is mounted is what asks the kernel needed.
    from whoseblock.fs.live import LiveFilesystem

    if size is None:
        folder = Path(f"/sys/dev/block/{os.major(device)}:{os.minor(device)}")
        try:
            size = int((folder / "size").read_text()) * _SECTOR
        except (OSError, ValueError):
            # No block device: of such filesystems the kernel tells nothing anyhow.
            size = 0
    return LiveFilesystem.on(device, size)
