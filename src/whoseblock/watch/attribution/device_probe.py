"""Query failing devices, each through a child process that can be abandoned.

I/O on a failing disk may hang in D state, where not even SIGKILL ends the process. So each device
is probed in a child process: neither the journal nor other devices wait for it.
"""

import os
import time
from collections.abc import Callable, Sequence
from contextlib import ExitStack, suppress
from multiprocessing import Pipe
from multiprocessing.connection import Connection
from typing import Any, Final, NamedTuple

from msgspec import Struct, field

from whoseblock.closing import Closing
from whoseblock.errors import TargetError, UnsupportedError, WhoseblockError
from whoseblock.fs.base import Answer, FileId, Unknown
from whoseblock.fs.driver import MountedVolume
from whoseblock.fs.mounted.fiemap import extents_of
from whoseblock.fs.registry import companion_mount_options
from whoseblock.lookup import Lookup, Query, QueryOptions
from whoseblock.media.device import SECTOR
from whoseblock.media.direct import DirectMedia
from whoseblock.process_stat import read_start_time
from whoseblock.querying import FileDevices
from whoseblock.ranges import ByteRange
from whoseblock.stack.mounted import companion_devices
from whoseblock.target import Target, TargetOptions
from whoseblock.watch.attribution.locations import (
    FailureLocation,
    follow_names,
    locate,
)
from whoseblock.watch.attribution.requests import find_failing_sectors
from whoseblock.watch.children import STANDARD, end_child, fork, signs_of_life
from whoseblock.watch.store.reports import FailedFileRange
from whoseblock.watch.store.state import StateFolder

__all__ = ["DeviceProbe", "ProbeLimits", "unknown_answer"]

_QUERY: Final = QueryOptions(paths=True, verified=True)
#: Tells a child to close what it has open; it sends no answer.
_RELEASE: Final = "release"
#: A child closes what it has open if no query comes for so many seconds: the journal may be away.
_IDLE_S: Final = 0.25
#: A failed block of a larger filesystem block is found in units of this, in bytes.
_PAGE: Final = 4096
#: At most this many children are kept for the next round: each takes some 16 MB.
_MAX_CHILDREN: Final = 8


class ProbeLimits(NamedTuple):
    """The waiting times of probes, in seconds.

    A child that neither computes nor reads for ``stall_s`` is abandoned; after ``longest_s`` it is
    abandoned in any case.  No new child probes the device for ``cooldown_s`` after that.  The
    progress of a child is checked every ``poll_s``.
    """

    stall_s: float = 15.0
    longest_s: float = 3600.0
    cooldown_s: float = 50.0
    poll_s: float = 1.0


USUAL_LIMITS: Final = ProbeLimits()


class AbandonedProbe(Struct):
    """A child stuck at a device: its pid, its start time, and when it was abandoned.

    ``at`` is in seconds of the monotonic clock.
    """

    pid: int
    started: int
    at: float


class AbandonedProbes(Struct):
    """The abandoned children by device; they may stay stuck for long."""

    devices: dict[str, AbandonedProbe] = field(default_factory=dict)


def unknown_answer(place: FailureLocation, origin: str, why: str) -> Answer:
    """Return an incomplete answer of one unknown row, with the note ``why``."""
    owners = (Unknown(*place.range),)
    return Answer(*place.range, complete=False, notes=(why,), owners=owners, origin=origin)


class DeviceProbe(Closing):
    """Children that query devices; the last one has its device open until `release`.

    Every query raises `TimeoutError` if the device does not answer. The next queries raise it at
    once, for a while and as long as the child is stuck. `ConnectionError` is raised if the child
    died.
    """

    def __init__(self, state: StateFolder, root: str, limits: ProbeLimits = USUAL_LIMITS) -> None:
        self._state = state
        self._limits = limits
        self._root = root
        self._abandoned = state.load("silent.json", AbandonedProbes) or AbandonedProbes()
        self._children: dict[str, tuple[int, Connection]] = {}
        #: The only device that a child may have open.
        self._opened = ""

    def locate(self, device: str, start: int, length: int) -> list[FailureLocation]:
        """Return the locations of a failed range, in byte order."""
        places: list[FailureLocation] = self._query(device, "locate", device, start, length)
        return places

    def find_extents(self, report: FailedFileRange) -> list[tuple[str, int, int]]:
        """Return the (device, start, length) ranges that part of a file has.

        The device is that of the report, or another of the same filesystem. Raises `OSError` with
        the reason if they are unknown, FileNotFoundError if the file is gone.
        """
        found: list[tuple[str, int, int]] | str | None
        found = self._query(report.device, "find_extents", report)
        if found is None:
            raise FileNotFoundError("the file is gone")
        if isinstance(found, str):
            raise OSError(found)
        return found

    def find_owners(
        self, device: str, questions: Sequence[tuple[FailureLocation, str]]
    ) -> tuple[list[Answer], dict[str, FileDevices]]:
        """Return the owners of locations that failures of ``device`` were resolved to.

        Each location has its layer, and comes with the origin of its report. The second value has
        the device numbers of the mounted filesystems, by the names of their layers.
        """
        found: tuple[list[Answer], dict[str, FileDevices]]
        found = self._query(device, "find_owners", questions)
        return found

    def find_failing(self, device: str, where: ByteRange) -> list[ByteRange] | None:
        """Return the sectors of a range that cannot be read, None if that cannot be determined."""
        found: list[ByteRange] | None = self._query(device, "find_failing", device, where)
        return found

    def release(self) -> None:
        """Close the device, its mount points and files; the next query opens them anew.

        A child that is kept for it must keep no filesystem from being unmounted. So a query of
        another device releases it, too: that device may not answer for long.
        """
        _, connection = self._children.get(self._opened, (0, None))
        self._opened = ""
        if connection is not None:
            # The next query finds out that it died.
            with suppress(BrokenPipeError, ConnectionResetError):
                connection.send((_RELEASE, ()))
        if len(self._children) > _MAX_CHILDREN:
            self.close()

    def close(self) -> None:
        """End all children."""
        for pid, connection in self._children.values():
            connection.close()
            end_child(pid)
        self._children.clear()

    # ------------------------------------------------------------------ who asks

    def _query(self, device: str, what: str, *about: object) -> Any:  # noqa: ANN401 - as the question has it
        if device != self._opened:
            self.release()
        self._refuse_if_stuck(device)
        if device not in self._children:
            self._children[device] = self._start()
        pid, connection = self._children[device]
        self._opened = device
        try:
            connection.send((what, about))
            self._wait(device, pid, connection)
            return connection.recv()
        except (EOFError, BrokenPipeError, ConnectionResetError):
            del self._children[device]
            connection.close()
            end_child(pid)
            raise ConnectionError(f"the probe of {device} died") from None

    def _start(self) -> tuple[int, Connection]:
        ours, theirs = Pipe()

        def body() -> int:
            _serve_queries(theirs, self._root)
            return 0

        pid = fork("probe", body, (*STANDARD, theirs.fileno()), self._state.lock)
        theirs.close()
        return pid, ours

    def _wait(self, device: str, pid: int, connection: Connection) -> None:
        """Wait for an answer as long as the child makes progress."""
        began = progressed = time.monotonic()
        signs = signs_of_life(pid)
        while not connection.poll(self._limits.poll_s):
            now, seen = time.monotonic(), signs_of_life(pid)
            if seen != signs:
                signs, progressed = seen, now
            limits = self._limits
            if now - progressed > limits.stall_s or now - began > limits.longest_s:
                self._abandon(device)
                raise TimeoutError(f"{device} has not answered for {now - began:.0f} s")

    def _abandon(self, device: str) -> None:
        pid, connection = self._children.pop(device)
        self._abandoned.devices[device] = AbandonedProbe(
            pid, read_start_time(pid) or 0, time.monotonic()
        )
        self._state.save("silent.json", self._abandoned)
        connection.close()
        end_child(pid)

    def _refuse_if_stuck(self, device: str) -> None:
        """Raise `TimeoutError` if a child is stuck at the device, or was a moment ago."""
        one = self._abandoned.devices.get(device)
        if one is None:
            return
        with suppress(ChildProcessError):
            os.waitpid(one.pid, os.WNOHANG)
        if read_start_time(one.pid) == one.started:
            raise TimeoutError(f"{device} does not answer: process {one.pid} still waits for it")
        if 0 <= time.monotonic() - one.at < self._limits.cooldown_s:
            raise TimeoutError(f"{device} did not answer a moment ago")
        del self._abandoned.devices[device]
        self._state.save("silent.json", self._abandoned)


# ---------------------------------------------------------------------- in the process that asks


def _serve_queries(connection: Connection, root: str) -> None:
    """Serve queries until the connection closes; a release, or a pause, closes what they opened."""
    handlers: dict[str, Callable[..., object]] = {}
    with ExitStack() as opened:
        while True:
            try:
                is_idle = bool(handlers) and not connection.poll(_IDLE_S)
                what, about = (_RELEASE, ()) if is_idle else connection.recv()
            except EOFError:
                return
            if what == _RELEASE:
                opened.close()
                handlers.clear()
                continue
            if not handlers:
                target = opened.enter_context(Target(None, TargetOptions(root=root)))
                finder = opened.enter_context(Lookup(target.open_leaf))
                one = _DeviceSession(target, finder)
                handlers |= {
                    "locate": one.locate,
                    "find_extents": one.find_extents,
                    "find_owners": one.find_owners,
                    "find_failing": one.find_failing,
                }
            connection.send(handlers[what](*about))


class _DeviceSession:
    def __init__(self, target: Target, finder: Lookup) -> None:
        self._target = target
        self._finder = finder

    def locate(self, device: str, start: int, length: int) -> list[FailureLocation]:
        try:
            return locate(self._target, self._finder, (device, start, length))
        except (WhoseblockError, OSError) as error:
            return [FailureLocation(device, "", start, length, None, str(error))]

    def find_extents(self, report: FailedFileRange) -> list[tuple[str, int, int]] | str | None:
        try:
            return _find_extents(report, self._target, self._finder)
        except (WhoseblockError, OSError) as error:
            return str(error)

    def find_failing(self, device: str, where: ByteRange) -> list[ByteRange] | None:
        """Read a range of a device past the page cache, in units of its filesystem's blocks."""
        if not self._target.host.live:
            return None
        try:
            unit = min(
                (
                    _block_size(place, self._finder, self._target)
                    for place in locate(self._target, self._finder, (device, *where))
                ),
                default=SECTOR,
            )
            with DirectMedia(f"/dev/{device.replace('/', '!')}") as media:
                if media.size < where.start + where.length:
                    return None
                return find_failing_sectors(
                    media.check, where.start, where.length, max(unit, media.align)
                )
        except (WhoseblockError, OSError):
            return None

    def find_owners(
        self, questions: Sequence[tuple[FailureLocation, str]]
    ) -> tuple[list[Answer], dict[str, FileDevices]]:
        """Return the answers, and the numbers under which their files appear by the layer."""
        answers = self._answer(questions)
        rows = [row for answer in answers for row in answer]
        found = {}
        for name, layer in self._finder.layers.items():
            with suppress(WhoseblockError):
                space = self._finder.leaf(layer)
                if isinstance(space, MountedVolume):
                    found[name] = FileDevices.of(space, rows)
        return answers, found

    def _answer(self, questions: Sequence[tuple[FailureLocation, str]]) -> list[Answer]:
        """Answer all queries together; if that fails, each by itself."""
        try:
            layers = {
                names: follow_names(self._target, names)
                for names in {place.layer or () for place, _ in questions}
            }
            asked = [
                Query(*place.range, layers[place.layer or ()], origin, named=True)
                for place, origin in questions
            ]
            return list(self._finder.answers(asked, _QUERY))
        except (WhoseblockError, OSError) as error:
            if len(questions) > 1:
                return [self._answer([one])[0] for one in questions]
            ((place, origin),) = questions
            return [unknown_answer(place, origin, str(error))]


def _block_size(place: FailureLocation, finder: Lookup, target: Target) -> int:
    """Return the size of the smallest piece of a location that has one owner, at most a page."""
    if place.layer is None:
        return SECTOR
    try:
        return min(finder.leaf(follow_names(target, place.layer)).block_size, _PAGE)
    except WhoseblockError:
        # Nothing is on it, or several layers.
        return SECTOR


def _find_extents(
    report: FailedFileRange, target: Target, finder: Lookup
) -> list[tuple[str, int, int]] | None:
    """Return the (device, start, length) ranges that part of a file has.

    The file is opened by its handle: it may have no path, or none that is visible here.  None if
    it is gone.
    """
    filesystem = finder.leaf(target.layer_of(report.device))
    if not isinstance(filesystem, MountedVolume):
        raise UnsupportedError("the filesystem is not mounted now")
    file = FileId(report.subvolume, report.inode)
    try:
        descriptor = filesystem.open_file(file, report.generation, os.O_RDONLY)
    except FileNotFoundError:
        return None
    found = []
    try:
        device = report.device
        if role := filesystem.data_companion(descriptor):
            device = _find_companion(target, device, role)
        end = report.start + report.length
        for extent in extents_of(descriptor, report.start, report.length):
            low = max(report.start, extent.logical)
            high = min(end, extent.logical + extent.length)
            if low < high and extent.has_place:
                found.append((device, extent.physical + low - extent.logical, high - low))
    finally:
        os.close(descriptor)
    return found


def _find_companion(target: Target, device: str, role: str) -> str:
    """Return the device that has a role for the mounted filesystem on ``device``."""
    for one in companion_devices(target.host, companion_mount_options()):
        if (one.data, one.role) == (device, role):
            return target.host.find_device_by_layer(one.device)
    raise TargetError(f"the {role} device of the filesystem on {device} is unknown")
