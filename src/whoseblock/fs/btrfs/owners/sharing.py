"""The trees that a tree block is in: from its back references up to every root."""

from typing import Final, NamedTuple

from whoseblock.errors import BlockError
from whoseblock.fs.btrfs.format.keys import (
    SHARED_BLOCK_REF,
    TREE_BLOCK_REF,
    tree_name,
)
from whoseblock.fs.btrfs.format.node import MAX_LEVEL, Node
from whoseblock.fs.btrfs.owners.extents import Extent, ExtentIndex
from whoseblock.fs.btrfs.trees import Root
from whoseblock.fs.btrfs.volume import Volume

__all__ = ["SharingIndex", "TreesOfBlock"]

#: So many trees of blocks are kept in all.
_KEPT: Final = 1 << 20


class TreesOfBlock(NamedTuple):
    """The trees that have a block; ``faults`` say why there may be more, or fewer."""

    trees: frozenset[int]
    faults: tuple[str, ...]


class SharingIndex:
    """Finds the trees of blocks, and keeps what it found within a bound."""

    def __init__(self, volume: Volume, extents: ExtentIndex) -> None:
        self.volume = volume
        self.extents = extents
        self._kept: dict[int, TreesOfBlock] = {}
        self._count = 0

    def read(self, extent: Extent) -> Node:
        """Return the tree block of an extent; raises `BlockError`."""
        item = extent.item
        return self.volume.reader.read(item.start, generation=item.generation, level=item.level)

    def trees_of(self, address: int) -> TreesOfBlock:
        """Return the trees that have the block at a logical address."""
        kept = self._kept.get(address)
        if kept is None:
            kept = self._find(address)
            self._count += len(kept.trees) + 1
            if self._count > _KEPT:
                self._kept.clear()
                self._count = len(kept.trees) + 1
            self._kept[address] = kept
        return kept

    def _find(self, address: int) -> TreesOfBlock:
        try:
            extent = self.extents.find_block(address)
        except BlockError as error:
            return TreesOfBlock(frozenset(), (str(error),))
        named = {one.tree for one in extent.references if one.kind == TREE_BLOCK_REF}
        try:
            node = self.read(extent)
        except BlockError as error:
            return TreesOfBlock(
                frozenset(named),
                (f"{error}: other trees may share it",),
            )
        trees: set[int] = set()
        faults: dict[str, None] = {}
        if sum(one.times for one in extent.references) != extent.item.refs:
            what = f"the tree block at logical address {address}"
            faults[f"{what} has {extent.item.refs} references, not all of which were found"] = None
        for reference in extent.references:
            if reference.kind == TREE_BLOCK_REF:
                found = self._by_tree(node, reference.tree)
            elif reference.kind == SHARED_BLOCK_REF:
                found = self._by_parent(node, reference.parent)
            else:
                found = TreesOfBlock(
                    frozenset(), (f"the tree block at logical address {address} is used as data",)
                )
            trees |= found.trees
            faults.update(dict.fromkeys(found.faults))
        return TreesOfBlock(frozenset(trees), tuple(faults))

    def _by_tree(self, node: Node, tree: int) -> TreesOfBlock:
        """Return the trees that have a block by way of its parent in one of them."""
        try:
            root = self.volume.root(tree)
            if root.address == node.address:
                return self._root_of(root, node)
            if node.level + 1 >= MAX_LEVEL or root.level <= node.level or not node.keys:
                return _no(f"the {tree_name(tree)} does not have {_block(node)}")
            parent = self.volume.reader.ancestor(root, node.keys[0], node.level + 1)
        except BlockError as error:
            return _no(str(error))
        if not _has_child(parent, node):
            return _no(f"the {tree_name(tree)} does not have {_block(node)}")
        return self.trees_of(parent.address)

    @staticmethod
    def _root_of(root: Root, node: Node) -> TreesOfBlock:
        if (root.generation, root.level) != (node.header.generation, node.level):
            return _no(f"{_block(node)} is another than the root of the {tree_name(root.tree)}")
        return TreesOfBlock(frozenset((root.tree,)), ())

    def _by_parent(self, node: Node, parent: int) -> TreesOfBlock:
        """Return the trees that have the node which refers to a block."""
        if parent == node.address:
            return _no(f"{_block(node)} is the root of a balance that was interrupted")
        try:
            found = self.read(self.extents.find_block(parent))
        except BlockError as error:
            return _no(str(error))
        if found.level != node.level + 1 or not _has_child(found, node):
            return _no(
                f"the node at logical address {parent} does not refer to {_block(node)}, whose"
                " parent it should be"
            )
        return self.trees_of(parent)


def _no(fault: str) -> TreesOfBlock:
    return TreesOfBlock(frozenset(), (fault,))


def _block(node: Node) -> str:
    return f"the tree block at logical address {node.address}"


def _has_child(parent: Node, node: Node) -> bool:
    return (node.address, node.header.generation) in parent.places
