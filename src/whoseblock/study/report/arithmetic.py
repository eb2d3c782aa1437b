"""Calculations from the measurements: memory of larger devices, and the break-even of tracking."""

from collections.abc import Iterable, Iterator
from typing import TYPE_CHECKING, Final, NamedTuple

from whoseblock.study.results import StudyReport, WorkloadResult
from whoseblock.study.sizes import ENTRY_PAGES, PAGE, RB_ROOT_CACHED, SHARED_FILE, rmap_reserve

if TYPE_CHECKING:
    from whoseblock.study.simulation.space import Segment

__all__ = [
    "DEVICES",
    "Extrapolation",
    "break_even",
    "bytes_a_page",
    "bytes_in_folios",
    "extrapolate",
    "kept_back",
    "per_page_bytes",
]

#: Persistent memory of one machine: a module, a large host, and the most that there was.
DEVICES: Final = {"128 GiB": 128 << 30, "1 TiB": 1 << 40, "6 TiB": 6 << 40}
#: mkfs.xfs makes as many allocation groups, and more where one would be larger than 1 TiB.
_GROUPS: Final = 4
_LARGEST_GROUP: Final = 1 << 40


def per_page_bytes(owners: int) -> int:
    """Return the bytes of the RFC's tree for a page that ``owners`` files have faulted."""
    return 0 if owners < 2 else RB_ROOT_CACHED + SHARED_FILE * owners  # noqa: PLR2004 - shared


def bytes_in_folios(segments: "Iterable[Segment]") -> int:
    """Return the bytes of the trees if everything is faulted in by the largest possible entries.

    One tree stands for 2 MiB where all files that have them can take them in whole; a tree for each
    page stands everywhere else.
    """
    total = 0
    for start, end, keys in segments:
        pages = end - start
        first = start + -start % ENTRY_PAGES
        if first < end and not any((key + first - start) % ENTRY_PAGES for key in keys):
            pages -= (end - first) // ENTRY_PAGES * (ENTRY_PAGES - 1)
        total += pages * per_page_bytes(len(keys))
    return total


class Extrapolation(NamedTuple):
    """Bytes that a device would need if it were filled like the image that was measured.

    ``on_disk`` is the reverse mapping, of the ``kept_back`` that the kernel has for it to grow; all
    designs would pay it where there is a reverse mapping.
    """

    device: str
    size: int
    memory: dict[str, int]
    on_disk: int
    kept_back: int


def extrapolate(report: StudyReport) -> Iterator[Extrapolation]:
    """Scale up the first workload: every page that files have, faulted by all that have it."""
    result, image = report.workloads[0], report.upkeep
    for device, size in DEVICES.items():
        scale = size / image.size
        memory = {one.design: round(one.memory * scale) for one in result.trackers}
        yield Extrapolation(device, size, memory, round(image.rmap_bytes * scale), kept_back(size))


def kept_back(size: int) -> int:
    """Return the bytes of a device that the kernel reserves for the reverse mapping.

    They are a little less where the log is on the same device, for which nothing is kept.
    """
    groups = max(_GROUPS, -(-size // _LARGEST_GROUP))
    return groups * rmap_reserve(size // PAGE // groups) * PAGE


def break_even(report: StudyReport, slower: float = 1.0) -> dict[str, float]:
    """Return the break-even of each tracking design, in failures per million faults.

    It spends time when an entry is put in and when it is taken out, on-demand at every failure; at
    so many both have spent as much. ``slower`` makes each question on demand take so many times as
    long.
    """
    if not report.times or not report.failure_times:
        return {}
    first = report.times[0]
    entry = {design: first.added[design] + first.out_added[design] for design in first.added}
    failure = {one.design: one.mean for one in report.failure_times}
    asked = failure["on demand, cold"] * slower
    return {
        design: 1e6 * max(added - entry["on demand"], 0.0) / (asked - failure[design])
        for design, added in entry.items()
        if design != "on demand" and asked > failure[design]
    }


def bytes_a_page(result: WorkloadResult, design: str) -> float:
    """Return the memory of a design per page of the device that is faulted in."""
    memory = next(one.memory for one in result.trackers if one.design == design)
    return memory / result.pages if result.pages else 0.0
