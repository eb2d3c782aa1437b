"""A whole study: every workload over an image, the sweep of sharing, and the times."""

import gc
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from typing import Final, NamedTuple, TypeVar

from whoseblock.fs.base import Progress, no_progress
from whoseblock.study.disk import lost_leaf, upkeep
from whoseblock.study.results import FaultTime, Report, WorkloadResult, WriteTime
from whoseblock.study.run import run_workload
from whoseblock.study.sources import ImageSource, MadeUpSource
from whoseblock.study.timing import failure_times, fault_times, write_times
from whoseblock.study.workloads import LIFE, WORKLOADS, Workload

__all__ = ["SHARING", "Plan", "study"]

#: By how many files pages are shared, in the sweep.
SHARING: Final = (1, 2, 4, 8, 16, 32, 64)


_Time = TypeVar("_Time", FaultTime, WriteTime)


class Plan(NamedTuple):
    """What a study does.

    The extents of the sweep are made up, ``sweep_pages`` of data each, unless there are
    ``sweep_images``; with neither there is none.  ``life_steps`` are those of the life after its
    faults.
    """

    image: str
    sweep_images: tuple[str, ...] = ()
    seed: int = 2020
    sweep_pages: int = 512
    life_steps: int = 20_000
    jobs: int = 1
    timed: bool = True


class _Job(NamedTuple):
    """One workload; a number in the place of a path is how many files share a made-up page."""

    source: str | int
    workload: Workload
    plan: Plan


def study(plan: Plan, progress: Progress = no_progress) -> Report:
    """Carry out a plan.

    Raises `UnsupportedError` for an image that cannot be studied, and what opening it raises.
    """
    begun = time.perf_counter()
    with ImageSource(plan.image) as source:
        price = upkeep(source.filesystem)
        lost = lost_leaf(plan.image)
        # The longest first, so that no processor waits for the last one; and those in random order
        # not side by side, for the processors' common cache.
        kinds = [WORKLOADS[1], WORKLOADS[0], WORKLOADS[3], LIFE, WORKLOADS[2]]
        jobs = [_Job(plan.image, workload, plan) for workload in kinds]
        jobs += [_Job(one, WORKLOADS[0], plan) for one in _swept(plan)]
        results: list[WorkloadResult] = []
        processor = 0.0
        for number, (result, taken) in enumerate(_results(jobs, plan.jobs), 1):
            results.append(result)
            processor += taken
            progress("workloads", number, len(jobs))
        seconds = time.perf_counter() - begun
        order = [workload.name for workload in (*WORKLOADS, LIFE)]
        first = sorted(results[: len(kinds)], key=lambda result: order.index(result.workload))
        return Report(
            extents=source.name,
            seed=plan.seed,
            upkeep=price,
            lost_leaf=lost,
            workloads=tuple(first),
            sweep=tuple(results[len(kinds) :]),
            times=_times(fault_times, plan, source),
            write_times=_times(write_times, plan, source),
            failure_times=failure_times(source, plan.seed) if plan.timed else (),
            seconds=seconds,
            processor_seconds=processor,
        )


def _swept(plan: Plan) -> Sequence[str | int]:
    """Give the images of the sweep, or by how many files made-up pages are shared."""
    return plan.sweep_images or (SHARING if plan.sweep_pages else ())


def _times(
    measure: Callable[[ImageSource | MadeUpSource, int], _Time], plan: Plan, source: ImageSource
) -> tuple[_Time, ...]:
    """Time something on all extents by itself, with no other work beside."""
    if not plan.timed:
        return ()
    found = [measure(source, plan.seed)]
    for one in _swept(plan):
        with _source(one, plan) as swept:
            found.append(measure(swept, plan.seed))
    return tuple(found)


def _results(jobs: list[_Job], processes: int) -> Iterator[tuple[WorkloadResult, float]]:
    if processes <= 1:
        yield from map(_work, jobs)
        return
    with ProcessPoolExecutor(processes, mp_context=get_context("spawn")) as pool:
        yield from pool.map(_work, jobs)


def _work(job: _Job) -> tuple[WorkloadResult, float]:
    """Run a workload; gives the processor's seconds with the result."""
    begun = time.process_time()
    # Millions of nodes that refer to each other, and none of them garbage before the end.
    was = gc.isenabled()
    gc.disable()
    try:
        with _source(job.source, job.plan) as source:
            result = run_workload(source, job.workload, job.plan.seed, job.plan.life_steps)
        return result, time.process_time() - begun
    finally:
        if was:
            gc.enable()


def _source(one: str | int, plan: Plan) -> ImageSource | MadeUpSource:
    if isinstance(one, str):
        return ImageSource(one)
    return MadeUpSource(plan.sweep_pages, one, plan.seed)
