"""The numbers that follow from those measured."""

from pathlib import Path

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from whoseblock.study.base import key_of
from whoseblock.study.report.arithmetic import (
    DEVICES,
    break_even,
    bytes_in_folios,
    extrapolate,
    kept_back,
)
from whoseblock.study.report.table import tables
from whoseblock.study.results import EntryTime, FailureTime, StudyReport
from whoseblock.study.simulation.space import Segment
from whoseblock.study.sizes import rmap_reserve

PAGE = 4096
GIB = 1 << 30


def test_the_reserve_of_larger_devices() -> None:
    # 8,388,608 blocks a group: 99,865 leaves at most, then 2,220, 50, 2 and 1 blocks above.
    assert rmap_reserve(8 << 20) == 99_865 + 2_220 + 50 + 2 + 1
    assert kept_back(128 * GIB) == 4 * 102_138 * PAGE
    # Where the tree cannot have more blocks than a hundredth it is never less.
    assert all(0.01 < kept_back(size) / size < 0.0123 for size in DEVICES.values())


@given(
    st.lists(
        st.tuples(
            st.integers(1, 1500),
            st.integers(0, 600),
            st.lists(st.integers(0, 3), min_size=1, max_size=3),
        ),
        max_size=4,
    )
)
def test_each_large_folio_has_one_tree(runs: list[tuple[int, int, list[int]]]) -> None:
    segments, start = [], 0
    for number, (length, gap, shifts) in enumerate(runs):
        start += gap
        # Aligned in the file as on the device, or off by some pages.
        keys = tuple(
            key_of(100 * number + file, start % 512 + 512 * file + shift)
            for file, shift in enumerate(shifts)
        )
        segments.append(Segment(start, start + length, keys))
        start += length
    expected = 0
    for first, end, keys in segments:
        folios = [
            page
            for page in range(0, end, 512)
            if first <= page
            and page + 512 <= end
            and all((key + page - first) % 512 == 0 for key in keys)
        ]
        small = sum(page - page % 512 not in folios for page in range(first, end))
        expected += (len(folios) + small) * (16 + 40 * len(keys) if len(keys) > 1 else 0)
    assert bytes_in_folios(segments) == expected


def test_break_even_of_given_times(report: StudyReport) -> None:
    put_in = {"per page": 2e-6, "per extent": 2e-6, "on demand": 1e-6}
    taken_out = {"per page": 1.5e-6, "per extent": 1e-6, "on demand": 0.5e-6}
    entry = EntryTime("x", 1.0, 10, 1e-6, put_in, 1e-6, taken_out)
    failures = (
        FailureTime("per page", 1, 1e-6, 0),
        FailureTime("per extent", 1, 2e-4, 0),
        FailureTime("on demand, cold", 1, 101e-6, 3, median=1e-6, worst=1e-3),
    )
    some = msgspec.structs.replace(report, times=(entry,), failure_times=failures)
    # A million entries cost 1 s more to put in, and 1 s to take out; a failure saves 100 µs. Per
    # extent it never pays.
    assert break_even(some) == pytest.approx({"per page": 20_000})
    assert break_even(some, 10)["per page"] == pytest.approx(2e6 / 1009)
    assert break_even(msgspec.structs.replace(report, times=())) == {}


def test_larger_devices_are_extrapolated_from_the_image(
    demo_image: Path, report: StudyReport
) -> None:
    size = demo_image.stat().st_size
    for one in extrapolate(report):
        assert one.memory["per page"] == pytest.approx(256 * 96 / size * one.size, rel=1e-6)
        assert one.memory["on demand"] == 0
        assert 0 < one.on_disk < one.kept_back < one.size / 50
    titles = [table.title for table in tables(report) if table.name == "extrapolated"]
    assert "not measured" in titles[0]
