"""Random lives of a few files: all designs against a model of dictionaries, page by page."""

from collections import defaultdict
from itertools import pairwise

from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from whoseblock.media.overlay import OverlayMedia
from whoseblock.media.pmem import EmulatedPmem
from whoseblock.ranges import ByteRange
from whoseblock.study.base import PageOwner, owner_of
from whoseblock.study.simulation.dax import (
    DaxDevice,
    Holder,
    LinuxHolder,
    Pagemap,
    Processes,
    TrackingHolder,
)
from whoseblock.study.simulation.entries import Entries
from whoseblock.study.simulation.extents import Extents, PageExtent
from whoseblock.study.simulation.space import Space
from whoseblock.study.simulation.world import World
from whoseblock.study.trackers.on_demand import OnDemand, SpaceLookup
from whoseblock.study.trackers.per_extent import PerExtent
from whoseblock.study.trackers.per_page import PerPage
from whoseblock.study.trackers.recount import extents_weight, pages_weight

PAGES = 48
FIRST_PFN = 0x1000
INDEXES = 12

mappings = st.integers(1, 3)
#: Which of the pages that files have, in order.
picks = st.integers(0, 1 << 16)
indexes = st.integers(0, INDEXES - 1)
counts = st.integers(1, 8)


class Blank:
    name = "blank"
    size = PAGES * 4096

    def pread(self, _offset: int, length: int) -> bytes:
        return bytes(length)

    def close(self) -> None:
        pass


def runs(disk: dict[PageOwner, int]) -> set[tuple[int, int, int, int]]:
    """Return the records that a reverse map would have: file, index, page, count."""
    found: list[tuple[int, int, int, int]] = []
    for owner, page in sorted(disk.items()):
        if found:
            mapping, index, first, count = found[-1]
            if (mapping, index + count, first + count) == (owner.mapping, owner.index, page):
                found[-1] = (mapping, index, first, count + 1)
                continue
        found.append((owner.mapping, owner.index, page, 1))
    return set(found)


class Life(RuleBasedStateMachine):
    """Every rule does the same to the study's world and to the model."""

    @initialize(
        extents=st.lists(
            st.tuples(mappings, indexes, st.integers(0, PAGES - 8), counts), max_size=6
        ),
        cloned=counts,
    )
    def begin(self, extents: list[tuple[int, int, int, int]], cloned: int) -> None:
        #: The model: page of the device by file and index, on the disk and faulted in.
        self.disk: dict[PageOwner, int] = {}
        self.faulted: dict[PageOwner, int] = {}
        #: Pages that have a tree, in the RFC's way.
        self.trees: set[int] = set()
        #: The extents that have a record, from and up to which page.
        self.records: set[tuple[int, int]] = set()
        #: What was changed in the reverse mapping.
        self.updates = 0
        self.in_core: set[int] = set()
        #: By process: of which file, and which of its pages are in the page tables.
        self.tables: dict[int, tuple[int, set[PageOwner]]] = {}
        # At least one extent is shared by all: without sharing there is nothing to find.
        extents = [*((mapping, 0, 20, cloned) for mapping in (1, 2, 3)), *extents]
        for mapping, index, page, count in extents:
            places = {PageOwner(mapping, index + at): page + at for at in range(count)}
            if not places.keys() & self.disk.keys():
                self.disk |= places
        files = [PageExtent(*run) for run in sorted(runs(self.disk))]
        used = set(self.disk.values())
        free = [(page, 1) for page in range(PAGES) if page not in used]
        self.space = Space(Extents(files, free, PAGES, []))
        self.entries = Entries()
        self.per_page = PerPage(self.space.segment_at)
        self.per_extent = PerExtent(self.space.segment_at, self.entries)
        self.on_demand = OnDemand(SpaceLookup(self.space))
        self.processes = Processes()
        self.trackers = (self.per_page, self.per_extent, self.on_demand)
        self.world = World(self.space, self.entries, (*self.trackers, self.processes))
        for mapping in range(1, 4):
            self.map(mapping)

    # ------------------------------------------------------------------ the model

    def owners_at(self, page: int) -> set[PageOwner]:
        return {one for one, at in self.disk.items() if at == page}

    def forget(self, owner: PageOwner) -> None:
        page = self.faulted.pop(owner, None)
        if page is not None and page not in self.faulted.values():
            self.trees.discard(page)
        for _, touched in self.tables.values():
            touched.discard(owner)
        self.prune()

    def prune(self) -> None:
        """Remove the record with the last entry of its pages."""
        pages = set(self.faulted.values())
        self.records = {one for one in self.records if pages & set(range(*one))}

    def learn(self, owner: PageOwner, page: int) -> None:
        if owner not in self.faulted:
            if page in self.faulted.values():
                self.trees.add(page)
            self.fit(page)
            self.faulted[owner] = page
            self.prune()

    def fit(self, page: int) -> None:
        """Join the records of a shared extent into one with its bounds, as a fault does."""
        owners = self.owners_at(page)
        if len(owners) < 2:
            return

        def alike(other: int) -> bool:
            moved = {PageOwner(one.mapping, one.index + other - page) for one in owners}
            return self.owners_at(other) == moved

        start = end = page
        while alike(start - 1):
            start -= 1
        while alike(end):
            end += 1
        apart = {one for one in self.records if one[1] <= start or one[0] >= end}
        for first, last in self.records - apart:
            apart |= {one for one in ((first, start), (end, last)) if one[0] < one[1]}
        self.records = {*apart, (start, end)}

    def change(self, gone: list[PageOwner], new: dict[PageOwner, int]) -> None:
        """Change the disk, first one way, then the other, and count the records that differ."""
        without = {one: at for one, at in self.disk.items() if one not in gone}
        for after in (without, without | new):
            before, now = runs(self.disk), runs(after)
            self.updates += max(len(before - now), len(now - before))
            self.disk = after

    def drop(self, gone: list[PageOwner], new: dict[PageOwner, int]) -> None:
        """Remove entries, and then change the disk."""
        for owner in gone:
            self.forget(owner)
        self.change(gone, new)

    def cut(self, mapping: int, first: int, end: int) -> list[PageOwner]:
        return [one for one in self.disk if one.mapping == mapping and first <= one.index < end]

    def by(self, mapping: int) -> int:
        """Return a process that has a file mapped: one more if there is none."""
        for process, (mapped, _) in self.tables.items():
            if mapped == mapping:
                return process
        self.map(mapping)
        return len(self.tables)

    # ------------------------------------------------------------------ what happens

    def picked(self, pick: int) -> tuple[int, int, int]:
        """Return one of the pages of the files: file, index, page of the device."""
        owner = sorted(self.disk)[pick % len(self.disk)]
        return owner.mapping, owner.index, self.disk[owner]

    def touch(self, owners: list[PageOwner]) -> None:
        process = self.by(owners[0].mapping)
        for owner in owners:
            self.processes.touch(process, owner.mapping << 51 | owner.index)
        self.tables[process][1].update(owners)

    def run(self, mapping: int, index: int, count: int) -> int:
        """Return the number of consecutive pages of a file that are consecutive on the device."""
        page, length = self.disk[PageOwner(mapping, index)], 0
        while length < count and self.disk.get(PageOwner(mapping, index + length)) == page + length:
            length += 1
        return length

    @precondition(lambda self: self.disk)
    @rule(pick=picks, count=counts)
    def fault(self, pick: int, count: int) -> None:
        mapping, index, page = self.picked(pick)
        length = self.run(mapping, index, count)
        self.world.fault(PageExtent(mapping, index, page, length))
        owners = [PageOwner(mapping, index + at) for at in range(length)]
        for at, owner in enumerate(owners):
            self.learn(owner, page + at)
        self.touch(owners)

    @precondition(lambda self: self.faulted)
    @rule(pick=picks)
    def associate_again(self, pick: int) -> None:
        owner, page = sorted(self.faulted.items())[pick % len(self.faulted)]
        for tracker in (self.per_page, self.per_extent):
            tracker.associate(page, owner.mapping, owner.index)
        self.fit(page)
        self.prune()

    @precondition(lambda self: self.disk)
    @rule(pick=picks, count=counts)
    def write(self, pick: int, count: int) -> None:
        mapping, index, _ = self.picked(pick)
        self.world.write(mapping, index, count)
        owners = [PageOwner(mapping, at) for at in range(index, index + count)]
        owners = [owner for owner in owners if owner in self.disk]
        written = []
        for owner in owners:
            old = self.disk[owner]
            new = self.space.page_of(owner.mapping << 51 | owner.index)
            assert new is not None
            shared = len(self.owners_at(old)) > 1
            if new != old:
                assert shared
                assert not self.owners_at(new)
                # The entry is another one before the disk is.
                self.forget(owner)
                self.learn(owner, new)
                self.change([owner], {owner: new})
            elif shared:
                # No page was left for a copy.
                assert not set(range(PAGES)) - set(self.disk.values())
                continue
            self.learn(owner, new)
            written.append(owner)
        if written:
            self.touch(written)

    @rule(mapping=mappings, index=indexes)
    def truncate(self, mapping: int, index: int) -> None:
        self.world.truncate(mapping, index)
        self.drop(self.cut(mapping, index, 1 << 40), {})

    @rule(mapping=mappings, index=indexes, count=counts)
    def punch(self, mapping: int, index: int, count: int) -> None:
        self.world.punch(mapping, index, count)
        self.drop(self.cut(mapping, index, index + count), {})

    @rule(mapping=mappings)
    def evict(self, mapping: int) -> None:
        self.world.evict(mapping)
        self.in_core.discard(mapping)
        for owner in [one for one in self.faulted if one.mapping == mapping]:
            self.forget(owner)

    @rule(mapping=mappings)
    def map(self, mapping: int) -> None:
        process = len(self.tables) + 1
        self.world.open(mapping)
        self.in_core.add(mapping)
        self.processes.map(process, mapping)
        self.tables[process] = (mapping, set())

    @rule(pick=picks)
    def unmap(self, pick: int) -> None:
        process = pick % len(self.tables) + 1
        mapping, _ = self.tables[process]
        self.processes.unmap(process, mapping)
        self.tables[process] = (0, set())

    @precondition(lambda self: self.disk)
    @rule(pick=picks, count=counts, receiver=mappings, to=indexes)
    def reflink(self, pick: int, count: int, receiver: int, to: int) -> None:
        source, index, page = self.picked(pick)
        if source == receiver:
            return
        length = self.run(source, index, count)
        self.world.reflink(PageExtent(source, index, page, length), receiver, to)
        new = {PageOwner(receiver, to + at): page + at for at in range(length)}
        self.drop(self.cut(receiver, to, to + length), new)

    @rule(page=st.integers(0, PAGES - 1))
    def fail(self, page: int) -> None:
        owners = self.owners_at(page)
        known = {one for one, at in self.faulted.items() if at == page}
        linux = LinuxHolder(SpaceLookup(self.space), self.world.in_core, self.processes)
        holders: dict[str, Holder] = {"Linux": linux}
        for tracker in self.trackers:
            holders[tracker.name] = TrackingHolder(tracker, self.processes)
        expected = {
            "Linux": {one for one in owners if one.mapping in self.in_core},
            "on demand": owners,
        }
        for name, holder in holders.items():
            bad = ByteRange(page * 4096, 4096)
            media = EmulatedPmem(OverlayMedia(Blank()), [bad])
            outcome = Pagemap(FIRST_PFN, DaxDevice(media, holder)).memory_failure(FIRST_PFN + page)
            found = expected.get(name, known)
            assert set(map(owner_of, outcome.keys)) == found
            known_here = known & found
            told = {one for one, (_, touched) in self.tables.items() if touched & known_here}
            assert outcome.processes == told
            free = name == "on demand" and not owners
            assert outcome.kind == ("files" if found else "free" if free else "unknown")
            assert outcome.cleared == free == (not media.poison)
            media.close()

    # ------------------------------------------------------------------ what is always so

    @precondition(lambda self: hasattr(self, "disk"))
    @invariant()
    def all_agree(self) -> None:
        owners, known = defaultdict(set), defaultdict(set)
        for owner, page in self.disk.items():
            owners[page].add(owner)
        for owner, page in self.faulted.items():
            known[page].add(owner)
        for page in range(PAGES):
            faulted = tuple(sorted(known[page]))
            assert self.per_page.owners(page) == self.per_extent.owners(page) == faulted
            assert self.on_demand.owners(page) == tuple(sorted(owners[page]))
            assert self.on_demand.share.get(page, 0) == len(faulted)
        assert len(self.entries) == len(self.faulted)

    @precondition(lambda self: hasattr(self, "disk"))
    @invariant()
    def memory_is_what_the_model_says(self) -> None:
        for tracker in self.trackers:
            assert tracker.recount() == tracker.counts.memory <= tracker.counts.peak
        sharers = [page for page in self.faulted.values() if page in self.trees]
        assert self.per_page.counts.memory == 16 * len(self.trees) + 40 * len(sharers)
        assert self.per_extent.records() == sorted(self.records)
        # Each file at its own distance from the pages that it has faulted in.
        owners = {
            (record, owner.mapping, owner.index - page)
            for record in self.records
            for owner, page in self.faulted.items()
            if page in range(*record)
        }
        assert self.per_extent.counts.memory == 192 * len(self.records) + 40 * len(owners)
        assert self.on_demand.counts.memory == 0

    @precondition(lambda self: hasattr(self, "disk"))
    @invariant()
    def the_recount_of_a_run_finds_the_same(self) -> None:
        least, most = pages_weight(self.entries)
        assert least <= self.per_page.counts.memory <= most
        records = self.per_extent.records()
        assert extents_weight(self.entries, records) == self.per_extent.counts.memory

    @precondition(lambda self: hasattr(self, "disk"))
    @invariant()
    def the_space_is_the_disk(self) -> None:
        segments = list(self.space.segments())
        for one, other in pairwise(segments):
            assert one.end <= other.start
        assert all(one.start < one.end and one.keys for one in segments)
        files = [one for mapping in range(1, 4) for one in self.space.extents(mapping)]
        assert set(map(tuple, files)) == runs(self.disk)
        assert self.space.rmap_updates == self.updates


Life.TestCase.settings = settings(max_examples=150, stateful_step_count=40)
TestLife = Life.TestCase
