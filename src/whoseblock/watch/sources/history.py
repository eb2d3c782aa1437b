"""Mark failures that are history: they happened before the daemon watched their device.

A log has failures of days, and a disk that has a name now may not be the one that failed. So these
are journaled, and neither are their owners certain nor does the policy act on them.
"""

from collections.abc import Iterable
from typing import Final, TypeVar

from msgspec.structs import replace

from whoseblock.watch.clock import Clock
from whoseblock.watch.sources.disk_numbers import DiskNumbers, Tenure
from whoseblock.watch.store.reports import (
    FailedFileRange,
    FailedRange,
    Report,
    as_former,
    as_past,
)

__all__ = ["mark_history"]

_Any = TypeVar("_Any", FailedRange, FailedFileRange)

_UNWATCHED: Final = "before the daemon watched"
_EITHER: Final = "about when another disk got this name"


def mark_history(reports: Iterable[Report], disks: DiskNumbers, since: float) -> list[Report]:
    """Return the reports, with the disk of each, and marked if they are history.

    ``since`` is when the daemon began to watch, in seconds of the monotonic clock. A failure of a
    disk that no longer has its name is one of ``NAME#NUMBER``, which no present device is called.
    """
    reports = list(reports)
    offset = Clock.now().offset
    disks.read()
    failed = [one for one in reports if isinstance(one, FailedRange | FailedFileRange)]
    tenures = {device: disks.tenure(device) for device in {one.device for one in failed}}
    marked: list[Report] = []
    for one in reports:
        match one:
            case FailedRange():
                marked.append(_mark(one, tenures[one.device], since, offset))
            case FailedFileRange():
                marked.append(_mark(one, tenures[one.device], since, offset))
            case _:
                marked.append(one)
    return marked


def _mark(one: _Any, tenure: Tenure | None, since: float, offset: float) -> _Any:
    # The time of day may have been set since the start; the monotonic clock is not.
    at = one.at - offset
    why = ""
    if tenure is not None:
        if not tenure.number or at < tenure.earliest:
            return as_former(replace(one, disk=tenure.before))
        one = replace(one, disk=tenure.number)
        why = _EITHER if at < tenure.latest and not tenure.vacant else ""
    if at < since:
        why = why or _UNWATCHED
    return as_past(one, why) if why else one
