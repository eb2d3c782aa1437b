"""From inodes to every path: directories have names, and inodes have only the number of them.

The directories nearest to an inode are searched first, because the kernel puts a file near its
directory.  The search ends when the link count is reached.  A directory knows its parent.
"""

import stat
from array import array
from collections.abc import Callable, Iterable, Iterator
from typing import TYPE_CHECKING, Final

from whoseblock.errors import BlockError
from whoseblock.fs.base import Paths, distinct
from whoseblock.fs.ext4.inodes import get_inode
from whoseblock.fs.ext4.names.directories import Directories, Link
from whoseblock.fs.ext4.names.orphans import find_orphans
from whoseblock.fs.ext4.scan import (
    EXT4_BAD_INO,
    EXT4_RESIZE_INO,
    EXT4_ROOT_INO,
    InodeScan,
    nearest_groups,
)
from whoseblock.fs.ext4.volume import Volume

if TYPE_CHECKING:
    from whoseblock.fs.ext4.format.inode import Inode

__all__ = ["PathFinder", "internal_files"]

EXT4_BOOT_LOADER_INO: Final = 5
#: An inode may have more names by its count; so many are looked for.
_MOST_LINKS: Final = 65_536
#: The paths of one call may have so many bytes for each inode, on average, and so many in any case.
_BYTES_FOR_EACH: Final = 4096
_MOST_BYTES: Final = 32 << 20
#: Directories searched between two reports of progress.
_STEP: Final = 64
_MOST_FAULTS: Final = 4
#: EXT4_FT_*: the types of files in directories.
_TYPES: Final = {
    1: stat.S_IFREG,
    2: stat.S_IFDIR,
    3: stat.S_IFCHR,
    4: stat.S_IFBLK,
    5: stat.S_IFIFO,
    6: stat.S_IFSOCK,
    7: stat.S_IFLNK,
}


def internal_files(volume: Volume) -> dict[int, str]:
    """Return the inodes of the filesystem itself that no directory names."""
    sb = volume.sb
    found = {
        sb.usr_quota_inum: "user quota",
        sb.grp_quota_inum: "group quota",
        sb.prj_quota_inum: "project quota",
        sb.orphan_file_inum: "orphan file",
        sb.journal_inum: "journal",
        EXT4_BAD_INO: "bad blocks",
        EXT4_BOOT_LOADER_INO: "boot loader",
        EXT4_RESIZE_INO: "resize inode",
    }
    found.pop(0, None)
    found.pop(EXT4_ROOT_INO, None)
    return found


class _Search:
    """The state of one call of `PathFinder.find`."""

    def __init__(self) -> None:
        #: The inodes with names to find, and the names found.
        self.wanted: dict[int, Inode] = {}
        self.links: dict[int, list[Link]] = {}
        self.folders: set[int] = set()
        self.up: dict[int, Link] = {}
        self.lost: dict[int, str] = {}
        #: By inode, why it may not be in use.
        self.doubts: dict[int, str] = {}
        self.unread = 0


class PathFinder:
    """Finds the paths of a volume's inodes."""

    def __init__(
        self, volume: Volume, scan: InodeScan, progress: Callable[[str, int, int | None], None]
    ) -> None:
        self.volume = volume
        self.scan = scan
        self.progress = progress
        self.directories = Directories(volume)
        self._internal = internal_files(volume)
        self._orphans: tuple[set[int], str] | None = None

    def find(self, inodes: Iterable[int], *, may_scan: bool = True) -> dict[int, Paths]:
        """Return every path of each inode, and a note for each path that may be missing."""
        search = _Search()
        found: dict[int, Paths] = {}
        todo = list(dict.fromkeys(inodes))
        for number in todo:
            known = self._begin(number, search)
            if known is not None:
                found[number] = known
        if may_scan:
            self._find_names(search)
        self._climb(search)
        left = max(_MOST_BYTES, _BYTES_FOR_EACH * len(todo))
        for number in todo:
            if number not in found:
                found[number] = self._finish(number, search, left, may_scan=may_scan)
                left -= sum(map(len, found[number].paths))
        return found

    def _begin(self, number: int, search: _Search) -> Paths | None:
        """Return the paths if the inode alone decides them; otherwise add it to the search."""
        volume = self.volume
        try:
            inode = get_inode(volume, number)
            group, place = volume.inode_place(number)
        except BlockError as error:
            return Paths(complete=False, notes=(str(error),))
        if number in self._internal:
            return Paths(detail=self._internal[number])
        bitmap = volume.inode_bitmap(group)
        fault = bitmap.fault
        if not fault and bitmap.bits[place] == "0":
            return Paths(complete=False, notes=(f"inode {number} is not in use",))
        if number == EXT4_ROOT_INO:
            return Paths(("/",), complete=not fault, notes=(fault,) if fault else ())
        if inode.links == 0:
            note = fault or self._orphan_note(number)
            return Paths(complete=not note, notes=(note,) if note else (), unlinked=True)
        if inode.is_dir:
            search.folders.add(number)
        else:
            search.wanted[number] = inode
        search.links[number] = []
        if fault:
            search.doubts[number] = fault
        return None

    def _orphan_note(self, number: int) -> str:
        if self._orphans is None:
            self._orphans = find_orphans(self.volume)
        orphans, fault = self._orphans
        if number in orphans:
            return ""
        return fault or f"inode {number} has no links, and is no orphan"

    # ------------------------------------------------------------------ names

    def _find_names(self, search: _Search) -> None:
        """Search the directories for the names of files, those of the same flex groups first."""
        missing = {number: min(inode.links, _MOST_LINKS) for number, inode in search.wanted.items()}
        done = 0
        for group in self._groups(missing):
            if not missing:
                return
            folders = self.scan.directories_of(group)
            if len(missing) == 1:
                # A file is made in the group of its directory, and after it.
                (only,) = missing
                folders = array("Q", sorted(folders, key=lambda one: abs(one - only)))
            for folder in folders:
                for number, link in self.directories.find(folder, missing):
                    if number not in missing:
                        continue
                    search.links[number].append(link)
                    missing[number] -= 1
                    if not missing[number]:
                        del missing[number]
                done += 1
                if done % _STEP == 0:
                    self.progress("directories searched for names", done, None)
                if not missing:
                    return
        search.unread = self.scan.count_unread()

    def _groups(self, inodes: Iterable[int]) -> Iterator[int]:
        """Yield all groups: those of the flex groups of the inodes first."""
        volume = self.volume
        per_group = volume.sb.inodes_per_group
        homes = {(number - 1) // per_group for number in inodes}
        own = sorted({group // volume.flex for group in homes})
        if not own:
            return
        seen: set[int] = set()
        for flex in own:
            first = flex * volume.flex
            groups = range(first, min(first + volume.flex, volume.groups))
            # Those with inodes come before others.
            for group in sorted(groups, key=lambda one: one not in homes):
                seen.add(group)
                yield group
        for group in nearest_groups(volume, own[0] * volume.flex):
            if group not in seen:
                yield group

    # ------------------------------------------------------------------ upwards

    def _climb(self, search: _Search) -> None:
        """Find the name of each directory on the way to the root, a level at a time."""
        todo = set(search.folders)
        todo.update(link.parent for links in search.links.values() for link in links)
        while todo := todo - search.up.keys() - search.lost.keys() - {EXT4_ROOT_INO}:
            children: dict[int, set[int]] = {}
            for number in todo:
                try:
                    children.setdefault(self.directories.parent(number), set()).add(number)
                except BlockError as error:
                    search.lost[number] = str(error)
            todo = set()
            for parent, wanted in children.items():
                missing = set(wanted)
                for number, link in self.directories.find(parent, missing):
                    if number in missing:
                        search.up[number] = link
                        missing.discard(number)
                    if not missing:
                        break
                for number in missing:
                    why = self.directories.faults.get(parent, "it has no such entry")
                    search.lost[number] = (
                        f"directory inode {parent} does not name inode {number}: {why}"
                    )
                todo.add(parent)

    def _finish(self, number: int, search: _Search, allowed: int, *, may_scan: bool) -> Paths:
        """Put the paths of one inode together."""
        notes = [search.doubts[number]] if number in search.doubts else []
        links = search.links[number]
        if number in search.folders:
            links = [search.up[number]] if number in search.up else []
            if number in search.lost:
                notes.append(search.lost[number])
        if number in search.wanted:
            found = stat.S_IFMT(search.wanted[number].mode)
            named = {_TYPES.get(link.file_type, found) for link in links}
            if named - {found}:
                notes.append(f"inode {number} is not of the type that its directory has")
        paths: list[bytes] = []
        encrypted = False
        for link in links:
            if allowed <= 0:
                notes.append(f"inode {number} has paths too long to list them all")
                break
            joined = self._join(link, search, notes)
            if joined is not None:
                paths.append(joined[0])
                encrypted |= joined[1]
                allowed -= len(joined[0])
        if number in search.wanted:
            self._note_missing(number, search, notes, may_scan=may_scan)
        decoded = tuple(path.decode("utf-8", "surrogateescape") for path in sorted(paths))
        return Paths(decoded, complete=not notes, notes=distinct(notes), encrypted_name=encrypted)

    def _note_missing(
        self, number: int, search: _Search, notes: list[str], *, may_scan: bool
    ) -> None:
        count, has = len(search.links[number]), search.wanted[number].links
        if count >= has:
            return
        if not may_scan:
            notes.append(f"the {has} names of inode {number} were not looked for without a scan")
            return
        notes.append(f"inode {number} has {has} names, {count} were found")
        if search.unread:
            notes.append(f"{search.unread} inodes, which may be directories, are unread")
        notes += list(self.directories.faults.values())[:_MOST_FAULTS]

    def _join(self, link: Link, search: _Search, notes: list[str]) -> tuple[bytes, bool] | None:
        names = [link.name]
        encrypted = link.encrypted
        seen: set[int] = set()
        at = link.parent
        while at != EXT4_ROOT_INO:
            up = search.up.get(at)
            if up is None or at in seen:
                why = "it goes round in circles" if at in seen else search.lost.get(at, "no parent")
                notes.append(f"the path to {link.name!r} in directory inode {link.parent}: {why}")
                return None
            seen.add(at)
            names.append(up.name)
            encrypted |= up.encrypted
            at = up.parent
        return b"/" + b"/".join(reversed(names)), encrypted
