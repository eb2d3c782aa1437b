"""What follows from the measurements: memory of larger devices, and when tracking would pay."""

from collections.abc import Iterator
from typing import Final, NamedTuple

from whoseblock.study.results import Report, WorkloadResult
from whoseblock.study.sizes import PAGE, RB_ROOT_CACHED, SHARED_FILE

__all__ = [
    "DEVICES",
    "Extrapolation",
    "break_even",
    "bytes_a_page",
    "extrapolate",
    "per_page_bytes",
]

#: Persistent memory of one machine: a module, a large host, and the most that there was.
DEVICES: Final = {"128 GiB": 128 << 30, "1 TiB": 1 << 40, "6 TiB": 6 << 40}


def per_page_bytes(owners: int) -> int:
    """Give what the RFC's trees take for a page that so many files have faulted."""
    return 0 if owners < 2 else RB_ROOT_CACHED + SHARED_FILE * owners  # noqa: PLR2004 - shared


class Extrapolation(NamedTuple):
    """Bytes that a device would need if all of it were like the extents measured.

    ``on_disk`` is the reverse mapping's, which all designs would pay where it is made.
    """

    device: str
    pages: int
    memory: dict[str, int]
    on_disk: int


def extrapolate(report: Report) -> Iterator[Extrapolation]:
    """Scale up the first workload: every page written and faulted by all that have it."""
    result = report.workloads[0]
    upkeep = report.upkeep
    for device, size in DEVICES.items():
        pages = size // PAGE
        scale = pages / result.pages if result.pages else 0.0
        memory = {one.design: round(one.memory * scale) for one in result.trackers}
        on_disk = 0
        if upkeep is not None and upkeep.data_bytes:
            on_disk = round(upkeep.rmap_bytes / upkeep.data_bytes * size)
        yield Extrapolation(device, pages, memory, on_disk)


def break_even(report: Report, slower: float = 1.0) -> dict[str, float]:
    """Give, for each tracking design, how many failures in a million faults would make it pay.

    It spends time at every fault, on-demand at every failure; at so many both have spent as much.
    ``slower`` makes each question on demand take so many times as long.
    """
    if not report.times or not report.failure_times:
        return {}
    fault = report.times[0].added
    failure = {one.design: one.median for one in report.failure_times}
    asked = failure["on demand, cold"] * slower
    return {
        design: 1e6 * max(added - fault["on demand"], 0.0) / (asked - failure[design])
        for design, added in fault.items()
        if design != "on demand" and asked > failure[design]
    }


def bytes_a_page(result: WorkloadResult, design: str) -> float:
    """Give the memory of a design for each page of the device that is faulted in."""
    memory = next(one.memory for one in result.trackers if one.design == design)
    return memory / result.pages if result.pages else 0.0
