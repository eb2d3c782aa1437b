"""Measure the time of an entry, of a write that breaks sharing, and of a failure in each design.

A fault has the cost without tracking (a query of the filesystem and an inserted entry) and the cost
of the tracker. Each entry is removed again, as when its inode is evicted. All code is Python, so
only ratios are meaningful. The same loops run over the same entries in turn, on the clock of the
processor. The cost of a design is the median of the rounds, each compared with the round without
tracking beside it.

What breaks sharing changes the extents, and cannot be done again: there all designs hear of the
same writes, each with a clock of its own.
"""

import gc
import random
import statistics
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Final, NamedTuple

from whoseblock.study.base import INDEX_BITS, Tracker, Watcher, key_of
from whoseblock.study.measurements.sources import ImageSource, Source, open_image
from whoseblock.study.results import EntryTime, FailureTime, WriteTime
from whoseblock.study.simulation.entries import Entries
from whoseblock.study.simulation.intervals import Intervals
from whoseblock.study.simulation.workloads import entries_of
from whoseblock.study.simulation.world import World
from whoseblock.study.sizes import PAGE
from whoseblock.study.trackers.on_demand import OnDemand
from whoseblock.study.trackers.per_extent import PerExtent
from whoseblock.study.trackers.per_page import PerPage

if TYPE_CHECKING:
    from whoseblock.study.simulation.extents import PageExtent
    from whoseblock.study.simulation.space import Segment, Space

__all__ = ["entry_times", "failure_times", "sample", "write_times"]

_ROUNDS: Final = 3
_ENTRIES: Final = 10_000
#: They are chosen by runs of so many pages at most: every page is as likely as any other.
_RUN: Final = 64
_WRITES: Final = 1_000
_WRITE_ROUNDS: Final = 3
_FAILURES: Final = 200
_MANY: Final = 10_000


class _Seconds(NamedTuple):
    """The time to insert an entry and to remove it."""

    put_in: float
    taken_out: float


def entry_times(source: Source, seed: int, most: int = _ENTRIES) -> EntryTime:
    """Time about ``most`` faults of a source, in file order, with all files that share them.

    Then all entries are taken out again, in the same order.
    """
    space = source.space()
    entries = sample(space, seed, most)
    designs = _designs(source, space, entries)
    with _undisturbed():
        rounds = [
            {name: _time(space, entries, make) for name, make in designs.items()}
            for _ in range(_ROUNDS)
        ]
    put_in, added = _compared([{name: one.put_in for name, one in each.items()} for each in rounds])
    taken_out, out_added = _compared(
        [{name: one.taken_out for name, one in each.items()} for each in rounds]
    )
    pages = len({entry.page for entry in entries})
    return EntryTime(
        extents=source.name,
        sharing=len(entries) / pages if pages else 0.0,
        entries=len(entries),
        none=put_in,
        added=added,
        out_none=taken_out,
        out_added=out_added,
    )


def _compared(rounds: list[dict[str, float]]) -> tuple[float, dict[str, float]]:
    """Return the seconds without tracking, and the seconds that each design adds."""
    none = statistics.median(one["none"] for one in rounds)
    ratios = {
        name: statistics.median(one[name] / one["none"] for one in rounds) for name in rounds[0]
    }
    return none, {name: (ratio - 1) * none for name, ratio in ratios.items() if name != "none"}


def _designs(
    source: Source, space: "Space", entries: "list[PageExtent]"
) -> "dict[str, Callable[[Entries], Tracker] | None]":
    # Per extent has the bounds of a page's extent for free, by its assumption.
    bounds: dict[int, Segment] = {entry.page: space.segment_at(entry.page) for entry in entries}
    return {
        "none": None,
        "per page": lambda _held: PerPage(),
        "per extent": lambda held: PerExtent(bounds.__getitem__, held),
        "on demand": lambda _held: OnDemand(source.lookup(space)),
    }


def sample(space: "Space", seed: int, most: int) -> "list[PageExtent]":
    """Choose runs of pages at random until there are enough entries of all files that share them.

    Runs, and not pages by themselves, since faults that come one behind the other are cheaper for
    who keeps a record of an extent.
    """
    runs = [
        (start, min(start + _RUN, segment.end), len(segment.keys))
        for segment in space.segments()
        for start in range(segment.start, segment.end, _RUN)
    ]
    random.Random(seed).shuffle(runs)  # noqa: S311 - repeatable, not secret
    wanted = Intervals()
    count = 0
    for start, end, files in runs:
        pages = min(end - start, 1 + (most - count) // files)
        wanted.add(start, start + pages)
        count += pages * files
        if count >= most:
            break
    return [
        entry
        for mapping in space.mappings()
        for extent in space.extents(mapping)
        # Nearly all of a million entries are those of other extents.
        if wanted.overlap(extent.page, extent.page + extent.length)
        for entry in entries_of(extent, 1)
        if entry.page in wanted
    ]


def _time(
    space: "Space", entries: "list[PageExtent]", make: "Callable[[Entries], Tracker] | None"
) -> _Seconds:
    """Return the seconds of one entry."""
    held = Entries()
    page_of, insert, remove = space.page_of, held.insert, held.remove
    if make is None:
        begun = time.process_time()
        for mapping, index, _, _ in entries:
            key = mapping << INDEX_BITS | index
            page = page_of(key)
            if page is not None:
                insert(key, page)
        halfway = time.process_time()
        for mapping, index, _, _ in entries:
            remove(mapping << INDEX_BITS | index)
    else:
        tracker = make(held)
        associate, disassociate = tracker.associate, tracker.disassociate
        begun = time.process_time()
        for mapping, index, _, _ in entries:
            key = mapping << INDEX_BITS | index
            page = page_of(key)
            if page is not None:
                insert(key, page)
                associate(page, mapping, index)
        halfway = time.process_time()
        for mapping, index, _, _ in entries:
            page = remove(mapping << INDEX_BITS | index)
            if page is not None:
                disassociate(page, mapping, index)
    end = time.process_time()
    count = max(len(entries), 1)
    return _Seconds((halfway - begun) / count, (end - halfway) / count)


class _Clocked:
    """Passes on what it hears, and counts the seconds that the other takes for it."""

    def __init__(self, other: Watcher) -> None:
        self._other = other
        self.seconds = 0.0

    def associate(self, page: int, mapping: int, index: int, count: int = 1) -> None:
        begun = time.perf_counter()
        self._other.associate(page, mapping, index, count)
        self.seconds += time.perf_counter() - begun

    def disassociate(self, page: int, mapping: int, index: int, count: int = 1) -> None:
        begun = time.perf_counter()
        self._other.disassociate(page, mapping, index, count)
        self.seconds += time.perf_counter() - begun


class _Deaf:
    """Hears nothing: what is left is the clock itself."""

    def associate(self, page: int, mapping: int, index: int, count: int = 1) -> None:
        pass

    disassociate = associate


def write_times(source: Source, seed: int, most: int = _WRITES) -> WriteTime:
    """Time up to ``most`` writes to pages that several files have and have faulted in, at random.

    Timed is what each design does when the writer's entry goes, and comes back on its own page; not
    what the filesystem does, which is the same for all.
    """
    faulted = sample(source.space(), seed, 2 * most)
    pages = len({entry.page for entry in faulted})
    rounds = [_time_writes(source, faulted, seed + number, most) for number in range(_WRITE_ROUNDS)]
    times = [seconds for _, seconds in rounds]
    middle = {name: statistics.median(one[name] for one in times) for name in times[0]}
    return WriteTime(
        extents=source.name,
        sharing=len(faulted) / pages if pages else 0.0,
        writes=sum(writes for writes, _ in rounds),
        clock=middle.pop("clock"),
        seconds=middle,
    )


def _time_writes(
    source: Source, faulted: "list[PageExtent]", seed: int, most: int
) -> tuple[int, dict[str, float]]:
    """Return the number of writes, and the seconds of one for each receiver."""
    space, entries = source.space(), Entries()
    clocks: dict[str, _Clocked] = {
        "clock": _Clocked(_Deaf()),
        "per page": _Clocked(PerPage()),
        "per extent": _Clocked(PerExtent(space.segment_at, entries)),
        "on demand": _Clocked(OnDemand(source.lookup(space))),
    }
    world = World(space, entries, tuple(clocks.values()))
    for entry in faulted:
        world.fault(entry)
    for one in clocks.values():
        one.seconds = 0.0
    order = random.Random(seed).sample(faulted, len(faulted))  # noqa: S311 - repeatable, not secret
    writes = 0
    with _undisturbed():
        for mapping, index, page, _ in order:
            if writes < most and len(space.segment_at(page).keys) > 1:
                writes += len(world.write(mapping, index)) > 1
    return writes, {name: one.seconds / max(writes, 1) for name, one in clocks.items()}


def failure_times(source: ImageSource, seed: int) -> tuple[FailureTime, ...]:
    """Time failures of pages that files have, in each design; on demand with blocks read.

    *cold* is with nothing read before of the btrees, though perhaps in the page cache of the
    machine; *warm* is the same question again; *at once* is many failures told together. These are
    on the processor's clock; to read it takes as long as half of what a tracker does, so that
    trackers are on the other one.
    """
    space = source.space()
    entries = sample(space, seed, _ENTRIES)
    pages = sorted({entry.page for entry in entries})
    rng = random.Random(seed)  # noqa: S311 - as above
    chosen = rng.sample(pages, min(len(pages), _FAILURES))
    held = Entries()
    trackers: tuple[Tracker, ...] = (PerPage(), PerExtent(space.segment_at, held))
    for mapping, index, page, _ in entries:
        held.insert(key_of(mapping, index), page)
        for tracker in trackers:
            tracker.associate(page, mapping, index)
    with _undisturbed():
        found = [_summary(tracker.name, _each(tracker.find, chosen)) for tracker in trackers]
        return (*found, *_on_demand(source, chosen, _many(space, rng)))


def _many(space: "Space", rng: random.Random) -> list[int]:
    owned = [page for one in space.segments() for page in range(one.start, one.end)]
    return rng.sample(owned, min(len(owned), _MANY))


def _on_demand(source: ImageSource, pages: list[int], many: list[int]) -> Iterator[FailureTime]:
    cold: list[tuple[float, int]] = []
    warm: list[tuple[float, int]] = []
    for page in pages:
        # What depends on no question (the log, the superblock) is read by the doubts already.
        with open_image(source.path) as filesystem:
            _ = filesystem.doubts
            for times in (cold, warm):
                before = filesystem.reads.total()
                begun = time.process_time()
                filesystem.owners(page * PAGE, PAGE, paths=False)
                seconds = time.process_time() - begun
                times.append((seconds, filesystem.reads.total() - before))
    yield _summary("on demand, cold", cold)
    yield _summary("on demand, warm", warm)
    with open_image(source.path) as filesystem:
        _ = filesystem.doubts
        before = filesystem.reads.total()
        begun = time.process_time()
        filesystem.owners_of([page * PAGE for page in many], [PAGE] * len(many))
        seconds = (time.process_time() - begun) / len(many)
        blocks = (filesystem.reads.total() - before) / len(many)
    yield FailureTime(f"on demand, {len(many):,} at once", len(many), seconds, blocks)


def _each(find: Callable[[int], object], pages: list[int]) -> list[tuple[float, int]]:
    times = []
    for page in pages:
        begun = time.perf_counter()
        find(page)
        times.append((time.perf_counter() - begun, 0))
    return times


def _summary(design: str, times: list[tuple[float, int]]) -> FailureTime:
    seconds = [second for second, _ in times]
    blocks = [block for _, block in times]
    return FailureTime(
        design,
        len(times),
        mean=statistics.mean(seconds),
        blocks_mean=statistics.mean(blocks),
        median=statistics.median(seconds),
        worst=max(seconds),
        blocks_median=statistics.median(blocks),
        blocks_worst=max(blocks),
    )


@contextmanager
def _undisturbed() -> Iterator[None]:
    """Keep the collector of garbage out of what is timed."""
    gc.collect()
    gc.disable()
    try:
        yield
    finally:
        gc.enable()
