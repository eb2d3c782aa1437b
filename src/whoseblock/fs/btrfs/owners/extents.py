"""The extents of a range of logical addresses, by the extent tree."""

from collections.abc import Iterator
from typing import NamedTuple

from whoseblock.errors import BlockError, CorruptError
from whoseblock.fs.btrfs.chunks import Chunk
from whoseblock.fs.btrfs.format.extents import (
    ExtentItem,
    Reference,
    parse_extent,
    parse_reference,
)
from whoseblock.fs.btrfs.format.keys import (
    EXTENT_DATA_REF,
    EXTENT_ITEM,
    EXTENT_OWNER_REF,
    EXTENT_TREE,
    METADATA_ITEM,
    SHARED_BLOCK_REF,
    SHARED_DATA_REF,
    TREE_BLOCK_REF,
    Key,
)
from whoseblock.fs.btrfs.trees import Item, LostKeys
from whoseblock.fs.btrfs.volume import Volume

__all__ = ["Extent", "ExtentIndex", "LostExtents"]

_EXTENTS = (EXTENT_ITEM, METADATA_ITEM)
_REFERENCES = (
    TREE_BLOCK_REF,
    EXTENT_DATA_REF,
    EXTENT_OWNER_REF,
    SHARED_BLOCK_REF,
    SHARED_DATA_REF,
)


class Extent(NamedTuple):
    """An extent with all of its back references; ``faults`` say why there may be more."""

    item: ExtentItem
    references: list[Reference]
    faults: list[str]

    @property
    def start(self) -> int:
        """Its first logical address."""
        return self.item.start

    @property
    def end(self) -> int:
        """The logical address past it."""
        return self.item.start + self.item.length


class LostExtents(NamedTuple):
    """From this logical address up to the next extent there may be others."""

    start: int
    reason: str


class ExtentIndex:
    """Reads the extent tree of a volume."""

    def __init__(self, volume: Volume) -> None:
        self.volume = volume

    def within(self, chunk: Chunk, low: int, high: int) -> Iterator[Extent | LostExtents]:
        """Yield the extents of a chunk that have logical addresses from ``low`` up to ``high``.

        An extent that begins before ``low`` counts; extents do not overlap, and do not cross the
        edges of chunks.
        """
        try:
            first = self._first(chunk, low)
        except BlockError as error:
            yield LostExtents(chunk.start, str(error))
            first = low
        end = chunk.start
        for found in self._read(first, high):
            if isinstance(found, Extent):
                if found.start < end or found.end > chunk.end:
                    yield LostExtents(
                        found.start, f"the extent at logical address {found.start} has a bad place"
                    )
                    continue
                end = found.end
                if found.end <= low:
                    continue
            yield found

    def find_block(self, address: int) -> Extent:
        """Return the extent of the tree block at a logical address; raises `BlockError`."""
        for found in self._read(address, address + 1):
            if isinstance(found, LostExtents):
                raise CorruptError("extent tree", address, found.reason)
            if not found.item.is_tree:
                raise CorruptError("extent tree", address, "data where a tree block is")
            if found.faults:
                raise CorruptError("extent tree", address, found.faults[0])
            return found
        raise CorruptError("extent tree", address, "it does not have this tree block")

    def _first(self, chunk: Chunk, low: int) -> int:
        """Return where the last extent begins that begins at or before ``low``, else ``low``."""
        volume = self.volume
        root = volume.root(EXTENT_TREE)
        at = low + 1
        while at > chunk.start:
            item = volume.reader.last_before(root, (at, 0, 0))
            if isinstance(item, LostKeys):
                raise CorruptError("extent tree", root.address, item.reason)
            if item is None or item.key[0] < chunk.start:
                return low
            at, kind, _ = item.key
            if kind in _EXTENTS:
                return at
            # References and block groups follow the extent of the same address, if it has one.
            begin, end = (at, EXTENT_ITEM, 0), (at, METADATA_ITEM + 1, 0)
            for found in volume.reader.walk(root, begin, end):
                if isinstance(found, LostKeys):
                    raise CorruptError("extent tree", root.address, found.reason)
                return at
        return low

    def _read(self, low: int, high: int) -> Iterator[Extent | LostExtents]:
        """Yield the extents that begin from ``low`` on, each with its keyed references."""
        volume = self.volume
        try:
            root = volume.root(EXTENT_TREE)
        except BlockError as error:
            yield LostExtents(low, str(error))
            return
        extent: Extent | None = None
        for item in volume.reader.walk(root, (low, 0, 0), (high, 0, 0)):
            if isinstance(item, Item):
                address, kind, _ = item.key
                if kind in _REFERENCES and extent is not None and extent.start == address:
                    _add_reference(extent, item)
                    continue
                if kind not in _EXTENTS and kind not in _REFERENCES:
                    continue
            if extent is not None:
                if isinstance(item, LostKeys) and item.low[0] <= extent.start:
                    extent.faults.append(f"extent tree: {item.reason}")
                yield extent
                extent = None
            found = self._begin(item, low)
            if isinstance(found, Extent):
                extent = found
            else:
                yield found
        if extent is not None:
            yield extent

    def _begin(self, item: Item | LostKeys, low: int) -> Extent | LostExtents:
        """Return the extent of an item, or what is lost if it is none."""
        if isinstance(item, LostKeys):
            return LostExtents(max(item.low[0], low), f"extent tree: {item.reason}")
        address, kind, _ = item.key
        if kind in _REFERENCES:
            why = f"a reference without an extent at logical address {address}"
            return LostExtents(address, why)
        volume = self.volume
        found = parse_extent(item.key, item.data, volume.node_size)
        if found is None or (found.start | found.length) % volume.sector_size:
            return LostExtents(address, _damaged(item.key))
        return Extent(found, list(found.references), [])


def _add_reference(extent: Extent, item: Item) -> None:
    """Add a back reference that has a key of its own to its extent."""
    reference = parse_reference(item.key, item.data)
    if reference is None:
        extent.faults.append(_damaged(item.key))
    elif reference.kind != EXTENT_OWNER_REF:
        extent.references.append(reference)


def _damaged(key: Key) -> str:
    return f"extent tree: damaged item of logical address {key[0]}"
