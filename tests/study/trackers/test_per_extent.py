"""The tracker of owners per extent: how its records are made, cut and joined."""

from tests.support.study_worlds import fault_everything, memory, world_of

from whoseblock.study.base import PageOwner
from whoseblock.study.simulation.extents import PageExtent


def test_a_shared_extent_is_one_record() -> None:
    world = world_of(
        PageExtent(1, 0, 100, 10), PageExtent(2, 5, 100, 10), PageExtent(1, 20, 200, 4)
    )
    for page in (3, 4, 9):
        world.fault(PageExtent(1, page, 100 + page, 1))
    assert memory(world) == [0, 192 + 40, 0]
    world.fault(PageExtent(2, 9, 104, 1))
    assert memory(world) == [96, 192 + 2 * 40, 0]
    # Not shared, hence free of charge.
    world.fault(PageExtent(1, 20, 200, 1))
    assert memory(world) == [96, 192 + 2 * 40, 0]
    per_extent = world.trackers[1]
    assert per_extent.owners(104) == (PageOwner(1, 4), PageOwner(2, 9))
    assert per_extent.owners(103) == (PageOwner(1, 3),)
    assert per_extent.owners(102) == ()
    assert world.trackers[2].owners(102) == (PageOwner(1, 2), PageOwner(2, 7))


def test_the_fault_after_a_write_cuts_the_record() -> None:
    files = [PageExtent(mapping, 0, 100, 10) for mapping in (1, 2, 3)]
    world = world_of(*files)
    fault_everything(world, *files)
    assert memory(world) == [10 * (16 + 3 * 40), 192 + 3 * 40, 0]
    # The page is shared by two now, and who looks for them finds no third.
    world.write(2, 4)
    per_extent = world.trackers[1]
    assert memory(world) == [9 * 136 + 96, 192 + 3 * 40, 0]
    assert per_extent.owners(104) == (PageOwner(1, 4), PageOwner(3, 4))
    assert per_extent.counts.page_writes == 0
    # Of file 3 nothing is left; a fault of it on the first page cuts behind the fourth.
    world.evict(3)
    assert memory(world) == [9 * 96 + 56, 192 + 2 * 40, 0]
    world.fault(PageExtent(3, 0, 100, 1))
    assert memory(world)[1] == 2 * 192 + (3 + 2) * 40
    assert per_extent.counts.page_writes == 4
    # One on the eighth cuts off the fifth, which file 2 does not have any more.
    world.fault(PageExtent(3, 7, 107, 1))
    assert memory(world)[1] == 3 * 192 + (3 + 1 + 3) * 40
    assert per_extent.counts.page_writes == 4 + 1
    assert per_extent.owners(104) == (PageOwner(1, 4),)
    assert per_extent.owners(107) == (PageOwner(1, 7), PageOwner(2, 7), PageOwner(3, 7))


def test_a_record_stays_while_any_of_its_pages_has_an_entry() -> None:
    files = [PageExtent(mapping, 0, 100, 2) for mapping in (1, 2)]
    world = world_of(*files)
    fault_everything(world, *files)
    # Two writes leave file 2 with copies alone, in the places of the file that it had before.
    world.write(2, 0, 2)
    assert memory(world) == [2 * 56, 192 + 40, 0]
    assert world.trackers[1].owners(100) == (PageOwner(1, 0),)
    world.truncate(1, 0)
    assert memory(world) == [0, 0, 0]


def test_an_unshared_page_inside_a_record_belongs_to_the_record() -> None:
    files = [PageExtent(mapping, 0, 100, 3) for mapping in (1, 2)]
    world = world_of(*files, pages=1103)
    fault_everything(world, *files)
    for mapping in (1, 2):
        world.punch(mapping, 1, 1)
    assert world.space.allocate(1) == 101
    world.space.add(PageExtent(3, 8, 101, 1))
    world.fault(PageExtent(3, 8, 101, 1))
    assert world.trackers[1].owners(101) == (PageOwner(3, 8),)
    assert memory(world)[1] == 192 + 3 * 40
    world.truncate(3, 0)
    assert memory(world)[1] == 192 + 2 * 40


def test_records_join_when_their_extents_join() -> None:
    files = [PageExtent(1, 0, 100, 10), PageExtent(2, 0, 100, 10), PageExtent(3, 0, 103, 7)]
    world = world_of(*files)
    fault_everything(world, *files[:2])
    world.fault(PageExtent(3, 0, 103, 1))
    assert memory(world)[1] == 2 * 192 + (2 + 3) * 40
    world.truncate(3, 0)
    assert memory(world)[1] == 2 * 192 + (2 + 2) * 40
    world.evict(1)
    world.fault(PageExtent(1, 0, 100, 1))
    assert memory(world)[1] == 192 + 2 * 40
    # The first part has three pages, which are to point to the other's record.
    assert world.trackers[1].counts.page_writes == 3
    world.evict(1)
    assert memory(world)[1] == 192 + 40
    world.evict(2)
    assert memory(world) == [0, 0, 0]


def test_records_that_join_keep_the_owners_of_both() -> None:
    world = world_of(PageExtent(1, 0, 100, 10), PageExtent(2, 0, 100, 10), PageExtent(3, 0, 103, 7))
    world.fault(PageExtent(1, 0, 100, 1))
    world.fault(PageExtent(2, 5, 105, 1))
    assert memory(world)[1] == 2 * (192 + 40)
    world.truncate(3, 0)
    world.fault(PageExtent(1, 1, 101, 1))
    assert memory(world)[1] == 192 + 2 * 40
    assert world.trackers[1].owners(105) == (PageOwner(2, 5),)
    assert world.trackers[1].owners(100) == (PageOwner(1, 0),)


def test_entries_older_than_the_sharing_are_found() -> None:
    world = world_of(PageExtent(1, 0, 100, 10), PageExtent(2, 50, 500, 1))
    world.fault(PageExtent(1, 7, 107, 1))
    assert memory(world)[1] == 0
    world.reflink(PageExtent(1, 5, 105, 5), 2, 0)
    world.fault(PageExtent(2, 2, 107, 1))
    assert world.trackers[1].owners(107) == (PageOwner(1, 7), PageOwner(2, 2))
    assert memory(world)[1] == 192 + 2 * 40
