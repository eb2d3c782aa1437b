"""Every owner of every range, compared with what the kernel and xfs_db say."""

import random
import stat

import pytest
from tests.support import questions, xfsdb
from tests.support.answers import answer_json, lookup_json, same
from tests.support.expected_rows import Expectation
from tests.support.filled_images import FILLED, POPULATED, Zoo
from tests.support.truth import Truth

import whoseblock
from whoseblock.errors import OutOfDeviceError

EVERY = [*FILLED, *POPULATED]


@pytest.fixture
def truth(zoo: Zoo, request: pytest.FixtureRequest) -> Truth:
    return zoo.any(request.param)


@pytest.fixture
def rng(truth: Truth) -> random.Random:
    return random.Random(truth.image.name)


pytestmark = pytest.mark.parametrize("truth", EVERY, indirect=True)


def test_every_edge_of_every_row(truth: Truth) -> None:
    expectation = Expectation(truth)
    asked = questions.around_edges(truth, truth.rows)
    with whoseblock.open(truth.image) as fs:
        for question, answer in zip(asked, fs.owners_many(asked, paths=False), strict=True):
            same(answer_json(answer), question, expectation, paths=False)


def test_every_path_of_every_row(truth: Truth) -> None:
    expectation = Expectation(truth)
    asked = [(row.start, row.length) for row in truth.rows]
    with whoseblock.open(truth.image) as fs:
        for question, answer in zip(asked, fs.owners_many(asked), strict=True):
            same(answer_json(answer), question, expectation)


def test_random_ranges(truth: Truth, rng: random.Random) -> None:
    expectation = Expectation(truth)
    asked = questions.everywhere(truth, rng, 1000)
    with whoseblock.open(truth.image) as fs:
        for question, answer in zip(asked, fs.owners_many(asked), strict=True):
            same(answer_json(answer), question, expectation)


def test_one_question_at_a_time(truth: Truth, rng: random.Random) -> None:
    expectation = Expectation(truth)
    asked = questions.around_edges(truth, questions.sample_rows(truth, rng, 100))
    with whoseblock.open(truth.image) as fs:
        for question in asked:
            same(answer_json(fs.owners(*question, paths=False)), question, expectation, paths=False)
        for question in rng.sample(asked, 150):
            same(answer_json(fs.owners(*question)), question, expectation)


def test_whole_groups_and_the_ends(truth: Truth) -> None:
    expectation = Expectation(truth)
    asked = questions.large(truth)
    with whoseblock.open(truth.image) as fs:
        for question in asked:
            same(answer_json(fs.owners(*question)), question, expectation)
        for question, answer in zip(asked, fs.owners_many(asked), strict=True):
            same(answer_json(answer), question, expectation)


def test_a_range_past_the_device_is_an_error(truth: Truth) -> None:
    size = truth.image.stat().st_size
    with whoseblock.open(truth.image) as fs:
        for question in ((size, 1), (size - 1, 2), (0, size + 1), (-1, 1)):
            with pytest.raises(OutOfDeviceError):
                fs.owners(*question)


def test_the_command_line_prints_the_same(truth: Truth, rng: random.Random) -> None:
    expectation = Expectation(truth)
    edges = questions.around_edges(truth, questions.sample_rows(truth, rng, 40))
    asked = rng.sample(edges, min(len(edges), 500))
    for question, answer in zip(asked, lookup_json(truth.image, asked), strict=True):
        same(answer, question, expectation)
    given = lookup_json(truth.image, asked, "--no-paths")
    for question, answer in zip(asked, given, strict=True):
        same(answer, question, expectation, paths=False)


def test_the_oracles_agree(truth: Truth) -> None:
    # Neither the kernel nor xfs_db is believed alone, nor our own reckoning of what is shared.
    by_xfs_db = xfsdb.rows(truth.image, truth.superblock)
    assert sorted(row._replace(shared=None) for row in truth.rows) == by_xfs_db
    expectation = Expectation(truth)
    for row in truth.rows:
        if row.kind == "file" and row.shared is not None:
            assert expectation.is_shared(row.start, row.end) is row.shared, row


def test_the_image_holds_every_kind_of_row(truth: Truth) -> None:
    # A filler that quietly stopped filling would make every other test easy.
    if truth.image.stem not in FILLED:
        return
    geometry = FILLED[truth.image.stem]
    files = [row for row in truth.rows if row.kind == "file"]
    for attr in (False, True):
        assert any(row.extent_map for row in files if row.attr is attr)
    assert any(row.unwritten for row in files)
    assert any(row.shared for row in files) is geometry.reflink
    holders = {stat.S_IFMT(truth.inodes[row.inode].mode) for row in files if not row.attr}
    # The longest symbolic link fits into the largest inodes.
    links = {stat.S_IFLNK} if geometry.inode < 2048 else set()
    assert holders >= {stat.S_IFREG, stat.S_IFDIR} | links
    assert any(len(inode.paths) > 200 for inode in truth.inodes.values())
    chunk_is_divisible = 64 * geometry.inode > geometry.block
    sparse = xfsdb.sparse_chunks(truth.image, truth.superblock.groups)
    assert bool(sparse) is (geometry.sparse_inodes and chunk_is_divisible)
