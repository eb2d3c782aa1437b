"""The inodes of a mounted ext4, by their numbers."""

import errno
import os
from collections.abc import Iterator
from typing import NoReturn

from whoseblock.errors import BlockError
from whoseblock.fs.ext4.format.inode import (
    EXT4_APPEND_FL,
    EXT4_ENCRYPT_FL,
    EXT4_IMMUTABLE_FL,
    Inode,
)
from whoseblock.fs.ext4.mounted import kernel
from whoseblock.fs.ext4.mounted.confirm import has_handle
from whoseblock.fs.ext4.mounted.metadata import LiveMetadata
from whoseblock.fs.ext4.names.directories import Directories
from whoseblock.fs.ext4.scan import EXT4_ROOT_INO, nearest_groups
from whoseblock.fs.mounted.format import (
    FS_XFLAG_APPEND,
    FS_XFLAG_IMMUTABLE,
    InodeFacts,
)

__all__ = ["Ext4Inodes", "facts_of"]


class Ext4Inodes:
    """Access to inodes through handles and the metadata of the device; see `InodeAccess`."""

    def __init__(self, mount: int, live: LiveMetadata) -> None:
        self._mount = mount
        self._live = live

    def facts(self, inode: int) -> InodeFacts | None:
        """Return the state of an inode; None if there is none.  Raises OSError."""
        if not 0 < inode <= self._live.sb.inodes_count:
            return None
        found = self._read(inode)
        if not has_handle(self._live, inode, found):
            return facts_of(inode, found)
        try:
            named = kernel.name_inode(self._mount, inode, found.generation)
        except FileNotFoundError:
            return None
        try:
            # A handle of generation 0 leads to any: it must still be so.
            if not found.generation and self._read(inode).generation:
                return None
            status = os.fstat(named)
            return facts_of(inode, found)._replace(
                mode=status.st_mode, links=status.st_nlink, size=status.st_size
            )
        finally:
            os.close(named)

    def root_facts(self) -> InodeFacts:
        """Return the state of the root directory."""
        return facts_of(EXT4_ROOT_INO, self._read(EXT4_ROOT_INO))

    def open_directory(self, inode: int, generation: int) -> int:
        """Open a directory for reading; raises OSError."""
        return kernel.open_inode(self._mount, inode, generation)

    def parents(self, inode: int, generation: int) -> NoReturn:
        """Raise OSError: there are no parent pointers."""
        raise OSError(errno.EOPNOTSUPP, f"inode {inode}, {generation}: no parent pointers")

    def directories_near(self, inode: int) -> Iterator[InodeFacts]:
        """Yield the directories that name an inode by their blocks, the nearest groups first."""
        volume, scan = self._live.volume, self._live.scan
        directories = Directories(volume)
        group = (inode - 1) // self._live.sb.inodes_per_group
        seen: set[int] = set()
        for one in nearest_groups(volume, group):
            folders = scan.directories_of(one)
            # A file is made in the group of its directory, and after it.
            for folder in sorted(folders, key=lambda folder: abs(folder - inode)):
                for _, link in directories.find(folder, (inode,)):
                    if link.parent not in seen:
                        seen.add(link.parent)
                        facts = self.facts(link.parent)
                        if facts is not None:
                            yield facts

    def is_encrypted(self, inode: int) -> bool:
        """Return whether a file or its names are encrypted; raises OSError."""
        return bool(self._read(inode).flags & EXT4_ENCRYPT_FL)

    def has_names(self, inode: int, generation: int, count: int) -> bool:
        """Return whether an inode is still the same, and has so many names; raises OSError."""
        now = self._read(inode)
        return now.generation == generation and bool(now.is_dir or now.links == count)

    def is_nokey_name(self, inode: int, directory: int, name: bytes) -> bool:
        """Return whether a name is what the kernel shows of an encrypted one without its key."""
        links = Directories(self._live.volume).find(directory, (inode,))
        return any(link.encrypted and link.name == name for _, link in links)

    def _read(self, number: int) -> Inode:
        try:
            return self._live.volume.inode(number)[0]
        except BlockError as error:
            raise OSError(errno.EIO, str(error)) from error


def facts_of(number: int, inode: Inode) -> InodeFacts:
    """Return the state of an inode that was read from the kernel's buffers."""
    flags = FS_XFLAG_IMMUTABLE if inode.flags & EXT4_IMMUTABLE_FL else 0
    flags |= FS_XFLAG_APPEND if inode.flags & EXT4_APPEND_FL else 0
    return InodeFacts(number, inode.size, flags, inode.generation, inode.links, inode.mode)
