"""Verified reads of tree blocks, and bounded walks of trees.

A walk raises no error for a damaged block: it yields the keys that are lost with it.
"""

from bisect import bisect_left, bisect_right
from collections import Counter, OrderedDict
from collections.abc import Iterator, Mapping
from typing import Final, NamedTuple

from whoseblock.errors import BlockError, CorruptError
from whoseblock.fs.btrfs.chunks import ChunkMap, LogicalPart
from whoseblock.fs.btrfs.format.checksum import checksum_matches
from whoseblock.fs.btrfs.format.keys import (
    BEYOND,
    DATA_RELOC_TREE,
    TREE_RELOC,
    Key,
    is_file_tree,
    tree_name,
)
from whoseblock.fs.btrfs.format.node import Node, parse_node
from whoseblock.fs.btrfs.format.superblock import Superblock
from whoseblock.fs.btrfs.parity import multiplied
from whoseblock.media.base import Media

__all__ = ["Item", "LeafPointer", "LostKeys", "Root", "TreeReader"]

#: Tree blocks that are kept: at most 32 MiB with nodes of 64 KiB.
_KEPT: Final = 512


class Root(NamedTuple):
    """The root of a tree: its logical address, its generation and its level."""

    tree: int
    address: int
    generation: int
    level: int


class Item(NamedTuple):
    """An item of a leaf."""

    key: Key
    node: Node
    slot: int

    @property
    def data(self) -> bytes:
        """Its content."""
        return self.node.data(self.slot)


class LostKeys(NamedTuple):
    """The items from ``low`` up to ``high`` that a damaged block may have had."""

    low: Key
    high: Key
    reason: str


class LeafPointer(NamedTuple):
    """A leaf by its parent: the key with which it begins, and that of what follows.

    ``above`` are the logical address and the generation of each block above it, from the root.
    """

    address: int
    generation: int
    first: Key | None
    end: Key
    above: tuple[tuple[int, int], ...]


class TreeReader:
    """Reads tree blocks of one filesystem from its devices; ``reads`` counts them by kind."""

    def __init__(self, devices: Mapping[int, Media], sb: Superblock, chunks: ChunkMap) -> None:
        self.devices = devices
        self.sb = sb
        self.chunks = chunks
        self.reads: Counter[str] = Counter()
        #: Remarks about blocks of which only a copy was readable, since `take_remarks`.
        self._remarks: dict[str, None] = {}
        self._kept: OrderedDict[int, tuple[Node, str]] = OrderedDict()

    def take_remarks(self) -> list[str]:
        """Return the remarks since the last call."""
        remarks = list(self._remarks)
        self._remarks.clear()
        return remarks

    # ------------------------------------------------------------------ blocks

    def read(
        self,
        address: int,
        *,
        generation: int,
        level: int | None,
        tree: int | None = None,
        first: Key | None = None,
    ) -> Node:
        """Return a verified tree block; raises `BlockError` if no copy verifies.

        ``tree`` is the tree in which it was found, ``first`` its first key by its parent.
        """
        kept = self._kept.get(address)
        if kept is None:
            kept = self._read_copies(address, generation)
            self._kept[address] = kept
            if len(self._kept) > _KEPT:
                self._kept.popitem(last=False)
        else:
            self._kept.move_to_end(address)
        node, remark = kept
        header = node.header
        fault = ""
        if header.generation != generation:
            fault = f"generation {header.generation} instead of {generation}"
        elif level is not None and header.level != level:
            fault = f"level {header.level} instead of {level}"
        elif tree is not None and not _may_own(header.owner, tree):
            fault = f"it belongs to the {tree_name(header.owner)}"
        elif first is not None and (not node.keys or node.keys[0] != first):
            fault = "its first key is not that of its parent"
        if fault:
            raise CorruptError("tree block", address, fault)
        if remark:
            self._remarks[remark] = None
        return node

    def _read_copies(self, address: int, generation: int) -> tuple[Node, str]:
        """Return the first copy that verifies, with a remark if that was not the first of all."""
        size = self.sb.node_size
        chunk = self.chunks.find(address)
        if address % self.sb.sector_size or chunk is None or address + size > chunk.end:
            raise CorruptError("tree block", address, "no chunk has its logical address")
        faults: list[str] = []
        parts = list(chunk.parts(address, size))
        for number in range(max(len(part.choices) for part in parts)):
            self.reads["tree block"] += 1
            try:
                raw = b"".join(self._read_part(part, number) for part in parts)
            except BlockError as error:
                faults.append(str(error))
                continue
            found = self._verify(raw, address, generation)
            if isinstance(found, Node):
                remark = ""
                if faults:
                    source = self._name_choice(parts[0], number)
                    remark = (
                        f"the tree block at logical address {address} was {source}: {faults[0]}"
                    )
                return found, remark
            faults.append(found)
        raise CorruptError("tree block", address, faults[0])

    def _read_part(self, part: LogicalPart, number: int) -> bytes:
        """Return a part from one of its places, or rebuilt from several; raises `BlockError`."""
        places = part.choices[min(number, len(part.choices) - 1)]
        value = 0
        for place, factor in places:
            media = self.devices.get(place.device)
            if media is None:
                raise BlockError(f"device {place.device} is missing")
            if place.start + part.length > media.size:
                raise BlockError(f"past the end of {media.name}")
            raw = media.pread(place.start, part.length)
            if len(places) == 1:
                return raw
            value ^= int.from_bytes(multiplied(raw, factor), "little")
        return value.to_bytes(part.length, "little")

    def _name_choice(self, part: LogicalPart, number: int) -> str:
        """Return where a part was read at last, for a remark."""
        places = part.choices[min(number, len(part.choices) - 1)]
        if len(places) > 1:
            return "rebuilt from parity"
        (device, start), _ = places[0]
        where = f" of device {device}" if self.sb.devices > 1 else ""
        return f"read from its copy at byte {start}{where}"

    def _verify(self, raw: bytes, address: int, generation: int) -> Node | str:
        if not checksum_matches(self.sb.checksum, raw):
            return "checksum mismatch"
        node = parse_node(raw)
        if isinstance(node, str):
            return node
        header = node.header
        if header.address != address:
            return "it belongs elsewhere"
        if header.uuid != self.sb.uuid:
            return "it belongs to another filesystem"
        if header.generation != generation:
            # The other copy may have the write that this one missed.
            return f"generation {header.generation} instead of {generation}"
        return node

    # ------------------------------------------------------------------ trees

    def walk(self, root: Root, low: Key, high: Key) -> Iterator[Item | LostKeys]:
        """Yield the items with ``low`` <= key < ``high``, and what is lost, in order."""
        bounds = (low, high)
        yield from self._walk(
            root.tree, (root.address, root.generation), root.level, (None, BEYOND), bounds
        )

    def _walk(
        self,
        tree: int,
        place: tuple[int, int],
        level: int,
        span: tuple[Key | None, Key],
        bounds: tuple[Key, Key],
    ) -> Iterator[Item | LostKeys]:
        """Walk below a block at ``place``; ``span`` is its first key, and the next block's."""
        (first, end), (low, high) = span, bounds
        try:
            node = self._child(tree, place, level, first, end)
        except BlockError as error:
            yield LostKeys(max(first or low, low), min(end, high), str(error))
            return
        keys = node.keys
        if level == 0:
            for index in range(bisect_left(keys, low), len(keys)):
                if keys[index] >= high:
                    return
                yield Item(keys[index], node, index)
            return
        for index in range(max(bisect_right(keys, low) - 1, 0), len(keys)):
            if keys[index] >= high:
                return
            after = keys[index + 1] if index + 1 < len(keys) else end
            yield from self._walk(tree, node.places[index], level - 1, (keys[index], after), bounds)

    def _child(
        self, tree: int, place: tuple[int, int], level: int, first: Key | None, end: Key
    ) -> Node:
        address, generation = place
        node = self.read(address, generation=generation, level=level, tree=tree, first=first)
        if node.keys and node.keys[-1] >= end:
            raise CorruptError("tree block", address, "keys past those of its parent")
        return node

    def leaves(self, root: Root) -> Iterator[LeafPointer]:
        """Yield all leaves of a tree, without reading them; raises `BlockError`."""
        start = LeafPointer(root.address, root.generation, None, BEYOND, ())
        yield from self._leaves(root.tree, start, root.level)

    def _leaves(self, tree: int, at: LeafPointer, level: int) -> Iterator[LeafPointer]:
        if level == 0:
            yield at
            return
        place = at.address, at.generation
        node = self._child(tree, place, level, at.first, at.end)
        above = (*at.above, place)
        ends = [*node.keys[1:], at.end]
        for first, end, child in zip(node.keys, ends, node.places, strict=True):
            yield from self._leaves(tree, LeafPointer(*child, first, end, above), level - 1)

    def last_before(self, root: Root, key: Key) -> Item | LostKeys | None:
        """Return the last item with a lesser key, what may have been it, or None."""
        place, level = (root.address, root.generation), root.level
        first: Key | None = None
        end = BEYOND
        while True:
            try:
                node = self._child(root.tree, place, level, first, end)
            except BlockError as error:
                return LostKeys(first or (0, 0, 0), min(end, key), str(error))
            # Only the root may have no such key: a child begins with the key of its pointer.
            index = bisect_left(node.keys, key) - 1
            if index < 0:
                return None
            if level == 0:
                return Item(node.keys[index], node, index)
            first = node.keys[index]
            end = node.keys[index + 1] if index + 1 < len(node.keys) else end
            place, level = node.places[index], level - 1

    def item(self, root: Root, key: Key) -> Item | None:
        """Return the item of a key, None if there is none; raises `BlockError`."""
        objectid, kind, offset = key
        for found in self.walk(root, key, (objectid, kind, offset + 1)):
            if isinstance(found, LostKeys):
                raise CorruptError(tree_name(root.tree), root.address, found.reason)
            return found
        return None

    def ancestor(self, root: Root, key: Key, level: int) -> Node:
        """Return the node of ``level`` on the way to a key; raises `BlockError`."""
        place, height = (root.address, root.generation), root.level
        first: Key | None = None
        end = BEYOND
        while True:
            node = self._child(root.tree, place, height, first, end)
            if height <= level:
                return node
            index = max(bisect_right(node.keys, key) - 1, 0)
            first = node.keys[index]
            end = node.keys[index + 1] if index + 1 < len(node.keys) else end
            place, height = node.places[index], height - 1


def _may_own(owner: int, tree: int) -> bool:
    """Return whether a block whose header names ``owner`` may be in ``tree``.

    Snapshots share blocks, and keep those that a balance moved.
    """
    if owner == tree:
        return True
    if is_file_tree(tree) or tree == DATA_RELOC_TREE:
        return is_file_tree(owner) or owner == TREE_RELOC
    return owner == TREE_RELOC
