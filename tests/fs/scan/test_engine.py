"""The engine keeps exactly what intersects the ranges."""

from itertools import pairwise

from hypothesis import given
from hypothesis import strategies as st

from whoseblock.fs.scan.engine import Batch, Extent, UnreadInodes, Wanted, run_scan

ranges = st.lists(
    st.tuples(st.integers(0, 60), st.integers(1, 9)).map(lambda one: (one[0], sum(one))), max_size=8
)
extents = st.lists(
    st.tuples(st.integers(0, 60), st.integers(1, 20), st.integers(1, 5)), max_size=20
).map(lambda some: [Extent(start, length, inode, 1, 0, 2) for start, length, inode in some])


@given(ranges, extents, extents)
def test_what_intersects_is_kept(
    asked: list[tuple[int, int]], first: list[Extent], second: list[Extent]
) -> None:
    wanted = Wanted(asked)
    found = run_scan([Batch.of(first, 3), Batch.of(second, 4)], wanted)
    blocks = {block for low, high in asked for block in range(low, high)}
    expected = sorted(
        one for one in first + second if blocks & set(range(one.start, one.start + one.length))
    )
    assert found.extents == expected
    assert (found.inodes_read, found.is_whole) == (7, True)
    for low, high in asked:
        within = [one for one in expected if one.start < high and one.end > low]
        assert found.within(low, high) == within
    covered = {block for one in expected for block in range(one.start, one.end)}
    assert wanted.is_covered(found.extents) == (blocks <= covered)


@given(ranges, st.integers(0, 70), st.integers(1, 70))
def test_gaps_are_what_no_range_covers(taken: list[tuple[int, int]], low: int, length: int) -> None:
    covered = {block for run in taken for block in range(*run)}
    gaps = list(Wanted(taken).gaps(low, low + length))
    blocks = [block for gap in gaps for block in range(*gap)]
    assert blocks == [block for block in range(low, low + length) if block not in covered]
    assert all(one[1] < two[0] for one, two in pairwise(gaps))


def test_a_scan_ends_early_and_counts_what_is_unread() -> None:
    one = Extent(5, 1, 7, 1, 0, 2)
    source: list[Batch | UnreadInodes] = [UnreadInodes(1, 4, "lost"), Batch.of([one], 9)]
    source.append(UnreadInodes(20, 20, "later"))
    found = run_scan(source, Wanted([(5, 6)]), lambda extents: extents == [one])
    assert (found.extents, found.is_whole, found.unread_count) == ([one], False, 4)
