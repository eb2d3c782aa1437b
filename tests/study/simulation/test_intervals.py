"""Sets of integers as intervals."""

from whoseblock.study.simulation.intervals import Intervals


def test_intervals_are_a_set_of_integers() -> None:
    runs = Intervals()
    for start, end in ((10, 20), (30, 40), (20, 25), (5, 6), (24, 31)):
        runs.add(start, end)
    assert [one for one in range(50) if one in runs] == [5, *range(10, 40)]
    assert len(runs) == 31
    for start, end in ((4, 5), (6, 10), (40, 50), (8, 8)):
        assert not runs.overlap(start, end)
    for start, end in ((0, 6), (9, 11), (39, 40), (20, 21), (0, 99)):
        assert runs.overlap(start, end)
