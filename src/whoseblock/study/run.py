"""Runs a workload under all three designs at once, and compares them after every step."""

from collections import defaultdict
from collections.abc import Iterable, Iterator
from contextlib import ExitStack
from typing import TYPE_CHECKING, Final

from whoseblock.media.sectors import Change
from whoseblock.ranges import ByteRange
from whoseblock.study.base import Tracker
from whoseblock.study.dax import DaxDevice, Pagemap, Processes, TrackingHolder
from whoseblock.study.entries import Entries
from whoseblock.study.intervals import Intervals
from whoseblock.study.on_demand import OnDemand
from whoseblock.study.per_extent import PerExtent
from whoseblock.study.per_page import PerPage
from whoseblock.study.results import Blindness, Failures, TrackerResult, WorkloadResult
from whoseblock.study.sizes import PAGE
from whoseblock.study.workloads import LIFE, Step, Workload, fault_in, life
from whoseblock.study.world import World

if TYPE_CHECKING:
    from whoseblock.media.pmem import EmulatedPmem
    from whoseblock.study.sources import Source

__all__ = ["LIFE_STEPS", "Run", "run_workload"]

#: So many steps are a life's, after its faults.
LIFE_STEPS: Final = 20_000
#: Memory is looked at so many times.
_SAMPLES: Final = 60
#: Once sharing has changed, all pages are compared after each so many steps ...
_COMPLETE: Final = 10_000
#: ... and after every step so many pages before and after those touched: a tracker may cut or join
#: what it knows of them.
_AROUND: Final = 2
#: Where the emulated device lies in physical memory.
_FIRST_PFN: Final = 0x101200


class _Counted(Entries):
    """Entries, and how many of them each page has, as ``page->share`` tells since Linux 6.2."""

    def __init__(self) -> None:
        super().__init__()
        self.share: defaultdict[int, int] = defaultdict(int)

    def insert(self, key: int, page: int) -> None:
        super().insert(key, page)
        self.share[page] += 1

    def remove(self, key: int) -> int | None:
        page = super().remove(key)
        if page is not None:
            self.share[page] -= 1
        return page

    def pages(self) -> list[int]:
        """Give the pages that are faulted in, by whichever files."""
        return [page for page, count in self.share.items() if count]


class Run:
    """The three designs over one set of extents, each with a device of its own to fail."""

    def __init__(self, source: "Source") -> None:
        self.source = source
        self.space = source.space()
        self.entries = _Counted()
        self.processes = Processes()
        self.on_demand = OnDemand(source.lookup(self.space))
        self._asked = source.answers(self.space)
        self.trackers: tuple[Tracker, ...] = (
            PerPage(),
            PerExtent(self.space.segment_at, self.entries),
            self.on_demand,
        )
        self.world = World(self.space, self.entries, self.trackers)
        #: Metadata, and space that files have and never wrote: the disk alone knows whose.
        self._others = Intervals()
        for page, count in source.extents.others:
            self._others.add(page, page + count)
        self.checked = 0
        self.disagreements = 0
        self.steps = 0
        self._outcomes: dict[str, dict[str, int]] = {
            tracker.name: dict.fromkeys(Failures.__struct_fields__, 0) for tracker in self.trackers
        }
        self._samples: list[tuple[int, ...]] = []

    # ------------------------------------------------------------------ steps

    def go(self, steps: Iterable[Step], about: int) -> None:
        """Take steps, ``about`` so many, and compare after each of them."""
        every = max(about // _SAMPLES, 1)
        changed = 0
        with ExitStack() as stack:
            pagemaps = self._pagemaps(stack)
            for number, step in enumerate(steps):
                if number % every == 0:
                    self._sample()
                self.steps += 1
                if step.what == "fail":
                    self._fail(step.extent.page, pagemaps)
                    continue
                touched = self._take(step)
                if not self.space.rmap_updates:
                    self._compare(touched)
                    continue
                self._compare(self._with_neighbours(touched))
                changed += 1
                if changed % _COMPLETE == 0:
                    self.compare_all()
        self._sample()

    def _take(self, step: Step) -> list[tuple[int, int]]:
        mapping, index, _, count = step.extent
        world = self.world
        match step.what:
            case "fault":
                return world.fault(step.extent)
            case "write":
                return world.write(mapping, index, count)
            case "truncate":
                return world.truncate(mapping, index)
            case "reflink":
                return world.reflink(step.extent, *step.to)
            case "evict":
                return world.evict(mapping)
            case _:
                self.processes.unmap(mapping, mapping)
                return []

    def map_all(self) -> None:
        """Let each file be mapped as a whole by a process of its own, of the same number."""
        for mapping in self.space.mappings():
            last = self.space.extents(mapping)[-1]
            self.processes.map(mapping, mapping, 0, last.first + last.length)

    def _sample(self) -> None:
        self._samples.append(tuple(tracker.counts.memory for tracker in self.trackers))

    # ------------------------------------------------------------------ comparing

    def _with_neighbours(self, touched: list[tuple[int, int]]) -> Iterator[tuple[int, int]]:
        runs = Intervals()
        for page, count in touched:
            runs.add(max(page - _AROUND, 0), min(page + count + _AROUND, self.space.pages))
        return ((start, end - start) for start, end in runs)

    def _compare(self, runs: Iterable[tuple[int, int]]) -> None:
        """Compare what the three designs say of pages.

        On demand knows all owners; the others must know those of them that are faulted in.  Per
        extent asks each file whether it is.  So if both trackers give the same, as many as the page
        has entries, these are all that are faulted in, and on demand must know every one.
        """
        per_page, per_extent = self.trackers[0].keys, self.trackers[1].keys
        asked, share = self._asked, self.entries.share
        for first, count in runs:
            for page in range(first, first + count):
                known, owners = per_page(page), asked(page)
                agree = known == per_extent(page) and len(known) == share[page]
                if not (agree and (known == owners or set(owners).issuperset(known))):
                    self.disagreements += 1
            self.checked += count

    def compare_all(self) -> None:
        """Compare the owners of all pages, those on the disk with the study's filesystem, too."""
        for segment in self.space.segments():
            self._compare([(segment.start, segment.end - segment.start)])
            for page in range(segment.start, segment.end):
                if self._asked(page) != self.space.keys(page):
                    self.disagreements += 1
        # A page that no file has must not be faulted in, either.
        self.disagreements += sum(map(self.space.is_free, self.entries.pages()))

    # ------------------------------------------------------------------ failing

    def _pagemaps(self, stack: ExitStack) -> list[tuple[Tracker, Pagemap, "EmulatedPmem"]]:
        """Give each design a device of its own: what one of them clears stays bad for others."""
        made = []
        for tracker in self.trackers:
            media = self.source.media()
            stack.callback(media.close)
            device = DaxDevice(media, TrackingHolder(tracker, self.processes))
            made.append((tracker, Pagemap(_FIRST_PFN, device), media))
        return made

    def _fail(self, page: int, pagemaps: list[tuple[Tracker, Pagemap, "EmulatedPmem"]]) -> None:
        bad = ByteRange(page * PAGE, PAGE)
        every_key = self.space.keys(page)
        faulted = self.entries.those_at(page, every_key)
        for tracker, pagemap, media in pagemaps:
            media.inject(bad)
            outcome = pagemap.memory_failure(_FIRST_PFN + page)
            counts = self._outcomes[tracker.name]
            counts[outcome.kind] += 1
            counts["told"] += len(outcome.keys)
            counts["missed"] += len(set(every_key).difference(outcome.keys))
            expected = every_key if tracker is self.on_demand else faulted
            beyond = tracker is self.on_demand and page in self._others
            wrong = not beyond and list(outcome.keys) != expected
            if wrong or outcome.cleared == bool(media.poison):
                self.disagreements += 1
            self.checked += 1
            # The next failure is another one's.
            media.change([Change("good", bad)])

    # ------------------------------------------------------------------ the result

    def result(self, name: str) -> WorkloadResult:
        """Put together what was counted."""
        owners = files = 0
        for mapping in self.space.mappings():
            files += 1
            owners += sum(extent.length for extent in self.space.extents(mapping))
        pages = len(self.entries.pages())
        known = {mapping for mapping in self.space.mappings() if self.entries.of(mapping)}
        return WorkloadResult(
            workload=name,
            extents=self.source.name,
            sharing=len(self.entries) / pages if pages else 0.0,
            steps=self.steps,
            faults=self.world.faults,
            associations=self.world.associations,
            pages=pages,
            entries=len(self.entries),
            checked=self.checked,
            disagreements=self.disagreements,
            rmap_updates=self.space.rmap_updates,
            blindness=Blindness(owners, len(self.entries), files, len(known)),
            trackers=tuple(map(self._tracker_result, range(len(self.trackers)))),
        )

    def _tracker_result(self, number: int) -> TrackerResult:
        tracker = self.trackers[number]
        counts = tracker.counts
        return TrackerResult(
            design=tracker.name,
            memory=counts.memory,
            peak=counts.peak,
            allocations=counts.allocations,
            frees=counts.frees,
            comparisons=counts.comparisons,
            rotations=counts.rotations,
            locks=counts.locks,
            page_writes=counts.page_writes,
            probes=counts.probes,
            memory_over_time=tuple(sample[number] for sample in self._samples),
            failures=Failures(**self._outcomes[tracker.name]),
        )


def run_workload(
    source: "Source", workload: Workload, seed: int, life_steps: int = LIFE_STEPS
) -> WorkloadResult:
    """Run a workload over the extents of a source."""
    run = Run(source)
    run.map_all()
    steps: Iterable[Step]
    if workload == LIFE:
        steps = life(run.space, seed, life_steps, source.extents.others)
        about = sum(extent.length for extent in source.extents.files) // 2 + life_steps
    else:
        about = sum(extent.length for extent in source.extents.files)
        steps = (Step("fault", entry) for entry in fault_in(run.space, workload, seed))
    run.go(steps, about)
    run.compare_all()
    return run.result(workload.name)
