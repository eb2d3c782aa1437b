"""Failed ranges from maps of ddrescue, compared with ddrescuelog."""

import subprocess
import tracemalloc
from collections.abc import Iterable, Iterator
from itertools import pairwise
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from tests.support.tools import CHECKOUT, program, run

from whoseblock.errors import MalformedError
from whoseblock.sources.base import Failure, Reading
from whoseblock.sources.block_lists.mapfile import check_statuses, read_map_lists, read_mapfile

FIXTURES = CHECKOUT / "tests" / "fixtures" / "sources"
SECTOR = 512
STATE = "0x00000000     +               1\n"
maps = st.lists(st.tuples(st.integers(1, 9), st.sampled_from("?*/-+")), min_size=1, max_size=12)


def map_lines(blocks: list[tuple[int, str]], start: int = 0) -> Iterator[str]:
    yield "# Mapfile. Created by hand\n"
    yield STATE
    for sectors, status in blocks:
        yield f"0x{start:08X}  0x{sectors * SECTOR:08X}  {status}\n"
        start += sectors * SECTOR


def sectors_of(failures: Iterable[Failure]) -> list[int]:
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
def test_maps_of_ddrescue_agree_with_ddrescuelog(name: str, statuses: str) -> None:
    path = FIXTURES / f"{name}.map"
    with path.open() as file:
        assert sectors_of(read_mapfile(file, name, statuses)) == listed(path, statuses)


@given(maps, st.sampled_from(["?*/-", "-", "+", "?", "*/"]), st.integers(0, 3))
def test_any_map_agrees_with_ddrescuelog(
    tmp_path_factory: pytest.TempPathFactory,
    blocks: list[tuple[int, str]],
    statuses: str,
    first: int,
) -> None:
    path = tmp_path_factory.getbasetemp() / "any.map"
    path.write_text("".join(map_lines(blocks, first * SECTOR)))
    found = sectors_of(read_mapfile(path.read_text().splitlines(), "any", statuses))
    assert found == listed(path, statuses)
    lists = read_map_lists(map_lines(blocks, first * SECTOR), "any", statuses)
    assert sectors_of(one for part in lists for one in part.failures()) == found


#: What stands in maps besides the lines that ddrescue writes, and what may not.
_others = st.sampled_from(["# comment\n", "\n", " 0x0 ? # c\n", "0 0 -\n", "x\n", "512 512 -\n"])


@st.composite
def pieces_of_maps(draw: st.DrawFn) -> list[str]:
    """Return a map with a few lines of other forms, cut where lines end."""
    lines = [*map_lines(draw(maps), draw(st.sampled_from([0, SECTOR, (1 << 63) - SECTOR])))]
    if draw(st.booleans()):
        lines = [OLD[0], *lines[2:], "0x10 -1 -\n"]
    for line in draw(st.lists(_others, max_size=2)):
        lines.insert(draw(st.integers(0, len(lines))), line)
    # Pieces are of whole lines; only the last line of a file may have no end.
    if draw(st.booleans()):
        lines[-1] = lines[-1].removesuffix("\n")
    cuts = sorted(draw(st.sets(st.integers(1, len(lines)))))
    pieces = ["".join(lines[low:high]) for low, high in pairwise([0, *cuts, len(lines)])]
    return [piece for piece in pieces if piece]


@given(pieces_of_maps(), st.sampled_from(["?*/-", "-", "+"]))
def test_a_map_read_in_pieces_has_the_same_blocks(pieces: list[str], statuses: str) -> None:
    def read(*, lists: bool) -> tuple[list[Failure], str, Reading]:
        found: list[Failure] = []
        reading = Reading("map")
        try:
            if lists:
                for part in read_map_lists(pieces, "map", statuses, reading):
                    found += part.failures()
            else:
                lines = "".join(pieces).split("\n")
                found += read_mapfile(lines, "map", statuses, reading)
        except MalformedError as error:
            # The blocks before the line that is wrong are not compared.
            return [], str(error), Reading("map")
        return found, "", reading

    assert read(lists=True) == read(lists=False)


def test_a_failure_names_its_file_and_line() -> None:
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
def test_every_form_that_the_manual_allows_is_parsed(text: str, tmp_path: Path) -> None:
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
def test_a_malformed_map_is_refused_with_its_line(text: str, line: int | None) -> None:
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


#: The map that ddrescue 1.2 wrote of a file whose size it did not know.
OLD = (
    "# Rescue Logfile. Created by GNU ddrescue version 1.2\n",
    "#      pos        size  status\n",
    "0x00000000  0x00117000  +\n",
    "0x00117000  0x00000200  -\n",
    "0x00117200  0x00007E00  /\n",
)


def test_a_map_of_a_version_without_a_state_is_parsed() -> None:
    reading = Reading("map")
    found = [one[:2] for one in read_mapfile(OLD, "map", reading=reading)]
    assert found == [(0x117000, 0x200), (0x117200, 0x7E00)]
    assert reading.is_silent


def test_the_open_end_of_an_old_map_is_reported() -> None:
    reading = Reading("map")
    lines = [*OLD, "0x0011F000          -1  ?\n"]
    assert len(list(read_mapfile(lines, "map", reading=reading))) == 2
    assert "the block at 0x0011F000 with the status ? has no end" in reading.summary()


@pytest.mark.parametrize("version", ["1.6", "1.20", "1.2x", "2.1"])
def test_a_map_of_a_later_version_needs_its_state(version: str) -> None:
    lines = [OLD[0].replace("1.2", version), *OLD[1:]]
    with pytest.raises(MalformedError, match="a line POSITION PHASE"):
        list(read_mapfile(lines, "map"))
    # An open end is of the older versions too.
    with pytest.raises(MalformedError, match="POSITION SIZE STATUS"):
        list(read_mapfile(["0x0 +\n", "0x0  -1  ?\n"], "map"))
