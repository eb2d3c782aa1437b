"""The red-black tree of the study: a set, balanced, and counting what it does."""

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from whoseblock.study.counts import Counts
from whoseblock.study.trackers.rbtree import Node, Tree


def black_height(node: Node | None, parent: Node | None = None) -> int:
    """Check the rules of red-black trees below a node; give the number of black nodes."""
    if node is None:
        return 1
    assert node.parent is parent
    assert not (node.red and parent is not None and parent.red)
    assert node.left is None or node.left.key < node.key
    assert node.right is None or node.right.key > node.key
    left, right = black_height(node.left, node), black_height(node.right, node)
    assert left == right
    return left + (not node.red)


def check(tree: Tree, keys: set[int]) -> None:
    assert tree.keys() == sorted(keys)
    assert tree.size == len(keys)
    assert tree.root is None or not tree.root.red
    black_height(tree.root)


@given(st.lists(st.tuples(st.booleans(), st.integers(0, 40)), max_size=150))
def test_it_is_a_balanced_set(steps: list[tuple[bool, int]]) -> None:
    counts = Counts()
    tree, keys = Tree(counts), set[int]()
    for put, key in steps:
        compared, rotated = counts.comparisons, counts.rotations
        if put:
            assert tree.insert(key) == (key not in keys)
            keys.add(key)
        else:
            assert tree.erase(key) == (key in keys)
            keys.discard(key)
        # What every textbook says of the height, and of the rotations of one change.
        assert counts.comparisons - compared <= 2 * math.log2(len(keys) + 2) + 1
        assert counts.rotations - rotated <= (2 if put else 3)
        check(tree, keys)


@pytest.mark.parametrize(
    ("keys", "comparisons", "rotations"),
    [
        # By hand. The third goes right, right and turns the root; the zigzag turns twice.
        ([1], 0, 0),
        ([1, 2], 1, 0),
        ([1, 2, 3], 3, 1),
        ([3, 2, 1], 3, 1),
        ([1, 3, 2], 3, 2),
        ([3, 1, 2], 3, 2),
        # 4 recolours; 5 turns 3 4 5; 6 recolours; 7 turns 5 6 7.
        ([1, 2, 3, 4], 5, 1),
        ([1, 2, 3, 4, 5], 8, 2),
        ([1, 2, 3, 4, 5, 6], 11, 2),
        ([1, 2, 3, 4, 5, 6, 7], 15, 3),
    ],
)
def test_the_counts_of_a_small_tree(keys: list[int], comparisons: int, rotations: int) -> None:
    counts = Counts()
    tree = Tree(counts)
    for key in keys:
        tree.insert(key)
    assert (counts.comparisons, counts.rotations) == (comparisons, rotations)


def test_removals_by_hand() -> None:
    counts = Counts()
    tree = Tree(counts)
    for key in (2, 1, 3, 4):
        tree.insert(key)
    before = counts.rotations
    # 1 is black and without a red child; its sibling 3 has the red 4 outside: one turn.
    tree.erase(1)
    assert counts.rotations - before == 1
    assert tree.root is not None
    assert tree.root.key == 3
    assert not tree.erase(7)
    check(tree, {2, 3, 4})


def test_finding() -> None:
    tree = Tree(Counts())
    tree.insert(5)
    found = tree.find(5)
    assert found is not None
    assert found.key == 5
    assert tree.find(4) is None
