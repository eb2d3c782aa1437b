"""From inodes to every path: inodes have their names, and subvolumes have theirs.

Directories must confirm the names.  Paths begin at the top-level subvolume.
"""

from collections.abc import Iterable
from functools import lru_cache
from typing import Final, NamedTuple

from whoseblock.errors import BlockError, CorruptError
from whoseblock.fs.base import FileId, Paths, distinct
from whoseblock.fs.btrfs.format.items import (
    InodeItem,
    Name,
    parse_dir_entries,
    parse_extref,
    parse_inode,
    parse_inode_ref,
    parse_root_ref,
)
from whoseblock.fs.btrfs.format.keys import (
    DIR_INDEX,
    FIRST_FREE,
    FS_TREE,
    INODE_EXTREF,
    INODE_ITEM,
    INODE_REF,
    ORPHAN_ITEM,
    ORPHAN_OBJECT,
    ROOT_BACKREF,
    ROOT_ITEM,
    is_file_tree,
    tree_name,
)
from whoseblock.fs.btrfs.trees import LostKeys, Root
from whoseblock.fs.btrfs.volume import Volume
from whoseblock.fs.driver import FileFacts

__all__ = ["PathFinder", "read_facts", "read_inode"]

#: Directories and subvolumes whose paths are kept.
_KEPT: Final = 1 << 14
#: No path that the kernel resolves from the root has more parts.
_DEEPEST: Final = 1 << 12
#: The paths of one inode have at most so many bytes.
_MOST_BYTES: Final = 32 << 20
_MAX_OFFSET: Final = 1 << 64
#: Flags of inodes (BTRFS_INODE_… of linux/btrfs_tree.h).
_IMMUTABLE: Final = 1 << 6
_APPEND: Final = 1 << 7


class _Prefix(NamedTuple):
    """The path of a directory without a slash at its end; ``fault`` says why it has none."""

    path: bytes
    fault: str


def read_inode(volume: Volume, file: FileId) -> InodeItem:
    """Return the inode of a file; raises `BlockError`."""
    root = volume.root(file.subvolume)
    item = volume.reader.item(root, (file.inode, INODE_ITEM, 0))
    inode = None if item is None else parse_inode(item.data)
    if inode is None:
        raise CorruptError(
            tree_name(file.subvolume), root.address, f"it does not have inode {file.inode}"
        )
    return inode


def read_facts(volume: Volume, file: FileId) -> FileFacts:
    """Return the facts of a file; raises `BlockError`."""
    inode = read_inode(volume, file)
    return FileFacts(
        inode.mode,
        inode.size,
        inode.links,
        inode.generation,
        immutable=bool(inode.flags & _IMMUTABLE),
        append_only=bool(inode.flags & _APPEND),
    )


class PathFinder:
    """Finds the paths of files in all subvolumes."""

    def __init__(self, volume: Volume) -> None:
        self.volume = volume
        self._directory = lru_cache(_KEPT)(self._find_directory)
        self._inside = lru_cache(_KEPT)(self._find_inside)
        self._subvolume = lru_cache(_KEPT)(self._find_subvolume)

    def find(self, files: Iterable[FileId]) -> dict[FileId, Paths]:
        """Return every path of each file, and a note for each path that may be missing."""
        return {file: self._find(file) for file in dict.fromkeys(files)}

    def subvolume_path(self, subvolume: int) -> str:
        """Return the path of a subvolume from the top-level one, "" if it has none."""
        found = self._subvolume(subvolume)
        if found.fault:
            return ""
        return (found.path or b"/").decode("utf-8", "surrogateescape")

    def _find(self, file: FileId) -> Paths:
        if not is_file_tree(file.subvolume):
            return _no(f"the {tree_name(file.subvolume)} has no files with names")
        try:
            return self._paths(file)
        except BlockError as error:
            return Paths(complete=False, notes=(str(error),))

    def _paths(self, file: FileId) -> Paths:
        volume, (subvolume, number) = self.volume, file
        if volume.subvolume(subvolume).is_deleted:
            return Paths(unlinked=True, detail="in a deleted subvolume that is not yet cleaned up")
        inode = read_inode(volume, file)
        if number == FIRST_FREE:
            found = self._subvolume(subvolume)
            if found.fault:
                return _no(found.fault)
            return _of([found.path or b"/"], ())
        root = volume.root(subvolume)
        if not inode.links:
            key = (ORPHAN_OBJECT, ORPHAN_ITEM, number)
            if volume.reader.item(root, key) is None:
                return _no(
                    f"inode {number} of subvolume {subvolume} has no links, and is no orphan"
                )
            return Paths(unlinked=True)
        return self._named_paths(root, number, inode.links)

    def _named_paths(self, root: Root, number: int, links: int) -> Paths:
        """Return the paths of an inode that has names; raises `BlockError`."""
        names = self._names(root, number)
        paths: list[bytes] = []
        faults: list[str] = []
        size = 0
        for name in names:
            prefix = self._directory(root.tree, name.parent)
            fault = prefix.fault or self._refutation(root, number, name)
            if fault:
                faults.append(fault)
                continue
            paths.append(prefix.path + b"/" + name.name)
            size += len(paths[-1])
            if size > _MOST_BYTES:
                faults.append(f"inode {number} has paths too long to list them all")
                break
        if len(names) != links:
            faults.append(
                f"inode {number} of subvolume {root.tree} has {links} names,"
                f" {len(names)} were found"
            )
        return _of(paths, faults)

    def _names(self, root: Root, number: int) -> list[Name]:
        """Return the names that an inode has; raises `BlockError`."""
        names: list[Name] = []
        low, high = (number, INODE_REF, 0), (number, INODE_EXTREF, _MAX_OFFSET)
        for item in self.volume.reader.walk(root, low, high):
            if isinstance(item, LostKeys):
                raise CorruptError(tree_name(root.tree), root.address, item.reason)
            _, kind, offset = item.key
            if kind == INODE_REF:
                found = parse_inode_ref(item.data, offset)
            else:
                found = parse_extref(item.data)
            if found is None or not all(_is_name(one.name) for one in found):
                raise CorruptError(
                    tree_name(root.tree), item.node.address, f"damaged names of inode {number}"
                )
            names += found
        return names

    def _refutation(self, root: Root, number: int, name: Name) -> str:
        """Return why a directory does not have a name at its index, "" if it does."""
        try:
            has = self._has_entry(root, name, (number, INODE_ITEM))
        except BlockError as error:
            return str(error)
        if has:
            return ""
        return (
            f"directory inode {name.parent} of subvolume {root.tree} does not name inode {number}"
        )

    def _has_entry(self, root: Root, name: Name, target: tuple[int, int]) -> bool:
        item = self.volume.reader.item(root, (name.parent, DIR_INDEX, name.sequence))
        entries = (item and parse_dir_entries(item.data)) or []
        return any(entry.target[:2] == target and entry.name == name.name for entry in entries)

    # ------------------------------------------------------------------ upwards

    def _find_directory(self, subvolume: int, number: int) -> _Prefix:
        """Return the path of a directory from the top-level subvolume."""
        above = self._subvolume(subvolume)
        inside = self._inside(subvolume, number)
        return _Prefix(above.path + inside.path, above.fault or inside.fault)

    def _find_inside(self, subvolume: int, number: int) -> _Prefix:
        """Return the path of a directory from the root of its subvolume."""
        names: list[bytes] = []
        at = number
        try:
            root = self.volume.root(subvolume)
            while at != FIRST_FREE:
                if len(names) == _DEEPEST:
                    return _Prefix(b"", f"the path to directory inode {number} is too long")
                found = self._names(root, at)
                if len(found) != 1:
                    return _Prefix(
                        b"", f"directory inode {at} of subvolume {subvolume} has {len(found)} names"
                    )
                if fault := self._refutation(root, at, found[0]):
                    return _Prefix(b"", fault)
                names.append(found[0].name)
                at = found[0].parent
        except BlockError as error:
            return _Prefix(b"", str(error))
        return _Prefix(b"".join(b"/" + name for name in reversed(names)), "")

    def _find_subvolume(self, subvolume: int) -> _Prefix:
        """Return the path of a subvolume from the top-level one."""
        path = b""
        at = subvolume
        for _ in range(_DEEPEST):
            if at == FS_TREE:
                return _Prefix(path, "")
            try:
                parent, name = self._name_of(at)
                if not self._has_entry(self.volume.root(parent), name, (at, ROOT_ITEM)):
                    fault = f"directory inode {name.parent} of subvolume {parent} does not name it"
                    return _Prefix(b"", f"subvolume {at}: {fault}")
            except BlockError as error:
                return _Prefix(b"", str(error))
            inside = self._inside(parent, name.parent)
            if inside.fault:
                return inside
            path = inside.path + b"/" + name.name + path
            at = parent
        return _Prefix(b"", f"the path to subvolume {subvolume} is too long")

    def _name_of(self, subvolume: int) -> tuple[int, Name]:
        """Return the parent of a subvolume, and its name there; raises `BlockError`."""
        root = self.volume.root_tree
        low, high = (subvolume, ROOT_BACKREF, 0), (subvolume, ROOT_BACKREF, _MAX_OFFSET)
        found: list[tuple[int, Name | None]] = []
        for item in self.volume.reader.walk(root, low, high):
            if isinstance(item, LostKeys):
                raise CorruptError("root tree", root.address, item.reason)
            found.append((item.key[2], parse_root_ref(item.data)))
        if len(found) == 1:
            ((parent, name),) = found
            if name is not None and _is_name(name.name) and is_file_tree(parent):
                return parent, name
        raise CorruptError(
            "root tree", root.address, f"subvolume {subvolume} has {len(found)} valid names"
        )


def _is_name(name: bytes) -> bool:
    """Return whether the kernel could have given a file this name."""
    return name not in {b"", b".", b".."} and b"/" not in name and b"\0" not in name


def _no(fault: str) -> Paths:
    return Paths(complete=False, notes=(fault,))


def _of(paths: Iterable[bytes], faults: Iterable[str]) -> Paths:
    decoded = tuple(path.decode("utf-8", "surrogateescape") for path in sorted(paths))
    notes = distinct(faults)
    return Paths(decoded, complete=not notes, notes=notes)
