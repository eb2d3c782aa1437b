"""Every path of every inode, compared with a walk of the tree."""

import random

import pytest
from tests.support import xfsdb
from tests.support.expected_rows import Expectation
from tests.support.filled_images import FILLED, POPULATED, Zoo
from tests.support.truth import Truth

import whoseblock

EVERY = [*FILLED, *POPULATED]


@pytest.fixture
def truth(zoo: Zoo, request: pytest.FixtureRequest) -> Truth:
    return zoo.any(request.param)


pytestmark = pytest.mark.parametrize("truth", EVERY, indirect=True)


def test_paths_of_all_inodes_at_once(truth: Truth) -> None:
    expectation = Expectation(truth)
    with whoseblock.open(truth.image) as fs:
        found = fs.paths_many(truth.inodes)
    assert found.keys() == truth.inodes.keys()
    for number, paths in found.items():
        assert list(paths) == expectation.paths(number), number
        assert paths.complete, paths.notes
        assert not paths.notes


def test_one_inode_at_a_time(truth: Truth) -> None:
    expectation = Expectation(truth)
    rng = random.Random(truth.image.name)
    # Those with several names are the hard ones.
    several = [number for number, inode in truth.inodes.items() if len(inode.paths) > 1]
    chosen = rng.sample(sorted(truth.inodes), min(len(truth.inodes), 200)) + several[:60]
    for number in chosen:
        # Opened anew: nothing is remembered from the question before.
        with whoseblock.open(truth.image) as fs:
            paths = fs.paths(number)
        assert list(paths) == expectation.paths(number), number
        assert paths.complete, paths.notes
    with whoseblock.open(truth.image) as fs:
        for number in chosen:
            assert list(fs.paths(number)) == expectation.paths(number), number


def test_the_walks_agree(truth: Truth) -> None:
    expectation = Expectation(truth)
    by_xfs_db = xfsdb.walk(truth.image)
    named = {number for number, inode in truth.inodes.items() if inode.paths}
    assert by_xfs_db.keys() == named
    for number, inode in by_xfs_db.items():
        assert sorted(inode.paths, key=lambda path: path.encode("utf-8", "surrogateescape")) == (
            expectation.paths(number)
        )
        assert inode.mode == truth.inodes[number].mode
