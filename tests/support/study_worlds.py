"""Small worlds of the study, made by hand, with a tracker of each design."""

from collections import defaultdict

from whoseblock.study.base import PageOwner, Tracker, owner_of
from whoseblock.study.simulation.entries import Entries
from whoseblock.study.simulation.extents import Extents, PageExtent
from whoseblock.study.simulation.space import Space
from whoseblock.study.simulation.world import World
from whoseblock.study.trackers.on_demand import OnDemand, SpaceLookup
from whoseblock.study.trackers.per_extent import PerExtent
from whoseblock.study.trackers.per_page import PerPage


def world_of(*files: PageExtent, pages: int = 4096) -> World[Tracker]:
    """Return a world of these extents with a tracker of each design."""
    space = Space(Extents(sorted(files), [(pages - 1000, 1000)], pages, []))
    entries = Entries()
    trackers = (
        PerPage(space.segment_at),
        PerExtent(space.segment_at, entries),
        OnDemand(SpaceLookup(space)),
    )
    return World(space, entries, trackers)


def memory(world: World[Tracker]) -> list[int]:
    """Return the bytes that each tracker uses, after a recount."""
    for tracker in world.trackers:
        assert tracker.recount() == tracker.counts.memory
    return [tracker.counts.memory for tracker in world.trackers]


def fault_everything(world: World[Tracker], *files: PageExtent) -> None:
    """Fault in every page of the extents, one by one."""
    for mapping, index, page, count in files:
        for at in range(count):
            world.fault(PageExtent(mapping, index + at, page + at, 1))


def owners_by_page(space: Space) -> dict[int, set[PageOwner]]:
    """Return the owners of each page that has any."""
    found: dict[int, set[PageOwner]] = defaultdict(set)
    for segment in space.segments():
        for at in range(segment.end - segment.start):
            found[segment.start + at] = {owner_of(key + at) for key in segment.keys}
    return found
