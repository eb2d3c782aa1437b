"""The lines that change the bad sectors of an emulated device."""

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from whoseblock.errors import RangeSyntaxError
from whoseblock.media.control import parse_control

SIZE = 12 * 4096


@pytest.mark.parametrize(
    "text",
    [
        "307p",
        "bad",
        "bad 307p\nbad x",
        "worse 307p",
        "good 0+0",
        "clear 307p",
        "bad 307b",
        "bad 1+0",
        "bad 1 2",
        "BAD 1",
        # A program may cut a long text anywhere, and what is left of the last number is one, too.
        "bad 1\n" * 1000 + "bad 12",
    ],
)
def test_malformed_lines_are_refused(text: str) -> None:
    with pytest.raises(RangeSyntaxError):
        parse_control(text, SIZE)


def test_lines_are_parsed_in_order() -> None:
    text = "# mine\nbad 2p  # a page\n\npermanent 10s+4s\n good 2p\nclear"
    assert parse_control(text, SIZE) == [
        ("bad", (8192, 4096)),
        ("permanent", (5120, 2048)),
        ("good", (8192, 4096)),
        ("good", (0, SIZE)),
    ]


@settings(max_examples=200)
@given(st.text(max_size=60))
def test_arbitrary_text_is_parsed_or_refused(text: str) -> None:
    try:
        changes = parse_control(text, SIZE)
    except RangeSyntaxError:
        return
    assert all(change.where.length > 0 for change in changes)
