"""A run of a workload: the designs agree, and every disagreement is counted."""

from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import pytest

from whoseblock.study.measurements.run import Run, run_workload
from whoseblock.study.measurements.sources import ImageSource, MadeUpSource
from whoseblock.study.simulation.workloads import (
    LIFE,
    WORKLOADS,
    Workload,
    WorkloadStep,
    fault_in,
    life,
)
from whoseblock.study.trackers.per_extent import PerExtent

every_workload = pytest.mark.parametrize(
    "workload", [*WORKLOADS, LIFE], ids=lambda workload: workload.name
)


@every_workload
def test_the_designs_agree_on_an_image(demo_image: Path, workload: Workload) -> None:
    with ImageSource(str(demo_image)) as source:
        result = run_workload(source, workload, seed=7, life_steps=1500)
        again = run_workload(source, workload, seed=7, life_steps=1500)
    assert result == again
    assert result.disagreements == 0
    assert result.checked > result.pages
    per_page, per_extent, on_demand = result.trackers
    assert on_demand.memory == on_demand.peak == on_demand.allocations == 0
    if workload is not LIFE:
        # 256 pages are shared by two files; all is faulted in.
        assert per_page.memory == 256 * 96
        assert per_extent.memory == 2 * (192 + 2 * 40)
        assert result.blindness.known == result.blindness.owners == result.associations


def test_trackers_miss_pages_that_were_never_faulted(demo_image: Path) -> None:
    with ImageSource(str(demo_image)) as source:
        result = run_workload(source, LIFE, seed=3, life_steps=3000)
    per_page, per_extent, on_demand = (tracker.failures for tracker in result.trackers)
    assert per_page == per_extent
    assert per_page.missed > 0
    assert per_page.free == per_page.metadata == 0
    assert on_demand.missed == on_demand.unknown == 0
    assert on_demand.free > 0
    assert on_demand.metadata > 0
    # Of space never written, too, the disk knows whose it is.
    assert on_demand.told >= per_page.told + per_page.missed


def test_a_disagreement_is_counted(demo_image: Path) -> None:
    with ImageSource(str(demo_image)) as source:
        run = Run(source)
        entries = list(fault_in(run.space, WORKLOADS[0], seed=1))
        run.trackers[0].associate(entries[0].page, 999, 0)
        run.go([WorkloadStep("fault", entry) for entry in entries], len(entries))
        assert run.disagreements == 1


def test_an_owner_unknown_to_on_demand_is_counted(
    demo_image: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with ImageSource(str(demo_image)) as source:
        answers = source.answers(source.space())
        lost = source.extents.files[0]
        forgetful = {lost.page: answers(lost.page)[1:]}
        monkeypatch.setattr(
            ImageSource, "answers", lambda *_: lambda page: forgetful.get(page, answers(page))
        )
        run = Run(source)
        entries = fault_in(run.space, WORKLOADS[0], seed=1)
        run.go((WorkloadStep("fault", entry) for entry in entries), 1)
        assert run.disagreements >= 1


def test_large_entries_are_used_where_they_fit() -> None:
    with MadeUpSource(20_000, 2, seed=5) as source:
        small = run_workload(source, WORKLOADS[0], seed=1)
        large = run_workload(source, WORKLOADS[2], seed=1)
    assert large.associations == small.associations
    saved = small.faults - large.faults
    assert saved > 0
    assert saved % 511 == 0
    assert [one.memory for one in large.trackers] == [one.memory for one in small.trackers]


def test_a_life_performs_every_kind_of_step(demo_image: Path) -> None:
    # Only who is mapped is written to, only who is not leaves memory, and the storm breaks.
    with ImageSource(str(demo_image)) as source:
        run = Run(source)
        seen: Counter[str] = Counter()
        for phase in life(run.world, run.processes, 5, 3000, source.extents.others):
            writes, broken = seen["write"], run.result(LIFE).life
            assert broken is not None

            def watched(steps: Iterator[WorkloadStep]) -> Iterator[WorkloadStep]:
                for step in steps:
                    seen[step.what] += 1
                    mapped = run.processes.mapped(step.extent.mapping)
                    assert step.what not in ("write", "fault", "unmap") or mapped
                    assert step.what != "evict" or not mapped
                    yield step

            run.go(watched(phase.steps), phase.about, phase.name)
            after = run.result(LIFE).life
            assert after is not None
            if phase.name == "write storm":
                assert after.broken - broken.broken == seen["write"] - writes > 0
        assert seen.keys() == {
            "fault", "write", "map", "unmap", "evict", "reflink", "punch", "truncate", "fail",
        }  # fmt: skip
        result = run.result(LIFE)
        assert result.life is not None
        phases = result.life.phases
        assert [one.name for one in phases] == ["faults", "write storm", "everyday use"]
        assert sum(one.steps for one in phases) == run.steps == seen.total()
        samples = result.trackers[0].memory_over_time
        assert sum(one.samples for one in phases) == len(samples)


def test_linux_calls_the_filesystem_less_often_for_the_same_answer(demo_image: Path) -> None:
    with ImageSource(str(demo_image)) as source:
        result = run_workload(source, LIFE, seed=3, life_steps=3000)
    assert result.life is not None
    linux, on_demand = result.life.linux, result.trackers[2].failures
    assert linux.free == 0 < on_demand.free
    # Directories are metadata that does not stop it.
    assert 0 < linux.metadata <= on_demand.metadata
    assert on_demand.told == linux.told + linux.missed
    assert linux.missed > 0
    processes = [one.failures.processes for one in result.trackers]
    assert processes == [linux.processes] * 3
    assert linux.processes > 0


def test_a_tracker_that_keeps_a_stale_owner_is_detected(
    demo_image: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(PerExtent, "disassociate", lambda *_: None)
    with ImageSource(str(demo_image)) as source:
        assert run_workload(source, LIFE, seed=7, life_steps=3000).disagreements > 0
