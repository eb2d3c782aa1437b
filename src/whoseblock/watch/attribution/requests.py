"""Find the sectors of a failed request that really fail: the kernel names only its first.

A request of 64 KiB may span several files. So its sectors are read past the page cache, in halves,
within limits. Each failed read makes the kernel report another failed request; a range that was
read a while ago is therefore not read again.
"""

import re
import time
from collections.abc import Callable, Iterable
from typing import Final, NamedTuple

from msgspec import Struct, field

from whoseblock.media.bisection import MEDIA_ERRNOS
from whoseblock.ranges import PHYSICAL_MEMORY, ByteRange, merge
from whoseblock.stack.kernel.host import Host
from whoseblock.watch.store.reports import FailedRange
from whoseblock.watch.store.state import StateFolder

__all__ = ["FailedRequests", "SectorLimits", "find_failing_sectors"]

#: A request within one such block has one owner on most filesystems.
_BLOCK: Final = 4096
#: The longest request that is read, in bytes.
_LONGEST: Final = 4 << 20
#: No range is read again within so many seconds, except once after a report of something new.
_QUIET_S: Final = 600.0
#: A report of our own reads is at most this late, in seconds.
_SLACK_S: Final = 2.0
_MAX_READS: Final = 3
#: So many ranges are remembered, and so many requests of traced reports.
_MAX_RANGES: Final = 256
_MAX_TRACED: Final = 4096
#: The message of blk_print_req_error in the kernel's block/blk-mq.c.
_OPERATION: Final = re.compile(r" op 0x[0-9a-f]{1,8}:\((\w{1,32})\)", re.ASCII)
_SEGMENTS: Final = re.compile(r" phys_seg ([0-9]{1,5})\b", re.ASCII)


class SectorLimits(NamedTuple):
    """The most failing reads of one request, and the seconds that they may take in total."""

    reads: int = 64
    seconds: float = 30.0


USUAL_LIMITS: Final = SectorLimits()


def find_failing_sectors(  # noqa: PLR0913 - what a bisection takes
    read: Callable[[int, int], object],
    start: int,
    length: int,
    unit: int,
    limits: SectorLimits = USUAL_LIMITS,
    clock: Callable[[], float] = time.monotonic,
) -> list[ByteRange] | None:
    """Return the ranges that cannot be read, merged and ascending; None if a limit was reached.

    ``read`` takes an offset and a length, and raises `OSError`, or a `WhoseblockError` that is one
    of the medium. Ranges are multiples of ``unit``, except at the ends. Errors other than those of
    the medium are raised.
    """
    deadline = clock() + limits.seconds
    failing: list[ByteRange] = []
    pending = [(start, start + length)]
    left = limits.reads
    while pending:
        low, high = pending.pop()
        try:
            read(low, high - low)
        except OSError as error:
            if error.errno not in MEDIA_ERRNOS:
                raise
        else:
            continue
        left -= 1
        middle = (low + high) // 2 // unit * unit
        if middle <= low:
            middle = (low // unit + 1) * unit
        if middle >= high:
            failing.append(ByteRange(low, high - low))
        else:
            pending += [(middle, high), (low, middle)]
        if pending and (left <= 0 or clock() > deadline):
            return None
    return merge(failing)


class _Examined(Struct):
    # A range that was read until a time, its failing sectors (None if they could not be
    # determined), and how often it was read.
    start: int
    length: int
    until: float
    failing: tuple[ByteRange, ...] | None
    reads: int = 1

    def contains(self, where: ByteRange) -> bool:
        return self.start <= where.start and _end(where) <= self.start + self.length


class _Saved(Struct):
    devices: dict[str, list[_Examined]] = field(default_factory=dict)


class FailedRequests:
    """The requests that failed lately, and what reading them has shown.

    ``read`` reads a range of a device and returns its failing sectors, or None if they cannot be
    determined. What it returned is kept in the state folder.
    """

    def __init__(
        self,
        state: StateFolder,
        host: Host,
        read: Callable[[str, ByteRange], Iterable[ByteRange] | None],
    ) -> None:
        self._state = state
        self._host = host
        self._read = read
        self._devices = (state.load("examined.json", _Saved) or _Saved()).devices
        self._traced: dict[tuple[str, int, int], int] = {}

    def note(self, one: FailedRange) -> None:
        """Remember the length of a request, if the report has it."""
        traced = one.detail.get("request")
        if isinstance(traced, int):
            if len(self._traced) >= _MAX_TRACED:
                self._traced.clear()
            self._traced[one.device, one.start, one.disk] = traced

    def resolve(self, one: FailedRange) -> tuple[list[ByteRange], str]:
        """Return the failed ranges of a report, and why they are not certain, "" if they are."""
        if "request_start" in one.detail:
            return [one.range], str(one.detail.get("suspected", ""))
        length, exact = self._length(one)
        last = one.start + length - 1
        if length <= one.length or (exact and one.start // _BLOCK == last // _BLOCK):
            return [one.range], ""
        where = ByteRange(one.start, length)
        failing, why = self._read_again(one, where)
        if failing:
            return failing, ""
        return [where], f"a request of {'' if exact else 'up to '}{length} bytes failed, {why}"

    def _read_again(self, one: FailedRange, where: ByteRange) -> tuple[list[ByteRange], str]:
        """Return the failing sectors of a request, or why none is known."""
        if _is_write(one):
            return [], "and which of them were not written is unknown"
        if where.length > _LONGEST:
            return [], "too many to be read again"
        failing = self._failing(one, where)
        if failing is None:
            return [], "and which of its sectors failed could not be determined"
        return failing, "and all of its sectors could be read later"

    def _length(self, one: FailedRange) -> tuple[int, bool]:
        """Return the length of the failed request, and whether it is exact, or a bound."""
        traced = one.detail.get("request")
        if isinstance(traced, int):
            return traced, True
        if "message" not in one.detail or one.device == PHYSICAL_MEMORY:
            return one.length, True
        if (traced := self._traced.get((one.device, one.start, one.disk))) is not None:
            return traced, True
        return max(self._bound(one), one.length), False

    def _bound(self, one: FailedRange) -> int:
        """Return the most bytes that a request of the device can have, 0 if it is unknown."""
        disk, _ = self._host.find_disk_number(one.device)
        folder = self._host.find_device_folder(disk)
        if folder is None:
            return 0
        most = (self._host.read_number(folder / "queue/max_sectors_kb") or 0) << 10
        segments = _SEGMENTS.search(str(one.detail.get("message", "")))
        longest = self._host.read_number(folder / "queue/max_segment_size")
        if segments and longest:
            most = min(most, int(segments[1]) * longest)
        size = (self._host.read_number(folder / "size") or 0) * 512
        return min(most, size - one.start)

    def _failing(self, one: FailedRange, where: ByteRange) -> list[ByteRange] | None:
        device = f"{one.device}#{one.disk}"
        known = self._devices.setdefault(device, [])
        now = time.time()
        known[:] = [old for old in known if 0 <= now - old.until < _QUIET_S]
        before = next((old for old in known if old.contains(where)), None)
        if before is not None:
            inside = _within(before.failing or (), where)
            again = one.at > before.until + _SLACK_S and before.reads < _MAX_READS
            if inside or not again:
                return None if before.failing is None else inside
        found = self._read(one.device, where)
        if before is not None:
            known.remove(before)
        failing = None if found is None else tuple(found)
        reads = 1 if before is None else before.reads + 1
        known.append(_Examined(where.start, where.length, time.time(), failing, reads))
        del known[:-_MAX_RANGES]
        if len(self._devices) > _MAX_RANGES:
            self._devices = {device: known}
        self._state.save("examined.json", _Saved(self._devices), durable=False)
        return None if failing is None else list(failing)


def _within(ranges: Iterable[ByteRange], where: ByteRange) -> list[ByteRange]:
    """Return the parts of ranges that are within another."""
    parts = []
    for one in ranges:
        low, high = max(one.start, where.start), min(_end(one), _end(where))
        if low < high:
            parts.append(ByteRange(low, high - low))
    return parts


def _end(where: ByteRange) -> int:
    return where.start + where.length


def _is_write(one: FailedRange) -> bool:
    operation = one.detail.get("operation")
    if isinstance(operation, str):
        return not operation.startswith("R")
    match = _OPERATION.search(str(one.detail.get("message", "")))
    return match is not None and match[1] != "READ"
