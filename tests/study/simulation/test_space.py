"""The space of a study: segments, and updates of its reverse mapping."""

from whoseblock.study.base import key_of
from whoseblock.study.simulation.extents import Extents, PageExtent
from whoseblock.study.simulation.space import Segment, Space


def test_an_extent_between_two_neighbours_joins_them() -> None:
    space = Space(Extents([PageExtent(1, 0, 100, 10)], [], 300, []))
    updates = []
    for step in (
        lambda: space.remove(1, 4, 2),
        lambda: space.add(PageExtent(1, 4, 104, 2)),
        lambda: space.remove(1, 8, 2),
        lambda: space.add(PageExtent(1, 8, 108, 1)),
        lambda: space.add(PageExtent(1, 9, 200, 1)),
        lambda: space.remove(1, 0, 1),
        lambda: space.add(PageExtent(1, 0, 100, 1)),
    ):
        before = space.rmap_updates
        step()
        updates.append(space.rmap_updates - before)
    # One changed and one new, then one changed and one gone.
    assert updates == [2, 2, 1, 1, 1, 1, 1]
    assert space.extents(1) == [PageExtent(1, 0, 100, 9), PageExtent(1, 9, 200, 1)]


def test_segments_of_pages_and_keys() -> None:
    space = Space(Extents([PageExtent(1, 0, 10, 10), PageExtent(2, 3, 15, 5)], [(0, 10)], 100, []))
    assert space.segment_at(12) == Segment(10, 15, (key_of(1, 0),))
    assert space.segment_at(17) == Segment(15, 20, (key_of(1, 5), key_of(2, 3)))
    assert space.segment_at(5) == Segment(0, 10, ())
    assert space.segment_at(50) == Segment(20, 100, ())
    assert space.page_of(key_of(2, 4)) == 16
    assert space.page_of(key_of(2, 2)) is None
    assert space.page_of(key_of(3, 0)) is None
    assert Space(Extents([], [], 10, [])).segment_at(3) == Segment(0, 10, ())
