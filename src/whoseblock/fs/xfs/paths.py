"""From inodes to every path, without an index.

With parent pointers a file knows its names, and they are climbed.  Without, a directory still knows
its parent by ``..``; a file's names are searched for in the directories, the likeliest first: the
kernel puts a file's inode near its directory's, so the same inode chunk comes first, then the same
allocation group from the nearest inode outwards, then the other groups.  The search ends when as
many names were found as the link count says.  Many questions share one search.
"""

from collections.abc import Collection, Iterable, Iterator
from itertools import chain
from typing import Final, NamedTuple

from whoseblock.errors import BlockError
from whoseblock.fs.base import Paths, Progress, distinct
from whoseblock.fs.xfs.attributes import Attributes, parents_or_none
from whoseblock.fs.xfs.btree import INOBT, AgTree, Fault
from whoseblock.fs.xfs.directories import Directories
from whoseblock.fs.xfs.format.ag import NULLAGINO, XFS_AGI_UNLINKED_BUCKETS
from whoseblock.fs.xfs.format.btree import XFS_INODES_PER_CHUNK, InobtRec
from whoseblock.fs.xfs.format.superblock import NULLFSINO
from whoseblock.fs.xfs.inodes import InodeTable
from whoseblock.fs.xfs.volume import Volume

__all__ = ["PathFinder"]

#: How far from its file a directory is searched for first, in inodes, and how much farther then.
_FIRST_RING: Final = 64 * XFS_INODES_PER_CHUNK
_RING_GROWTH: Final = 4
#: A search over a badly damaged device keeps so many faults in mind.
_MOST_FAULTS: Final = 1000
_S_IFDIR_NIBBLE: Final = 0x4
_ALL_CHUNK = range(XFS_INODES_PER_CHUNK)


class _Link(NamedTuple):
    """One name of an inode: the directory that has it, and the name there."""

    parent: int
    name: bytes


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

    def find(self, inodes: Iterable[int]) -> dict[int, Paths]:
        """Give every path of each inode, of each that cannot be had the reason."""
        self.directories.begin_search()
        search = _Search()
        found: dict[int, Paths] = {}
        for ino in dict.fromkeys(inodes):
            known = self._begin(ino, search)
            if known is not None:
                found[ino] = known
        self._search(search)
        self._climb(search)
        for ino in search.targets:
            found[ino] = self._finish(ino, search)
        return found

    def _begin(self, ino: int, search: "_Search") -> Paths | None:
        """Say what an inode itself tells, or enter it into the search."""
        try:
            core = self.inodes.get(ino).core
        except BlockError as error:
            return Paths(complete=False, notes=(str(error),))
        if core.is_metadata:
            return Paths(detail="metadata file")
        if ino in self._internal:
            return Paths(detail=self._internal[ino])
        if core.mode == 0:
            return Paths(complete=False, notes=(f"inode {ino} is not in use",))
        if core.nlink == 0:
            note = self._unlinked_note(ino)
            return Paths(complete=not note, notes=(note,) if note else (), unlinked=True)
        links = search.targets[ino] = []
        if core.is_dir:
            search.unclimbed.add(ino)
        elif not self._links_from_pointers(ino, core.nlink, links):
            search.missing[ino] = core.nlink
        else:
            search.unclimbed.update(link.parent for link in links)
        return None

    # ------------------------------------------------------------------ parent pointers

    def _links_from_pointers(self, ino: int, nlink: int, links: list[_Link]) -> bool:
        """Take the names from the parent pointers, if they are all there and can be believed."""
        if not self.volume.sb.has_parent:
            return False
        pointers = parents_or_none(self.attributes, ino)
        if pointers is None or len(pointers) != nlink:
            return False
        for pointer in pointers:
            try:
                parent = self.inodes.get(pointer.parent).core
            except BlockError:
                return False
            if not parent.is_dir or parent.gen != pointer.generation:
                return False
        links += [_Link(pointer.parent, pointer.name) for pointer in pointers]
        return True

    # ------------------------------------------------------------------ upwards

    def _climb(self, search: "_Search") -> None:
        """Find the name and the parent of every directory on the way to the root.

        All that are on one level together, so that a directory is read once for all its children.
        """
        root = self.volume.sb.rootino
        while todo := search.unclimbed - search.up.keys() - search.lost.keys() - {root}:
            search.unclimbed.clear()
            children: dict[int, set[int]] = {}
            for ino in todo:
                links: list[_Link] = []
                if self._links_from_pointers(ino, 1, links):
                    search.up[ino] = links[0]
                    search.unclimbed.add(links[0].parent)
                    continue
                try:
                    parent = self.directories.parent(ino)
                except BlockError as error:
                    search.lost[ino] = str(error)
                else:
                    children.setdefault(parent, set()).add(ino)
            for parent, wanted in children.items():
                self._name_children(parent, wanted, search)

    def _name_children(self, parent: int, wanted: set[int], search: "_Search") -> None:
        faults: list[str] = []
        missing = set(wanted)
        for entry in self.directories.names(parent, wanted, faults):
            search.up[entry.inumber] = _Link(parent, entry.name)
            missing.discard(entry.inumber)
            if not missing:
                break
        else:
            why = "; ".join(distinct(faults)) or "it has no such entry"
            for ino in missing:
                search.lost[ino] = f"directory inode {parent} does not name inode {ino}: {why}"
        search.unclimbed.add(parent)

    def _finish(self, ino: int, search: "_Search") -> Paths:
        """Put the paths of one inode together."""
        root = self.volume.sb.rootino
        links = search.targets[ino]
        paths: list[bytes] = []
        notes: list[str] = []
        if ino == root:
            paths.append(b"/")
        elif ino in search.up:
            links = [search.up[ino]]
        elif ino in search.lost:
            notes.append(search.lost[ino])
        for link in links:
            path = self._join(link, search, notes)
            if path is not None:
                paths.append(path)
        if missing := search.missing.get(ino):
            notes.append(f"inode {ino} has {len(links) + missing} names, {len(links)} were found")
            notes += search.faults
        decoded = tuple(path.decode("utf-8", "surrogateescape") for path in sorted(paths))
        return Paths(decoded, complete=not notes, notes=distinct(notes))

    def _join(self, link: _Link, search: "_Search", notes: list[str]) -> bytes | None:
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
            if len(names) > len(search.up) + 1:
                notes.append(f"the path to {link.name!r} goes round in circles")
                return None
            at = up.parent
        return b"/" + b"/".join(reversed(names))

    # ------------------------------------------------------------------ searching

    def _search(self, search: "_Search") -> None:
        """Look for the missing names, nearest directories first, until none is missing."""
        if not search.missing:
            return
        homes = {self.volume.split_inode(ino)[0] for ino in search.missing}
        groups = self.volume.groups_on_device
        others = (agno for agno in range(groups) if agno not in homes)
        for agno in chain(sorted(homes), others):
            faults: list[Fault] = []
            for chunk in self._chunks(agno, search.missing, faults):
                self._search_chunk(agno, chunk, search)
                if not search.missing:
                    return
            search.faults += [fault.note for fault in faults]
            del search.faults[_MOST_FAULTS:]
        if groups < self.volume.sb.agcount:
            search.faults.insert(0, "the device ends before the filesystem does")

    def _chunks(
        self, agno: int, missing: Collection[int], faults: list[Fault]
    ) -> Iterator[InobtRec]:
        """Give the inode chunks of a group; for one question, the nearest to it first."""
        chunk_size = XFS_INODES_PER_CHUNK
        limit = -(-(self.volume.ag_blocks(agno) << self.volume.sb.inopblog) // chunk_size)
        limit *= chunk_size
        tree = AgTree(self.volume, agno, INOBT, limit)
        here = [agino for ag, agino in map(self.volume.split_inode, missing) if ag == agno]
        if len(here) != 1:
            yield from map(InobtRec._make, tree.find(0, limit, faults))
            return
        home = here[0] // chunk_size * chunk_size
        low = high = home
        radius = _FIRST_RING
        while low > 0 or high < limit:
            new_low, new_high = max(home - radius, 0), min(home + radius, limit)
            # A chunk may lie across the edge of a ring: it belongs where it begins.
            ring = [
                chunk
                for begin, end in ((new_low, low), (high, new_high))
                for chunk in map(InobtRec._make, tree.find(begin, end, faults))
                if begin <= chunk.startino < end
            ]
            yield from sorted(ring, key=lambda chunk: abs(chunk.startino - home))
            low, high = new_low, new_high
            radius *= _RING_GROWTH

    def _search_chunk(self, agno: int, chunk: InobtRec, search: "_Search") -> None:
        """Search every directory whose inode is in a chunk."""
        volume = self.volume
        search.chunks += 1
        self.progress("inode chunks searched for names", search.chunks, None)
        start = volume.agino_to_byte(agno, chunk.startino)
        size = volume.inode_size
        try:
            raw = volume.read("inode-chunk", start, XFS_INODES_PER_CHUNK * size)
        except BlockError:
            raw = b""
        # The high nibble of a mode is the file's type, and a mode is at byte 2 of an inode.
        nibbles = raw[2::size] if raw else bytes([_S_IFDIR_NIBBLE << 4]) * XFS_INODES_PER_CHUNK
        wanted = [index for index in _ALL_CHUNK if nibbles[index] >> 4 == _S_IFDIR_NIBBLE]
        if not wanted:
            return
        home = chunk.startino
        if len(search.missing) == 1:
            (target,) = search.missing
            first = volume.join_inode(agno, home)
            wanted.sort(key=lambda index: abs(first + index - target))
        for index in wanted:
            if not chunk.is_allocated(index):
                continue
            ino = volume.join_inode(agno, home + index)
            try:
                if raw:
                    piece = raw[index * size : (index + 1) * size]
                    self.inodes.verified(ino, piece, start + index * size)
                elif not self.inodes.get(ino).core.is_dir:
                    continue
            except BlockError as error:
                search.faults.append(str(error))
                continue
            self._search_directory(ino, search)
            if not search.missing:
                return

    def _search_directory(self, ino: int, search: "_Search") -> None:
        for entry in self.directories.names(ino, search.missing.keys(), search.faults):
            # The view of the missing changes under the search, so look again.
            left = search.missing.get(entry.inumber)
            if left is None:
                continue
            search.targets[entry.inumber].append(_Link(ino, entry.name))
            search.unclimbed.add(ino)
            if left > 1:
                search.missing[entry.inumber] = left - 1
            else:
                del search.missing[entry.inumber]
                if not search.missing:
                    return

    # ------------------------------------------------------------------ unlinked

    def _unlinked_note(self, ino: int) -> str:
        """Confirm in the AGI's unlinked lists that a file without links is only waiting to go."""
        agno, agino = self.volume.split_inode(ino)
        bucket = agino % XFS_AGI_UNLINKED_BUCKETS
        seen: set[int] = set()
        try:
            at = self.volume.agi(agno).unlinked_heads()[bucket]
            while at != NULLAGINO and at not in seen:
                if at == agino:
                    return ""
                seen.add(at)
                at = self.inodes.get(self.volume.join_inode(agno, at)).core.next_unlinked
        except BlockError as error:
            return f"inode {ino} has no links, and the list of such files is damaged: {error}"
        return f"inode {ino} has no links, and is not in the list of such files"


class _Search:
    """What one call of `PathFinder.find` knows so far.

    ``targets`` are the inodes asked for with the links found, ``missing`` how many more each must
    have; ``up`` is the one link of each directory, ``lost`` why it has none, ``unclimbed`` the
    directories whose link is still to be found.
    """

    def __init__(self) -> None:
        self.targets: dict[int, list[_Link]] = {}
        self.missing: dict[int, int] = {}
        self.up: dict[int, _Link] = {}
        self.lost: dict[int, str] = {}
        self.unclimbed: set[int] = set()
        self.faults: list[str] = []
        self.chunks = 0
