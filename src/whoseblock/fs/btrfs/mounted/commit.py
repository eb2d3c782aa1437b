"""The last commit of a mounted btrfs, read from its devices past the page cache.

Trees are never overwritten before the next commit is on the disks.  So what was read is consistent
if the superblocks are still the same afterwards.
"""

from collections.abc import Iterable
from typing import Final, NamedTuple

from whoseblock.fs.btrfs.mounted import kernel
from whoseblock.fs.btrfs.mounted.references import LiveResolver
from whoseblock.fs.btrfs.names.paths import PathFinder
from whoseblock.fs.btrfs.notes import filesystem_doubts, log_doubts
from whoseblock.fs.btrfs.owners.finder import OwnerFinder
from whoseblock.fs.btrfs.rows import RowMaker
from whoseblock.fs.btrfs.superblocks import begins_with_superblock, open_devices
from whoseblock.fs.btrfs.volume import Volume
from whoseblock.media.base import Media

__all__ = ["Commit", "Moment", "read_moment"]

_LATER: Final = (
    "the kernel has changes that are not committed: what was free may be allocated by now; ask"
    " again after sync"
)


class Moment(NamedTuple):
    """The generations of the superblocks, and whether the kernel has later changes.

    None is one of a superblock that cannot be read.
    """

    generations: tuple[int | None, ...]
    is_settled: bool


def read_moment(fd: int, devices: Iterable[Media]) -> Moment:
    """Return the present state; ``fd`` is on the filesystem.  Raises OSError.

    The kernel has no later changes if it has begun no transaction since the last commit, and
    reserved no space for data that is just being written.
    """
    superblocks = map(begins_with_superblock, devices)
    found = tuple(None if one is None else one.generation for one in superblocks)
    state = kernel.filesystem_state(fd)
    newest = max((one for one in found if one is not None), default=None)
    is_settled = state.generation == newest and kernel.reserved_bytes(state.uuid) == 0
    return Moment(found, is_settled and newest is not None)


class Commit:
    """The last commit on ``members``, with the owners by the kernel where it knows more.

    ``fd`` is on the filesystem.  Raises `NotAFilesystemError` and `UnsupportedError`.
    """

    def __init__(self, fd: int, members: tuple[Media, ...], moment: Moment) -> None:
        sb, _, devices, items, notes = open_devices(members)
        self.moment = moment
        self.volume = Volume(devices, items, sb)
        if not moment.is_settled:
            self.volume.later_changes = _LATER
        self.finder = OwnerFinder(
            self.volume,
            lambda volume, sharing: LiveResolver(volume, sharing, fd, is_settled=moment.is_settled),
        )
        self.paths = PathFinder(self.volume)
        self.rows = RowMaker(self.volume, self.paths)
        self.doubts = (*notes, *filesystem_doubts(self.volume))
        if moment.is_settled:
            # The kernel has not replayed the log, and does not know what is in it.
            self.doubts += tuple(log_doubts(self.volume))
