"""Find the locations of failures, and touch a failing device as rarely as possible."""

from collections.abc import Iterable

from msgspec.structs import replace

from whoseblock.ranges import ByteRange
from whoseblock.stack.kernel.host import Host
from whoseblock.watch.attribution.device_probe import DeviceProbe
from whoseblock.watch.attribution.failure_records import FailureRecords
from whoseblock.watch.attribution.locations import FailureLocation, find_identity
from whoseblock.watch.attribution.requests import FailedRequests
from whoseblock.watch.store.reports import (
    FailedFileRange,
    FailedRange,
    as_former,
    as_past,
)
from whoseblock.watch.store.state import StateFolder

__all__ = ["LocationFinder"]

#: The size of the cache of locations.
_MAX_LOCATED = 2_000


class LocationFinder:
    """Finds where failures are; what is known of them is kept in memory.

    Failures from before ``booted``, in seconds since 1970, are history.
    """

    def __init__(
        self,
        state: StateFolder,
        host: Host,
        probe: DeviceProbe,
        records: FailureRecords,
        booted: float,
    ) -> None:
        self._host = host
        self._probe = probe
        self._records = records
        self._booted = booted
        self._located: dict[tuple[str, int, int, int, str], list[FailureLocation]] = {}
        self._requests = FailedRequests(state, host, self._find_failing)

    def note_requests(self, reports: Iterable[FailedRange]) -> None:
        """Remember the lengths of traced requests: the log lacks them, and may come first."""
        for one in reports:
            self._requests.note(one)

    def find(self, one: FailedRange) -> list[tuple[FailedRange, FailureLocation]]:
        """Return the locations of a report, with the report.

        No device is touched if the records of the report are complete: reading a failing device
        makes the kernel report it again, and if that led to another read, it would never end. The
        report becomes history if another disk has its name by now.
        """
        if one.at < self._booted and not one.past:
            one = as_past(replace(one, disk=0), "before this boot")
        if self.was_replaced(one):
            one = as_former(one)
        ranges, suspected = self._requests.resolve(one) if not one.past else ([one.range], "")
        found = []
        for where in ranges:
            part = _part(one, where, suspected)
            found += [(part, place) for place in self._places(part, suspected)]
        if self.was_replaced(one):
            # It happened while the device was open.
            return self.find(one)
        return found

    def _places(self, one: FailedRange, suspected: str) -> list[FailureLocation]:
        places = self._located.get(_key(one, suspected))
        if places is None or not all(map(self._records.covers, places)):
            places = [place._replace(suspected=suspected) for place in self.locate(one)]
            if len(self._located) >= _MAX_LOCATED:
                self._located.clear()
            if not any(place.why for place in places):
                # Later the names may lead to another device: it is located anew before a query.
                self._located[_key(one, suspected)] = [
                    place._replace(layer=None) for place in places
                ]
        return places

    def was_replaced(self, one: FailedRange | FailedFileRange) -> bool:
        """Return whether another disk has the name of a failed device by now."""
        return bool(one.disk) and self._host.read_disk_number(one.device) != one.disk

    def forget(self, one: FailedRange) -> None:
        """Locate a report anew the next time."""
        for key in [key for key in self._located if key[:3] == one.where]:
            del self._located[key]

    def relocate(self, place: FailureLocation, one: FailedRange) -> FailureLocation:
        """Find the layer of a cached location."""
        self._located.pop(_key(one, place.suspected), None)
        for fresh in self.locate(one):
            if (
                fresh.device == place.device
                and fresh.start <= place.start < fresh.start + fresh.length
            ):
                return place._replace(layer=fresh.layer, why=fresh.why)
        return place._replace(why="its location has just changed")

    def locate(self, one: FailedRange) -> list[FailureLocation]:
        """Return where a failure is: on its own device if that does not answer."""
        if "#" in one.device:
            return [FailureLocation(one.device, "", one.start, one.length, None, one.past)]
        return self.locate_range(*one.where)

    def locate_range(self, device: str, start: int, length: int) -> list[FailureLocation]:
        """Return where a range of a device is: on the device itself if that does not answer."""
        try:
            return self._probe.locate(device, start, length)
        except OSError as error:
            identity = find_identity(self._host, device)
            return [FailureLocation(device, identity, start, length, None, str(error))]

    def _find_failing(self, device: str, where: ByteRange) -> list[ByteRange] | None:
        try:
            return self._probe.find_failing(device, where)
        except OSError:
            return None


def _part(one: FailedRange, where: ByteRange, suspected: str) -> FailedRange:
    """Return the report of a part of a failed request, which `FailedRequests` leaves as it is."""
    if where == one.range:
        return one
    detail = one.detail | {"request_start": one.start}
    if suspected:
        detail["suspected"] = suspected
    return replace(one, start=where.start, length=where.length, detail=detail)


def _key(one: FailedRange, suspected: str) -> tuple[str, int, int, int, str]:
    return (*one.where, one.disk, suspected)
