"""From inodes of a mounted filesystem to every path, while other processes change the tree.

Where the filesystem has parent pointers, the kernel returns the names of an inode.  Without, the
directories that are likeliest to have them are read first, then the whole tree from its root.  A
path counts only if it then leads to the inode; if not, another process has moved something, and
the search is repeated.
"""

import errno
import os
import stat
from collections import deque
from collections.abc import Iterator, Mapping
from typing import Final, Protocol

from whoseblock.errors import PrivilegeError
from whoseblock.fs.base import Paths, Progress, distinct
from whoseblock.fs.mounted import kernel
from whoseblock.fs.mounted.format import DT_DIR, DT_UNKNOWN, InodeFacts, Parent
from whoseblock.fs.mounted.view import View, inode_at, open_far

__all__ = ["InodeAccess", "PathFinder", "gone_note", "unreadable_note"]

#: How often names are looked for that change meanwhile.
_ATTEMPTS: Final = 4
#: How many directories near a file are read before the whole tree is.
_NEAREST: Final = 256
#: From so many files on, reading the whole tree once is quicker than looking near each.
_MANY: Final = 8
#: No path has more names: each takes two bytes, and no directory is deeper in any sane tree.
_DEEPEST: Final = 1 << 20
_DIRECTORY: Final = os.O_RDONLY | os.O_DIRECTORY | os.O_NOATIME | os.O_NOFOLLOW
#: Links of a directory that holds no other: its name, and its own dot.
_LEAF_LINKS: Final = 2
#: Errors of opening a directory that has been moved or removed since its name was read.
_MOVED: Final = frozenset((errno.ENOENT, errno.ENOTDIR, errno.ESTALE, errno.ELOOP))


class _LostError(Exception):
    """The way from the root to a directory was not found; the message says why."""


def gone_note(ino: int) -> str:
    """Return the note about an inode that does not exist for us."""
    return f"inode {ino} is gone, or one that the kernel keeps to itself"


def unreadable_note(ino: int, error: OSError) -> str:
    """Return the note about an inode that the kernel cannot read."""
    return f"inode {ino} cannot be read: {error.strerror}"


class InodeAccess(Protocol):
    """The access of a driver to the inodes of a mounted filesystem by their numbers."""

    def facts(self, inode: int) -> InodeFacts | None:
        """Return the state of an inode; None if there is none.  Raises OSError."""
        ...

    def root_facts(self) -> InodeFacts:
        """Return the state of the root directory."""
        ...

    def open_directory(self, inode: int, generation: int) -> int:
        """Open a directory for reading; raises OSError."""
        ...

    def parents(self, inode: int, generation: int) -> list[Parent]:
        """Return the parent pointers of an inode; raises OSError if there are none."""
        ...

    def directories_near(self, inode: int) -> Iterator[InodeFacts]:
        """Yield directories that may name an inode, the likeliest first."""
        ...


class PathFinder:
    """Finds the paths of a mounted filesystem's inodes; ``root`` names its root directory."""

    def __init__(self, view: View, root: int, inodes: InodeAccess, progress: Progress) -> None:
        self.view = view
        self.inodes = inodes
        self.progress = progress
        self._root = root
        self._root_inode = os.fstat(root).st_ino
        #: Whether there are parent pointers; unknown before the first are read.
        self._pointers = True

    def find(self, inodes: Mapping[int, int | None]) -> dict[int, Paths]:
        """Return every path of each inode of a certain generation, or the reason why not.

        None instead of a generation says that the inode was gone before.
        """
        found: dict[int, Paths] = {}
        left = list(inodes)
        for attempt in range(1, _ATTEMPTS + 1):
            search = _Search(thorough=attempt == _ATTEMPTS)
            for ino in left:
                known = self._begin(ino, inodes[ino], search)
                if known is not None:
                    found[ino] = known
            self._search(search)
            left = []
            for ino, facts in search.facts.items():
                found[ino] = self._finish(facts, search)
                # Another attempt reads what has moved; what cannot be read stays unreadable.
                if not found[ino].complete and not search.unreadable:
                    left.append(ino)
            if not left:
                break
        return found

    def _begin(self, ino: int, generation: int | None, search: "_Search") -> Paths | None:
        """Return what the inode itself shows, or enter it into the search."""
        try:
            facts = self.inodes.facts(ino)
        except OSError as error:
            return Paths(complete=False, notes=(unreadable_note(ino, error),))
        if facts is None or facts.generation != generation:
            return Paths(complete=False, notes=(gone_note(ino),))
        if not facts.links:
            return Paths(unlinked=True, mounted_at=())
        search.facts[ino] = facts
        if ino == self._root_inode:
            return None
        names = 1 if stat.S_ISDIR(facts.mode) else facts.links
        links = search.links[ino] = self._parents(ino, facts.generation)
        if len(links) == names:
            return None
        links.clear()
        if self._pointers and not search.thorough:
            # They are changing: reading them again is quicker than reading directories.
            search.lost[ino] = f"the names of inode {ino} change while they are looked for"
        elif not stat.S_ISDIR(facts.mode):
            search.missing[ino] = names
        else:
            try:
                links.append(self._name_above(ino, facts.generation))
            except (_LostError, OSError) as error:
                search.lost[ino] = str(error)
        return None

    def _parents(self, ino: int, generation: int) -> list[Parent]:
        """Return the parent pointers of an inode, none if there are none."""
        if not self._pointers:
            return []
        try:
            return self.inodes.parents(ino, generation)
        except PrivilegeError:
            raise
        except OSError:
            # Only the root is certain to be there, and to have pointers if any inode has.
            self._pointers = self._root_has_pointers()
            return []

    def _root_has_pointers(self) -> bool:
        root = self.inodes.root_facts()
        try:
            self.inodes.parents(root.number, root.generation)
        except OSError:
            return False
        return True

    # ------------------------------------------------------------------ upwards

    def _path_of(self, directory: Parent, search: "_Search") -> bytes:
        """Return the path of a directory, ``/`` being empty; raises `_LostError` or OSError."""
        ino, generation = directory.inode, directory.generation
        way: list[tuple[int, bytes]] = []
        while ino != self._root_inode and ino not in search.directories:
            links = self._parents(ino, generation)
            above = links[0] if len(links) == 1 else self._name_above(ino, generation)
            way.append((ino, above.name))
            ino, generation = above.inode, above.generation
            if len(way) > _DEEPEST:
                raise _LostError("directories that contain each other")
        path = search.directories.get(ino, b"")
        for child, name in reversed(way):
            path = search.directories[child] = path + b"/" + name
        return path

    def _name_above(self, ino: int, generation: int) -> Parent:
        """Return the name of a directory by reading it and its parent; raises as `_path_of`."""
        fd = self.inodes.open_directory(ino, generation)
        try:
            above = next((e.inode for e in kernel.entries(fd) if e.name == b".."), ino)
        finally:
            os.close(fd)
        facts = self.inodes.facts(above)
        if facts is None or above == ino:
            raise _LostError(f"directory inode {ino} is not below the root")
        fd = self.inodes.open_directory(above, facts.generation)
        try:
            for entry in kernel.entries(fd):
                if entry.inode == ino and entry.name not in (b".", b".."):
                    return Parent(above, facts.generation, entry.name)
        finally:
            os.close(fd)
        raise _LostError(f"directory inode {above} does not name inode {ino}: it has no such entry")

    # ------------------------------------------------------------------ searching

    def _search(self, search: "_Search") -> None:
        """Look for the missing names, nearest directories first, until none is missing."""
        if len(search.missing) <= _MANY:
            for ino in list(search.missing):
                self._search_near(ino, search)
        if search.missing:
            self._search_everywhere(search)

    def _search_near(self, ino: int, search: "_Search") -> None:
        """Read the directories near an inode, the likeliest first."""
        if ino not in search.missing:
            return
        count = 0
        for directory in self.inodes.directories_near(ino):
            count += self._take_names(directory, search)
            # Looking for another directory may take long.
            if ino not in search.missing or count == _NEAREST:
                return

    def _search_everywhere(self, search: "_Search") -> None:
        """Read every directory from the root down, and remember its path while at it."""
        todo = deque([b""])
        count = 0
        while todo and search.missing:
            path = todo.popleft()
            count += 1
            self.progress("directories searched for names", count, None)
            try:
                fd = open_far(self._root, path[1:], _DIRECTORY)
            except OSError as error:
                search.count_unreadable(path or b"/", error)
                continue
            try:
                status = os.fstat(fd)
                search.directories[status.st_ino] = path
                leaf = status.st_nlink == _LEAF_LINKS
                for name in self._read(fd, status, search, leaf=leaf):
                    todo.append(path + b"/" + name)
            except OSError as error:
                search.count_unreadable(path or b"/", error)
            finally:
                os.close(fd)

    def _read(
        self, fd: int, status: os.stat_result, search: "_Search", *, leaf: bool
    ) -> Iterator[bytes]:
        """Record the wanted names of a directory, and yield those of the directories in it."""
        known = status.st_ino in search.read
        for entry in kernel.entries(fd, search.missing.keys() if leaf else None):
            if entry.name in (b".", b".."):
                continue
            if entry.inode in search.missing and not known:
                # Its path is known, so its generation is not needed.
                search.take(entry.inode, Parent(status.st_ino, 0, entry.name))
            if entry.kind == DT_DIR or (
                entry.kind == DT_UNKNOWN and self._is_directory(entry.inode)
            ):
                yield entry.name
        search.read.add(status.st_ino)

    def _is_directory(self, ino: int) -> bool:
        try:
            facts = self.inodes.facts(ino)
        except OSError:
            # Opening it fails, too, and counts it.
            return True
        return facts is not None and stat.S_ISDIR(facts.mode)

    def _take_names(self, directory: InodeFacts, search: "_Search") -> bool:
        """Read a directory for names that are missing, unless that was done."""
        ino, generation = directory.number, directory.generation
        if ino in search.read:
            return False
        search.read.add(ino)
        try:
            fd = self.inodes.open_directory(ino, generation)
        except OSError:
            return False
        try:
            for entry in kernel.entries(fd, search.missing.keys()):
                if entry.name not in (b".", b".."):
                    search.take(entry.inode, Parent(ino, generation, entry.name))
        except OSError:
            # The search of the whole tree reads it again, and counts it with its path.
            search.read.discard(ino)
        finally:
            os.close(fd)
        return True

    # ------------------------------------------------------------------ answers

    def _finish(self, facts: InodeFacts, search: "_Search") -> Paths:
        """Join the paths of one inode, and verify where they lead."""
        ino = facts.number
        if ino == self._root_inode:
            return Paths(("/",), mounted_at=tuple(self.view.places(b"/", ino)))
        notes = [search.lost[ino]] if ino in search.lost else []
        paths: list[bytes] = []
        for link in search.links[ino]:
            try:
                path = self._path_of(link, search) + b"/" + link.name
                why = "" if inode_at(self._root, path[1:]) == ino else "it was moved meanwhile"
            except (_LostError, OSError) as error:
                why = getattr(error, "strerror", None) or str(error)
            if why:
                notes.append(f"the path to {link.name!r} in directory inode {link.inode}: {why}")
            else:
                paths.append(path)
        names = len(search.links[ino]) + search.missing.get(ino, 0)
        if ino in search.missing:
            notes.append(f"inode {ino} has {names} names, {len(paths)} were found")
            notes += search.unreadable_notes()
        try:
            now = self.inodes.facts(ino)
        except OSError as error:
            return Paths(complete=False, notes=(unreadable_note(ino, error),))
        if now is None or now.generation != facts.generation:
            # What the paths lead to may be another file that was given its number.
            return Paths(complete=False, notes=(gone_note(ino),))
        paths.sort()
        decoded = tuple(path.decode("utf-8", "surrogateescape") for path in paths)
        places = tuple(place for path in paths for place in self.view.places(path, ino))
        return Paths(decoded, not notes, distinct(notes), mounted_at=places)


class _Search:
    """The state of one attempt.

    ``facts`` are the inodes asked for, ``links`` the names found of each, ``missing`` how many more
    it must have, and ``lost`` why a directory has none.  ``directories`` are paths of directories,
    and ``read`` those that were read for names.  ``thorough`` is the last attempt.
    """

    def __init__(self, *, thorough: bool) -> None:
        self.thorough = thorough
        self.facts: dict[int, InodeFacts] = {}
        self.links: dict[int, list[Parent]] = {}
        self.missing: dict[int, int] = {}
        self.lost: dict[int, str] = {}
        self.directories: dict[int, bytes] = {}
        self.read: set[int] = set()
        self.unreadable: dict[bytes, str] = {}

    def count_unreadable(self, path: bytes, error: OSError) -> None:
        """Record a directory that cannot be read, unless it was only moved or removed."""
        if error.errno not in _MOVED:
            self.unreadable[path] = error.strerror or str(error)

    def unreadable_notes(self) -> list[str]:
        """Return a note with the number of directories that cannot be read, and the first."""
        if not self.unreadable:
            return []
        path, why = next(iter(self.unreadable.items()))
        name = path.decode("utf-8", "surrogateescape")
        count = len(self.unreadable)
        what = "1 directory could not" if count == 1 else f"{count} directories could not"
        first = "" if count == 1 else "the first is "
        return [f"{what} be read: {first}{name!r}: {why}"]

    def take(self, ino: int, link: Parent) -> None:
        """Record a name of an inode, if it is one that is missing."""
        left = self.missing.get(ino)
        if left is None:
            return
        self.links[ino].append(link)
        if left > 1:
            self.missing[ino] = left - 1
        else:
            del self.missing[ino]
