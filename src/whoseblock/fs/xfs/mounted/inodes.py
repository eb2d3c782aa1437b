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
#: Inodes of a cluster, which the kernel reads at once; it differs for other sizes of inodes.
_CLUSTER: Final = 32
#: Limit on the unreadable clusters near a file; a read of a failing disk may take a minute.
_MAX_UNREADABLE: Final = 8


class XfsInodes:
    """Access to inodes through bulkstat, handles and parent pointers; see `InodeAccess`."""

    def __init__(self, fd: int, geometry: Geometry) -> None:
        self._fd = fd
        self._geometry = geometry
        #: The first inodes of clusters that the kernel could not read.
        self._unreadable: set[int] = set()

    @cached_property
    def fsid(self) -> bytes:
        """The part that the handles of all inodes have in common."""
        return kernel.filesystem_id(self._fd)

    def facts(self, inode: int) -> InodeFacts | None:
        """Return the state of an inode; None if there is none.  Raises OSError."""
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
                for facts in self._inodes_between(first, inode + radius)
                if stat.S_ISDIR(facts.mode) and facts.links and abs(facts.number - inode) <= radius
            ]
            ring.sort(key=lambda facts: abs(facts.number - inode))
            yield from ring

    def _inodes_between(self, first: int, last: int) -> Iterator[InodeFacts]:
        """Yield the inodes in use from ``first`` to ``last``, except those that are unreadable.

        The kernel returns the inodes before an unreadable cluster, and an error only if it begins
        with one.
        """
        while first <= last:
            cluster = first // _CLUSTER
            if cluster not in self._unreadable:
                try:
                    found = kernel.bulkstat(self._fd, first, last - first + 1)
                except OSError:
                    if len(self._unreadable) == _MAX_UNREADABLE:
                        return
                    self._unreadable.add(cluster)
                else:
                    yield from found
                    if not found:
                        return
                    first = found[-1].number + 1
                    continue
            first = (cluster + 1) * _CLUSTER
