"""Searching the directories for the names of inodes, without an index.

The kernel puts a file's inode near its directory's, so the same inode chunk comes first, then the
same allocation group from the nearest inode outwards, then the other groups.  The search for an
inode ends when as many names are found as its link count says.  Many inodes share one search; each
gets the names that it would get alone, even where directories contradict each other, because the
names that are nearest count, in whatever order they were found.
"""

from collections.abc import Iterable, Iterator
from typing import Final, NamedTuple

from whoseblock.errors import BlockError
from whoseblock.fs.base import Progress
from whoseblock.fs.xfs.btree import INOBT, AgTree, Fault
from whoseblock.fs.xfs.format.btree import XFS_INODES_PER_CHUNK, InobtRec
from whoseblock.fs.xfs.inodes import InodeTable
from whoseblock.fs.xfs.names.directories import Directories, Faults
from whoseblock.fs.xfs.volume import MOST_LOST_GROUPS, Volume

__all__ = ["Link", "NameSearch"]

#: How far from its file a directory is searched for first, in inodes, and how much farther then.
_FIRST_RING: Final = 64 * XFS_INODES_PER_CHUNK
_RING_GROWTH: Final = 4
_S_IFDIR_NIBBLE: Final = 0x4
#: The directories of so many chunks are remembered, which is of 8 million inodes.
_MOST_CHUNKS: Final = 1 << 17

#: Where a name was found, so that the nearest sort first.
_Rank = tuple[int, ...]


class Link(NamedTuple):
    """One name of an inode: the directory that has it, and the name there."""

    parent: int
    name: bytes


class _Target:
    """An inode whose names are searched for, with those that were found."""

    def __init__(self, ino: int, mode: int, links: int, home: tuple[int, int]) -> None:
        self.ino = ino
        self.mode = mode
        self.links = links
        #: The group, and where the inode's chunk begins, in inodes of the group.
        self.home, self.agino = home
        self.chunk = self.agino // XFS_INODES_PER_CHUNK * XFS_INODES_PER_CHUNK
        #: How far from the inode's chunk the last name that counts is, in inodes.
        self.reach = 0
        self._found: dict[Link, _Rank] = {}

    def add(self, link: Link, rank: _Rank) -> None:
        """Add a name; crafted inode chunks may overlap, so that it is found more than once."""
        known = self._found.get(link)
        self._found[link] = rank if known is None or rank < known else known
        if len(self._found) > 2 * self.links:
            self._found = dict(self._nearest())

    def _nearest(self) -> list[tuple[Link, _Rank]]:
        return sorted(self._found.items(), key=lambda item: item[1])[: self.links]

    @property
    def is_done(self) -> bool:
        """Whether as many names were found as there must be."""
        return len(self._found) >= self.links

    def settle(self) -> None:
        """Keep no more names than there must be, the nearest; note how far they reach."""
        nearest = self._nearest()
        self._found = dict(nearest)
        self.reach = nearest[-1][1][0] if nearest else 0

    def names(self) -> list[Link]:
        """Return the names that count."""
        return [link for link, _ in self._nearest()]


class NameSearch:
    """One search; ``faults`` is what may have hidden names from it."""

    def __init__(
        self, volume: Volume, inodes: InodeTable, directories: Directories, progress: Progress
    ) -> None:
        self.volume = volume
        self.inodes = inodes
        self.directories = directories
        self.progress = progress
        self.faults = Faults()
        self._chunks_searched = 0
        #: The inode chunk that was read last, and the byte it begins at.
        self._chunk: tuple[int, bytes] = (-1, b"")
        #: What is wrong with inode chunks, by the group and the first inode of each chunk.
        self._odd_chunks: dict[tuple[int, int], str] = {}
        #: Directories in such chunks, and what is wrong with them.
        self._odd: dict[int, str] = {}

    def find(self, wanted: Iterable[tuple[int, int, int]]) -> dict[int, list[Link]]:
        """Find names of inodes, given as number, mode and number of names to find."""
        targets = [
            _Target(ino, mode, links, self.volume.split_inode(ino)) for ino, mode, links in wanted
        ]
        at_home: dict[int, list[_Target]] = {}
        for target in targets:
            at_home.setdefault(target.home, []).append(target)
        for agno in sorted(at_home):
            self._search_home(agno, at_home[agno])
        missing = {target.ino: target for target in targets if not target.is_done}
        groups = self.volume.groups_on_device
        lost = 0
        for agno in range(groups):
            if not missing:
                break
            try:
                self.volume.agi(agno)
            except BlockError as error:
                self.faults.add(str(error))
                lost += 1
                if lost == MOST_LOST_GROUPS:
                    self.faults.add(
                        f"{lost} allocation groups up to AG {agno} have no header that verifies;"
                        " later ones were not searched"
                    )
                    break
            else:
                lost = 0
                self._search_others(agno, missing)
        if missing and groups < self.volume.sb.agcount:
            self.faults.add("the device ends before the filesystem does")
        return {target.ino: target.names() for target in targets}

    def doubts(self, ino: int, links: Iterable[Link]) -> list[str]:
        """Return why the number of names of an inode, or one of these names, may not be true."""
        found: list[str] = []
        if self._odd_chunks:
            agno, agino = self.volume.split_inode(ino)
            begins = range(agino - XFS_INODES_PER_CHUNK + 1, agino + 1)
            keys = ((agno, begin) for begin in begins)
            found += [self._odd_chunks[key] for key in keys if key in self._odd_chunks]
        for link in links:
            found += [self._odd[link.parent]] if link.parent in self._odd else []
            if note := self.faults.doubts.get((link.parent, link.name)):
                found.append(note)
        return found

    # ------------------------------------------------------------------ the order

    def _search_home(self, agno: int, targets: list[_Target]) -> None:
        """Search the group of the inodes, until nothing farther away can count."""
        faults: list[Fault] = []
        tree, limit = self._tree(agno)
        if len(targets) == 1:
            self._search_outwards(agno, tree, limit, targets[0], faults)
        else:
            self._search_upwards(agno, tree, limit, targets, faults)
        for fault in faults:
            self.faults.add(fault.note)

    def _search_outwards(
        self, agno: int, tree: AgTree, limit: int, target: _Target, faults: list[Fault]
    ) -> None:
        wanted = {target.ino: target}
        modes = {target.ino: target.mode}
        # The one that the inode itself is in may begin farther away than another.
        for chunk in map(InobtRec._make, tree.find(target.agino, target.agino + 1, faults)):
            self._compare_chunk(agno, chunk, self._read_chunk(agno, chunk))
        for chunk in self._rings(tree, limit, target.chunk, faults):
            for ino in self._directories_in(agno, chunk, target.ino):
                self._search_directory(ino, chunk, wanted, modes)
                if target.is_done:
                    target.settle()
                    return

    def _search_upwards(
        self, agno: int, tree: AgTree, limit: int, targets: list[_Target], faults: list[Fault]
    ) -> None:
        wanted = {target.ino: target for target in targets}
        modes = {target.ino: target.mode for target in targets}
        unsettled = set(wanted)
        # Behind this nothing is nearer than what was found, and none of the inodes is.
        upto = max(wanted[ino].agino for ino in wanted)
        for chunk in map(InobtRec._make, tree.find(0, limit, faults)):
            if not unsettled and chunk.startino > upto:
                break
            for ino in self._directories_in(agno, chunk):
                for number in self._search_directory(ino, chunk, wanted, modes) & unsettled:
                    target = wanted[number]
                    if target.is_done:
                        target.settle()
                        unsettled.discard(number)
                        upto = max(upto, target.chunk + target.reach)
        for target in targets:
            target.settle()

    def _search_others(self, agno: int, missing: dict[int, _Target]) -> None:
        """Search a group for names of inodes of other groups, and drop those that are done."""
        wanted = {ino: target for ino, target in missing.items() if target.home != agno}
        if not wanted:
            return
        modes = {ino: target.mode for ino, target in wanted.items()}
        faults: list[Fault] = []
        tree, limit = self._tree(agno)
        for chunk in map(InobtRec._make, tree.find(0, limit, faults)):
            for ino in self._directories_in(agno, chunk):
                for number in self._search_directory(ino, chunk, wanted, modes):
                    if wanted[number].is_done:
                        del wanted[number], modes[number], missing[number]
            if not wanted:
                break
        for fault in faults:
            self.faults.add(fault.note)

    def _tree(self, agno: int) -> tuple[AgTree, int]:
        """Return the inode btree of a group, and the first inode number past the group."""
        chunk_size = XFS_INODES_PER_CHUNK
        limit = -(-(self.volume.ag_blocks(agno) << self.volume.sb.inopblog) // chunk_size)
        limit *= chunk_size
        return AgTree(self.volume, agno, INOBT, limit), limit

    @staticmethod
    def _rings(tree: AgTree, limit: int, home: int, faults: list[Fault]) -> Iterator[InobtRec]:
        """Yield the inode chunks of a group, the nearest to ``home`` first."""
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
            yield from sorted(ring, key=lambda chunk: (abs(chunk.startino - home), chunk.startino))
            low, high = new_low, new_high
            radius *= _RING_GROWTH

    # ------------------------------------------------------------------ directories

    def _directories_in(self, agno: int, chunk: InobtRec, near: int | None = None) -> list[int]:
        """Return the directories whose inode is in a chunk; the nearest to an inode first."""
        self._chunks_searched += 1
        self.progress("inode chunks searched for names", self._chunks_searched, None)
        start = self.volume.agino_to_byte(agno, chunk.startino)
        known, found = self.inodes.directories.get(start, (None, ()))
        if known != chunk:
            found, is_sound = self._find_directories(agno, chunk, start)
            if is_sound and len(self.inodes.directories) < _MOST_CHUNKS:
                self.inodes.directories[start] = chunk, found
        if near is None:
            return list(found)
        return sorted(found, key=lambda ino: (abs(ino - near), ino))

    def _find_directories(
        self, agno: int, chunk: InobtRec, start: int
    ) -> tuple[tuple[int, ...], bool]:
        """Read the directories whose inode is in a chunk, and whether nothing there is wrong."""
        volume = self.volume
        size = volume.inode_size
        raw = self._read_chunk(agno, chunk)
        odd = self._compare_chunk(agno, chunk, raw)
        # The high nibble of a mode is the file's type, and a mode is at byte 2 of an inode.
        nibbles = raw[2::size] if raw else bytes([_S_IFDIR_NIBBLE << 4]) * XFS_INODES_PER_CHUNK
        found = []
        is_sound = bool(raw) and not odd
        for index, nibble in enumerate(nibbles):
            if nibble >> 4 != _S_IFDIR_NIBBLE or not chunk.is_allocated(index):
                continue
            ino = volume.join_inode(agno, chunk.startino + index)
            try:
                if raw:
                    piece = raw[index * size : (index + 1) * size]
                    self.inodes.verified(ino, piece, start + index * size)
                elif not self.inodes.get(ino).core.is_dir:
                    continue
            except BlockError as error:
                self.faults.add(str(error))
                is_sound = False
                continue
            found.append(ino)
            if odd:
                self._odd[ino] = odd
        return tuple(found), is_sound

    def _read_chunk(self, agno: int, chunk: InobtRec) -> bytes:
        """Read a chunk of inodes; empty if the medium does not return all of it."""
        start = self.volume.agino_to_byte(agno, chunk.startino)
        if self._chunk[0] != start:
            size = XFS_INODES_PER_CHUNK * self.volume.inode_size
            try:
                self._chunk = start, self.volume.read("inode-chunk", start, size)
            except BlockError:
                return b""
        return self._chunk[1]

    def _compare_chunk(self, agno: int, chunk: InobtRec, raw: bytes) -> str:
        """Compare which inodes of a chunk are in use with the inode btree.

        Returns a note if they differ: the chunk is old then, or the btree is.  The kernel clears
        the mode of an inode when it frees it in the btree.
        """
        known = self._odd_chunks.get((agno, chunk.startino))
        if known is not None or not raw:
            return known or ""
        size = self.volume.inode_size
        first = self.volume.join_inode(agno, chunk.startino)
        for index in range(XFS_INODES_PER_CHUNK):
            at = index * size
            in_use = raw[at + 2 : at + 4] != b"\0\0"
            if in_use is chunk.is_allocated(index) or chunk.is_hole(index):
                continue
            try:
                start = self.volume.agino_to_byte(agno, chunk.startino + index)
                self.inodes.verified(first + index, raw[at : at + size], start)
            except BlockError:
                continue
            note = (
                f"inode {first + index} is {'' if in_use else 'not '}in use, the inode btree says"
                f" otherwise: inodes {first} to {first + XFS_INODES_PER_CHUNK - 1} may be old"
            )
            self._odd_chunks[agno, chunk.startino] = note
            return note
        return ""

    def _search_directory(
        self, ino: int, chunk: InobtRec, wanted: dict[int, _Target], modes: dict[int, int]
    ) -> set[int]:
        """Add the names of a directory to the inodes; return those that got any.

        Names are ranked by how near the directory is: in the inode's own group by the distance of
        its chunk, then within the chunk; any other group is farther.
        """
        agno, begin = self.volume.split_inode(ino)[0], chunk.startino
        touched = set()
        for place, entry in enumerate(self.directories.names(ino, modes, self.faults)):
            target = wanted[entry.inumber]
            if target.home == agno:
                distance = abs(begin - target.chunk)
                rank = (distance, begin, abs(ino - target.ino), ino, place)
            else:
                rank = (1 << 32, agno, begin, ino, place)
            target.add(Link(ino, entry.name), rank)
            touched.add(target.ino)
        return touched
