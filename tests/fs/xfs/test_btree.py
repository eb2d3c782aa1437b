"""Trees of three levels and more, and blocks that are not what their parents say."""

import random

import pytest
from tests.support import questions
from tests.support.answers import answer_json, same
from tests.support.deep_trees import ATTRIBUTES, heights, make_deep
from tests.support.expected_rows import Expectation
from tests.support.tools import need_loop_mounts
from tests.support.truth import Truth

import whoseblock
from whoseblock.fs.xfs import XfsFilesystem


@pytest.fixture(scope="module")
def deep(tmp_path_factory: pytest.TempPathFactory) -> Truth:
    need_loop_mounts()
    return make_deep(tmp_path_factory.mktemp("deep") / "deep.img")


def test_every_tree_is_high(deep: Truth) -> None:
    found = heights(deep.image)
    assert found["rmaplevel"] >= 4
    assert all(found[name] >= 3 for name in ("bnolevel", "refcntlevel", "level"))
    forks = {path: number for number, inode in deep.inodes.items() for path in inode.paths}
    # An attribute or directory tree of three levels has more leaves than a node has children.
    for path in ("/", "/described"):
        blocks = [
            row.length for row in deep.rows if row.inode == forks[path] and row.kind == "file"
        ]
        assert sum(blocks) > 121 * 1024
    maps = [row for row in deep.rows if row.extent_map and row.inode == forks["/punched"]]
    # A map of two levels has no more blocks than the inode has room for pointers.
    assert sum(row.length for row in maps) > 20 * 1024


def test_every_owner_in_high_trees(deep: Truth) -> None:
    expectation = Expectation(deep)
    rng = random.Random(1)
    rows = questions.sample_rows(deep, rng, 800)
    asked = questions.around_edges(deep, rows)
    asked += [(0, deep.superblock.size)]
    with whoseblock.open(deep.image) as fs:
        for question, answer in zip(asked, fs.owners_many(asked, paths=False), strict=True):
            same(answer_json(answer), question, expectation, paths=False)
        for question in rng.sample(asked, 1500):
            same(answer_json(fs.owners(*question, paths=False)), question, expectation, paths=False)
    # A tree whose blocks are not in any cache.
    for question in rng.sample(asked, 20):
        with whoseblock.open(deep.image) as fs:
            same(answer_json(fs.owners(*question, paths=False)), question, expectation, paths=False)


def test_blocks_of_high_trees_take_few_reads(deep: Truth) -> None:
    size = deep.superblock.block
    rng = random.Random(2)
    rows = [row for row in deep.rows if row.kind in ("ag", "inode-btree", "refcount-btree")]
    for row in rng.sample(rows, 60):
        start = rng.randrange(row.start, row.end, size)
        with whoseblock.open(deep.image) as fs:
            assert isinstance(fs, XfsFilesystem)
            assert fs.owners(start, size, paths=False).complete
            # Two trees of four levels, and a node more where a block begins like its neighbour.
            assert fs.reads.total() < 20


def test_every_path_in_high_trees(deep: Truth) -> None:
    with whoseblock.open(deep.image) as fs:
        for number, inode in deep.inodes.items():
            found = fs.paths(number)
            assert (list(found.paths), found.complete) == (inode.paths, True)


def test_every_attribute_in_high_trees(deep: Truth) -> None:
    number = next(number for number, inode in deep.inodes.items() if "/described" in inode.paths)
    with whoseblock.open(deep.image) as fs:
        found = fs.attributes(number)  # type: ignore[attr-defined]
    assert {b"user." + name: value for (_, name), value in found.items()} == ATTRIBUTES
