"""A whole study: every workload over an image, the sweeps of sharing and of extents, the times."""

import gc
import signal
import time
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ProcessPoolExecutor
from contextlib import ExitStack, contextmanager
from multiprocessing import active_children, get_context
from typing import Final, NamedTuple, Self, TypeVar

from whoseblock.fs.base import Progress, no_progress
from whoseblock.study.measurements.disk import lost_leaves, upkeep
from whoseblock.study.measurements.run import run_workload
from whoseblock.study.measurements.sources import ImageSource, MadeUpSource, PiecesSource
from whoseblock.study.measurements.timing import entry_times, failure_times, write_times
from whoseblock.study.report.arithmetic import bytes_in_folios
from whoseblock.study.results import EntryTime, Pieces, StudyReport, WorkloadResult, WriteTime
from whoseblock.study.simulation.workloads import LIFE, WORKLOADS, Workload

__all__ = ["LENGTHS", "SHARING", "Plan", "study"]

#: By how many files pages are shared, in the sweep of sharing.
SHARING: Final = (1, 2, 4, 8, 16, 32, 64)
#: How many pages an extent has, and how many files share it, in the sweep of extents.
LENGTHS: Final = (1, 2, 3, 4, 8, 16, 32, 64)
_PIECES_SHARED: Final = (2, 8)
_PIECES_PAGES: Final = 192


_Time = TypeVar("_Time", EntryTime, WriteTime)
_Source = ImageSource | MadeUpSource | PiecesSource


class Plan(NamedTuple):
    """The plan of a study.

    The extents of the sweep of sharing are made up, ``sweep_pages`` of data each, unless there are
    ``sweep_images``; with no ``sweep_pages`` there is no sweep of extents, which are all made up.
    ``life_steps`` are those of the life after its faults.
    """

    image: str
    sweep_images: tuple[str, ...] = ()
    seed: int = 2020
    sweep_pages: int = 512
    life_steps: int = 20_000
    jobs: int = 1
    timed: bool = True


class _Origin(NamedTuple):
    """A source that can be opened in any process."""

    kind: Callable[..., _Source]
    arguments: tuple[str | int, ...]

    def open(self) -> _Source:
        return self.kind(*self.arguments)


class _Job(NamedTuple):
    """One workload on what can be opened."""

    origin: _Origin
    workload: Workload
    seed: int
    life_steps: int


def study(plan: Plan, progress: Progress = no_progress) -> StudyReport:
    """Carry out a plan.

    Raises `UnsupportedError` for an image that cannot be studied, and what opening it raises.
    """
    begun = time.perf_counter()
    # The longest first, so that no processor waits for the last one; and those in random order not
    # side by side, for the processors' common cache.
    kinds = [WORKLOADS[1], WORKLOADS[0], WORKLOADS[3], LIFE, WORKLOADS[2]]
    swept, pieces = _swept(plan), _pieces(plan)
    image = _Origin(ImageSource, (plan.image,))
    work = [(image, kind) for kind in kinds]
    work += [(origin, WORKLOADS[0]) for origin in (*swept, *(origin for _, origin in pieces))]
    jobs = [_Job(origin, workload, plan.seed, plan.life_steps) for origin, workload in work]
    with ImageSource(plan.image) as source, _begun(jobs, plan.jobs) as running:
        # Meanwhile, if there are other processes.
        price, lost = upkeep(source.filesystem), lost_leaves(plan.image)
        in_folios = bytes_in_folios(source.space().segments())
        results: list[WorkloadResult] = []
        processor = 0.0
        for number, (result, taken) in enumerate(running, 1):
            results.append(result)
            processor += taken
            progress("workloads", number, len(jobs))
        seconds = time.perf_counter() - begun
        order = [workload.name for workload in (*WORKLOADS, LIFE)]
        first = sorted(results[: len(kinds)], key=lambda result: order.index(result.workload))
        rest = results[len(kinds) :]
        return StudyReport(
            extents=source.name,
            seed=plan.seed,
            upkeep=price,
            lost_leaves=lost,
            workloads=tuple(first),
            in_folios=in_folios,
            sweep=tuple(rest[: len(swept)]),
            pieces=tuple(
                Pieces(length, result)
                for (length, _), result in zip(pieces, rest[len(swept) :], strict=True)
            ),
            times=_times(entry_times, plan, source),
            write_times=_times(write_times, plan, source),
            failure_times=failure_times(source, plan.seed) if plan.timed else (),
            seconds=seconds,
            processor_seconds=processor,
        )


def _swept(plan: Plan) -> list[_Origin]:
    """Yield the images of the sweep of sharing, or generated pages."""
    if plan.sweep_images:
        return [_Origin(ImageSource, (path,)) for path in plan.sweep_images]
    sharing = SHARING if plan.sweep_pages else ()
    return [_Origin(MadeUpSource, (plan.sweep_pages, files, plan.seed)) for files in sharing]


def _pieces(plan: Plan) -> list[tuple[int, _Origin]]:
    """Yield each length of extents, with these extents."""
    if not plan.sweep_pages:
        return []
    return [
        (length, _Origin(PiecesSource, (_PIECES_PAGES, files, length)))
        for files in _PIECES_SHARED
        for length in LENGTHS
    ]


def _times(
    measure: Callable[[_Source, int], _Time], plan: Plan, source: ImageSource
) -> tuple[_Time, ...]:
    """Time something on all extents by itself, with no other work beside."""
    if not plan.timed:
        return ()
    found = [measure(source, plan.seed)]
    for one in _swept(plan):
        with one.open() as swept:
            found.append(measure(swept, plan.seed))
    return tuple(found)


@contextmanager
def _begun(jobs: list[_Job], processes: int) -> Iterator[Iterable[tuple[WorkloadResult, float]]]:
    """Start jobs in other processes; with one process, run them on request."""
    if processes <= 1:
        with _Opened() as opened:
            yield map(opened.work, jobs)
        return
    with ProcessPoolExecutor(processes, mp_context=get_context("spawn")) as pool:
        try:
            with _interrupts_held():
                found = [pool.submit(_work, job) for job in jobs]
            yield (one.result() for one in found)
        except BaseException:
            # A job takes minutes, and the pool would wait for it. No future is cancelled: the
            # pool fails those that are left, and cannot fail a cancelled one.
            for child in active_children():
                child.terminate()
            raise


@contextmanager
def _interrupts_held() -> Iterator[None]:
    """Start processes that Ctrl-C does not reach, which is for this one to deal with.

    They inherit the mask. An interrupt of this process is delivered when the block ends.
    """
    before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


class _Opened:
    """The source of the last job, which the next job on the same image uses again."""

    def __init__(self) -> None:
        self._stack = ExitStack()
        self._last: tuple[_Origin, _Source] | None = None

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._stack.close()

    def work(self, job: _Job) -> tuple[WorkloadResult, float]:
        """Run a workload; gives the processor's seconds with the result."""
        begun = time.process_time()
        # Millions of nodes that refer to each other, and none of them garbage before the end.
        was = gc.isenabled()
        gc.disable()
        try:
            source = self._open(job.origin)
            result = run_workload(source, job.workload, job.seed, job.life_steps)
            return result, time.process_time() - begun
        finally:
            if was:
                gc.enable()

    def _open(self, origin: _Origin) -> _Source:
        if self._last is not None and self._last[0] == origin:
            return self._last[1]
        self._stack.close()
        source = origin.open()
        self._stack.push(source)
        self._last = origin, source
        return source


#: Of this process, if it is one of the pool; what it has open ends with it.
_OPENED: Final = _Opened()


def _work(job: _Job) -> tuple[WorkloadResult, float]:
    return _OPENED.work(job)
