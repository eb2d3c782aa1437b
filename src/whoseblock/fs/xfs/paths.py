"""From inodes to every path, without an index.

With parent pointers a file knows its names, and they are climbed.  Without, a directory still
knows its parent by ``..``; a file's names are searched for in the directories (`names`).  An inode
has the same paths whether it is asked about alone or together with others.
"""

import stat
from collections.abc import Iterable, Iterator
from typing import Final

from whoseblock.errors import BlockError
from whoseblock.fs.base import Paths, Progress, distinct
from whoseblock.fs.xfs.attributes import Attributes, parents_or_none
from whoseblock.fs.xfs.directories import Directories, Faults
from whoseblock.fs.xfs.format.ag import NULLAGINO, XFS_AGI_UNLINKED_BUCKETS
from whoseblock.fs.xfs.format.inode import Dinode
from whoseblock.fs.xfs.format.superblock import NULLFSINO
from whoseblock.fs.xfs.inodes import InodeTable
from whoseblock.fs.xfs.names import Link, NameSearch
from whoseblock.fs.xfs.volume import Volume

__all__ = ["PathFinder"]

#: An inode may have more names; so many are looked for.
_MOST_LINKS: Final = 65_536
#: The paths of one inode may be so many bytes together, and those of all inodes of one call so
#: many and a part for each: more than honest files have.
_MOST_BYTES: Final = 16 << 20
_MOST_BYTES_TOGETHER: Final = 32 << 20
_MOST_BYTES_FOR_EACH: Final = 2048


class PathFinder:
    """Finds the paths of a volume's inodes."""

    def __init__(self, volume: Volume, inodes: InodeTable, progress: Progress) -> None:
        self.volume = volume
        self.inodes = inodes
        self.progress = progress
        self.directories = Directories(volume, inodes)
        self.attributes = Attributes(volume, inodes)
        sb = volume.sb
        #: Files that belong to the filesystem, have inodes, and are in no directory.
        self._internal = {
            sb.rbmino: "realtime bitmap",
            sb.rsumino: "realtime summary",
            sb.uquotino: "user quota",
            sb.gquotino: "group quota",
            sb.pquotino: "project quota",
        }
        for absent in (0, NULLFSINO):
            self._internal.pop(absent, None)
        self._unlinked: dict[tuple[int, int], _UnlinkedList] = {}

    def find(self, inodes: Iterable[int]) -> dict[int, Paths]:
        """Return every path of each inode, and a note for each path that cannot be found."""
        search = _Search(NameSearch(self.volume, self.inodes, self.directories, self.progress))
        found: dict[int, Paths] = {}
        for ino in dict.fromkeys(inodes):
            known = self._begin(ino, search)
            if known is not None:
                found[ino] = known
        self._confirm_pointers(search)
        self._search(search)
        self._climb(search)
        search.bytes_left = _MOST_BYTES_TOGETHER + _MOST_BYTES_FOR_EACH * len(search.targets)
        for ino in search.targets:
            found[ino] = self._finish(ino, search)
        return found

    def _begin(self, ino: int, search: "_Search") -> Paths | None:
        """Return the paths if the inode alone decides them; otherwise add it to the search."""
        try:
            core = self.inodes.get(ino).core
        except BlockError as error:
            return Paths(complete=False, notes=(str(error),))
        if core.is_metadata:
            return Paths(detail="metadata file")
        if ino in self._internal:
            if self._can_be_internal(ino, core):
                return Paths(detail=self._internal[ino])
            what = self._internal[ino]
            search.notes[ino] = [
                f"inode {ino} is the {what} by the superblock, but looks like a file of a user"
            ]
        if core.mode == 0:
            return Paths(complete=False, notes=(f"inode {ino} is not in use",))
        if core.nlink == 0:
            note = self._unlinked_note(ino)
            return Paths(complete=not note, notes=(note,) if note else (), unlinked=True)
        search.targets[ino] = []
        if core.is_dir:
            search.folders.add(ino)
            search.unclimbed.add(ino)
        elif links := self._pointers(ino, core.nlink):
            search.pointed[ino] = core, links
        else:
            search.wanted[ino] = core
        return None

    def _can_be_internal(self, ino: int, core: Dinode) -> bool:
        """Return whether an inode that the superblock names looks as the kernel makes it.

        It is a regular file with one link, without permissions and without parent pointers.
        """
        if ino == self.volume.sb.rootino or core.nlink != 1:
            return False
        if not stat.S_ISREG(core.mode) or stat.S_IMODE(core.mode):
            return False
        return not (self.volume.sb.has_parent and parents_or_none(self.attributes, ino, 1))

    # ------------------------------------------------------------------ parent pointers

    def _pointers(self, ino: int, nlink: int) -> list[Link]:
        """Return the names that the parent pointers tell; none if they cannot all be true."""
        if not self.volume.sb.has_parent or nlink > _MOST_LINKS:
            return []
        pointers = parents_or_none(self.attributes, ino, nlink)
        if pointers is None or len(set(pointers)) != nlink:
            return []
        for pointer in pointers:
            try:
                parent = self.inodes.get(pointer.parent).core
            except BlockError:
                return []
            if not parent.is_dir or parent.gen != pointer.generation:
                return []
        return [Link(pointer.parent, pointer.name) for pointer in pointers]

    def _confirm_pointers(self, search: "_Search") -> None:
        """Look in the directories whether they have the names that files claim.

        Parent pointers that are older than the directory are dropped, and the names are searched
        for.  If the directory is damaged, they are kept, with a note.
        """
        claimed: dict[int, dict[int, list[bytes]]] = {}
        for ino, (_, links) in search.pointed.items():
            for link in links:
                claimed.setdefault(link.parent, {}).setdefault(ino, []).append(link.name)
        stale: set[int] = set()
        for parent, claims in claimed.items():
            modes = {ino: search.pointed[ino][0].mode for ino in claims}
            wrong, unsure = self._unconfirmed(parent, claims, modes)
            stale |= wrong
            for ino, note in unsure.items():
                search.notes.setdefault(ino, []).append(note)
        for ino, (core, links) in search.pointed.items():
            if ino in stale:
                note = (
                    f"inode {ino} has parent pointers that the directories do not confirm: the"
                    " inode may be old, and with it the number of its names"
                )
                search.notes[ino] = [note]
                search.wanted[ino] = core
            else:
                search.targets[ino] = links
                search.unclimbed.update(link.parent for link in links)

    def _unconfirmed(
        self, parent: int, claims: dict[int, list[bytes]], modes: dict[int, int]
    ) -> tuple[set[int], dict[int, str]]:
        """Return the inodes that a directory does not name as they claim.

        Those that damage of the directory may hide come with a note instead.
        """
        faults = Faults()
        missing = {(ino, name) for ino, names in claims.items() for name in names}
        for entry in self.directories.names(parent, modes, faults, confirmed=True):
            missing.discard((entry.inumber, entry.name))
            if not missing:
                break
        wrong: set[int] = set()
        unsure: dict[int, str] = {}
        for ino in {ino for ino, _ in missing}:
            if why := faults.notes(ino):
                unsure[ino] = (
                    f"directory inode {parent} does not confirm the parent pointers of inode {ino}:"
                    f" {'; '.join(distinct(why))}"
                )
            else:
                wrong.add(ino)
        return wrong, unsure

    # ------------------------------------------------------------------ upwards

    def _climb(self, search: "_Search") -> None:
        """Find the name and the parent of every directory on the way to the root.

        All that are on one level together, so that a directory is read once for all its children.
        """
        root = self.volume.sb.rootino
        while todo := search.unclimbed - search.up.keys() - search.lost.keys() - {root}:
            search.unclimbed.clear()
            children: dict[int, set[int]] = {}
            for ino in todo - self._climb_by_pointers(todo, search):
                try:
                    parent = self.directories.parent(ino)
                except BlockError as error:
                    search.lost[ino] = str(error)
                else:
                    children.setdefault(parent, set()).add(ino)
            for parent, wanted in children.items():
                self._name_children(parent, wanted, search)

    def _climb_by_pointers(self, todo: set[int], search: "_Search") -> set[int]:
        """Find the links of those directories that have a parent pointer; return which have."""
        claimed: dict[int, dict[int, list[bytes]]] = {}
        for ino in todo:
            for link in self._pointers(ino, 1):
                claimed.setdefault(link.parent, {})[ino] = [link.name]
        found: set[int] = set()
        for parent, claims in claimed.items():
            wrong, unsure = self._unconfirmed(parent, claims, dict.fromkeys(claims, stat.S_IFDIR))
            search.unsure.update(unsure)
            for ino, (name,) in claims.items():
                if ino not in wrong:
                    search.up[ino] = Link(parent, name)
                    search.unclimbed.add(parent)
                    found.add(ino)
        return found

    def _name_children(self, parent: int, wanted: set[int], search: "_Search") -> None:
        faults = Faults()
        missing = set(wanted)
        modes = dict.fromkeys(wanted, stat.S_IFDIR)
        for entry in self.directories.names(parent, modes, faults):
            if entry.inumber not in missing:
                continue
            search.up[entry.inumber] = Link(parent, entry.name)
            if doubt := faults.doubts.get((parent, entry.name)):
                search.unsure[entry.inumber] = doubt
            missing.discard(entry.inumber)
            if not missing:
                break
        for ino in missing:
            why = "; ".join(distinct(faults.notes(ino))) or "it has no such entry"
            search.lost[ino] = f"directory inode {parent} does not name inode {ino}: {why}"
        search.unclimbed.add(parent)

    def _finish(self, ino: int, search: "_Search") -> Paths:
        """Put the paths of one inode together."""
        root = self.volume.sb.rootino
        links = search.targets[ino]
        paths: list[bytes] = []
        notes = search.notes.get(ino, [])
        if ino == root:
            paths.append(b"/")
        elif ino in search.folders:
            links = [search.up[ino]] if ino in search.up else []
            notes += [text[ino] for text in (search.unsure, search.lost) if ino in text]
        allowed = min(_MOST_BYTES, search.bytes_left)
        size = 0
        for link in links:
            # Joining takes as long as the path is: nothing is joined if there is no room.
            path = self._join(link, search, notes) if size < allowed else b""
            if path is None:
                continue
            size += len(path)
            if size > allowed or not path:
                notes.append(
                    f"inode {ino} has {len(links)} names, and paths too long to list them all"
                )
                break
            paths.append(path)
        search.bytes_left -= min(size, allowed)
        if core := search.wanted.get(ino):
            notes += search.names.doubts(ino, links)
            if len(links) < min(core.nlink, _MOST_LINKS):
                notes.append(f"inode {ino} has {core.nlink} names, {len(links)} were found")
                notes += search.names.faults.notes(ino)
            elif core.nlink > _MOST_LINKS:
                notes.append(f"inode {ino} has {core.nlink} names, {_MOST_LINKS} were looked for")
        decoded = tuple(path.decode("utf-8", "surrogateescape") for path in sorted(paths))
        return Paths(decoded, complete=not notes, notes=distinct(notes))

    def _join(self, link: Link, search: "_Search", notes: list[str]) -> bytes | None:
        root = self.volume.sb.rootino
        names = [link.name]
        at = link.parent
        while at != root:
            up = search.up.get(at)
            if up is None:
                why = search.lost.get(at, "it is not below the root")
                notes.append(f"the path to {link.name!r} in directory inode {link.parent}: {why}")
                return None
            names.append(up.name)
            if at in search.unsure:
                notes.append(search.unsure[at])
            if len(names) > len(search.up) + 1:
                notes.append(f"the path to {link.name!r} goes round in circles")
                return None
            at = up.parent
        return b"/" + b"/".join(reversed(names))

    def _search(self, search: "_Search") -> None:
        """Look for the names of inodes that do not know them."""
        wanted = (
            (ino, core.mode, min(core.nlink, _MOST_LINKS)) for ino, core in search.wanted.items()
        )
        for ino, links in search.names.find(wanted).items():
            search.targets[ino] = links
            search.unclimbed.update(link.parent for link in links)

    # ------------------------------------------------------------------ unlinked

    def _unlinked_note(self, ino: int) -> str:
        """Confirm in the AGI's unlinked lists that a file without links is only waiting to go."""
        agno, agino = self.volume.split_inode(ino)
        bucket = agno, agino % XFS_AGI_UNLINKED_BUCKETS
        if bucket not in self._unlinked:
            self._unlinked[bucket] = _UnlinkedList(self._walk_unlinked(*bucket))
        try:
            if agino in self._unlinked[bucket]:
                return ""
        except BlockError as error:
            return f"inode {ino} has no links, and the list of such files is damaged: {error}"
        return f"inode {ino} has no links, and is not in the list of such files"

    def _walk_unlinked(self, agno: int, bucket: int) -> Iterator[int]:
        """Yield the inodes of an unlinked list; raises `BlockError`."""
        at = self.volume.agi(agno).unlinked_heads()[bucket]
        while at != NULLAGINO:
            yield at
            at = self.inodes.get(self.volume.join_inode(agno, at)).core.next_unlinked


class _UnlinkedList:
    """The inodes of one unlinked list, walked once and only as far as needed."""

    def __init__(self, walk: Iterator[int]) -> None:
        self._walk = walk
        self._seen: set[int] = set()
        self._error: BlockError | None = None

    def __contains__(self, agino: int) -> bool:
        """Return whether an inode is in the list; raises `BlockError`."""
        if agino in self._seen:
            return True
        try:
            for at in self._walk:
                if at in self._seen:
                    # It goes round in circles.
                    self._walk = iter(())
                    break
                self._seen.add(at)
                if at == agino:
                    return True
        except BlockError as error:
            self._error = error
        if self._error is not None:
            raise self._error
        return False


class _Search:
    """The state of one call of `PathFinder.find`.

    ``targets`` are the inodes asked for with the links found, ``folders`` those of them that are
    directories, ``wanted`` those whose names are searched for.  ``up`` is the one link of each
    directory, ``lost`` why it has none, ``unclimbed`` the directories whose link is still to be
    found, ``unsure`` why its link may not be true.  ``pointed`` are the inodes whose parent
    pointers are still to be confirmed.  ``notes`` are about single inodes, and ``bytes_left`` is
    how long further paths may be together.
    """

    def __init__(self, names: NameSearch) -> None:
        self.names = names
        self.targets: dict[int, list[Link]] = {}
        self.folders: set[int] = set()
        self.pointed: dict[int, tuple[Dinode, list[Link]]] = {}
        self.wanted: dict[int, Dinode] = {}
        self.up: dict[int, Link] = {}
        self.lost: dict[int, str] = {}
        self.unsure: dict[int, str] = {}
        self.unclimbed: set[int] = set()
        self.notes: dict[int, list[str]] = {}
        self.bytes_left = 0
