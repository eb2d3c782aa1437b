"""Matching many questions at once, against brute force and against one question at a time."""

import random
from itertools import pairwise

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray
from tests.support.filled_images import Zoo

import whoseblock
from whoseblock.errors import OutOfDeviceError
from whoseblock.fs.pieces import FILE, FILE_DATA
from whoseblock.fs.xfs import XfsFilesystem
from whoseblock.fs.xfs.owners import bulk, intervals

Ints = NDArray[np.int64]

_intervals = st.lists(
    st.tuples(st.integers(0, 300), st.integers(1, 40))
    | st.tuples(st.integers(0, 20), st.integers(200, 400))
    | st.just((50, 100)),
    max_size=250,
).map(lambda pairs: sorted((start, start + length) for start, length in pairs))


def _columns(pairs: list[tuple[int, int]]) -> tuple[Ints, Ints]:
    array = np.array(pairs, dtype=np.int64).reshape(-1, 2)
    return array[:, 0].copy(), array[:, 1].copy()


@pytest.mark.parametrize("plenty", [intervals._PLENTY, 0])
def test_every_touching_record_is_found(plenty: int, monkeypatch: pytest.MonkeyPatch) -> None:
    # Without plenty, the coarse way through the largest ends of blocks is always taken.
    monkeypatch.setattr(intervals, "_PLENTY", plenty)

    @given(_intervals, _intervals)
    def check(records: list[tuple[int, int]], asked: list[tuple[int, int]]) -> None:
        start, end = _columns(records)
        low, high = _columns(asked)
        first = np.searchsorted(np.maximum.accumulate(end), low, "right")
        question, record = intervals.touching(end, first, np.searchsorted(start, high), low)
        assert list(zip(question.tolist(), record.tolist(), strict=True)) == [
            (number, index)
            for number, (begin, stop) in enumerate(asked)
            for index, (from_, to) in enumerate(records)
            if from_ < stop and begin < to
        ]

    check()


@given(_intervals)
def test_merging_keeps_the_blocks(asked: list[tuple[int, int]]) -> None:
    low, high = intervals.merge(*_columns(asked))
    merged = list(zip(low.tolist(), high.tolist(), strict=True))
    assert {block for pair in merged for block in range(*pair)} == {
        block for pair in asked for block in range(*pair)
    }
    assert all(one[1] < other[0] for one, other in pairwise(merged))


@given(_intervals, _intervals)
def test_intersecting_disjoint_intervals(
    parts: list[tuple[int, int]], asked: list[tuple[int, int]]
) -> None:
    starts, ends = intervals.merge(*_columns(parts))
    low, high = _columns(asked)
    question, begin, end = intervals.intersect(starts, ends, low, high)
    found = list(zip(question.tolist(), begin.tolist(), end.tolist(), strict=True))
    assert found == [
        (number, max(start, one), min(stop, other))
        for number, (one, other) in enumerate(asked)
        for start, stop in zip(starts.tolist(), ends.tolist(), strict=True)
        if start < other and one < stop
    ]


@given(st.lists(st.tuples(st.integers(0, 5), st.integers(0, 30), st.integers(1, 20))))
def test_sharing_is_overlap_within_a_question(pieces: list[tuple[int, int, int]]) -> None:
    pieces.sort()
    question, start, length = np.array(pieces, dtype=np.int64).reshape(-1, 3).T
    rows = bulk._rows(question, start, start + length)
    rows["kind"], rows["what"] = FILE, FILE_DATA
    bulk._mark_shared(rows)
    assert rows["shared"].tolist() == [
        any(
            other != index and asked == number and begin < at + size and at < begin + long
            for other, (number, begin, long) in enumerate(pieces)
        )
        for index, (asked, at, size) in enumerate(pieces)
    ]


@pytest.mark.parametrize("name", ["1k", "4k-noparent", "3ag", "populated-sector4k"])
def test_many_are_answered_as_each_alone(zoo: Zoo, name: str) -> None:
    truth = zoo.any(name)
    rng = random.Random(name)
    with whoseblock.open(truth.image) as fs:
        questions = []
        for row in rng.sample(truth.rows, min(700, len(truth.rows))):
            start = max(row.start + rng.randrange(-5000, row.length), 0)
            questions.append((start, min(rng.choice((1, 512, 70_000)), fs.device_size - start)))
        questions.append((0, fs.device_size))
        rng.shuffle(questions)
        alone = [fs.owners(*question, paths=False) for question in questions]
        assert list(fs.owners_many(questions, paths=False)) == alone
        starts, lengths = zip(*questions, strict=True)
        arrays = fs.owners_of(starts, lengths)
        assert arrays.question.size == sum(map(len, alone))
        assert arrays.complete.tolist() == [answer.complete for answer in alone]


@pytest.mark.parametrize("name", ["1k", "populated-sector4k"])
def test_many_parts_of_each_record(zoo: Zoo, name: str) -> None:
    truth = zoo.any(name)
    rng = random.Random(name)
    questions = []
    for row in rng.sample(truth.rows[:-1], min(60, len(truth.rows) - 1)):
        for _ in range(12):
            start = rng.randrange(row.start, row.start + row.length)
            # Now and then one goes on into the next record.
            end = row.start + row.length + rng.choice((0, 0, 0, 512))
            questions.append((start, rng.randint(1, end - start)))
    rng.shuffle(questions)
    with whoseblock.open(truth.image) as fs:
        assert isinstance(fs, XfsFilesystem)
        arrays = fs.owners_of(*zip(*questions, strict=True))
        rows = zip(*(column.tolist() for column in arrays[:-2]), strict=True)
        expected = [
            (number, *piece)
            for number, question in enumerate(questions)
            for piece in fs._finder.find(*question, [])
        ]
    assert list(rows) == expected


@given(st.lists(st.integers(0, 1 << 20) | st.integers(0, 1 << 50), min_size=1))
def test_order_is_stable(values: list[int]) -> None:
    order = intervals.ascending_order(np.array(values))
    assert order.tolist() == sorted(range(len(values)), key=values.__getitem__)


@pytest.mark.parametrize(("start", "length"), [(-1, 5), (0, 0), (0, 1 << 62), (1 << 63, 1)])
def test_arrays_lie_on_the_device_too(zoo: Zoo, start: int, length: int) -> None:
    with (
        whoseblock.open(zoo.any("populated-1k").image) as fs,
        pytest.raises(OutOfDeviceError),
    ):
        fs.owners_of([0, start], [1, length])
