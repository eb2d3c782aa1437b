"""Overlapping owners in a summary."""

import numpy as np
from hypothesis import given
from hypothesis import strategies as st
from msgspec.structs import replace

from whoseblock.columns import PlacedColumns
from whoseblock.fs.arrays import as_columns, row_dtype
from whoseblock.fs.base import (
    Answer,
    FileId,
    FileOwner,
    Free,
    LayerLocation,
    MetadataOwner,
    Outside,
    Owner,
)
from whoseblock.fs.pieces import (
    DATA,
    DIRECTORY,
    EXTENT_MAP,
    FILE,
    FILE_DATA,
    FREE,
    METADATA,
    UNKNOWN,
    Piece,
    row_of,
)
from whoseblock.fs.stream import AnswerColumns
from whoseblock.ranges import RangeList
from whoseblock.summary import KINDS, Summary


def piece(kind: str, start: int, length: int) -> Owner:
    if kind in ("file", "unwritten"):
        return FileOwner(start, length, 7, "data", "data", 0, kind == "unwritten", False)  # noqa: FBT003
    if kind == "metadata":
        return MetadataOwner(start, length, "ag")
    return Free(start, length) if kind == "free" else Outside(start, length, "gap")


@given(
    st.lists(
        st.tuples(
            st.sampled_from(["file", "unwritten", "metadata", "free", "outside"]),
            st.integers(0, 30),
            st.integers(1, 20),
        ),
        min_size=1,
        max_size=8,
    )
)
def test_overlapping_owners_count_as_the_most_severe(rows: list[tuple[str, int, int]]) -> None:
    owners = tuple(piece(*row) for row in sorted(rows, key=lambda row: row[1]))
    covered: dict[int, str] = {}
    for kind, start, length in rows:
        for byte in range(start, start + length):
            covered[byte] = min(covered.get(byte, kind), kind, key=KINDS.index)
    summary = Summary(lambda _layer, _inode: None)
    summary.add(Answer(0, len(covered) + 1, True, (), owners))  # noqa: FBT003
    found = {kind: count for kind, count in summary.totals.items() if count}
    truth = {kind: list(covered.values()).count(kind) for kind in set(covered.values())}
    if sum(length for _, _, length in rows) != len(covered) + 1:
        assert found == truth


_pieces = st.lists(
    st.builds(
        Piece,
        start=st.integers(0, 40),
        length=st.integers(1, 20),
        kind=st.sampled_from([FILE, FILE, METADATA, FREE, UNKNOWN]),
        what=st.sampled_from([FILE_DATA, FILE_DATA, EXTENT_MAP, DIRECTORY]),
        fork=st.just(DATA),
        inode=st.integers(1, 3),
        file_offset=st.integers(0, 40),
        unwritten=st.booleans(),
        shared=st.booleans(),
        subvolume=st.sampled_from([0, 0, 5]),
    ),
    min_size=1,
    max_size=6,
)
_questions = st.lists(st.tuples(_pieces, st.booleans(), st.booleans()), min_size=1, max_size=8)


@given(st.lists(_questions, min_size=1, max_size=3), st.sampled_from([(), ("a", "b")]))
def test_columns_count_as_the_same_answers_one_by_one(
    batches: list[list[tuple[list[Piece], bool, bool]]], notes: tuple[str, ...]
) -> None:
    def size_of(_layer: str, file: FileId) -> int | None:
        return {1: None, 2: 30}.get(file.inode, 50)

    complete = not notes
    common = Answer(0, 0, complete, notes, ())
    way = (LayerLocation("fs", 0),)
    summaries = Summary(size_of), Summary(size_of)
    for questions in batches:
        answers: list[Answer] = []
        rows: list[tuple[int | bool, ...]] = []
        for number, (pieces, odd, fits) in enumerate(questions):
            ordered = sorted(pieces, key=lambda piece: piece.start)
            owners = tuple(replace(row_of(one, None), via=way) for one in ordered)
            length = sum(one.length for one in ordered) + (not fits)
            said = (*notes, "odd") if odd else notes
            answers.append(Answer(0, length, complete and not odd, said, owners))
            rows += [(number, *one) for one in ordered]
        columns = AnswerColumns(
            RangeList.of((0, answer.length) for answer in answers),
            as_columns(np.array(rows, row_dtype()), np.ones(len(answers), np.bool_), {}),
            common,
            np.array([odd for _, odd, _ in questions]),
            answers.__getitem__,
        )
        summaries[0].add_columns(PlacedColumns(columns, (("disk", 0), ("fs", 0))))
        for answer in answers:
            summaries[1].add(answer)
    found, expected = (
        (one.files, one.totals, list(one.metadata.items()), one.reasons, one.incomplete)
        for one in summaries
    )
    assert found == expected
    assert set(summaries[0].notes) == set(summaries[1].notes)
    assert summaries[0].asked == summaries[1].asked
    assert summaries[0].questions == summaries[1].questions
