"""Runs a workload under all three designs at once, and compares them after every step."""

from collections.abc import Iterable, Iterator
from contextlib import ExitStack
from typing import TYPE_CHECKING, Final

from whoseblock.media.sectors import Change
from whoseblock.ranges import ByteRange
from whoseblock.study.base import INDEX_BITS, Tracker, Watcher, key_of
from whoseblock.study.results import (
    Blindness,
    Failures,
    LifeResult,
    Phase,
    TrackerResult,
    WorkloadResult,
)
from whoseblock.study.simulation.dax import (
    DaxDevice,
    Holder,
    LinuxHolder,
    Outcome,
    Pagemap,
    Processes,
    TrackingHolder,
)
from whoseblock.study.simulation.entries import Entries
from whoseblock.study.simulation.intervals import Intervals
from whoseblock.study.simulation.workloads import LIFE, Workload, WorkloadStep, fault_in, life
from whoseblock.study.simulation.world import World
from whoseblock.study.sizes import PAGE
from whoseblock.study.trackers.on_demand import OnDemand
from whoseblock.study.trackers.per_extent import PerExtent
from whoseblock.study.trackers.per_page import PerPage
from whoseblock.study.trackers.recount import extents_weight, pages_weight, shared_extents

if TYPE_CHECKING:
    from whoseblock.media.pmem import EmulatedPmem
    from whoseblock.study.measurements.sources import Source

__all__ = ["LIFE_STEPS", "Run", "run_workload"]

#: So many steps are a life's, after its faults.
LIFE_STEPS: Final = 20_000
#: Memory is looked at so many times in each phase.
_SAMPLES: Final = 60
#: Once sharing has changed, all pages are compared after each so many steps ...
_COMPLETE: Final = 10_000
#: ... and after every step so many pages before and after those touched: a tracker may cut or join
#: what it knows of them.
_AROUND: Final = 2
#: What is no design, but what there is.
_LINUX: Final = "Linux"
#: Where the emulated device lies in physical memory.
_FIRST_PFN: Final = 0x101200


class Run:
    """The three designs over one set of extents, each with a device of its own to fail."""

    def __init__(self, source: "Source") -> None:
        self.source = source
        self.space = source.space()
        self.entries = Entries()
        self.processes = Processes()
        self._find = source.lookup(self.space)
        self._asked = source.answers(self.space)
        self.per_page = PerPage(self.space.segment_at)
        self.per_extent = PerExtent(self.space.segment_at, self.entries)
        self.on_demand = OnDemand(self._find)
        self.trackers: tuple[Tracker, ...] = (self.per_page, self.per_extent, self.on_demand)
        watchers = (*self.trackers, self.processes)
        self.world: World[Watcher] = World(self.space, self.entries, watchers)
        #: Metadata, and space that files have and never wrote: the disk alone knows whose.
        self._others = Intervals()
        for page, count in source.extents.others:
            self._others.add(page, page + count)
        self.checked = 0
        self.disagreements = 0
        self.steps = 0
        self._broken = self._evicted = self._evicted_entries = 0
        names = [tracker.name for tracker in self.trackers]
        self._outcomes: dict[str, dict[str, int]] = {
            name: dict.fromkeys(Failures.__struct_fields__, 0) for name in (*names, _LINUX)
        }
        self._samples: list[tuple[int, ...]] = []
        self._phases: list[Phase] = []

    # ------------------------------------------------------------------ steps

    def go(self, steps: Iterable[WorkloadStep], about: int, name: str = "faults") -> None:
        """Run the ``about`` steps of a phase, and compare after each of them."""
        every = max(about // _SAMPLES, 1)
        changed, before, samples = 0, self.steps, len(self._samples)
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
        self._phases.append(Phase(name, self.steps - before, len(self._samples) - samples))

    def _take(self, step: WorkloadStep) -> list[tuple[int, int]]:
        mapping, index, page, count = step.extent
        world, processes = self.world, self.processes
        touched: list[tuple[int, int]] = []
        match step.what:
            case "fault" | "write":
                if step.what == "fault":
                    touched = world.fault(step.extent)
                else:
                    touched = world.write(mapping, index, count)
                    self._broken += self.space.page_of(key_of(mapping, index)) != page
                if step.process:
                    processes.touch(step.process, key_of(mapping, index), count)
            case "truncate":
                touched = world.truncate(mapping, index)
            case "punch":
                touched = world.punch(mapping, index, count)
            case "reflink":
                world.open(mapping)
                world.open(step.to[0])
                touched = world.reflink(step.extent, *step.to)
            case "evict":
                self._evicted += 1
                touched = world.evict(mapping)
                self._evicted_entries += len(touched)
            case "map":
                world.open(mapping)
                processes.map(step.process, mapping)
            case _:
                processes.unmap(step.process, mapping)
        return touched

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

        On demand knows all owners; the others must know those of them that are faulted in. Per
        extent asks each file whether it is. So if both trackers give the same, as many as
        ``page->share`` says, these are all that are faulted in, and on demand must know every one.
        """
        per_page, per_extent = self.per_page.keys, self.per_extent.keys
        asked, share = self._asked, self.on_demand.share.get
        for first, count in runs:
            for page in range(first, first + count):
                known, owners = per_page(page), asked(page)
                agree = known == per_extent(page) and len(known) == share(page, 0)
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
        self.disagreements += sum(map(self.space.is_free, self.on_demand.share))
        self._weigh()

    def _weigh(self) -> None:
        """Compare what the trackers say that they hold with what follows from the entries."""
        held, (least, most) = self.per_page.counts.memory, pages_weight(self.entries)
        records = self.per_extent.records()
        self.disagreements += not least <= held <= most
        self.disagreements += self.per_extent.counts.memory != extents_weight(self.entries, records)
        if not self.space.rmap_updates:
            # Nothing was shared otherwise, and nothing left: there is no history to know.
            self.disagreements += held != least
            self.disagreements += records != shared_extents(self.space, self.entries)

    # ------------------------------------------------------------------ failing

    def _pagemaps(self, stack: ExitStack) -> list[tuple[str, Pagemap, "EmulatedPmem"]]:
        """Create a device for each design: clearing a page in one does not affect the others."""
        made = []
        holders: dict[str, Holder] = {
            tracker.name: TrackingHolder(tracker, self.processes) for tracker in self.trackers
        }
        holders[_LINUX] = LinuxHolder(self._find, self.world.in_core, self.processes)
        for name, holder in holders.items():
            media = self.source.media()
            stack.callback(media.close)
            made.append((name, Pagemap(_FIRST_PFN, DaxDevice(media, holder)), media))
        return made

    def _fail(self, page: int, pagemaps: list[tuple[str, Pagemap, "EmulatedPmem"]]) -> None:
        bad = ByteRange(page * PAGE, PAGE)
        every_key = self.space.keys(page)
        faulted = self.entries.those_at(page, every_key)
        in_core = [key for key in every_key if key >> INDEX_BITS in self.world.in_core]
        expected = {self.on_demand.name: every_key, _LINUX: in_core}
        # All designs notify the processes with the page in their page tables.
        told = {process for key in faulted for process in self.processes.with_page(key)}
        for name, pagemap, media in pagemaps:
            media.inject(bad)
            outcome = pagemap.memory_failure(_FIRST_PFN + page)
            self._note(name, outcome, every_key)
            beyond = name in expected and page in self._others
            wrong = not beyond and list(outcome.keys) != expected.get(name, faulted)
            wrong |= outcome.processes != told
            if wrong or outcome.cleared == bool(media.poison):
                self.disagreements += 1
            self.checked += 1
            # The next failure is another one's.
            media.change([Change("good", bad)])

    def _note(self, name: str, outcome: Outcome, every_key: list[int]) -> None:
        counts = self._outcomes[name]
        counts[outcome.kind] += 1
        counts["told"] += len(outcome.keys)
        counts["missed"] += len(set(every_key).difference(outcome.keys))
        counts["processes"] += len(outcome.processes)

    # ------------------------------------------------------------------ the result

    def result(self, workload: Workload) -> WorkloadResult:
        """Put together what was counted."""
        owners = files = 0
        for mapping in self.space.mappings():
            files += 1
            owners += sum(extent.length for extent in self.space.extents(mapping))
        pages = len(self.on_demand.share)
        known = {mapping for mapping in self.space.mappings() if self.entries.of(mapping)}
        return WorkloadResult(
            workload=workload.name,
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
            life=self._life_result() if workload == LIFE else None,
        )

    def _life_result(self) -> LifeResult:
        return LifeResult(
            phases=tuple(self._phases),
            broken=self._broken,
            evicted=self._evicted,
            evicted_entries=self._evicted_entries,
            linux=Failures(**self._outcomes[_LINUX]),
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
    if workload == LIFE:
        others = source.extents.others
        for phase in life(run.world, run.processes, seed, life_steps, others):
            run.go(phase.steps, phase.about, phase.name)
    else:
        about = sum(extent.length for extent in source.extents.files)
        run.go(
            (WorkloadStep("fault", entry) for entry in fault_in(run.space, workload, seed)), about
        )
    run.compare_all()
    return run.result(workload)
