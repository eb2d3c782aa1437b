"""The map of a device against a model that counts every byte."""

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from whoseblock.report.device_map import CELLS, DeviceMap
from whoseblock.summary import KINDS

_rows = st.lists(
    st.tuples(st.integers(0, 5000), st.integers(1, 900), st.sampled_from(KINDS)), max_size=12
)


@given(_rows, st.sampled_from([1, 512, 5000, 600_000, 5_000_000]))
def test_the_cells_have_the_kinds_of_their_bytes(
    rows: list[tuple[int, int, str]], size: int
) -> None:
    drawn = DeviceMap("disk", size)
    assert drawn.cell % 512 == 0
    assert drawn.cell * CELLS >= size
    truth: dict[int, set[str]] = {}
    for start, length, kind in rows:
        drawn.add(start * 512, length * 512, kind)
        for at in range(start, start + length):
            truth.setdefault(at * 512 // drawn.cell, set()).add(kind)
    inside = {cell: kinds for cell, kinds in truth.items() if cell < CELLS}
    assert {cell: set(kinds) for cell, kinds in drawn.cells()} == inside


@given(_rows, st.integers(0, 12))
def test_the_areas_have_the_bytes_of_the_rows(rows: list[tuple[int, int, str]], limit: int) -> None:
    drawn = DeviceMap("disk", 1 << 20, limit)
    whole = DeviceMap("disk", 1 << 20)
    for row in rows:
        drawn.add(*row)
        whole.add(*row)
    counts = np.zeros((6000, len(KINDS)), int)
    for start, length, kind in rows:
        counts[start : start + length, KINDS.index(kind)] += 1
    areas = whole.areas
    for start, length, number in zip(areas.starts, areas.lengths, areas.kinds, strict=True):
        counts[start : start + length, number] -= 1
    assert not counts.any()
    assert len(drawn) <= limit
    assert not whole.left_out
    assert list(drawn.areas.starts) == list(whole.areas.starts)[: len(drawn)]
