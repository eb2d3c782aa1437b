"""Answers in pieces: the same as at once, in memory that does not grow with questions x owners."""

import json
import os
import random
import tracemalloc
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from tests.support import system_calls
from tests.support.filled_images import Zoo
from tests.support.mounts import mounted
from tests.support.tools import need_loop_mounts
from tests.support.truth import Truth
from tests.support.xfs_images import Geometry, make_image

import whoseblock
from whoseblock import lookup
from whoseblock.cli.presentation.json_lines import json_chunks
from whoseblock.cli.presentation.table import table_lines
from whoseblock.fs.base import Answer, FileOwner
from whoseblock.fs.driver import Volume
from whoseblock.fs.mounted.volume import FsmapVolume
from whoseblock.fs.stream import LeadingRows, join_rows
from whoseblock.fs.xfs import XfsFilesystem
from whoseblock.lookup import Lookup, Query
from whoseblock.ranges import RangeList
from whoseblock.stack.base import Layer, LinearSegment
from whoseblock.summary import Summary

_EXAMPLES = settings(max_examples=40, suppress_health_check=list(HealthCheck))
SHARERS = 300
BLOCK = 4096


def opened(image: Path | str) -> XfsFilesystem | FsmapVolume:
    filesystem = whoseblock.open(image)
    assert isinstance(filesystem, XfsFilesystem | FsmapVolume)
    return filesystem


def ranges_of(truth: Truth, random_: random.Random, most: int = 300) -> tuple[int, int]:
    """Choose a range of up to about ``most`` rows, which begins and ends anywhere."""
    rows = truth.rows
    first = random_.randrange(len(rows))
    last = rows[min(first + random_.choice((0, 1, 5, most)), len(rows) - 1)]
    low = rows[first].start + random_.randrange(rows[first].length)
    high = max(last.start + random_.randrange(last.length), low)
    return low, high - low + 1


def same_in_pieces(
    fs: XfsFilesystem | FsmapVolume, ranges: list[tuple[int, int]], budget: int
) -> None:
    """Assert that pieces of no more than ``budget`` rows are what is answered at once."""
    paths = budget > 20
    whole = [fs.owners(*one, paths=paths) for one in ranges]
    fs.row_budget = budget
    try:
        items = list(fs.owners_stream(ranges, paths=paths))
        in_columns = list(fs.columns_stream(RangeList.of(ranges)))
        columns = fs.owners_of(*zip(*ranges, strict=True))
    finally:
        del fs.row_budget
    assert list(join_rows(items)) == whole
    if not paths:
        assert b"".join(json_chunks(in_columns)) == b"".join(json_chunks(items))
    assert all(len(item.owners) <= budget for item in items if isinstance(item, LeadingRows))
    rows = [(number, row) for number, answer in enumerate(whole) for row in answer]
    assert columns.question.tolist() == [number for number, _ in rows]
    assert columns.start.tolist() == [row.start for _, row in rows]
    assert columns.length.tolist() == [row.length for _, row in rows]
    assert columns.shared.tolist() == [getattr(row, "shared", False) for _, row in rows]


@pytest.mark.parametrize("name", ["4k", "1k", "populated-4k"])
def test_pieces_are_the_answer_offline(zoo: Zoo, name: str) -> None:
    truth = zoo.any(name)

    @_EXAMPLES
    @given(st.randoms(use_true_random=False), st.integers(1, 3) | st.integers(1, 2000))
    def check(random_: random.Random, budget: int) -> None:
        ranges = [ranges_of(truth, random_) for _ in range(random_.choice((1, 3)))]
        same_in_pieces(fs, ranges, budget)

    with opened(truth.image) as fs:
        check()
        many = [ranges_of(truth, random.Random(number)) for number in range(60)]
        same_in_pieces(fs, many, 50)


def test_pieces_are_the_answer_mounted(zoo: Zoo) -> None:
    truth = zoo.to_mount("4k")

    # The kernel is asked several times about each piece.
    @settings(_EXAMPLES, max_examples=12)
    @given(st.randoms(use_true_random=False), st.integers(1, 100))
    def check(random_: random.Random, budget: int) -> None:
        same_in_pieces(fs, [ranges_of(truth, random_, 30)], budget)

    with mounted(truth.image, "ro", "norecovery") as folder, opened(os.fsdecode(folder)) as fs:
        assert isinstance(fs, FsmapVolume)
        check()


@pytest.fixture(scope="module")
def shared(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, tuple[int, int]]:
    """Make one extent of many files, some of which share but a part; the image and the extent."""
    need_loop_mounts()
    image = make_image(tmp_path_factory.mktemp("shared") / "image", Geometry("shared"))
    size = 32 * BLOCK
    with mounted(image) as folder:
        root = Path(os.fsdecode(folder))
        (root / "first").write_bytes(b"s" * size)
        with (root / "first").open("rb") as source:
            for number in range(SHARERS - 1):
                begin = number % 7 * BLOCK
                with (root / str(number)).open("wb") as target:
                    system_calls.clone_range(
                        source.fileno(), begin, size - begin, target.fileno(), 0
                    )
    with opened(image) as fs:
        row = next(row for row in fs.owners(0, fs.size) if getattr(row, "paths", ()) == ("/first",))
        return image, (row.start, row.length)


@pytest.mark.parametrize("budget", [1, 7, 299, 300, 5000])
def test_a_block_of_many_sharers_is_streamed_in_pieces(
    shared: tuple[Path, tuple[int, int]], budget: int
) -> None:
    image, (start, length) = shared
    ranges = [(start, length), (start + 5 * BLOCK + 3, 1), (start + length - 1, 1)]
    with opened(image) as fs:
        same_in_pieces(fs, ranges, budget)
        same_in_pieces(fs, ranges * 20, budget)


@pytest.mark.parametrize(
    ("live", "form"),
    [(live, form) for live in (False, True) for form in ("paths", "bare")] + [(False, "columns")],
)
def test_memory_does_not_grow_with_the_rows(
    shared: tuple[Path, tuple[int, int]], *, live: bool, form: str
) -> None:
    image, (start, _) = shared

    def peak(fs: XfsFilesystem | FsmapVolume, questions: int) -> int:
        ranges = [(start + 8 * BLOCK, BLOCK)] * questions
        size = 0
        tracemalloc.start()
        try:
            if form == "columns":
                chunks = json_chunks(fs.columns_stream(RangeList.of(ranges)))
            else:
                chunks = json_chunks(fs.owners_stream(ranges, paths=form == "paths"))
            for chunk in chunks:
                size += len(chunk)
            return tracemalloc.get_traced_memory()[1]
        finally:
            tracemalloc.stop()
            assert size > questions * SHARERS * 50

    def check(fs: XfsFilesystem | FsmapVolume) -> None:
        few, many = (20, 60) if live else (60, 300)
        fs.row_budget = few * SHARERS // 6
        peak(fs, few)  # what is read is kept
        assert peak(fs, many) < peak(fs, few) + (1 << 20)

    if not live:
        with opened(image) as fs:
            check(fs)
        return
    with mounted(image, "ro", "norecovery") as folder, opened(os.fsdecode(folder)) as fs:
        check(fs)


# ---------------------------------------------------------------------- through layers


def layered(image: Path, leaves: int) -> tuple[Layer, Layer]:
    """Make a disk on which the filesystem is after 512 bytes, in so many ways."""
    leaf = Layer("leaf", image.stat().st_size, "partition")
    disk = Layer("disk", leaf.size + 1024, "disk")
    disk.segments = [LinearSegment(512, leaf.size, leaf) for _ in range(leaves)]
    return disk, leaf


@pytest.mark.parametrize("ways", [1, 2])
@pytest.mark.parametrize("long", [0, 1 << 40])
def test_pieces_through_layers(
    shared: tuple[Path, tuple[int, int]], ways: int, long: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    image, (start, length) = shared
    disk, leaf = layered(image, ways)

    def open_leaf(_: Layer) -> Volume:
        return whoseblock.open(image)

    asked = [Query(start + 512 + 5, length, disk), Query(0, leaf.size + 1024, disk)]
    with Lookup(open_leaf) as finder:
        whole = list(finder.stream(asked))
    assert all(isinstance(item, Answer) for item in whole)
    monkeypatch.setattr(lookup, "ROW_BUDGET", 100)
    monkeypatch.setattr(lookup, "_LONG", long)
    with Lookup(open_leaf) as finder:
        items = list(finder.stream(asked))
        assert list(finder.answers(asked)) == whole
    assert list(join_rows(items)) == whole
    assert len(items) > 2 * ways
    assert all(len(item.owners) <= 100 for item in items)


# ---------------------------------------------------------------------- what is written


def test_output_of_pieces(shared: tuple[Path, tuple[int, int]]) -> None:
    image, (start, length) = shared
    ranges = [(start, length), (start, 1)]
    with opened(image) as fs:
        whole = list(fs.owners_stream(ranges))
        fs.row_budget = 70
        pieces = list(fs.owners_stream(ranges))
    assert len(pieces) > len(whole)
    one, other = (b"".join(json_chunks(items)).splitlines() for items in (whole, pieces))
    assert list(map(json.loads, one)) == list(map(json.loads, other))
    assert list(json.loads(other[0])) == ["start", "length", "owners", "complete", "notes"]
    assert list(json.loads(one[0])) == ["start", "length", "complete", "notes", "owners"]
    table, again = list(table_lines(whole)), list(table_lines(pieces))
    assert [line.split() for line in table] == [line.split() for line in again]


def test_an_answer_with_many_rows_is_written_as_one_with_few() -> None:
    for paths in (("/a",), ("/\udcff",)):
        rows = tuple(
            FileOwner(0, 1, number, "data", "data", 0, False, True, paths)  # noqa: FBT003
            for number in range(9000)
        )
        answer = Answer(0, 1, True, ('a "owners":[] note',), rows, "a list, line 1")  # noqa: FBT003
        line = b"".join(json_chunks([answer]))
        assert line.endswith(b'],"origin":"a list, line 1"}\n')
        told = json.loads(line)
        assert list(told) == ["start", "length", "complete", "notes", "owners", "origin"]
        assert [row["inode"] for row in told["owners"]] == list(range(9000))


@pytest.mark.parametrize("budget", [1, 50])
def test_a_summary_of_pieces(shared: tuple[Path, tuple[int, int]], budget: int) -> None:
    image, (start, length) = shared
    whole, pieces = (Summary(lambda _layer, _inode: None) for _ in range(2))
    ranges = [(start - BLOCK, length + 100 * BLOCK)]
    with opened(image) as fs:
        for answer in fs.owners_many(ranges, paths=False):
            whole.add(answer)
        fs.row_budget = budget
        for item in fs.owners_stream(ranges, paths=False):
            if isinstance(item, LeadingRows):
                pieces.add_rows(item)
            else:
                pieces.add(item)
    assert pieces.totals == whole.totals
    assert sum(whole.totals.values()) == whole.asked == pieces.asked
    assert (pieces.files, pieces.metadata) == (whole.files, whole.metadata)
