"""A red-black tree that counts its operations.

The algorithm is that of the textbook and of the kernel. A new node is red and is inserted where the
search ends. A node with two children is replaced by its successor. Then the colours are restored
upwards, with at most two rotations after an insertion and three after a removal. So comparisons and
rotations are those of ``rb_insert_color`` and ``rb_erase``.
"""

from collections.abc import Iterator
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from whoseblock.study.counts import Counts

__all__ = ["Node", "Tree"]


class Node:
    """A key in a tree."""

    __slots__ = ("key", "left", "parent", "red", "right")

    def __init__(self, key: int, parent: "Node | None") -> None:
        self.key = key
        self.parent = parent
        self.left: Node | None = None
        self.right: Node | None = None
        self.red = True


class Tree:
    """A set of integers, in order."""

    __slots__ = ("_counts", "root", "size")

    def __init__(self, counts: "Counts") -> None:
        self._counts = counts
        self.root: Node | None = None
        self.size = 0

    def __iter__(self) -> Iterator[int]:
        return iter(self.keys())

    def keys(self) -> list[int]:
        """Return all keys, ascending."""
        found: list[int] = []
        above: list[Node] = []
        node = self.root
        while node is not None or above:
            while node is not None:
                above.append(node)
                node = node.left
            node = above.pop()
            found.append(node.key)
            node = node.right
        return found

    def find(self, key: int) -> Node | None:
        """Search for a key."""
        node = self.root
        compared = 0
        while node is not None:
            compared += 1
            if key < node.key:
                node = node.left
            elif key > node.key:
                node = node.right
            else:
                break
        self._counts.comparisons += compared
        return node

    def insert(self, key: int) -> bool:
        """Put a key in; tells whether it was not there yet."""
        parent: Node | None = None
        node = self.root
        compared = 0
        while node is not None:
            compared += 1
            parent = node
            if key < node.key:
                node = node.left
            elif key > node.key:
                node = node.right
            else:
                self._counts.comparisons += compared
                return False
        self._counts.comparisons += compared
        new = Node(key, parent)
        if parent is None:
            self.root = new
        elif key < parent.key:
            parent.left = new
        else:
            parent.right = new
        self.size += 1
        self._colour_inserted(new)
        return True

    def _colour_inserted(self, node: Node) -> None:
        parent = node.parent
        while parent is not None and parent.red:
            grandparent = parent.parent
            if grandparent is None:
                break
            is_left = parent is grandparent.left
            uncle = grandparent.right if is_left else grandparent.left
            if uncle is not None and uncle.red:
                parent.red = uncle.red = False
                grandparent.red = True
                node, parent = grandparent, grandparent.parent
                continue
            if node is (parent.right if is_left else parent.left):
                self._rotate(parent, left=is_left)
                parent = node
            parent.red, grandparent.red = False, True
            self._rotate(grandparent, left=not is_left)
            break
        if self.root is not None:
            self.root.red = False

    def erase(self, key: int) -> bool:
        """Remove a key; return whether it was present."""
        node = self.find(key)
        if node is None:
            return False
        self.size -= 1
        if node.left is not None and node.right is not None:
            # The kernel moves the successor itself here; the shape is the same.
            successor = node.right
            while successor.left is not None:
                successor = successor.left
            node.key = successor.key
            node = successor
        child = node.left if node.left is not None else node.right
        parent = node.parent
        was_left = parent is not None and parent.left is node
        self._replace(node, child)
        if node.red:
            return True
        if child is not None:
            child.red = False
        elif parent is not None:
            self._colour_erased(parent, was_left=was_left)
        return True

    def _colour_erased(self, parent: Node, *, was_left: bool) -> None:
        """Put right that the paths through one child of ``parent`` have a black node too few."""
        at: Node | None = parent
        while at is not None:
            sibling = at.right if was_left else at.left
            assert sibling is not None  # noqa: S101 - else the tree was no red-black tree
            if sibling.red:
                sibling.red, at.red = False, True
                self._rotate(at, left=was_left)
                sibling = at.right if was_left else at.left
                assert sibling is not None  # noqa: S101 - as above
            near = sibling.left if was_left else sibling.right
            far = sibling.right if was_left else sibling.left
            if far is None or not far.red:
                if near is None or not near.red:
                    sibling.red = True
                    if at.red:
                        at.red = False
                        return
                    child, at = at, at.parent
                    was_left = at is not None and at.left is child
                    continue
                near.red, sibling.red = False, True
                self._rotate(sibling, left=not was_left)
                sibling, far = near, sibling
            sibling.red = at.red
            at.red = far.red = False
            self._rotate(at, left=was_left)
            return

    def _replace(self, node: Node, other: Node | None) -> None:
        """Replace ``node`` by ``other`` below its parent."""
        parent = node.parent
        if parent is None:
            self.root = other
        elif parent.left is node:
            parent.left = other
        else:
            parent.right = other
        if other is not None:
            other.parent = parent

    def _rotate(self, node: Node, *, left: bool) -> None:
        """Replace ``node`` by its right child (by the left one, unless ``left``)."""
        self._counts.rotations += 1
        child = node.right if left else node.left
        assert child is not None  # noqa: S101 - as above
        self._replace(node, child)
        if left:
            node.right, moved, child.left = child.left, child.left, node
        else:
            node.left, moved, child.right = child.right, child.right, node
        node.parent = child
        if moved is not None:
            moved.parent = node
