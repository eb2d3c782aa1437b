"""Files, their entries, and the trackers that are notified of changes."""

from tests.support.study_worlds import fault_everything, world_of

from whoseblock.study.base import PageOwner, Tracker, key_of, owner_of
from whoseblock.study.simulation.entries import Entries
from whoseblock.study.simulation.extents import Extents, PageExtent
from whoseblock.study.simulation.space import Space
from whoseblock.study.simulation.world import World


def test_only_shared_pages_are_locked() -> None:
    files = [PageExtent(1, 0, 100, 10), PageExtent(2, 0, 106, 4)]
    world = world_of(*files)
    fault_everything(world, *files)
    per_page, per_extent, _ = (tracker.counts.locks for tracker in world.trackers)
    # And once all records, when one is made.
    assert (per_page, per_extent) == (8, 8 + 1)
    world.evict(1)
    per_page, per_extent, _ = (tracker.counts.locks for tracker in world.trackers)
    assert (per_page, per_extent) == (8 + 4, 8 + 1 + 4)


class Spy:
    """Writes down what the filesystem and the file say when it hears of an entry."""

    def __init__(self) -> None:
        self.world: World[Spy]
        self.heard: list[tuple[str, int, list[PageOwner], bool]] = []

    def _hear(self, what: str, page: int, key: int) -> None:
        owners = [owner_of(one) for one in self.world.space.keys(page)]
        self.heard.append((what, page, owners, key in self.world.entries))

    def associate(self, page: int, mapping: int, index: int, count: int = 1) -> None:
        assert count == 1
        self._hear("+", page, key_of(mapping, index))

    def disassociate(self, page: int, mapping: int, index: int, count: int = 1) -> None:
        assert count == 1
        self._hear("-", page, key_of(mapping, index))


def test_trackers_are_told_before_the_change() -> None:
    spy = Spy()
    files = [PageExtent(1, 0, 100, 3), PageExtent(2, 0, 100, 3)]
    space = Space(Extents(files, [(200, 10)], 300, []))
    spy.world = world = World(space, Entries(), [spy])
    both = [[PageOwner(1, at), PageOwner(2, at)] for at in range(3)]
    world.fault(PageExtent(1, 0, 100, 1))
    assert spy.heard.pop() == ("+", 100, both[0], False)
    # A copy has no owner until its entry is there, and the old page is the file's until then.
    assert world.write(1, 0) == [(100, 1), (200, 1)]
    assert spy.heard == [("-", 100, both[0], True), ("+", 200, [], False)]
    assert space.keys(100) == [key_of(2, 0)]
    assert space.keys(200) == [key_of(1, 0)]
    for at in (1, 2):
        world.fault(PageExtent(1, at, 100 + at, 1))
    spy.heard.clear()
    world.punch(1, 1, 1)
    world.reflink(PageExtent(2, 0, 100, 1), 1, 2)
    world.truncate(1, 0)
    assert spy.heard == [
        ("-", 101, both[1], True),
        ("-", 102, both[2], True),
        ("-", 200, [PageOwner(1, 0)], True),
    ]


def test_an_entry_ends_where_the_sharing_ends() -> None:
    files = [PageExtent(1, 0, 512, 512), PageExtent(2, 0, 512, 512), PageExtent(3, 0, 600, 1)]
    world = world_of(*files)
    # Three files or two, it is shared all the same.
    world.fault(files[0])
    assert (world.faults, world.associations) == (1, 512)
    for mapping in (2, 3):
        world.punch(mapping, 88 if mapping == 2 else 0, 1)
    world.evict(1)
    world.fault(files[0])
    assert (world.faults, world.associations) == (1 + 512, 1024)


def test_a_step_returns_every_page_whose_owners_it_changes() -> None:
    files = [PageExtent(mapping, 0, 100, 10) for mapping in (1, 2)]
    space = Space(Extents(files, [(200, 10)], 300, []))
    world: World[Tracker] = World(space, Entries(), [])
    assert world.fault(PageExtent(1, 3, 103, 1)) == [(103, 1)]
    assert world.reflink(PageExtent(1, 0, 100, 2), 3, 5) == [(100, 2)]
    assert world.write(2, 4) == [(104, 1), (200, 1)]
    assert world.punch(1, 2, 2) == [(102, 2)]
    assert world.evict(1) == []
    assert world.evict(2) == [(200, 1)]
    assert world.truncate(2, 3) == [(103, 1), (200, 1), (105, 5)]
