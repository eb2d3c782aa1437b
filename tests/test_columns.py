"""Answers in columns about layers, byte for byte those of the same questions one by one."""

from array import array
from collections.abc import Iterator
from functools import partial

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from tests.support.filled_images import Zoo

from whoseblock.cli.presentation.json_lines import json_chunks
from whoseblock.errors import OutOfDeviceError
from whoseblock.fs.opening import open_volume
from whoseblock.lookup import Lookup, QueryList, QueryOptions
from whoseblock.media.device import FileMedia
from whoseblock.ranges import RangeList
from whoseblock.stack.base import Layer, LinearSegment, UnmappedSegment

GAP = 1 << 20
#: As many questions as are answered in columns at least.
MANY = 48


@pytest.fixture(scope="module")
def disk(zoo: Zoo) -> Layer:
    """Return a disk with two images, the second one in two pieces that are swapped."""
    disk = Layer("disk", 1 << 31, "disk")
    first, second = (
        Layer(name, image.stat().st_size, "image", open_media=partial(FileMedia, image))
        for name, image in (("one", zoo.filled("4k").image), ("two", zoo.filled("1k").image))
    )
    half = second.size // 2
    at = GAP + first.size + GAP
    disk.segments = [
        UnmappedSegment(0, GAP // 2, "table"),
        LinearSegment(GAP, first.size, first, remark="a remark"),
        LinearSegment(at, half, second, second.size - half),
        LinearSegment(at + half, half, second, 0, doubt="a doubt"),
    ]
    disk.size = at + 2 * half + GAP
    return disk


@pytest.fixture(scope="module")
def lookup() -> Iterator[Lookup]:
    with Lookup(lambda layer: open_volume([layer.open()])) as opened:
        yield opened


def written(lookup: Lookup, queries: QueryList, *, columns: bool, bare: bool) -> bytes:
    options = QueryOptions(paths=False, bare=bare)
    if columns:
        return b"".join(json_chunks(lookup.stream_columns(queries, options)))
    return b"".join(json_chunks(lookup.stream(queries.queries(), options)))


@settings(deadline=None, max_examples=60, suppress_health_check=[HealthCheck.too_slow])
@given(data=st.data())
def test_columns_are_the_answers_of_single_questions(
    disk: Layer, lookup: Lookup, data: st.DataObject
) -> None:
    named = data.draw(st.booleans())
    report = data.draw(st.sampled_from(["", "a.map", "\udcff.map"]))
    leaves = (one.to for one in disk.segments if one.to)
    layer = disk if data.draw(st.integers(0, 2)) else next(leaves)
    # Past the end only in a report.
    reach = layer.size + (GAP if report else 0)
    lengths = st.sampled_from([1, 512, 4096, 10_000, 1 << 20])
    one = st.tuples(st.integers(0, (reach - (1 << 20)) // 512).map(lambda at: at * 512), lengths)
    ranges = data.draw(st.lists(one, min_size=MANY, max_size=MANY + 40))
    if data.draw(st.booleans()):
        ranges.sort()
    lines = array("Q", range(5, 5 + len(ranges))) if report else array("Q")
    queries = QueryList(layer, RangeList.of(ranges), report, lines, named)
    expected = written(lookup, queries, columns=False, bare=not named)
    assert written(lookup, queries, columns=True, bare=not named) == expected


def test_a_range_past_the_end_is_refused_unless_a_report_has_it(
    disk: Layer, lookup: Lookup
) -> None:
    ranges = RangeList.of([(GAP, 512)] * MANY + [(disk.size, 512)])
    queries = QueryList(disk, ranges, "", array("Q"), named=False)
    with pytest.raises(OutOfDeviceError):
        written(lookup, queries, columns=True, bare=True)
    lines = array("Q", range(len(ranges)))
    text = written(lookup, queries._replace(report="m", lines=lines), columns=True, bare=True)
    assert text.count(b"\n") == len(ranges)
