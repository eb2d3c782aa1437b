"""Bytes that several layers say something about: nothing is done there."""

import pytest

from whoseblock.fs.base import Answer, Free, Owner, Unknown, Via
from whoseblock.respond.planning import is_contested


def row(start: int, length: int, layer: str) -> Owner:
    return Free(start, length, via=(Via("disk", start), Via(layer, start)))


@pytest.mark.parametrize(
    ("rows", "contested"),
    [
        ([], False),
        ([Free(0, 10), Unknown(0, 10)], False),
        ([row(0, 10, "a"), row(0, 10, "a")], False),
        ([row(0, 10, "a"), row(10, 10, "b")], False),
        ([row(10, 10, "b"), row(0, 10, "a")], False),
        ([row(0, 10, "a"), row(9, 10, "b")], True),
        ([row(0, 10, "a"), row(0, 10, "b")], True),
        ([row(0, 30, "a"), row(5, 5, "a"), row(20, 5, "b")], True),
        ([row(0, 10, "a"), row(5, 20, "a"), row(24, 2, "b")], True),
    ],
)
def test_bytes_of_two_layers_are_contested(rows: list[Owner], *, contested: bool) -> None:
    answer = Answer(start=0, length=100, complete=True, notes=(), owners=tuple(rows))
    assert is_contested(answer) is contested
