"""Lines written from columns, byte for byte those of the encoder."""

from collections.abc import Sequence

import numpy as np
from hypothesis import given
from hypothesis import strategies as st
from msgspec import UNSET, UnsetType
from msgspec.structs import replace

from whoseblock.cli.presentation.json_lines import json_chunks
from whoseblock.columns import PlacedColumns
from whoseblock.fs.arrays import FORKS, KINDS, WHATS, as_columns, row_dtype
from whoseblock.fs.base import Answer, LayerLocation
from whoseblock.fs.pieces import FILE, Piece, row_of
from whoseblock.fs.stream import AnswerColumns
from whoseblock.ranges import RangeList

#: Numbers of every length, those that stand for the places of a template, and the largest.
_numbers = st.one_of(
    st.integers(0, 99),
    st.integers(0, 18).map(lambda digits: 10**digits),
    st.integers(0, 18).map(lambda digits: 10**digits - 1),
    st.integers(10**17, 10**17 + 4),
    st.integers(0, (1 << 63) - (1 << 22)),
)
_pieces = st.builds(
    Piece,
    _numbers,
    _numbers,
    st.integers(0, len(KINDS) - 1),
    st.integers(0, len(WHATS) - 1),
    st.integers(0, len(FORKS) - 1),
    _numbers,
    _numbers,
    st.booleans(),
    st.booleans(),
    st.just(0),
).map(lambda piece: piece if piece.kind == FILE else piece._replace(file_offset=-1))
_notes = st.lists(
    st.sampled_from(["a note", "100%d", '"owners":[', f"byte {10**17}", "ä\n", "\udcff"]),
    max_size=2,
).map(tuple)
_answers = st.builds(
    Answer,
    _numbers,
    _numbers,
    st.booleans(),
    _notes,
    st.just(()),
    remarks=st.just(UNSET) | _notes,
)


def _columns(
    questions: Sequence[tuple[int, int, bool, Sequence[Piece]]],
    common: Answer,
    report: str = "",
    way: tuple[tuple[str, int], ...] = (),
) -> tuple[PlacedColumns, list[Answer]]:
    """Return answers as columns, and as objects; the odd ones have a note of their own."""
    answers = []
    rows = []

    def via(start: int) -> tuple[LayerLocation, ...] | UnsetType:
        return tuple(LayerLocation(name, start + step) for name, step in way) or UNSET

    for number, (start, length, odd, pieces) in enumerate(questions):
        answers.append(
            replace(
                common,
                start=start,
                length=length,
                notes=(*common.notes, "\udcff") if odd else common.notes,
                owners=tuple(replace(row_of(one, None), via=via(one.start)) for one in pieces),
                origin=f"{report}, line {number + 7}" if report else UNSET,
                via=via(start),
            )
        )
        rows += [(number, *piece) for piece in pieces]
    is_odd = np.array([odd for _, _, odd, _ in questions], np.bool_)
    columns = AnswerColumns(
        RangeList.of((start, length) for start, length, *_ in questions),
        as_columns(np.array(rows, row_dtype()), np.ones(len(questions), np.bool_), {}),
        common,
        is_odd,
        answers.__getitem__,
    )
    lines = range(7, 7 + len(questions)) if report else ()
    return PlacedColumns(columns, way, report, lines), answers


_names = st.sampled_from(["sda", "disk.img", "a ä\n", f"{10**17}", '"', "\udcff"])
_ways = st.lists(st.tuples(_names, st.integers(0, 1 << 20)), max_size=3).map(tuple)
_question = st.tuples(_numbers, _numbers, st.booleans(), st.lists(_pieces, min_size=1, max_size=12))


@given(st.lists(_question, min_size=1, max_size=30), _answers, st.just("") | _names, _ways)
def test_columns_are_written_as_the_encoder_writes_them(
    questions: list[tuple[int, int, bool, list[Piece]]],
    common: Answer,
    report: str,
    way: tuple[tuple[str, int], ...],
) -> None:
    columns, answers = _columns(questions, common, report, way)
    expected = b"".join(json_chunks(answers))
    assert b"".join(json_chunks([columns])) == expected
    if not (report or way):
        assert b"".join(json_chunks([columns.columns])) == expected


def test_rows_of_many_blocks_stay_in_order() -> None:
    """Write answers that begin in one block and end in the next, odd ones among them."""
    questions = [
        (
            number,
            1,
            number % 97 == 3,
            [Piece(number, 1, number % 7, file_offset=number)] * (number % 5 + 1),
        )
        for number in range(6000)
    ]
    columns, answers = _columns(questions, Answer(0, 0, complete=True, notes=(), owners=()))
    before = answers[0]
    written = b"".join(json_chunks([before, columns, columns, before]))
    assert written == b"".join(json_chunks([before, *answers, *answers, before]))
