"""The three designs by hand: what they hold after a few faults, and what it weighs."""

import struct
from pathlib import Path
from typing import Any

import pytest
from tests.support.tools import Missing

from whoseblock.study import sizes
from whoseblock.study.arithmetic import per_page_bytes
from whoseblock.study.base import Found, Owner, Tracker, key_of, owner_of
from whoseblock.study.dax import Processes
from whoseblock.study.entries import Entries
from whoseblock.study.extents import Extent, Extents, made_up
from whoseblock.study.intervals import Intervals
from whoseblock.study.on_demand import OnDemand, SpaceLookup
from whoseblock.study.per_extent import PerExtent
from whoseblock.study.per_page import PerPage
from whoseblock.study.recount import extents_weight, pages_weight, shared_extents
from whoseblock.study.space import Segment, Space
from whoseblock.study.world import World


def world_of(*files: Extent, pages: int = 4096) -> World[Tracker]:
    space = Space(Extents(sorted(files), [(pages - 1000, 1000)], pages, []))
    entries = Entries()
    trackers = (
        PerPage(space.segment_at),
        PerExtent(space.segment_at, entries),
        OnDemand(SpaceLookup(space)),
    )
    return World(space, entries, trackers)


def memory(world: World[Tracker]) -> list[int]:
    for tracker in world.trackers:
        assert tracker.recount() == tracker.counts.memory
    return [tracker.counts.memory for tracker in world.trackers]


@pytest.mark.parametrize(
    ("owners", "weight"), [(1, 0), (2, 96), (3, 136), (4, 176), (8, 336), (64, 2576)]
)
def test_a_page_of_n_owners_weighs_16_and_40_n(owners: int, weight: int) -> None:
    tracker = PerPage()
    for mapping in range(1, owners + 1):
        tracker.associate(307, mapping, 256)
    assert tracker.counts.memory == tracker.recount() == per_page_bytes(owners) == weight
    assert tracker.owners(307) == tuple(Owner(one, 256) for one in range(1, owners + 1))
    assert tracker.owners(308) == ()


def test_an_entry_of_2_mib_is_512_pages() -> None:
    tracker = PerPage()
    for mapping in (1, 2):
        tracker.associate(1024, mapping, 512, 512)
    assert tracker.counts.memory == 512 * (16 + 2 * 40)
    assert tracker.counts.allocations == 512 * 3
    assert tracker.owners(1024 + 511) == (Owner(1, 1023), Owner(2, 1023))


def test_root_and_node_stay_with_the_last_owner() -> None:
    tracker = PerPage()
    for mapping in (1, 2, 3):
        tracker.associate(7, mapping, 0)
    tracker.disassociate(7, 2, 0)
    assert tracker.counts.memory == 96
    tracker.disassociate(7, 1, 0)
    assert tracker.counts.memory == tracker.recount() == 56
    assert tracker.owners(7) == (Owner(3, 0),)
    tracker.disassociate(7, 3, 0)
    assert tracker.counts.memory == tracker.recount() == 0
    assert tracker.counts.peak == 136
    assert tracker.counts.allocations == tracker.counts.frees == 4


def test_who_is_there_already_is_not_put_in_again() -> None:
    tracker = PerPage()
    tracker.associate(7, 1, 0)
    tracker.associate(7, 1, 0)
    assert tracker.counts.memory == tracker.recount() == 0
    for _ in range(2):
        tracker.associate(7, 2, 0)
    assert tracker.counts.memory == tracker.recount() == 96
    assert tracker.owners(7) == (Owner(1, 0), Owner(2, 0))


def test_only_pages_that_are_shared_are_locked() -> None:
    files = [Extent(1, 0, 100, 10), Extent(2, 0, 106, 4)]
    world = world_of(*files)
    everything(world, *files)
    per_page, per_extent, _ = (tracker.counts.locks for tracker in world.trackers)
    # And once all records, when one is made.
    assert (per_page, per_extent) == (8, 8 + 1)
    world.evict(1)
    per_page, per_extent, _ = (tracker.counts.locks for tracker in world.trackers)
    assert (per_page, per_extent) == (8 + 4, 8 + 1 + 4)


def test_the_entries_of_a_page_are_counted() -> None:
    tracker = OnDemand(lambda _: Found("unknown", []))
    tracker.associate(7, 1, 0, 2)
    tracker.associate(8, 2, 5)
    assert tracker.share == {7: 1, 8: 2}
    tracker.disassociate(8, 1, 1)
    assert tracker.share == {7: 1, 8: 1}
    tracker.disassociate(7, 1, 0)
    assert tracker.share == {8: 1}


def test_what_is_not_there_is_not_forgotten() -> None:
    tracker = PerPage()
    tracker.disassociate(7, 1, 0)
    tracker.associate(7, 1, 0)
    tracker.disassociate(7, 2, 0)
    assert tracker.owners(7) == (Owner(1, 0),)


def test_a_shared_extent_is_one_record() -> None:
    world = world_of(Extent(1, 0, 100, 10), Extent(2, 5, 100, 10), Extent(1, 20, 200, 4))
    for page in (3, 4, 9):
        world.fault(Extent(1, page, 100 + page, 1))
    assert memory(world) == [0, 192 + 40, 0]
    world.fault(Extent(2, 9, 104, 1))
    assert memory(world) == [96, 192 + 2 * 40, 0]
    # Not shared, hence free of charge.
    world.fault(Extent(1, 20, 200, 1))
    assert memory(world) == [96, 192 + 2 * 40, 0]
    per_extent = world.trackers[1]
    assert per_extent.owners(104) == (Owner(1, 4), Owner(2, 9))
    assert per_extent.owners(103) == (Owner(1, 3),)
    assert per_extent.owners(102) == ()
    assert world.trackers[2].owners(102) == (Owner(1, 2), Owner(2, 7))


def everything(world: World[Tracker], *files: Extent) -> None:
    for mapping, index, page, count in files:
        for at in range(count):
            world.fault(Extent(mapping, index + at, page + at, 1))


def test_the_next_fault_cuts_what_a_write_parted() -> None:
    files = [Extent(mapping, 0, 100, 10) for mapping in (1, 2, 3)]
    world = world_of(*files)
    everything(world, *files)
    assert memory(world) == [10 * (16 + 3 * 40), 192 + 3 * 40, 0]
    # The page is shared by two now, and who looks for them finds no third.
    world.write(2, 4)
    per_extent = world.trackers[1]
    assert memory(world) == [9 * 136 + 96, 192 + 3 * 40, 0]
    assert per_extent.owners(104) == (Owner(1, 4), Owner(3, 4))
    assert per_extent.counts.page_writes == 0
    # Of file 3 nothing is left; a fault of it on the first page cuts behind the fourth.
    world.evict(3)
    assert memory(world) == [9 * 96 + 56, 192 + 2 * 40, 0]
    world.fault(Extent(3, 0, 100, 1))
    assert memory(world)[1] == 2 * 192 + (3 + 2) * 40
    assert per_extent.counts.page_writes == 4
    # One on the eighth cuts off the fifth, which file 2 does not have any more.
    world.fault(Extent(3, 7, 107, 1))
    assert memory(world)[1] == 3 * 192 + (3 + 1 + 3) * 40
    assert per_extent.counts.page_writes == 4 + 1
    assert per_extent.owners(104) == (Owner(1, 4),)
    assert per_extent.owners(107) == (Owner(1, 7), Owner(2, 7), Owner(3, 7))


def test_a_record_stays_while_an_entry_of_its_pages_does() -> None:
    files = [Extent(mapping, 0, 100, 2) for mapping in (1, 2)]
    world = world_of(*files)
    everything(world, *files)
    # Two writes leave file 2 with copies alone, in the places of the file that it had before.
    world.write(2, 0, 2)
    assert memory(world) == [2 * 56, 192 + 40, 0]
    assert world.trackers[1].owners(100) == (Owner(1, 0),)
    world.truncate(1, 0)
    assert memory(world) == [0, 0, 0]


def test_a_page_that_lies_in_a_record_belongs_to_it_shared_or_not() -> None:
    files = [Extent(mapping, 0, 100, 3) for mapping in (1, 2)]
    world = world_of(*files, pages=1103)
    everything(world, *files)
    for mapping in (1, 2):
        world.punch(mapping, 1, 1)
    assert world.space.allocate(1) == 101
    world.space.add(Extent(3, 8, 101, 1))
    world.fault(Extent(3, 8, 101, 1))
    assert world.trackers[1].owners(101) == (Owner(3, 8),)
    assert memory(world)[1] == 192 + 3 * 40
    world.truncate(3, 0)
    assert memory(world)[1] == 192 + 2 * 40


def test_records_join_when_the_extents_do() -> None:
    files = [Extent(1, 0, 100, 10), Extent(2, 0, 100, 10), Extent(3, 0, 103, 7)]
    world = world_of(*files)
    everything(world, *files[:2])
    world.fault(Extent(3, 0, 103, 1))
    assert memory(world)[1] == 2 * 192 + (2 + 3) * 40
    world.truncate(3, 0)
    assert memory(world)[1] == 2 * 192 + (2 + 2) * 40
    world.evict(1)
    world.fault(Extent(1, 0, 100, 1))
    assert memory(world)[1] == 192 + 2 * 40
    # The first part has three pages, which are to point to the other's record.
    assert world.trackers[1].counts.page_writes == 3
    world.evict(1)
    assert memory(world)[1] == 192 + 40
    world.evict(2)
    assert memory(world) == [0, 0, 0]


def test_records_that_join_keep_the_owners_of_both() -> None:
    world = world_of(Extent(1, 0, 100, 10), Extent(2, 0, 100, 10), Extent(3, 0, 103, 7))
    world.fault(Extent(1, 0, 100, 1))
    world.fault(Extent(2, 5, 105, 1))
    assert memory(world)[1] == 2 * (192 + 40)
    world.truncate(3, 0)
    world.fault(Extent(1, 1, 101, 1))
    assert memory(world)[1] == 192 + 2 * 40
    assert world.trackers[1].owners(105) == (Owner(2, 5),)
    assert world.trackers[1].owners(100) == (Owner(1, 0),)


def test_what_was_faulted_before_it_was_shared_is_found() -> None:
    world = world_of(Extent(1, 0, 100, 10), Extent(2, 50, 500, 1))
    world.fault(Extent(1, 7, 107, 1))
    assert memory(world)[1] == 0
    world.reflink(Extent(1, 5, 105, 5), 2, 0)
    world.fault(Extent(2, 2, 107, 1))
    assert world.trackers[1].owners(107) == (Owner(1, 7), Owner(2, 2))
    assert memory(world)[1] == 192 + 2 * 40


class Spy:
    """Writes down what the filesystem and the file say when it hears of an entry."""

    def __init__(self) -> None:
        self.world: World[Spy]
        self.heard: list[tuple[str, int, list[Owner], bool]] = []

    def _hear(self, what: str, page: int, key: int) -> None:
        owners = [owner_of(one) for one in self.world.space.keys(page)]
        self.heard.append((what, page, owners, key in self.world.entries))

    def associate(self, page: int, mapping: int, index: int, count: int = 1) -> None:
        assert count == 1
        self._hear("+", page, key_of(mapping, index))

    def disassociate(self, page: int, mapping: int, index: int, count: int = 1) -> None:
        assert count == 1
        self._hear("-", page, key_of(mapping, index))


def test_trackers_hear_before_anything_has_changed() -> None:
    spy = Spy()
    files = [Extent(1, 0, 100, 3), Extent(2, 0, 100, 3)]
    space = Space(Extents(files, [(200, 10)], 300, []))
    spy.world = world = World(space, Entries(), [spy])
    both = [[Owner(1, at), Owner(2, at)] for at in range(3)]
    world.fault(Extent(1, 0, 100, 1))
    assert spy.heard.pop() == ("+", 100, both[0], False)
    # A copy is nobody's until its entry is there, and the old page is the file's until then.
    assert world.write(1, 0) == [(100, 1), (200, 1)]
    assert spy.heard == [("-", 100, both[0], True), ("+", 200, [], False)]
    assert space.keys(100) == [key_of(2, 0)]
    assert space.keys(200) == [key_of(1, 0)]
    for at in (1, 2):
        world.fault(Extent(1, at, 100 + at, 1))
    spy.heard.clear()
    world.punch(1, 1, 1)
    world.reflink(Extent(2, 0, 100, 1), 1, 2)
    world.truncate(1, 0)
    assert spy.heard == [
        ("-", 101, both[1], True),
        ("-", 102, both[2], True),
        ("-", 200, [Owner(1, 0)], True),
    ]


def test_an_entry_ends_where_sharing_does() -> None:
    files = [Extent(1, 0, 512, 512), Extent(2, 0, 512, 512), Extent(3, 0, 600, 1)]
    world = world_of(*files)
    # Three files or two, it is shared all the same.
    world.fault(files[0])
    assert (world.faults, world.associations) == (1, 512)
    for mapping in (2, 3):
        world.punch(mapping, 88 if mapping == 2 else 0, 1)
    world.evict(1)
    world.fault(files[0])
    assert (world.faults, world.associations) == (1 + 512, 1024)


def test_a_process_has_in_its_page_tables_what_it_touched() -> None:
    processes = Processes()
    for process, mapping in ((10, 1), (11, 1), (12, 2)):
        processes.map(process, mapping)
    for process in (10, 11):
        processes.touch(process, key_of(1, 5), 2)
    assert processes.with_page(key_of(1, 6)) == [10, 11]
    assert processes.with_page(key_of(1, 7)) == processes.with_page(key_of(2, 5)) == []
    # When the entry goes, it goes from all page tables.
    processes.disassociate(300, 1, 6)
    assert processes.with_page(key_of(1, 6)) == []
    processes.unmap(10, 1)
    assert processes.with_page(key_of(1, 5)) == [11]
    assert processes.mapped(1)
    processes.unmap(11, 1)
    assert not processes.mapped(1)
    assert not processes.mapped(3)


def test_what_trackers_must_weigh_by_hand() -> None:
    files = [Extent(1, 0, 100, 10), Extent(2, 0, 105, 5), Extent(3, 7, 300, 1)]
    world = world_of(*files)
    everything(world, *files)
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


def test_what_is_put_between_two_extents_makes_one_of_them() -> None:
    space = Space(Extents([Extent(1, 0, 100, 10)], [], 300, []))
    updates = []
    for step in (
        lambda: space.remove(1, 4, 2),
        lambda: space.add(Extent(1, 4, 104, 2)),
        lambda: space.remove(1, 8, 2),
        lambda: space.add(Extent(1, 8, 108, 1)),
        lambda: space.add(Extent(1, 9, 200, 1)),
        lambda: space.remove(1, 0, 1),
        lambda: space.add(Extent(1, 0, 100, 1)),
    ):
        before = space.rmap_updates
        step()
        updates.append(space.rmap_updates - before)
    # One changed and one new, then one changed and one gone.
    assert updates == [2, 2, 1, 1, 1, 1, 1]
    assert space.extents(1) == [Extent(1, 0, 100, 9), Extent(1, 9, 200, 1)]


def test_keys() -> None:
    assert owner_of(key_of(1 << 40, (1 << 51) - 1)) == Owner(1 << 40, (1 << 51) - 1)


def test_segments() -> None:
    space = Space(Extents([Extent(1, 0, 10, 10), Extent(2, 3, 15, 5)], [(0, 10)], 100, []))
    assert space.segment_at(12) == Segment(10, 15, (key_of(1, 0),))
    assert space.segment_at(17) == Segment(15, 20, (key_of(1, 5), key_of(2, 3)))
    assert space.segment_at(5) == Segment(0, 10, ())
    assert space.segment_at(50) == Segment(20, 100, ())
    assert space.page_of(key_of(2, 4)) == 16
    assert space.page_of(key_of(2, 2)) is None
    assert space.page_of(key_of(3, 0)) is None
    assert Space(Extents([], [], 10, [])).segment_at(3) == Segment(0, 10, ())


def test_intervals() -> None:
    runs = Intervals()
    for start, end in ((10, 20), (30, 40), (20, 25), (5, 6), (24, 31)):
        runs.add(start, end)
    assert [one for one in range(50) if one in runs] == [5, *range(10, 40)]
    assert len(runs) == 31
    for start, end in ((4, 5), (6, 10), (40, 50), (8, 8)):
        assert not runs.overlap(start, end)
    for start, end in ((0, 6), (9, 11), (39, 40), (20, 21), (0, 99)):
        assert runs.overlap(start, end)


def test_made_up_extents_are_shared_by_as_many_as_asked() -> None:
    space = Space(made_up(3000, 5, seed=1))
    assert {len(segment.keys) for segment in space.segments()} == {5}
    assert made_up(3000, 5, seed=1) == made_up(3000, 5, seed=1)
    assert any(one.length == 512 and one.page % 512 == 0 for one in made_up(9000, 1, seed=1).files)


def kernel_sizes() -> dict[str, int]:
    """Read the sizes of structures from the type information of the running kernel (BTF)."""
    try:
        raw = Path("/sys/kernel/btf/vmlinux").read_bytes()
    except OSError as error:
        raise Missing(f"this kernel shows no types: {error}") from error
    _, _, _, header, types, length, strings, _ = struct.unpack_from("<HBBIIIII", raw)
    at, end = header + types, header + types + length
    # What follows the three words of a type, by its kind: bytes, and bytes for each member.
    fixed = {1: 4, 3: 12, 14: 4, 17: 4}
    each = {4: 12, 5: 12, 6: 8, 13: 8, 15: 12, 19: 12}
    found: dict[str, Any] = {}
    while at < end:
        name, info, size = struct.unpack_from("<III", raw, at)
        kind = info >> 24 & 31
        at += 12 + fixed.get(kind, 0) + each.get(kind, 0) * (info & 0xFFFF)
        if kind == 4:
            start = header + strings + name
            found[raw[start : raw.index(0, start)].decode()] = size
    return found


def test_the_structures_weigh_what_the_kernel_says() -> None:
    found = kernel_sizes()
    assert found["rb_node"] == sizes.RB_NODE
    assert found["rb_root_cached"] == sizes.RB_ROOT_CACHED
    assert sizes.SHARED_FILE == 40
    # Options of the kernel's configuration add to it.
    assert sizes.ADDRESS_SPACE <= found["address_space"] <= sizes.ADDRESS_SPACE + 64
