"""Many ranges answered from one scan: the same as one by one."""

import random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tests.support import questions
from tests.support.filled_images import Zoo
from tests.support.image_damage import Overlay, find_metadata
from tests.support.truth import Truth

from whoseblock.fs.arrays import OwnerArrays
from whoseblock.fs.base import distinct
from whoseblock.fs.pieces import Piece
from whoseblock.fs.xfs.filesystem import XfsFilesystem
from whoseblock.media.base import Media
from whoseblock.media.device import FileMedia

_Answer = tuple[tuple[Piece, ...], tuple[str, ...]]


def in_columns(arrays: OwnerArrays, count: int) -> list[_Answer]:
    found: list[list[Piece]] = [[] for _ in range(count)]
    columns = (getattr(arrays, name).tolist() for name in Piece._fields)
    for number, *values in zip(arrays.question.tolist(), *columns, strict=True):
        found[number].append(Piece(*values))
    assert arrays.complete.tolist() == [number not in arrays.notes for number in range(count)]
    return [(tuple(pieces), arrays.notes.get(at, ())) for at, pieces in enumerate(found)]


def one_by_one(fs: XfsFilesystem, asked: list[tuple[int, int]]) -> list[_Answer]:
    finder = fs._finder
    assert finder.scanned is not None
    finder.scanned.prepare(asked, lambda _: None, may_scan=fs.scans)
    found: list[_Answer] = []
    for question in asked:
        notes: list[str] = []
        pieces = finder.find(*question, notes)
        found.append((tuple(pieces), distinct(notes)))
    return found


def check(media: Media, asked: list[tuple[int, int]]) -> OwnerArrays:
    """Check that many ranges have the pieces and the notes that each has alone."""
    fs = XfsFilesystem(media)
    fs.scan_instead()
    starts, lengths = zip(*asked, strict=True)
    arrays = fs.owners_of(starts, lengths)
    again = XfsFilesystem(media)
    again.scan_instead()
    for question, one, other in zip(
        asked, one_by_one(again, asked), in_columns(arrays, len(asked)), strict=True
    ):
        assert one == other, question
    return arrays


def ask(truth: Truth, seed: int, count: int) -> list[tuple[int, int]]:
    rng = random.Random(seed)
    asked = questions.around_edges(truth, questions.sample_rows(truth, rng, count))
    return [*asked, (0, truth.superblock.size)]


@pytest.mark.parametrize("name", ["1k", "plain", "64k", "populated-1k"])
def test_columns_are_as_one_by_one(zoo: Zoo, name: str) -> None:
    truth = zoo.any(name)
    media = FileMedia(truth.image)
    arrays = check(media, ask(truth, 5, 60))
    assert arrays.complete.all()
    media.close()


def test_long_ranges_come_in_pieces(zoo: Zoo) -> None:
    truth = zoo.any("populated-1k")
    with XfsFilesystem(FileMedia(truth.image)) as fs:
        fs.scan_instead()
        asked = [(0, fs.size), (fs.block_size, fs.size - 3 * fs.block_size), (0, 512)]
        whole = list(fs.owners_many(asked))
        fs.row_budget = 20
        items = list(fs.owners_stream(asked))
        assert max(len(item.owners) for item in items) <= fs.row_budget
        assert len(items) > len(asked)
        assert list(fs.owners_many(asked)) == whole
        assert all(one.complete and one.notes for one in whole[:2])


@pytest.mark.parametrize("name", ["plain", "populated-1k"])
def test_damage_makes_no_difference(zoo: Zoo, name: str) -> None:
    truth = zoo.any(name)
    media = FileMedia(truth.image)
    asked = ask(truth, 6, 12)
    kinds = ("inode", "inobt", "bnobt", "refcountbt", "bmbt", "agf", "agi")
    known = find_metadata(truth.image)
    there = [kind for kind in kinds if known.get(kind)]
    assert len(there) > 4
    incomplete = 0

    @settings(max_examples=25, deadline=None)
    @given(st.randoms(use_true_random=False))
    def damaged(rng: random.Random) -> None:
        nonlocal incomplete
        patches: dict[int, bytes] = {}
        for _ in range(rng.randrange(1, 4)):
            block = rng.choice(known[rng.choice(there)])
            patches[block.start + rng.randrange(16, 100)] = rng.randbytes(4)
        arrays = check(Overlay(media, patches), asked)
        incomplete += not arrays.complete.all()

    damaged()
    assert incomplete
    media.close()
