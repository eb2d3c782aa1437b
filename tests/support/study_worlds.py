"""Small worlds of the study, made by hand, with a tracker of each design."""

from collections import defaultdict

from whoseblock.study.base import Owner, Tracker, owner_of
from whoseblock.study.entries import Entries
from whoseblock.study.extents import Extent, Extents
from whoseblock.study.on_demand import OnDemand, SpaceLookup
from whoseblock.study.per_extent import PerExtent
from whoseblock.study.per_page import PerPage
from whoseblock.study.space import Space
from whoseblock.study.world import World


def world_of(*files: Extent, pages: int = 4096) -> World[Tracker]:
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


def fault_everything(world: World[Tracker], *files: Extent) -> None:
    """Fault in every page of the extents, one by one."""
    for mapping, index, page, count in files:
        for at in range(count):
            world.fault(Extent(mapping, index + at, page + at, 1))


def owners_by_page(space: Space) -> dict[int, set[Owner]]:
    """Return the owners of each page that has any."""
    found: dict[int, set[Owner]] = defaultdict(set)
    for segment in space.segments():
        for at in range(segment.end - segment.start):
            found[segment.start + at] = {owner_of(key + at) for key in segment.keys}
    return found
