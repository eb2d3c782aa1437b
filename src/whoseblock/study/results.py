"""The results of a study, as records that define the JSON."""

from msgspec import Struct

__all__ = [
    "Blindness",
    "EntryTime",
    "FailureTime",
    "Failures",
    "LifeResult",
    "LostLeaf",
    "LostLeaves",
    "Phase",
    "Pieces",
    "StudyReport",
    "TrackerResult",
    "Upkeep",
    "WorkloadResult",
    "WriteTime",
]


class Failures(Struct, frozen=True):
    """The results of the failures of a workload under one design.

    ``told`` counts the owners that were found, ``missed`` those that the filesystem knows besides.
    ``free`` pages were zeroed and cleared; ``unknown`` ones were not handled. ``processes`` is the
    number of notified processes: all with the page in their page tables.
    """

    files: int
    free: int
    metadata: int
    unknown: int
    told: int
    missed: int
    processes: int


class TrackerResult(Struct, frozen=True):
    """The cost of one design in one workload; the fields of `whoseblock.study.counts.Counts`.

    ``memory_over_time`` is the memory after each of equal parts of the steps, for one phase of the
    workload after the other.
    """

    design: str
    memory: int
    peak: int
    allocations: int
    frees: int
    comparisons: int
    rotations: int
    locks: int
    page_writes: int
    probes: int
    memory_over_time: tuple[int, ...]
    failures: Failures


class Blindness(Struct, frozen=True):
    """The owners that tracking faults cannot find, at the end of a workload.

    ``owners`` counts every pair of a page and a file that has it, ``known`` those that were
    faulted in; ``files`` and ``files_known`` the same of files.
    """

    owners: int
    known: int
    files: int
    files_known: int


class Phase(Struct, frozen=True):
    """A part of a life: its steps, and how many of the samples of memory over time are of it."""

    name: str
    steps: int
    samples: int


class LifeResult(Struct, frozen=True):
    """The results of a life only.

    ``broken`` writes broke sharing; ``evicted`` inodes left memory, no process having the file
    mapped any more, and ``evicted_entries`` with them. ``linux`` is what XFS in Linux makes of the
    same failures, which asks on demand, too.
    """

    phases: tuple[Phase, ...]
    broken: int
    evicted: int
    evicted_entries: int
    linux: Failures


class WorkloadResult(Struct, frozen=True):
    """One workload: what happened, that all agreed, and what each design paid.

    ``faults`` put entries in, of ``associations`` pages; in the end ``pages`` different pages of
    the device are faulted in, by ``entries``. ``checked`` counts the comparisons of all designs'
    owners of a page, of which ``disagreements`` failed.
    """

    workload: str
    extents: str
    sharing: float
    steps: int
    faults: int
    associations: int
    pages: int
    entries: int
    checked: int
    disagreements: int
    rmap_updates: int
    blindness: Blindness
    trackers: tuple[TrackerResult, ...]
    life: LifeResult | None = None


class Pieces(Struct, frozen=True):
    """A workload on files in extents of ``length`` pages each."""

    length: int
    result: WorkloadResult


class EntryTime(Struct, frozen=True):
    """Seconds for an entry: without a tracker, and what each design adds to them.

    ``none`` and ``added`` are those of the fault that puts it in, ``out_none`` and ``out_added``
    those of taking it out again.
    """

    extents: str
    sharing: float
    entries: int
    none: float
    added: dict[str, float]
    out_none: float
    out_added: dict[str, float]


class WriteTime(Struct, frozen=True):
    """Seconds that each design takes for one write that breaks sharing: an owner less, and one new.

    ``clock`` of them are reading the clock, which is in all of them.
    """

    extents: str
    sharing: float
    writes: int
    clock: float
    seconds: dict[str, float]


class FailureTime(Struct, frozen=True):
    """The cost of one failure in one design: seconds, and blocks read.

    Of failures that were asked about all together only the mean is known.
    """

    design: str
    failures: int
    mean: float
    blocks_mean: float
    median: float | None = None
    worst: float | None = None
    blocks_median: float | None = None
    blocks_worst: int | None = None


class Upkeep(Struct, frozen=True):
    """The size of the reverse mapping on the disk, in bytes and records.

    Of ``size`` the kernel keeps ``kept_bytes`` back for it, in which are the ``rmap_bytes`` that it
    has now.
    """

    size: int
    rmap_bytes: int
    kept_bytes: int
    metadata_bytes: int
    data_bytes: int
    records: int
    file_records: int
    levels: int
    groups: int


class LostLeaf(Struct, frozen=True):
    """The loss of a block of the reverse mapping, with the records of ``pages`` pages.

    ``asked`` of these pages were queried; ``complete`` answers were complete nevertheless, and
    ``wrong`` ones had a wrong owner, or lacked an owner without a note.
    """

    records: int
    pages: int
    asked: int
    complete: int
    wrong: int


class LostLeaves(Struct, frozen=True):
    """The effect of losing one of ``leaves`` blocks, each with records of ``mean`` pages.

    The median of them, by how many pages they tell of, and the worst were lost indeed.
    """

    leaves: int
    mean: float
    median: LostLeaf
    worst: LostLeaf


class StudyReport(Struct, frozen=True):
    """All of a study.

    These fields differ from run to run: ``times``, ``write_times``, ``failure_times``,
    ``seconds`` (the duration of all workloads) and ``processor_seconds`` (the sum of their
    processor times). ``in_folios`` is the memory of the first design with one tree for each large
    folio; the first workload creates one for each of its pages.
    """

    extents: str
    seed: int
    upkeep: Upkeep
    lost_leaves: LostLeaves
    workloads: tuple[WorkloadResult, ...]
    in_folios: int
    sweep: tuple[WorkloadResult, ...]
    pieces: tuple[Pieces, ...]
    times: tuple[EntryTime, ...]
    write_times: tuple[WriteTime, ...]
    failure_times: tuple[FailureTime, ...]
    seconds: float
    processor_seconds: float

    @property
    def life(self) -> LifeResult:
        """The results of the life, the last of the workloads."""
        (life,) = (one.life for one in self.workloads if one.life is not None)
        return life

    @property
    def disagreements(self) -> int:
        """The number of disagreements between designs."""
        pieces = (one.result for one in self.pieces)
        return sum(one.disagreements for one in (*self.workloads, *self.sweep, *pieces))
