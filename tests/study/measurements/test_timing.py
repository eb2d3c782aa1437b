"""The times of entries, writes and failures."""

from pathlib import Path

from whoseblock.study.measurements.sources import ImageSource, MadeUpSource
from whoseblock.study.measurements.timing import entry_times, failure_times, sample, write_times
from whoseblock.study.simulation.extents import Extents, PageExtent
from whoseblock.study.simulation.space import Space


def test_every_time_is_measured(demo_image: Path) -> None:
    with ImageSource(str(demo_image)) as source:
        entry = entry_times(source, seed=1, most=500)
        failures = {one.design: one for one in failure_times(source, seed=1)}
    assert 450 < entry.entries < 600
    assert entry.none > 0
    assert entry.out_none > 0
    assert set(entry.added) == set(entry.out_added) == {"per page", "per extent", "on demand"}
    assert failures["per page"].blocks_worst == 0
    # The header of the group, and the tree, which is its root alone; the inode.
    cold = failures["on demand, cold"]
    assert cold.blocks_median is not None
    assert cold.blocks_median >= 2
    assert cold.blocks_worst is not None
    assert cold.blocks_median <= cold.blocks_worst
    assert failures["on demand, warm"].blocks_worst == 0
    together = failures["on demand, 983 at once"]
    assert (together.median, together.worst, together.blocks_worst) == (None, None, None)
    assert 0 < together.blocks_mean < 1


def test_every_page_is_equally_likely_to_be_timed() -> None:
    # Of a large extent and many small ones, as many pages as they have of all.
    files = [PageExtent(1, 0, 0, 1000)]
    files += [PageExtent(2, number, 1001 + 2 * number, 1) for number in range(1000)]
    space = Space(Extents(files, [], 4000, []))
    chosen = [sum(entry.mapping == 1 for entry in sample(space, seed, 500)) for seed in range(100)]
    assert 200 < sum(chosen) / len(chosen) < 300


def test_only_writes_that_break_sharing_are_timed() -> None:
    write = write_times(MadeUpSource(256, 2, seed=1), seed=1, most=50)
    assert write.writes == 3 * 50
    assert set(write.seconds) == {"per page", "per extent", "on demand"}
    assert all(seconds > 0 for seconds in (write.clock, *write.seconds.values()))
    # Of two who share a page the one breaks it, and the other then has it for himself.
    assert write_times(MadeUpSource(64, 2, seed=1), seed=1).writes <= 3 * 64
    assert write_times(MadeUpSource(256, 1, seed=1), seed=1).writes == 0
