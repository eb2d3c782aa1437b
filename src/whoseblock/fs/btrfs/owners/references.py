"""The parts of files that an extent of data has, by its back references."""

from collections import OrderedDict
from collections.abc import Collection, Iterator
from itertools import islice
from typing import Final, NamedTuple, Self

from whoseblock.errors import BlockError, CorruptError
from whoseblock.fs.base import MAX_OWNERS, FileId
from whoseblock.fs.btrfs.format.extents import Reference
from whoseblock.fs.btrfs.format.items import (
    ENCODINGS,
    INLINE,
    PREALLOCATED,
    FileExtent,
    parse_file_extent,
)
from whoseblock.fs.btrfs.format.keys import (
    EXTENT_DATA,
    EXTENT_DATA_REF,
    SHARED_DATA_REF,
    tree_name,
)
from whoseblock.fs.btrfs.format.node import Node
from whoseblock.fs.btrfs.owners.extents import Extent
from whoseblock.fs.btrfs.owners.sharing import SharingIndex
from whoseblock.fs.btrfs.trees import LostKeys
from whoseblock.fs.btrfs.volume import Volume

__all__ = ["FilePart", "FileParts", "ReferenceResolver", "part_of"]

#: A compressed extent has at most so many bytes.
_MAX_COMPRESSED: Final = 128 << 10
_TOP: Final = 1 << 64
#: So many parts of files are kept in all.
_KEPT: Final = 1 << 16


class FilePart(NamedTuple):
    """``length`` bytes of a file from ``file_offset``, which begin at byte ``offset`` of an extent.

    ``offset`` is in the decompressed extent if ``encoding`` names how it is compressed.
    """

    subvolume: int
    inode: int
    file_offset: int
    offset: int
    length: int
    is_unwritten: bool
    encoding: str

    @classmethod
    def of(cls, subvolume: int, inode: int, file_offset: int, item: FileExtent) -> Self:
        """Make the part that an item of a file has."""
        unwritten, encoding = item.kind == PREALLOCATED, ENCODINGS[item.compression]
        return cls(subvolume, inode, file_offset, item.offset, item.length, unwritten, encoding)

    @property
    def file(self) -> FileId:
        """The identity of the file."""
        return FileId(self.subvolume, self.inode)


class FileParts(NamedTuple):
    """All parts of files that an extent has, in order; ``faults`` say what may be missing."""

    parts: tuple[FilePart, ...]
    faults: tuple[str, ...]


#: A file extent item: the leaf, and the place of the item in it.
_Place = tuple[int, int]


class ReferenceResolver:
    """Resolves the back references of extents of data; lists ``max_owners`` of each at most."""

    def __init__(self, volume: Volume, sharing: SharingIndex) -> None:
        self.volume = volume
        self.sharing = sharing
        self.max_owners = MAX_OWNERS
        self._kept: OrderedDict[int, FileParts] = OrderedDict()
        self._count = 0

    def forget(self) -> None:
        """Forget what was resolved."""
        self._kept.clear()
        self._count = 0

    def resolve(self, extent: Extent) -> FileParts:
        """Return the parts of files that refer to an extent, in every tree."""
        kept = self._kept.get(extent.start)
        if kept is not None:
            self._kept.move_to_end(extent.start)
            return kept
        found = self._resolve(extent)
        self._kept[extent.start] = found
        self._count += len(found.parts) + 1
        while self._count > _KEPT and len(self._kept) > 1:
            _, dropped = self._kept.popitem(last=False)
            self._count -= len(dropped.parts) + 1
        return found

    def _resolve(self, extent: Extent) -> FileParts:
        faults: dict[str, None] = dict.fromkeys(extent.faults)
        items: dict[_Place, tuple[Node, FileExtent]] = {}
        leaves = {one.parent for one in extent.references if one.kind == SHARED_DATA_REF}
        for reference in extent.references:
            try:
                if reference.kind == EXTENT_DATA_REF:
                    found = list(self._in_tree(extent, reference, leaves))
                elif reference.kind == SHARED_DATA_REF:
                    found = list(self._in_leaf(extent, reference.parent))
                else:
                    raise CorruptError("extent", extent.start, "data is used as a tree block")
            except BlockError as error:
                faults[str(error)] = None
                continue
            if len(found) != reference.times:
                faults[
                    f"the extent at logical address {extent.start} has {reference.times} references"
                    f" where {len(found)} were found"
                ] = None
            items.update((place, (node, part)) for place, node, part in found)
        if len(items) != extent.item.refs and not faults:
            faults[
                f"the extent at logical address {extent.start} has {extent.item.refs} references,"
                f" {len(items)} were found"
            ] = None
        parts: set[FilePart] = set()
        for (address, index), (node, part) in items.items():
            shared = self.sharing.trees_of(address)
            faults.update(dict.fromkeys(shared.faults))
            inode, _, offset = node.keys[index]
            room = self.max_owners - len(parts)
            parts.update(
                FilePart.of(tree, inode, offset, part)
                for tree in islice(sorted(shared.trees), room)
            )
            if len(shared.trees) > room:
                faults[self._too_many(extent)] = None
                break
        return FileParts(tuple(sorted(parts)), tuple(faults))

    def _too_many(self, extent: Extent) -> str:
        return (
            f"the extent at logical address {extent.start} has more than {self.max_owners} owners,"
            " not all of which are listed: see --max-owners"
        )

    def limit(self, most: int) -> None:
        """Set how many owners of an extent are listed."""
        if most != self.max_owners:
            self.max_owners = most
            self.forget()

    def _in_tree(
        self, extent: Extent, reference: Reference, leaves: Collection[int]
    ) -> Iterator[tuple[_Place, Node, FileExtent]]:
        """Yield the items of a file that refer to an extent; raises `BlockError`.

        Leaves that belong to another tree, or that have a reference of their own, are left out: the
        items in them are not counted by this reference.
        """
        volume = self.volume
        _, tree, inode, offset, _, _ = reference
        # The offset may be negative: that of the file minus that in the extent.
        begin = offset - _TOP if offset >> 63 else offset
        end = begin + max(extent.item.length, _MAX_COMPRESSED)
        low, high = (inode, EXTENT_DATA, max(begin, 0)), (inode, EXTENT_DATA, max(end, 0))
        for item in volume.reader.walk(volume.root(tree), low, high):
            if isinstance(item, LostKeys):
                raise CorruptError(tree_name(tree), extent.start, item.reason)
            node = item.node
            if node.header.owner != tree or node.address in leaves:
                continue
            part = _parse(extent, item.data)
            if part is not None and (item.key[2] - part.offset) % _TOP == offset:
                yield (node.address, item.slot), node, part

    def _in_leaf(self, extent: Extent, address: int) -> Iterator[tuple[_Place, Node, FileExtent]]:
        """Yield the items of a leaf that refer to an extent; raises `BlockError`."""
        node = self.sharing.read(self.sharing.extents.find_block(address))
        if node.level:
            raise CorruptError("tree block", address, "it has data, and is no leaf")
        for index, key in enumerate(node.keys):
            if key[1] == EXTENT_DATA:
                part = _parse(extent, node.data(index))
                if part is not None:
                    yield (address, index), node, part


def _parse(extent: Extent, raw: bytes) -> FileExtent | None:
    """Return the item of a file if it refers to an extent; raises `CorruptError` if damaged."""
    part = parse_file_extent(raw)
    if part is None:
        raise CorruptError("file extent", extent.start, "damaged item")
    return part_of(extent, part)


def part_of(extent: Extent, part: FileExtent) -> FileExtent | None:
    """Return an item of a file if it refers to an extent; raises `CorruptError` if it misfits."""
    if part.kind == INLINE or part.address != extent.start:
        return None
    room = part.ram_bytes if part.compression else extent.item.length
    if (
        part.disk_length != extent.item.length
        or not part.length
        or part.offset + part.length > room
        or (part.compression and part.ram_bytes > _MAX_COMPRESSED)
    ):
        raise CorruptError("file extent", extent.start, "it does not fit its extent")
    return part
