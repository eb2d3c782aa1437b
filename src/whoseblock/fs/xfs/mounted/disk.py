"""The metadata of a mounted XFS as it is on the disk, which may be older than what the kernel has.

XFS keeps metadata in buffers of its own, not in the page cache of the device, and writes them up to
half a minute after the log.  So a read of the device shows a past state, in which each structure
is verified as on an image.  A fact of it counts only where the kernel confirms that the structure
has not changed since: see `LiveScan` for inodes and `LiveGroups` for groups.
"""

import stat
from contextlib import ExitStack
from functools import cached_property
from typing import Final

from whoseblock.closing import Closing
from whoseblock.errors import BlockError, CorruptError, TargetError, WhoseblockError
from whoseblock.fs.scan.engine import Extent
from whoseblock.fs.xfs.format.inode import (
    ATTR_FORK,
    DATA_FORK,
    XFS_DINODE_FMT_BTREE,
    XFS_DINODE_FMT_EXTENTS,
)
from whoseblock.fs.xfs.inodes import InodeTable
from whoseblock.fs.xfs.mounted.format import InodeState
from whoseblock.fs.xfs.owners.finder import OwnerFinder
from whoseblock.fs.xfs.owners.maps import ExtentMaps
from whoseblock.fs.xfs.owners.metadata import GroupMetadata
from whoseblock.fs.xfs.scan import InodeScan
from whoseblock.fs.xfs.superblocks import open_superblock
from whoseblock.fs.xfs.volume import Volume
from whoseblock.media.device import FileMedia
from whoseblock.media.mounts import device_node

__all__ = ["CHANGED", "DiskState", "read_disk"]

#: The formats of a data fork with which the kernel reports the number of blocks.
_COUNTED: Final = (XFS_DINODE_FMT_EXTENTS, XFS_DINODE_FMT_BTREE)
#: Why an inode on the disk does not count.
CHANGED: Final = "it has changed since the kernel last wrote it to the disk"
_UNWRITTEN: Final = "unless the kernel has not written it to the disk yet"


class DiskState(Closing):
    """The metadata on a device at about one moment: what was read once is kept.

    Raises `NotAFilesystemError` and `UnsupportedError`; nothing is closed then.
    """

    def __init__(self, media: FileMedia) -> None:
        self._media = media
        found = open_superblock(media)
        self.volume = Volume(media, found.sb, found.disputed)
        self.inodes = InodeTable(self.volume)
        #: Provides the btrees of groups.
        self.trees = OwnerFinder(self.volume, self.inodes)

    @cached_property
    def metadata(self) -> GroupMetadata:
        """The metadata of all groups."""
        return GroupMetadata(self.volume, self.trees)

    @cached_property
    def _scan(self) -> InodeScan:
        return InodeScan(self.volume, self.inodes, ExtentMaps(self.volume, self.inodes))

    def extents_of(self, state: InodeState) -> list[Extent]:
        """Return the extents of both forks of an inode and its maps, if it is as the kernel has it.

        Their unit is the block.  Raises `BlockError` if the inode is damaged, or is not the one
        of ``state``, which the kernel returned before.
        """
        try:
            inode = self.inodes.get(state.number)
        except CorruptError as error:
            what = f"inode {state.number}"
            raise CorruptError(what, error.start, f"{error.reason}, {_UNWRITTEN}") from error
        core = inode.core
        data, attr = (core.fork(one, self.volume.inode_size) for one in (DATA_FORK, ATTR_FORK))
        # The kernel also counts what is reserved for delayed allocations of a file.
        counted = not stat.S_ISREG(core.mode) and core.format in _COUNTED
        changes = (
            core.gen != state.generation,
            core.mode != state.mode,
            core.time_ns(core.raw_ctime) != state.changed_ns,
            data is None or data.nextents != state.extents,
            (attr.nextents if attr else 0) != state.attr_extents,
            counted and core.nblocks != state.blocks,
        )
        if any(changes):
            raise CorruptError(f"inode {state.number}", inode.start, CHANGED)
        return [Extent._make(row) for row in self._scan.extents_of(state.number)]

    def close(self) -> None:
        """Close the device; a second time has no effect."""
        self._media.close()


def read_disk(device: int) -> DiskState:
    """Read the metadata on the device of a mounted filesystem, as it is now.

    Raises `BlockError` and `TargetError`.
    """
    path = device_node(device)
    if path is None:
        raise TargetError("its device has no node in /dev here")
    media = FileMedia(path)
    with ExitStack() as undo:
        undo.callback(media.close)
        try:
            found = DiskState(media)
        except BlockError:
            raise
        except WhoseblockError as error:
            raise BlockError(f"the metadata of the mounted filesystem: {error}") from error
        undo.pop_all()
    return found
