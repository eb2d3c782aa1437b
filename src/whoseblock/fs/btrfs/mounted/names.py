"""The paths of files of a mounted btrfs, of its last commit, each confirmed by opening it."""

import os
from collections.abc import Iterator
from contextlib import suppress
from typing import Final, NamedTuple

from msgspec.structs import replace

from whoseblock.errors import BlockError
from whoseblock.fs.base import FileId, Paths, distinct
from whoseblock.fs.btrfs.format.keys import FIRST_FREE
from whoseblock.fs.btrfs.mounted import kernel
from whoseblock.fs.btrfs.names.paths import PathFinder, read_inode
from whoseblock.fs.mounted.kernel import READ_DIRECTORY
from whoseblock.fs.mounted.paths import gone_note
from whoseblock.fs.mounted.view import View, open_far

__all__ = ["LiveNames", "OpenInode", "open_now"]

_NAME: Final = os.O_PATH | os.O_CLOEXEC | os.O_NOFOLLOW


class OpenInode(NamedTuple):
    """The state of an inode at this moment."""

    generation: int
    status: os.stat_result


def open_now(fd: int, file: FileId, generation: int) -> OpenInode | None:
    """Return the state of an inode, None if it is gone; generation 0 is any.

    Raises `PrivilegeError`, and OSError if it cannot be read.
    """
    try:
        opened = kernel.open_inode(fd, file, generation, os.O_PATH)
    except FileNotFoundError:
        return None
    try:
        found = kernel.identify(opened)
        return None if found is None else OpenInode(found[1], os.fstat(opened))
    finally:
        os.close(opened)


class LiveNames:
    """Confirms the paths that ``finder`` has of the last commit, on the filesystem of ``view``."""

    def __init__(self, view: View, finder: PathFinder) -> None:
        self.view = view
        self.finder = finder
        #: The generations of the inodes that were found.
        self.generations: dict[FileId, int] = {}

    def find(self, files: dict[FileId, None]) -> dict[FileId, Paths]:
        """Return every path of each file, and what may be missing."""
        # Files near each other have their names in the same leaves.
        known = self.finder.find(sorted(files))
        return {file: self._find(file, paths) for file, paths in known.items()}

    def _find(self, file: FileId, known: Paths) -> Paths:
        generation = 0
        with suppress(BlockError):
            generation = read_inode(self.finder.volume, file).generation
        try:
            now = open_now(self.view.fd, file, generation)
        except OSError as error:
            note = f"inode {file.inode} of subvolume {file.subvolume}: {error.strerror}"
            return replace(known, complete=False, notes=(note,))
        if now is None:
            if known.unlinked:
                # It was closed since, or belongs to a subvolume that is being deleted.
                return known
            note = f"{gone_note(file.inode)} (subvolume {file.subvolume})"
            return Paths(complete=False, notes=(note,))
        self.generations[file] = now.generation
        links = now.status.st_nlink
        if not links:
            return Paths(unlinked=True)
        named = {os.fsencode(path) for path in known.paths}
        paths = {path for path in named if self._leads_to(path, file, now.generation)}
        if len(paths) != links or paths != named:
            paths |= {
                path for path in self._by_kernel(file) if self._leads_to(path, file, now.generation)
            }
        notes = list(known.notes) if len(paths) != links else []
        if len(paths) != links:
            notes.append(
                f"inode {file.inode} of subvolume {file.subvolume} has {links} names,"
                f" {len(paths)} were found"
            )
        names = sorted(paths)
        places = tuple(place for name in names for place in self._places(name, file))
        decoded = tuple(map(os.fsdecode, names))
        return Paths(decoded, complete=not notes, notes=distinct(notes), mounted_at=places)

    def _by_kernel(self, file: FileId) -> Iterator[bytes]:
        """Yield the paths that the kernel lists at this moment."""
        above = os.fsencode(self.finder.subvolume_path(file.subvolume)).rstrip(b"/")
        if file.inode == FIRST_FREE:
            yield above or b"/"
            return
        # A subvolume that was made or moved since is not in the last commit.
        with suppress(OSError):
            subvolume = FileId(file.subvolume, FIRST_FREE)
            fd = kernel.open_inode(self.view.fd, subvolume, 0, READ_DIRECTORY)
            try:
                for path in kernel.paths_within(fd, file.inode):
                    yield above + b"/" + path
            finally:
                os.close(fd)

    def _leads_to(self, path: bytes, file: FileId, generation: int) -> bool:
        """Return whether a path from the top-level subvolume leads to an inode."""
        return self.view.root is not None and _is_at(self.view.root, path[1:], file, generation)

    def _places(self, path: bytes, file: FileId) -> Iterator[str]:
        """Yield where the file of a path can be opened now."""
        for place, mount, inside in self.view.candidates(path):
            if _is_at(mount, inside, file, self.generations[file]):
                yield place


def _is_at(directory: int, path: bytes, file: FileId, generation: int) -> bool:
    """Return whether a relative path within its mount leads to an inode."""
    try:
        fd = open_far(directory, path, _NAME)
    except OSError:
        return False
    try:
        return kernel.identify(fd) == (file, generation)
    finally:
        os.close(fd)
