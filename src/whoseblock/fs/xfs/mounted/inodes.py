"""The inodes of a mounted XFS, by their numbers."""

import stat
from collections.abc import Iterator
from functools import cached_property
from typing import Final

from whoseblock.fs.mounted.format import InodeFacts, Parent
from whoseblock.fs.xfs.mounted import kernel
from whoseblock.fs.xfs.mounted.format import Geometry

__all__ = ["XfsInodes"]

#: How far from a file directories are read first, in inodes.
_RINGS: Final = (128, 1024, 4096)


class XfsInodes:
    """Access to inodes through bulkstat, handles and parent pointers; see `InodeAccess`."""

    def __init__(self, fd: int, geometry: Geometry) -> None:
        self._fd = fd
        self._geometry = geometry

    @cached_property
    def fsid(self) -> bytes:
        """The part that the handles of all inodes have in common."""
        return kernel.filesystem_id(self._fd)

    def facts(self, inode: int) -> InodeFacts | None:
        """Return the state of an inode; None if there is none."""
        return kernel.inode_facts(self._fd, inode)

    def root_facts(self) -> InodeFacts:
        """Return the state of the root directory."""
        return kernel.root_facts(self._fd)

    def open_directory(self, inode: int, generation: int) -> int:
        """Open a directory for reading; raises OSError."""
        return kernel.open_inode(self._fd, inode, generation)

    def parents(self, inode: int, generation: int) -> list[Parent]:
        """Return the parent pointers of an inode; raises OSError if there are none."""
        return kernel.parents(self._fd, self.fsid, inode, generation)

    def directories_near(self, inode: int) -> Iterator[InodeFacts]:
        """Yield the directories near an inode in its group, in rings, the nearest first.

        The kernel puts the inode of a file near that of its directory.
        """
        group = inode >> self._geometry.agino_bits << self._geometry.agino_bits
        for radius in _RINGS:
            first = max(inode - radius, group, 1)
            ring = [
                facts
                for facts in kernel.bulkstat(self._fd, first, 2 * radius)
                if stat.S_ISDIR(facts.mode) and facts.links and abs(facts.number - inode) <= radius
            ]
            ring.sort(key=lambda facts: abs(facts.number - inode))
            yield from ring
