"""The lists of bad blocks that the kernel shows in sysfs."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from whoseblock.errors import MalformedError
from whoseblock.sources.base import Failure
from whoseblock.sources.block_lists.sysfs import parse_bad_block_list


@given(st.lists(st.tuples(st.integers(0, 1 << 50), st.integers(1, 1 << 31)), max_size=20))
def test_every_range_of_a_sysfs_list_is_parsed(ranges: list[tuple[int, int]]) -> None:
    text = "".join(f"{sector} {count}\n" for sector, count in ranges)
    assert parse_bad_block_list(text, 65536, "region0", "b") == (
        [
            Failure(sector * 512, count * 512, "region0", f"b, line {number}")
            for number, (sector, count) in enumerate(ranges, 1)
        ],
        False,
    )


@pytest.mark.parametrize("line", ["1", "1 2 3", "1 0", "a 1", "-1 1", "1 18014398509481984"])
def test_a_malformed_sysfs_line_is_refused(line: str) -> None:
    with pytest.raises(MalformedError, match="b, line 1:"):
        parse_bad_block_list(line, 4096, "pmem0", "b")


@given(st.integers(0, 99_999_999), st.integers(300, 512), st.integers(1, 9999))
def test_a_list_that_is_cut_at_a_page_is_recognised(first: int, number: int, count: int) -> None:
    lines = [f"{first + at * 10_000} {count}" for at in range(number)]
    text = "".join(f"{line}\n" for line in lines)
    every, whole = parse_bad_block_list(text, 65536, "sda", "b")
    # A kernel with larger pages shows the list whole.
    assert (len(every), whole) == (number, False)
    shown, cut = parse_bad_block_list(text[:4095], 4096, "sda", "b")
    assert shown == every[: len(shown)]
    assert cut >= (len(shown) < number)
    assert len("".join(f"{line}\n" for line in lines[: len(shown) + 1])) >= 4095 or not cut
