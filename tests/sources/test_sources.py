"""Failures from maps, lists and numbers: what is in them, exactly, or the line that is wrong."""

import subprocess
import tracemalloc
from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from tests.support.tools import CHECKOUT, program, run

from whoseblock.errors import MalformedError
from whoseblock.sources.badblocks import read_badblocks
from whoseblock.sources.base import Failure
from whoseblock.sources.mapfile import check_statuses, read_mapfile
from whoseblock.sources.memory import failure_of_address, failure_of_pfn
from whoseblock.sources.sysfs import read_sysfs_badblocks, whole_lines
from whoseblock.stack.base import PHYSICAL_MEMORY

FIXTURES = CHECKOUT / "tests" / "fixtures" / "sources"
SECTOR = 512
STATE = "0x00000000     +               1\n"

maps = st.lists(st.tuples(st.integers(1, 9), st.sampled_from("?*/-+")), min_size=1, max_size=12)
# Almost what is right, so that more than the first character is looked at.
scraps = st.lists(
    st.sampled_from(
        [*"0123456789xXabF ?*/-+#\n\t_", "0x", STATE, "18446744073709551616", "\u0661"]
    ),
    max_size=40,
).map("".join)


def map_lines(blocks: list[tuple[int, str]], start: int = 0) -> Iterator[str]:
    yield "# Mapfile. Created by hand\n"
    yield STATE
    for sectors, status in blocks:
        yield f"0x{start:08X}  0x{sectors * SECTOR:08X}  {status}\n"
        start += sectors * SECTOR


def sectors_of(failures: Iterator[Failure]) -> list[int]:
    return [
        sector
        for failure in failures
        for sector in range(failure.start // SECTOR, (failure.start + failure.length) // SECTOR)
    ]


def listed(path: Path, statuses: str) -> list[int]:
    """Ask ddrescuelog for the sectors that have one of the statuses."""
    return [int(line) for line in run([program("ddrescuelog"), f"-l{statuses}", path]).split()]


@pytest.mark.parametrize("statuses", ["?*/-", "-", "*", "/", "?", "+", "*/", "?*/-+"])
@pytest.mark.parametrize("name", ["rescue", "untrimmed", "noscrape", "stopped", "empty"])
def test_maps_of_ddrescue_say_what_ddrescuelog_says(name: str, statuses: str) -> None:
    path = FIXTURES / f"{name}.map"
    with path.open() as file:
        assert sectors_of(read_mapfile(file, name, statuses)) == listed(path, statuses)


@given(maps, st.sampled_from(["?*/-", "-", "+", "?", "*/"]), st.integers(0, 3))
def test_any_map_says_what_ddrescuelog_says(
    tmp_path_factory: pytest.TempPathFactory,
    blocks: list[tuple[int, str]],
    statuses: str,
    first: int,
) -> None:
    path = tmp_path_factory.getbasetemp() / "any.map"
    path.write_text("".join(map_lines(blocks, first * SECTOR)))
    found = sectors_of(read_mapfile(path.read_text().splitlines(), "any", statuses))
    assert found == listed(path, statuses)


def test_a_failure_says_where_it_was_read() -> None:
    lines = (FIXTURES / "rescue.map").read_text().splitlines()
    assert [*read_mapfile(lines, "rescue.map")] == [
        Failure(1 << 20, 1536, "", "rescue.map, line 10"),
        Failure(0x160000, 65536, "", "rescue.map, line 12"),
    ]


@pytest.mark.parametrize(
    "text",
    [
        # The manual allows decimal and octal numbers, and comments after whitespace.
        "# c\n0 ?\n512 0x200 -\n",
        "\n  # c d e\n0x10 ? 2 # c\n01000 01000 - # c\n\n",
        "#a b c\n0 F 1\n0X200\t0X200\t-\n #a b c\n",
        "0 + 01\n512 512 -",
    ],
)
def test_what_the_manual_allows_is_read(text: str, tmp_path: Path) -> None:
    (tmp_path / "map").write_text(text)
    assert sectors_of(read_mapfile(text.splitlines(), "map")) == [1]
    assert listed(tmp_path / "map", "?*/-") == [1]


@pytest.mark.parametrize(
    ("text", "line"),
    [
        ("", None),
        ("# only\n", None),
        (STATE, None),
        ("0x0 0x200 -\n", 1),
        ("0x0 x\n0 512 -\n", 1),
        ("0x0 + 0\n0 512 -\n", 1),
        ("0x0 + 0x1\n0 512 -\n", 1),
        ("-1 +\n0 512 -\n", 1),
        (f"{STATE}0 512 -\n1024 512 -\n", 3),
        (f"{STATE}0 512 -\n256 512 -\n", 3),
        (f"{STATE}0 512 -\n0 512 -\n", 3),
        (f"{STATE}0 512 !\n", 2),
        (f"{STATE}0 512 -#c\n", 2),
        (f"{STATE}0 512\n", 2),
        (f"{STATE}0 512 - 7\n", 2),
        (f"{STATE}512 0 -\n", 2),
        (f"{STATE}0 -512 -\n", 2),
        (f"{STATE}0 1_000 -\n", 2),
        (f"{STATE}0 0x1_0 -\n", 2),
        (f"{STATE}0 089 -\n", 2),
        (f"{STATE}0 \u0661 -\n", 2),
        (f"{STATE}0 0x8000000000000001 -\n", 2),
        (f"{STATE}0 {'9' * 5000} -\n", 2),
    ],
)
def test_a_map_that_is_wrong_is_refused_with_its_line(text: str, line: int | None) -> None:
    with pytest.raises(MalformedError) as error:
        list(read_mapfile(text.splitlines(), "a.map"))
    assert error.value.line == line
    assert str(error.value).startswith("a.map")


@pytest.mark.parametrize("text", ["0 + 1\n0 512 -\n1024 512 -\n", "0 + 1\n0 512 -\n256 512 -\n"])
def test_ddrescuelog_too_refuses_gaps_and_overlaps(text: str, tmp_path: Path) -> None:
    (tmp_path / "map").write_text(text)
    done = subprocess.run(
        [program("ddrescuelog"), "-l-", tmp_path / "map"], capture_output=True, check=False
    )
    assert done.returncode == 2


@pytest.mark.parametrize("text", ["", "x", "-x", "F", "- "])
def test_statuses_that_no_map_has_are_refused(text: str) -> None:
    with pytest.raises(MalformedError):
        check_statuses(text)


def test_a_long_map_takes_no_more_memory_than_a_short_one() -> None:
    def peak(count: int) -> int:
        tracemalloc.start()
        try:
            assert sum(1 for _ in read_mapfile(map_lines([(1, "-"), (2, "+")] * count), "m"))
            return tracemalloc.get_traced_memory()[1]
        finally:
            tracemalloc.stop()

    # The list that the lines are made from has one pair, repeated; it takes 16 bytes an entry.
    assert peak(50_000) - 2 * 8 * 50_000 < peak(500) + (64 << 10)


@given(st.lists(st.integers(0, 1 << 40), max_size=20), st.sampled_from([512, 1024, 4096]))
def test_lists_of_blocks_come_back(blocks: list[int], size: int) -> None:
    lines = "".join(f"{block}\n" for block in blocks).splitlines(keepends=True)
    found = [failure[:2] for failure in read_badblocks(lines, "list", size)]
    assert found == [(block * size, size) for block in blocks]


def test_the_list_of_an_ext_filesystem_is_that_which_it_was_given(tmp_path: Path) -> None:
    image, given_list = tmp_path / "image", tmp_path / "list"
    with image.open("wb") as file:
        file.truncate(8 << 20)
    given_list.write_text("7\n9\n1000\n")
    run([program("mke2fs"), "-q", "-F", "-b", "1024", "-l", given_list, image])
    printed = run([program("dumpe2fs"), "-b", image]).decode().splitlines(keepends=True)
    assert [*read_badblocks(printed, "d", 1024)] == [
        Failure(7 << 10, 1024, "", "d, line 1"),
        Failure(9 << 10, 1024, "", "d, line 2"),
        Failure(1000 << 10, 1024, "", "d, line 3"),
    ]


def test_badblocks_of_a_good_file_is_an_empty_list(tmp_path: Path) -> None:
    image = tmp_path / "image"
    image.write_bytes(bytes(1 << 20))
    printed = run([program("badblocks"), image]).decode().splitlines()
    assert [*read_badblocks(printed, "list", 1024)] == []


@pytest.mark.parametrize(
    "line",
    ["x", "-1", "1 2", "1,2", "0x10", "1_0", "\u0661", "9007199254740992", "9" * 5000, "1-2"],
)
def test_a_line_that_is_no_block_number_is_refused(line: str) -> None:
    with pytest.raises(MalformedError, match="list, line 2:"):
        list(read_badblocks(["1\n", f"{line}\n"], "list", 1024))


@given(st.lists(st.tuples(st.integers(0, 1 << 50), st.integers(1, 1 << 31)), max_size=20))
def test_lists_of_sysfs_come_back(ranges: list[tuple[int, int]]) -> None:
    lines = [f"{sector} {count}\n" for sector, count in ranges]
    assert [*read_sysfs_badblocks(lines, "region0", "b")] == [
        Failure(sector * 512, count * 512, "region0", f"b, line {number}")
        for number, (sector, count) in enumerate(ranges, 1)
    ]


@pytest.mark.parametrize("line", ["1", "1 2 3", "1 0", "a 1", "-1 1", "1 18014398509481984"])
def test_a_line_that_sysfs_does_not_write_is_refused(line: str) -> None:
    with pytest.raises(MalformedError, match="b, line 1:"):
        list(read_sysfs_badblocks([line], "pmem0", "b"))


@given(st.integers(0, 99_999_999), st.integers(300, 512), st.integers(1, 9999))
def test_what_a_page_of_sysfs_shows_of_a_list(first: int, number: int, count: int) -> None:
    lines = [f"{first + at * 10_000} {count}" for at in range(number)]
    text = "".join(f"{line}\n" for line in lines)
    shown, cut = whole_lines(text[:4095], 4096)
    assert shown == lines[: len(shown)]
    assert cut >= (len(shown) < number)
    assert len("".join(f"{line}\n" for line in lines[: len(shown) + 1])) > 4095 or not cut
    # As a whole file, of a kernel with larger pages.
    assert whole_lines(text, 65536) == (lines, False)


def test_a_number_of_memory_names_the_page_that_holds_it() -> None:
    assert failure_of_pfn("0x100e0d", 4096)[:3] == (0x100E0D000, 4096, PHYSICAL_MEMORY)
    assert failure_of_pfn("307", 4096)[:3] == (1257472, 4096, PHYSICAL_MEMORY)
    assert failure_of_address("0x100e0dfff", 4096)[:3] == (0x100E0D000, 4096, PHYSICAL_MEMORY)
    assert failure_of_address("65537", 65536)[:3] == (65536, 65536, PHYSICAL_MEMORY)


@pytest.mark.parametrize(
    "text", ["", "x", "0x", "-1", "1.0", "1_0", " 1", "0xffffffffffffffff", "1" * 50, "\u0661"]
)
def test_what_is_no_number_of_memory_is_refused(text: str) -> None:
    with pytest.raises(MalformedError):
        failure_of_pfn(text, 4096)
    if text != "0xffffffffffffffff":
        with pytest.raises(MalformedError):
            failure_of_address(text, 4096)


@given(scraps | st.text(max_size=80))
def test_scraps_raise_nothing_else(text: str) -> None:
    lines = text.splitlines(keepends=True)
    for read in (
        lambda: read_mapfile(lines, "x"),
        lambda: read_mapfile([STATE, *lines], "x"),
        lambda: read_badblocks(lines, "x", 4096),
        lambda: read_sysfs_badblocks(lines, "d", "x"),
        lambda: [failure_of_pfn(text, 4096), failure_of_address(text, 4096)],
    ):
        try:
            failures = list(read())
        except MalformedError:
            continue
        assert all(one.length > 0 and one.start + one.length <= 1 << 63 for one in failures)
