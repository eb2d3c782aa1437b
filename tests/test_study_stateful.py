"""Random lives of a few files: all designs against a model that keeps a set for every page."""

from collections import defaultdict
from itertools import pairwise

from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from whoseblock.media.overlay import OverlayMedia
from whoseblock.media.pmem import EmulatedPmem
from whoseblock.ranges import ByteRange
from whoseblock.study.base import Owner, owner_of
from whoseblock.study.dax import DaxDevice, Pagemap, Processes, TrackingHolder
from whoseblock.study.entries import Entries
from whoseblock.study.extents import Extent, Extents
from whoseblock.study.on_demand import OnDemand, SpaceLookup
from whoseblock.study.per_extent import PerExtent
from whoseblock.study.per_page import PerPage
from whoseblock.study.space import Space
from whoseblock.study.world import World

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


class Life(RuleBasedStateMachine):
    """Every rule does the same to the study's world and to two dictionaries."""

    @initialize(
        extents=st.lists(
            st.tuples(mappings, indexes, st.integers(0, PAGES - 8), counts), max_size=6
        ),
        cloned=counts,
    )
    def begin(self, extents: list[tuple[int, int, int, int]], cloned: int) -> None:
        #: The model: page of the device by file and index, on the disk and faulted in.
        self.disk: dict[Owner, int] = {}
        self.faulted: dict[Owner, int] = {}
        #: Pages that have a tree, in the RFC's way.
        self.trees: set[int] = set()
        files: list[Extent] = []
        # At least one extent is shared by all: without sharing there is nothing to find.
        extents = [*((mapping, 0, 20, cloned) for mapping in (1, 2, 3)), *extents]
        for mapping, index, page, count in extents:
            places = {Owner(mapping, index + at): page + at for at in range(count)}
            if places.keys() & self.disk.keys():
                continue
            self.disk |= places
            files.append(Extent(mapping, index, page, count))
        used = set(self.disk.values())
        free = [(page, 1) for page in range(PAGES) if page not in used]
        self.space = Space(Extents(sorted(files), free, PAGES, []))
        self.entries = Entries()
        self.trackers = (
            PerPage(),
            PerExtent(self.space.segment_at, self.entries),
            OnDemand(SpaceLookup(self.space)),
        )
        self.world = World(self.space, self.entries, self.trackers)
        self.processes = Processes()
        for mapping in range(1, 4):
            self.processes.map(100 + mapping, mapping, 0, INDEXES * 2)
        self.gone: set[int] = set()

    # ------------------------------------------------------------------ the model

    def forget(self, owner: Owner) -> None:
        page = self.faulted.pop(owner, None)
        if page is not None and page not in self.faulted.values():
            self.trees.discard(page)

    def learn(self, owner: Owner, page: int) -> None:
        if page in self.faulted.values():
            self.trees.add(page)
        self.faulted[owner] = page

    def drop(self, owners: list[Owner]) -> None:
        for owner in owners:
            del self.disk[owner]
            self.forget(owner)

    def cut(self, mapping: int, first: int, end: int) -> list[Owner]:
        return [one for one in self.disk if one.mapping == mapping and first <= one.index < end]

    # ------------------------------------------------------------------ what happens

    def picked(self, pick: int) -> tuple[int, int, int]:
        """Give one of the pages that files have: file, index, page of the device."""
        owner = sorted(self.disk)[pick % len(self.disk)]
        return owner.mapping, owner.index, self.disk[owner]

    @precondition(lambda self: self.disk)
    @rule(pick=picks, count=counts)
    def fault(self, pick: int, count: int) -> None:
        mapping, index, page = self.picked(pick)
        run = 0
        while run < count and self.disk.get(Owner(mapping, index + run)) == page + run:
            run += 1
        self.world.fault(Extent(mapping, index, page, run))
        for at in range(run):
            if Owner(mapping, index + at) not in self.faulted:
                self.learn(Owner(mapping, index + at), page + at)

    @precondition(lambda self: self.disk)
    @rule(pick=picks, count=counts)
    def write(self, pick: int, count: int) -> None:
        mapping, index, _ = self.picked(pick)
        before = dict(self.disk)
        self.world.write(mapping, index, count)
        for owner in [Owner(mapping, at) for at in range(index, index + count)]:
            old = self.disk.get(owner)
            if old is None:
                continue
            new = self.space.page_of(owner.mapping << 51 | owner.index)
            assert new is not None
            shared = sum(page == old for page in before.values()) > 1
            if new == old:
                full = not self.free_pages()
                others = sum(page == old for page in self.disk.values()) > 1
                # Alone by now, or no page was left for a copy.
                assert not others or full
                if others and full:
                    continue
            else:
                assert shared
                assert new not in self.disk.values()
                self.forget(owner)
                self.disk[owner] = new
            if owner not in self.faulted:
                self.learn(owner, new)

    def free_pages(self) -> set[int]:
        return set(range(PAGES)) - set(self.disk.values())

    @rule(mapping=mappings, index=indexes)
    def truncate(self, mapping: int, index: int) -> None:
        self.world.truncate(mapping, index)
        self.drop(self.cut(mapping, index, 1 << 40))

    @rule(mapping=mappings, index=indexes, count=counts)
    def punch(self, mapping: int, index: int, count: int) -> None:
        self.world.punch(mapping, index, count)
        self.drop(self.cut(mapping, index, index + count))

    @rule(mapping=mappings)
    def evict(self, mapping: int) -> None:
        self.world.evict(mapping)
        for owner in [one for one in self.faulted if one.mapping == mapping]:
            self.forget(owner)

    @rule(mapping=mappings)
    def unmap(self, mapping: int) -> None:
        self.processes.unmap(100 + mapping, mapping)
        self.gone.add(mapping)

    @precondition(lambda self: self.disk)
    @rule(pick=picks, count=counts, receiver=mappings, to=indexes)
    def reflink(self, pick: int, count: int, receiver: int, to: int) -> None:
        source, index, page = self.picked(pick)
        if source == receiver:
            return
        run = 0
        while run < count and self.disk.get(Owner(source, index + run)) == page + run:
            run += 1
        self.world.reflink(Extent(source, index, page, run), receiver, to)
        self.drop(self.cut(receiver, to, to + run))
        self.disk |= {Owner(receiver, to + at): page + at for at in range(run)}

    @rule(page=st.integers(0, PAGES - 1))
    def fail(self, page: int) -> None:
        owners = {one for one, at in self.disk.items() if at == page}
        known = {one for one, at in self.faulted.items() if at == page}
        for tracker in self.trackers:
            on_demand = tracker.name == "on demand"
            bad = ByteRange(page * 4096, 4096)
            media = EmulatedPmem(OverlayMedia(Blank()), [bad])
            device = DaxDevice(media, TrackingHolder(tracker, self.processes))
            outcome = Pagemap(FIRST_PFN, device).memory_failure(FIRST_PFN + page)
            expected = owners if on_demand else known
            assert set(map(owner_of, outcome.keys)) == expected
            told = {100 + one.mapping for one in expected if one.mapping not in self.gone}
            assert outcome.processes == told
            free = on_demand and not owners
            assert outcome.kind == ("files" if expected else "free" if free else "unknown")
            assert outcome.cleared == free == (not media.poison)
            media.close()

    # ------------------------------------------------------------------ what is always so

    @invariant()
    def all_agree(self) -> None:
        if not hasattr(self, "disk"):
            return
        owners, known = defaultdict(set), defaultdict(set)
        for owner, page in self.disk.items():
            owners[page].add(owner)
        for owner, page in self.faulted.items():
            known[page].add(owner)
        per_page, per_extent, on_demand = self.trackers
        for page in range(PAGES):
            assert per_page.owners(page) == per_extent.owners(page) == tuple(sorted(known[page]))
            assert on_demand.owners(page) == tuple(sorted(owners[page]))
        assert len(self.entries) == len(self.faulted)

    @invariant()
    def memory_is_what_is_there(self) -> None:
        if not hasattr(self, "disk"):
            return
        for tracker in self.trackers:
            assert tracker.recount() == tracker.counts.memory <= tracker.counts.peak
        sharers = [page for page in self.faulted.values() if page in self.trees]
        assert self.trackers[0].counts.memory == 16 * len(self.trees) + 40 * len(sharers)
        assert self.trackers[2].counts.memory == 0

    @invariant()
    def segments_are_in_order(self) -> None:
        if not hasattr(self, "disk"):
            return
        segments = list(self.space.segments())
        for one, other in pairwise(segments):
            assert one.end <= other.start
        assert all(one.start < one.end and one.keys for one in segments)


Life.TestCase.settings = settings(max_examples=150, stateful_step_count=40, deadline=None)
TestLife = Life.TestCase
