"""Lists of failed block numbers, as badblocks and dumpe2fs print them."""

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from tests.support.tools import program, run

from whoseblock.errors import MalformedError
from whoseblock.sources.base import Failure, Reading
from whoseblock.sources.block_lists.block_numbers import (
    read_block_number_lists,
    read_block_numbers,
)


@given(st.lists(st.integers(0, 1 << 40), max_size=20), st.sampled_from([512, 1024, 4096]))
def test_every_block_number_is_parsed(blocks: list[int], size: int) -> None:
    lines = "".join(f"{block}\n" for block in blocks).splitlines(keepends=True)
    found = [failure[:2] for failure in read_block_numbers(lines, "list", size)]
    assert found == [(block * size, size) for block in blocks]


_lines = st.one_of(
    st.integers(0, 10**13).map(str),
    st.sampled_from(["", "# comment", "7-9", "8 - 9 # a scratch", "x", "9007199254740991"]),
)


@given(st.lists(st.lists(_lines, min_size=1, max_size=4), max_size=4), st.sampled_from([512, 4096]))
def test_a_list_read_in_pieces_has_the_same_blocks(pieces: list[list[str]], size: int) -> None:
    texts = ["".join(f"{line}\n" for line in lines) for lines in pieces]

    def read(*, lists: bool) -> tuple[list[Failure], str, Reading | None]:
        reading = Reading("list")
        try:
            if lists:
                parts = read_block_number_lists(texts, "list", size, reading)
                found = [one for part in parts for one in part.failures()]
            else:
                lines = "".join(texts).splitlines()
                found = [*read_block_numbers(lines, "list", size, reading)]
        except MalformedError as error:
            return [], str(error), None
        return found, "", reading

    assert read(lists=True) == read(lists=False)


def test_the_list_that_dumpe2fs_prints_is_that_given_to_mke2fs(tmp_path: Path) -> None:
    image, given_list = tmp_path / "image", tmp_path / "list"
    with image.open("wb") as file:
        file.truncate(8 << 20)
    given_list.write_text("7\n9\n1000\n")
    run([program("mke2fs"), "-q", "-F", "-b", "1024", "-l", given_list, image])
    printed = run([program("dumpe2fs"), "-b", image]).decode().splitlines(keepends=True)
    assert [*read_block_numbers(printed, "d", 1024)] == [
        Failure(7 << 10, 1024, "", "d, line 1"),
        Failure(9 << 10, 1024, "", "d, line 2"),
        Failure(1000 << 10, 1024, "", "d, line 3"),
    ]


def test_badblocks_of_a_good_file_is_an_empty_list(tmp_path: Path) -> None:
    image = tmp_path / "image"
    image.write_bytes(bytes(1 << 20))
    printed = run([program("badblocks"), image]).decode().splitlines()
    assert [*read_block_numbers(printed, "list", 1024)] == []


def test_comments_and_ranges_are_parsed() -> None:
    lines = ["# sdb, found with -b 1024\n", "7\n", "9-11 # a scratch\n", "20 - 20\n", "\n"]
    found = [failure[:2] for failure in read_block_numbers(lines, "list", 1024)]
    assert found == [(7 << 10, 1024), (9 << 10, 3 << 10), (20 << 10, 1024)]


@pytest.mark.parametrize(
    "line",
    ["x", "-1", "1 2", "1,2", "0x10", "1_0", "\u0661", "9007199254740992", "9" * 5000, "2-1", "1-"],
)
def test_a_line_without_a_block_number_is_refused(line: str) -> None:
    with pytest.raises(MalformedError, match="list, line 2:"):
        list(read_block_numbers(["1\n", f"{line}\n"], "list", 1024))
