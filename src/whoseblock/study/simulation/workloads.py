"""The workloads of a study: faults in some order, then a life with all kinds of changes.

All of it follows from the seed and from the extents.
"""

import random
from array import array
from collections.abc import Iterator
from typing import Final, NamedTuple

from whoseblock.study.base import Watcher, key_of
from whoseblock.study.simulation.dax import Processes
from whoseblock.study.simulation.extents import PageExtent
from whoseblock.study.simulation.space import Space
from whoseblock.study.simulation.world import World
from whoseblock.study.sizes import ENTRY_PAGES

__all__ = [
    "LIFE",
    "WORKLOADS",
    "Phase",
    "Workload",
    "WorkloadStep",
    "entries_of",
    "fault_in",
    "life",
]


#: Where in an extent, in pages: none has more than 2**21 blocks on the disk, joined ones may.
_PLACE_BITS: Final = 40
_PLACE: Final = (1 << _PLACE_BITS) - 1


class Workload(NamedTuple):
    """The order in which entries are faulted in, and their maximum number of pages."""

    name: str
    entry_pages: int
    order: str


WORKLOADS: Final = (
    Workload("4 KiB, file order", 1, "file"),
    Workload("4 KiB, random", 1, "random"),
    Workload("2 MiB, file order", ENTRY_PAGES, "file"),
    Workload("2 MiB, random", ENTRY_PAGES, "random"),
)
#: Half of the files faulted in, then a storm of writes, then everything, and failures in between.
LIFE: Final = Workload("life", 1, "random")

#: Of a thousand steps of everyday use; as many failures in a storm, too.
_CHANCES: Final = {
    "write": 400,
    "fault": 433,
    "map": 10,
    "unmap": 15,
    "evict": 10,
    "reflink": 60,
    "punch": 20,
    "truncate": 2,
    "fail": 50,
}
#: How often a page is looked for that is shared.
_TRIES: Final = 64
#: A process that comes reads at most so many pages, and what is cloned or punched has at most so
#: many.
_READ: Final = 512
_PIECE: Final = 64


class WorkloadStep(NamedTuple):
    """One thing that happens: to pages of a file, or to a page of the device."""

    what: str
    extent: PageExtent
    #: Of a reflink: the file that gets the extent, and where.
    to: tuple[int, int] = (0, 0)
    #: Who does it, if a process does.
    process: int = 0


def entries_of(extent: PageExtent, entry_pages: int) -> Iterator[PageExtent]:
    """Cut an extent into the entries that faults put in.

    A large entry needs the same alignment in the file and on the device; else it is small ones.
    """
    mapping, index, page, count = extent
    if entry_pages == 1 or (page - index) % entry_pages:
        # Nothing in it is aligned in both: a million times, that is worth to be known at once.
        for at in range(count):
            yield PageExtent(mapping, index + at, page + at, 1)
        return
    at = 0
    while at < count:
        size = 1
        if (page + at) % entry_pages == 0 and at + entry_pages <= count:
            size = entry_pages
        yield PageExtent(mapping, index + at, page + at, size)
        at += size


def fault_in(
    space: Space, workload: Workload, seed: int, mappings: list[int] | None = None
) -> Iterator[PageExtent]:
    """Return the entries of files, of all by default, in the order of a workload."""
    extents = [
        extent
        for mapping in (space.mappings() if mappings is None else mappings)
        for extent in space.extents(mapping)
    ]
    if workload.order == "file":
        for extent in extents:
            yield from entries_of(extent, workload.entry_pages)
        return
    # A million entries in a row would be as large as all that the designs keep: each is only the
    # number of its extent, and where in it.
    order = array(
        "Q",
        (
            number << _PLACE_BITS | entry.first - extent.first
            for number, extent in enumerate(extents)
            for entry in entries_of(extent, workload.entry_pages)
        ),
    )
    random.Random(seed).shuffle(order)  # noqa: S311 - repeatable, not secret
    for packed in order:
        mapping, index, page, count = extents[packed >> _PLACE_BITS]
        at = packed & _PLACE
        if workload.entry_pages == 1:
            yield PageExtent(mapping, index + at, page + at, 1)
        else:
            rest = PageExtent(mapping, index + at, page + at, count - at)
            yield next(entries_of(rest, workload.entry_pages))


class Phase(NamedTuple):
    """A part of a workload: about so many steps, which are made as they are taken."""

    name: str
    about: int
    steps: Iterator[WorkloadStep]


def life(
    world: World[Watcher],
    processes: Processes,
    seed: int,
    steps: int,
    others: list[tuple[int, int]],
) -> list[Phase]:
    """Yield the phases of a life: half of the files faulted in, a storm of writes, everyday use.

    The latter two have ``steps`` together; ``others`` are pages of metadata. Each step is made
    from what the filesystem and the processes are like when it is asked for, and must be taken
    before the next.
    """
    made = _Life(world, processes, seed, others)
    faults = sum(one.length for mapping in made.known for one in world.space.extents(mapping))
    storm, use = steps // 2, steps - steps // 2
    # Who comes and reads comes to the end of its file, mostly.
    read = use * _CHANCES["map"] // 1000 * _READ // 4
    return [
        Phase("faults", faults, made.faults()),
        Phase("write storm", storm, made.storm(storm)),
        Phase("everyday use", use + read, made.use(use)),
    ]


class _Life:
    """Makes the steps of a life. A process has one file mapped, all of it."""

    def __init__(
        self, world: World[Watcher], processes: Processes, seed: int, others: list[tuple[int, int]]
    ) -> None:
        self._space, self._in_core, self._processes = world.space, world.in_core, processes
        self._seed, self._others = seed, others
        self._rng = random.Random(seed)  # noqa: S311 - repeatable, not secret
        self._mappings = world.space.mappings()
        #: Half of the files; no process opens the others.
        self.known = sorted(self._rng.sample(self._mappings, -(-len(self._mappings) // 2)))
        #: Number and file of each process that there is.
        self._running: list[tuple[int, int]] = []
        self._begun = 0

    # ------------------------------------------------------------------ the phases

    def faults(self) -> Iterator[WorkloadStep]:
        """Map each known file in a process, and fault it in."""
        for mapping in self.known:
            yield self._begin(mapping)
        number = {mapping: process for process, mapping in self._running}
        for entry in fault_in(self._space, LIFE, self._seed, self.known):
            yield WorkloadStep("fault", entry, process=number[entry.mapping])

    def storm(self, steps: int) -> Iterator[WorkloadStep]:
        """Write to shared pages, and let a page fail now and then."""
        for _ in range(steps):
            if self._rng.randrange(1000) < _CHANCES["fail"]:
                yield self._fail()
            else:
                yield from self._write(shared=True)

    def use(self, steps: int) -> Iterator[WorkloadStep]:
        """Yield a mix of all kinds of steps."""
        names, weights = list(_CHANCES), list(_CHANCES.values())
        for what in self._rng.choices(names, weights, k=steps):
            match what:
                case "fail":
                    yield self._fail()
                case "write":
                    yield from self._write(shared=False)
                case "fault":
                    yield from self._fault()
                case "map":
                    yield from self._come()
                case "unmap":
                    yield from self._leave()
                case "evict":
                    yield from self._evict()
                case "reflink":
                    yield from self._reflink()
                case _:
                    yield from self._cut(what)

    # ------------------------------------------------------------------ processes

    def _begin(self, mapping: int) -> WorkloadStep:
        self._begun += 1
        self._running.append((self._begun, mapping))
        return WorkloadStep("map", PageExtent(mapping, 0, 0, 0), process=self._begun)

    def _come(self) -> Iterator[WorkloadStep]:
        """Start a process that reads a part of its file."""
        mapping = self._rng.choice(self.known)
        yield self._begin(mapping)
        process = self._begun
        first = self._rng.randrange(self._space.end(mapping) + 1)
        for index in range(first, first + self._rng.randint(1, _READ)):
            page = self._space.page_of(key_of(mapping, index))
            if page is not None:
                yield WorkloadStep("fault", PageExtent(mapping, index, page, 1), process=process)

    def _leave(self) -> Iterator[WorkloadStep]:
        if self._running:
            at = self._rng.randrange(len(self._running))
            process, mapping = self._running.pop(at)
            yield WorkloadStep("unmap", PageExtent(mapping, 0, 0, 0), process=process)

    def _evict(self) -> Iterator[WorkloadStep]:
        """Remove the inode of a file that no process has mapped."""
        idle = [one for one in sorted(self._in_core) if not self._processes.mapped(one)]
        if idle:
            yield WorkloadStep("evict", PageExtent(self._rng.choice(idle), 0, 0, 0))

    # ------------------------------------------------------------------ pages

    def _write(self, *, shared: bool) -> Iterator[WorkloadStep]:
        """Write to a page of a process's file: a ``shared`` one, or any."""
        for _ in range(_TRIES):
            found = self._touched()
            if found is not None:
                process, at = found
                if not shared or len(self._space.segment_at(at.page).keys) > 1:
                    yield WorkloadStep("write", at, process=process)
                    return

    def _fault(self) -> Iterator[WorkloadStep]:
        found = self._touched()
        if found is not None:
            process, at = found
            yield WorkloadStep("fault", at, process=process)

    def _touched(self) -> tuple[int, PageExtent] | None:
        """Choose a process and a page of its file; None for a hole, or without processes."""
        if not self._running:
            return None
        process, mapping = self._rng.choice(self._running)
        index = self._rng.randrange(self._space.end(mapping) + 1)
        page = self._space.page_of(key_of(mapping, index))
        return None if page is None else (process, PageExtent(mapping, index, page, 1))

    def _cut(self, what: str) -> Iterator[WorkloadStep]:
        """Cut off at most half of a file, or a hole of some pages into it."""
        mapping = self._rng.choice(self.known)
        end = self._space.end(mapping)
        count = self._rng.randint(1, _PIECE) if what == "punch" else 0
        yield WorkloadStep(what, PageExtent(mapping, self._rng.randint(end // 2, end), 0, count))

    def _reflink(self) -> Iterator[WorkloadStep]:
        """Share a piece of any file with another one, in the same place there."""
        source, mapping = self._rng.choice(self._mappings), self._rng.choice(self.known)
        extents = self._space.extents(source)
        if extents and source != mapping:
            extent = self._rng.choice(extents)
            at = self._rng.randrange(extent.length)
            count = min(self._rng.randint(1, _PIECE), extent.length - at)
            part = PageExtent(source, extent.first + at, extent.page + at, count)
            yield WorkloadStep("reflink", part, to=(mapping, part.first))

    def _fail(self) -> WorkloadStep:
        return WorkloadStep("fail", PageExtent(0, 0, self._any_page(), 1))

    def _any_page(self) -> int:
        """Choose a page to fail: of a file mostly, or of the metadata, or any at all."""
        rng = self._rng
        kind = rng.random()
        if kind < 0.7:  # noqa: PLR2004 - seven in ten
            extents = self._space.extents(rng.choice(self._mappings))
            if extents:
                extent = rng.choice(extents)
                return extent.page + rng.randrange(extent.length)
        if kind < 0.8 and self._others:  # noqa: PLR2004 - as above
            page, count = rng.choice(self._others)
            return page + rng.randrange(count)
        return rng.randrange(self._space.pages)
