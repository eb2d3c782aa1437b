"""How long a fault, a write that breaks sharing, and a failure take under each design.

A fault here is what it is without tracking, the filesystem's answer and an entry put in, and then
what the tracker does.  Both are Python: only their ratio means anything.  The same loops run over
the same entries in turn, on the processor's clock; what a design adds is the median of the rounds,
each against the one without tracking beside it.

What breaks sharing changes the extents, and cannot be done again: there all designs hear of the
same writes, each with a clock of its own.
"""

import gc
import random
import statistics
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Final

from whoseblock.study.base import INDEX_BITS, Tracker, Watcher, key_of
from whoseblock.study.entries import Entries
from whoseblock.study.intervals import Intervals
from whoseblock.study.on_demand import OnDemand
from whoseblock.study.per_extent import PerExtent
from whoseblock.study.per_page import PerPage
from whoseblock.study.results import FailureTime, FaultTime, WriteTime
from whoseblock.study.sizes import PAGE
from whoseblock.study.sources import ImageSource, Source, open_image
from whoseblock.study.workloads import entries_of
from whoseblock.study.world import World

if TYPE_CHECKING:
    from whoseblock.study.extents import Extent
    from whoseblock.study.space import Space

__all__ = ["failure_times", "fault_times", "write_times"]

_ROUNDS: Final = 5
_FAULTS: Final = 20_000
_WRITES: Final = 1_000
_WRITE_ROUNDS: Final = 3
_FAILURES: Final = 200
_MANY: Final = 10_000


def fault_times(source: Source, seed: int, most: int = _FAULTS) -> FaultTime:
    """Time about ``most`` faults of a source, in file order, with all files that share them."""
    space = source.space()
    entries = _sample(space, seed, most)
    rounds: list[dict[str, float]] = []
    with _undisturbed():
        for _ in range(_ROUNDS):
            designs = _designs(source, space).items()
            rounds.append({name: _time_faults(space, entries, make) for name, make in designs})
    none = statistics.median(one["none"] for one in rounds)
    ratios = {
        name: statistics.median(one[name] / one["none"] for one in rounds) for name in rounds[0]
    }
    pages = len({entry.page for entry in entries})
    return FaultTime(
        source.name,
        len(entries) / pages if pages else 0.0,
        len(entries),
        none,
        {name: (ratio - 1) * none for name, ratio in ratios.items() if name != "none"},
    )


def _designs(source: Source, space: "Space") -> "dict[str, Callable[[Entries], Tracker] | None]":
    return {
        "none": None,
        "per page": lambda _entries: PerPage(),
        "per extent": lambda entries: PerExtent(space.segment_at, entries),
        "on demand": lambda _entries: OnDemand(source.lookup(space)),
    }


def _sample(space: "Space", seed: int, most: int) -> "list[Extent]":
    """Choose extents of the device at random until there are enough entries of all who share."""
    segments = list(space.segments())
    random.Random(seed).shuffle(segments)  # noqa: S311 - repeatable, not secret
    wanted = Intervals()
    count = 0
    for segment in segments:
        pages = min(segment.end - segment.start, 1 + (most - count) // len(segment.keys))
        wanted.add(segment.start, segment.start + pages)
        count += pages * len(segment.keys)
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


def _time_faults(
    space: "Space", entries: "list[Extent]", make: "Callable[[Entries], Tracker] | None"
) -> float:
    """Give the seconds of one fault."""
    held = Entries()
    page_of, insert = space.page_of, held.insert
    if make is None:
        begun = time.process_time()
        for mapping, index, _, _ in entries:
            key = mapping << INDEX_BITS | index
            page = page_of(key)
            if page is not None:
                insert(key, page)
    else:
        associate = make(held).associate
        begun = time.process_time()
        for mapping, index, _, _ in entries:
            key = mapping << INDEX_BITS | index
            page = page_of(key)
            if page is not None:
                insert(key, page)
                associate(page, mapping, index)
    return (time.process_time() - begun) / max(len(entries), 1)


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
    faulted = _sample(source.space(), seed, 2 * most)
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
    source: Source, faulted: "list[Extent]", seed: int, most: int
) -> tuple[int, dict[str, float]]:
    """Give how many writes were made, and the seconds of one for each who heard of them."""
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
    machine; *warm* is the same question again; *at once* is many failures told together.
    """
    space = source.space()
    entries = _sample(space, seed, _FAULTS)
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
                begun = time.perf_counter()
                filesystem.owners(page * PAGE, PAGE, paths=False)
                seconds = time.perf_counter() - begun
                times.append((seconds, filesystem.reads.total() - before))
    yield _summary("on demand, cold", cold)
    yield _summary("on demand, warm", warm)
    with open_image(source.path) as filesystem:
        _ = filesystem.doubts
        before = filesystem.reads.total()
        begun = time.perf_counter()
        filesystem.owners_of([page * PAGE for page in many], [PAGE] * len(many))
        seconds = (time.perf_counter() - begun) / len(many)
        blocks = (filesystem.reads.total() - before) / len(many)
    yield FailureTime(
        f"on demand, {len(many):,} at once", len(many), seconds, seconds, blocks, -int(-blocks // 1)
    )


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
        statistics.median(seconds),
        max(seconds),
        statistics.median(blocks),
        max(blocks),
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
