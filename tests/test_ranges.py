"""The syntax of ranges, which other programs rely on, and arithmetic with them."""

from collections.abc import Callable, Iterable
from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

import whoseblock.ranges
from whoseblock.errors import RangeSyntaxError
from whoseblock.ranges import (
    ByteRange,
    RangeList,
    merge,
    merge_list,
    parse_range,
    parse_range_text,
    parse_ranges,
    subtract,
)

BLOCK = 1024


@pytest.mark.parametrize(
    ("text", "start", "length"),
    [
        ("307p", 1257472, 4096),
        ("0", 0, 1),
        ("4096+512", 4096, 512),
        ("0x133000+0x1000", 0x133000, 0x1000),
        ("0X10", 16, 1),
        # After 0x a b is a digit, not a unit.
        ("0x10b", 0x10B, 1),
        ("0x10p", 0x10000, 4096),
        ("2456s+8s", 2456 * 512, 8 * 512),
        ("2456s", 2456 * 512, 512),
        ("7b", 7 * BLOCK, BLOCK),
        ("7b+2b", 7 * BLOCK, 2 * BLOCK),
        ("1K", 1 << 10, 1),
        ("1M+1", 1 << 20, 1),
        ("3G+2K", 3 << 30, 2 << 10),
        ("1T+1p", 1 << 40, 4096),
        ("10+1b", 10, BLOCK),
        (" 5+6 \n", 5, 6),
        ("9223372036854775807", (1 << 63) - 1, 1),
    ],
)
def test_every_form_of_a_range_is_parsed(text: str, start: int, length: int) -> None:
    assert parse_range(text, BLOCK) == (start, length)


@pytest.mark.parametrize(
    "text",
    [
        "", "+", "1+", "+1", "-1", "1-2", "1+2+3", "p", "1k", "1P", "1B", "0x", "0xg", "1.5", "1e3",
        "1 + 2", "1_000", "\u0663", "\uff11", "5+0", "0b+0b", "9223372036854775808",
        "1T+9223372036854775807",
        "1" * 5000, "0x" + "f" * 5000, "1p307", "a",
    ],
)  # fmt: skip
def test_anything_else_is_an_error(text: str) -> None:
    with pytest.raises(RangeSyntaxError):
        parse_range(text, BLOCK)


def test_blocks_need_a_filesystem() -> None:
    with pytest.raises(RangeSyntaxError, match="filesystem blocks"):
        parse_range("1+1b")


def test_lists_have_comments_and_errors_have_their_line() -> None:
    lines = ["# bad ones\n", "\n", "307p  # the page\n", "  1K+1\r\n"]
    assert list(parse_ranges(lines, "bad.txt")) == [(1257472, 4096), (1024, 1)]
    with pytest.raises(RangeSyntaxError, match=r"bad\.txt, line 5: 'x'"):
        list(parse_ranges([*lines, "x"], "bad.txt"))


@given(st.integers(0, (1 << 62) - 1), st.integers(1, 1 << 62))
def test_a_range_is_parsed_as_it_is_written(start: int, length: int) -> None:
    assert parse_range(str(ByteRange(start, length))) == (start, length)


_plain_lines = st.builds("{}+{}".format, st.integers(0, 10**19), st.integers(0, 10**19))
_lines = st.one_of(
    _plain_lines,
    st.sampled_from(
        ["", "307p", "# x", "0x10+0x20", "5+6 # why", " 5+6", "5+6\r", "5 +6", "x", "7"]
    ),
    st.text("0123456789+ \u0663#p", max_size=8),
)


@given(st.lists(_plain_lines, max_size=40) | st.lists(_lines, max_size=5), st.booleans())
def test_text_is_parsed_as_its_lines_are(lines: list[str], ends: bool) -> None:  # noqa: FBT001
    text = "\n".join(lines) + "\n" * ends

    def outcome(parse: Callable[[], Iterable[tuple[int, int]]]) -> list[tuple[int, int]] | str:
        try:
            return list(parse())
        except RangeSyntaxError as error:
            return str(error)

    expected = outcome(lambda: parse_ranges(lines, "list", 512, 7))
    assert outcome(lambda: parse_range_text(text, "list", 512, 7)) == expected


@given(st.lists(st.tuples(st.integers(0, 1 << 63), st.integers(0, 1 << 63))), st.slices(9))
def test_a_list_of_ranges_is_a_sequence_of_pairs(
    ranges: list[tuple[int, int]], part: slice
) -> None:
    found = RangeList.of(ranges)
    assert list(found) == ranges
    assert [found[index] for index in range(-len(found), len(found))] == ranges * 2
    assert list(found[part]) == ranges[part]
    found.extend(RangeList.of(ranges[::-1]))
    assert list(found) == ranges + ranges[::-1]


def _bytes(ranges: list[ByteRange]) -> set[int]:
    return {byte for part in ranges for byte in range(part.start, part.end)}


_small = st.builds(ByteRange, st.integers(0, 60), st.integers(1, 20))


@given(st.lists(_small, max_size=8))
def test_merging_keeps_the_bytes(ranges: list[ByteRange]) -> None:
    merged = merge(ranges)
    assert _bytes(merged) == _bytes(ranges)
    assert all(one.end < other.start for one, other in pairwise(merged))


_edge = (1 << 63) - 100
_places = st.integers(0, 60) | st.integers(_edge, _edge + 40)


@given(st.lists(st.builds(ByteRange, _places, st.integers(1, 50)), max_size=12), st.integers(1, 70))
def test_merging_a_list_cuts_what_is_merged(ranges: list[ByteRange], longest: int) -> None:
    expected = [
        (at, min(longest, one.end - at))
        for one in merge(ranges)
        for at in range(one.start, one.end, longest)
    ]
    for least in (0, 1 << 10):
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(whoseblock.ranges, "_MANY", least)
            assert list(merge_list(RangeList.of(ranges), longest)) == expected


@given(st.lists(_small, max_size=8), _small)
def test_subtracting_takes_the_bytes_away(ranges: list[ByteRange], cut: ByteRange) -> None:
    left = subtract(ranges, cut)
    assert _bytes(left) == _bytes(ranges) - _bytes([cut])
    assert all(part.length > 0 for part in left)
