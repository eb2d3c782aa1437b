"""A btrfs volume on its devices: its chunks, and the roots of its trees."""

from collections import Counter
from collections.abc import Mapping
from functools import cached_property
from typing import Final, NamedTuple

from whoseblock.errors import BlockError, CorruptError
from whoseblock.fs.btrfs.chunks import ChunkMap, Place
from whoseblock.fs.btrfs.format.items import (
    DeviceItem,
    parse_chunk,
    parse_chunk_array,
    parse_dev_extent,
    parse_device,
    parse_root,
)
from whoseblock.fs.btrfs.format.keys import (
    BEYOND,
    CHUNK_ITEM,
    CHUNK_TREE,
    DEV_EXTENT,
    DEV_ITEM,
    DEV_ITEMS_OBJECT,
    DEV_TREE,
    FIRST_CHUNK_TREE_OBJECT,
    ROOT_ITEM,
    ROOT_TREE,
    tree_name,
)
from whoseblock.fs.btrfs.format.superblock import Superblock
from whoseblock.fs.btrfs.trees import LostKeys, Root, TreeReader
from whoseblock.media.base import Media

__all__ = ["Subvolume", "Volume"]

_MAX_OFFSET: Final = 1 << 64
#: Roots that are kept.
_KEPT: Final = 1 << 14


class Subvolume(NamedTuple):
    """The root of a tree, and whether the tree is being deleted."""

    root: Root
    is_deleted: bool


class Volume:
    """The geometry and the trees of one filesystem.

    ``devices`` are the media by the numbers of their devices, except those that are missing, and
    ``items`` what their superblocks say of them.
    """

    def __init__(
        self, devices: Mapping[int, Media], items: Mapping[int, DeviceItem], sb: Superblock
    ) -> None:
        self.devices = devices
        self.items = items
        self.sb = sb
        self.sector_size = sb.sector_size
        self.node_size = sb.node_size
        #: Why bytes that are free here may be allocated by now, "" if they are not.
        self.later_changes = ""
        self._subvolumes: dict[int, Subvolume | None] = {}
        self._reader = TreeReader(devices, sb, self._system_chunks())

    def _system_chunks(self) -> ChunkMap:
        """Return the chunks in the superblock, which have the chunk tree."""
        chunks = ChunkMap(self.sb.sector_size)
        for found in parse_chunk_array(self.sb.chunk_array):
            if found is None:
                chunks.faults.append("the chunks in the superblock: damaged item")
                break
            chunks.add(*found)
        chunks.finish()
        return chunks

    @property
    def reads(self) -> Counter[str]:
        """The number of metadata blocks read, by kind."""
        return self._reader.reads

    @cached_property
    def chunks(self) -> ChunkMap:
        """All chunks, by the chunk tree."""
        sb, reader = self.sb, self._reader
        root = Root(CHUNK_TREE, sb.chunk_root, sb.chunk_root_generation, sb.chunk_root_level)
        chunks = ChunkMap(sb.sector_size)
        chunks.faults += reader.chunks.faults
        low = (FIRST_CHUNK_TREE_OBJECT, CHUNK_ITEM, 0)
        for item in reader.walk(root, low, (FIRST_CHUNK_TREE_OBJECT, CHUNK_ITEM, _MAX_OFFSET)):
            if isinstance(item, LostKeys):
                chunks.faults.append(f"chunk tree: {item.reason}")
            else:
                chunks.add(item.key[2], parse_chunk(item.data))
        chunks.finish()
        for chunk in reader.chunks:
            # What the chunk tree was read by must be in it.
            if chunks.find(chunk.start) != chunk:
                chunks.faults.append(
                    f"chunk at logical address {chunk.start}: the chunk tree differs from the"
                    " superblock"
                )
        return chunks

    @cached_property
    def reader(self) -> TreeReader:
        """The reader of all trees."""
        chunks = self.chunks
        self._reader.chunks = chunks
        return self._reader

    @cached_property
    def _device_items(self) -> tuple[dict[int, DeviceItem], str]:
        """The devices of the chunk tree, and why there may be others."""
        found: dict[int, DeviceItem] = {}
        fault = ""
        root = self.root(CHUNK_TREE)
        low, high = (DEV_ITEMS_OBJECT, DEV_ITEM, 0), (DEV_ITEMS_OBJECT, DEV_ITEM, _MAX_OFFSET)
        for item in self.reader.walk(root, low, high):
            if isinstance(item, LostKeys):
                fault = fault or f"chunk tree: {item.reason}"
            elif (device := parse_device(item.data)) is None:
                fault = fault or f"chunk tree: damaged item of device {item.key[2]}"
            else:
                found[item.key[2]] = device
        return found, fault

    @property
    def devices_fault(self) -> str:
        """Why it may have other devices than those of the chunk tree, "" if it has not."""
        found, fault = self._device_items
        if fault or len(found) == self.sb.devices:
            return fault
        return f"the superblock has {self.sb.devices} devices, the chunk tree {len(found)}"

    @cached_property
    def device_faults(self) -> dict[int, str]:
        """Why devices are not those of the chunk tree, for those that are not."""
        found, fault = self._device_items
        return {
            number: fault or f"the chunk tree has another device {number}, or another size of it"
            for number, device in self.items.items()
            if found.get(number) != device
        }

    @cached_property
    def missing(self) -> tuple[int, ...]:
        """The numbers of the devices that chunks are on, and that are not there."""
        return tuple(one for one in self.chunks.devices if one not in self.devices)

    @cached_property
    def device_extents(self) -> tuple[dict[Place, tuple[int, int]], list[str]]:
        """The chunk and the length of each allocated part of a device, and what is wrong."""
        found: dict[Place, tuple[int, int]] = {}
        faults: list[str] = []
        try:
            root = self.root(DEV_TREE)
        except BlockError as error:
            return found, [str(error)]
        for item in self.reader.walk(root, (1, DEV_EXTENT, 0), BEYOND):
            if isinstance(item, LostKeys):
                faults.append(f"device tree: {item.reason}")
                continue
            device, kind, start = item.key
            if kind != DEV_EXTENT:
                continue
            extent = parse_dev_extent(item.data)
            if extent is None:
                faults.append(f"device tree: damaged item of byte {start} of device {device}")
            else:
                found[Place(device, start)] = extent.chunk, extent.length
        return found, faults

    @cached_property
    def allocation_fault(self) -> str:
        """Why device space without a chunk is not certainly unallocated, "" if it is."""
        if self.later_changes:
            return self.later_changes
        extents, faults = self.device_extents
        if faults or self.chunks.faults:
            return (faults or self.chunks.faults)[0]
        stripes = {
            place: (chunk.start, chunk.stripe_length)
            for chunk in self.chunks
            for place in chunk.stripes
        }
        if stripes != extents:
            device, start = min(dict(stripes.items() ^ extents.items()))
            return f"the chunk tree and the device tree differ at byte {start} of device {device}"
        return ""

    # ------------------------------------------------------------------ roots

    @property
    def root_tree(self) -> Root:
        """The root of the root tree."""
        sb = self.sb
        return Root(ROOT_TREE, sb.root, sb.generation, sb.root_level)

    def root(self, tree: int) -> Root:
        """Return the root of a tree; raises `BlockError` if there is none."""
        return self.subvolume(tree).root

    def subvolume(self, tree: int) -> Subvolume:
        """Return the root of a tree, and its state; raises `BlockError` if there is none."""
        sb = self.sb
        if tree == ROOT_TREE:
            return Subvolume(self.root_tree, is_deleted=False)
        if tree == CHUNK_TREE:
            root = Root(tree, sb.chunk_root, sb.chunk_root_generation, sb.chunk_root_level)
            return Subvolume(root, is_deleted=False)
        if tree not in self._subvolumes:
            if len(self._subvolumes) >= _KEPT:
                self._subvolumes.clear()
            self._subvolumes[tree] = self._read_root(tree)
        found = self._subvolumes[tree]
        if found is None:
            raise CorruptError(tree_name(tree), sb.root, "not in the root tree")
        return found

    def _read_root(self, tree: int) -> Subvolume | None:
        item = self.reader.last_before(self.root_tree, (tree, ROOT_ITEM, _MAX_OFFSET))
        if isinstance(item, LostKeys):
            raise CorruptError("root tree", self.sb.root, item.reason)
        if item is None or item.key[:2] != (tree, ROOT_ITEM):
            return None
        root = parse_root(item.data)
        if root is None:
            raise CorruptError("root tree", item.node.address, f"damaged root of tree {tree}")
        found = Root(tree, root.address, root.generation, root.level)
        return Subvolume(found, is_deleted=root.refs == 0)
