"""The memory that a tracker must use, computed from the entries alone."""

from tests.support.study_worlds import fault_everything, world_of

from whoseblock.study.simulation.entries import Entries
from whoseblock.study.simulation.extents import PageExtent
from whoseblock.study.trackers.recount import extents_weight, pages_weight, shared_extents


def test_the_expected_memory_of_small_worlds() -> None:
    files = [PageExtent(1, 0, 100, 10), PageExtent(2, 0, 105, 5), PageExtent(3, 7, 300, 1)]
    world = world_of(*files)
    fault_everything(world, *files)
    entries = world.entries
    assert pages_weight(entries) == (5 * 96, 5 * 96 + 6 * 56)
    assert shared_extents(world.space, entries) == [(105, 110)]
    assert extents_weight(entries, [(105, 110)]) == 192 + 2 * 40
    assert extents_weight(entries, [(105, 107), (107, 110)]) == 2 * (192 + 2 * 40)
    assert extents_weight(entries, [(100, 110)]) == 192 + 2 * 40
    # No owner; a page of two owners in no record; a page in two.
    for wrong in ([(105, 110), (301, 302)], [(106, 110)], [], [(105, 109), (107, 110)]):
        assert extents_weight(entries, wrong) is None
    assert extents_weight(Entries(), []) == 0
