"""Open and reopen all sources of a machine, and keep why one is missing."""

import select
import time
from binascii import crc32
from collections.abc import Callable, Iterable, Iterator
from contextlib import ExitStack, suppress
from functools import partial
from pathlib import Path
from typing import Final, Protocol, TypeGuard, runtime_checkable

from whoseblock.errors import PrivilegeError, WhoseblockError
from whoseblock.fs.registry import monitors
from whoseblock.stack.kernel.host import Host
from whoseblock.watch.clock import boot_id
from whoseblock.watch.log import log_event
from whoseblock.watch.sources.badblock_lists import BadBlockListSource
from whoseblock.watch.sources.base import Source
from whoseblock.watch.sources.fanotify import FilesystemErrorSource
from whoseblock.watch.sources.kmsg import KmsgSource
from whoseblock.watch.sources.monitors import MonitorSource
from whoseblock.watch.sources.mounts import MountedFilesystem
from whoseblock.watch.sources.tracepoints import TraceSource
from whoseblock.watch.store.reports import FailedRange, Report
from whoseblock.watch.store.state import HandledLists, LogPosition, StateFolder, usual_state_folder

__all__ = ["RETROSPECTIVE", "SourceSet", "instance_name"]

#: The sources that report what happened before the daemon started.
RETROSPECTIVE: Final = ("kmsg", "sysfs")
_TRACEFS: Final = "sys/kernel/tracing"
#: Seconds to wait for the event of a request that is logged.
_EVENT_S: Final = 0.5
#: What all messages about requests have (blk_print_req_error).
_REQUEST: Final = " op 0x"


@runtime_checkable
class _MountWatcher(Protocol):
    """A source that watches each mounted filesystem."""

    def mounts_changed(self, mounts: list[MountedFilesystem]) -> None:
        """Watch the mounted filesystems."""


@runtime_checkable
class _DrainedSource(Protocol):
    """A source whose events can be read once, and which tracks what is not spooled yet."""

    def mark_spooled(self) -> None:
        """Record that everything it reported is in the spool."""


class SourceSet:
    """Opens the sources, and reopens those that failed or were missing.

    ``only`` names those that are wanted.
    """

    def __init__(self, host: Host, state: StateFolder, only: tuple[str, ...] | None = None) -> None:
        self._host = host
        self._state = state
        self._boot = boot_id()
        self.open: dict[str, Source] = {}
        self.missing: dict[str, str] = {}
        #: The missing sources that another user could read.
        self.denied: set[str] = set()
        self._mounts: list[MountedFilesystem] = []
        position = state.load("position.json", LogPosition) or LogPosition()
        #: How far the log was read and spooled, and the last position saved of that.
        self._reached = position if position.boot == self._boot else LogPosition(self._boot)
        self._written = self._reached
        makers: dict[str, Callable[[], Source]] = {
            "kmsg": self._kmsg,
            "tracepoint": self._trace,
            "sysfs": self._lists,
            "fanotify": FilesystemErrorSource,
        }
        # From the files of a snapshot no filesystem can be watched.
        live = {"fanotify"}
        for one in monitors():
            makers[one.name] = partial(MonitorSource, host, one)
            live.add(one.name)
        self._makers = {
            name: maker
            for name, maker in makers.items()
            if (only is None or name in only) and (host.live or name not in live)
        }

    def _kmsg(self) -> Source:
        place = Path(self._host.root / "dev/kmsg")
        return KmsgSource.at(place, self._reached, self._host.page_size, self._is_traced)

    def _is_traced(self, since: float) -> bool:
        source = self.open.get("tracepoint")
        return isinstance(source, TraceSource) and source.covers(since)

    def _trace(self) -> Source:
        return TraceSource(
            self._host.root / _TRACEFS,
            self._host,
            instance_name(self._state.path),
            consumed=self._state.path / "trace",
            boot=self._boot,
        )

    def _lists(self) -> Source:
        known = self._state.load("lists.json", HandledLists) or HandledLists()
        return BadBlockListSource(self._host, known.ranges)

    def open_missing(self) -> list[Source]:
        """Open the sources that are not open; return those that could be opened."""
        found = []
        for name, maker in self._makers.items():
            if name in self.open:
                continue
            try:
                source = self._open_source(maker)
            except (WhoseblockError, OSError) as error:
                self._set_missing(name, error)
                continue
            self.missing.pop(name, None)
            self.denied.discard(name)
            self.open[name] = source
            watched = str(source.is_watching).lower()
            log_event("info", "source", source=name, watched=watched, health=source.health)
            found.append(source)
        return found

    def _open_source(self, maker: Callable[[], Source]) -> Source:
        with ExitStack() as undo:
            source = maker()
            undo.callback(source.close)
            if isinstance(source, _MountWatcher):
                source.mounts_changed(self._mounts)
            undo.pop_all()
        return source

    def _set_missing(self, name: str, error: Exception) -> None:
        if isinstance(error, OSError):
            why = error.strerror or str(error)
        else:
            why = str(error) if isinstance(error, WhoseblockError) else repr(error)
        if isinstance(error, PermissionError | PrivilegeError):
            self.denied.add(name)
        else:
            self.denied.discard(name)
        hint = error.hint or None if isinstance(error, WhoseblockError) else None
        if self.missing.get(name) != why:
            self.missing[name] = why
            log_event("warning", "source", source=name, watched="false", why=why, hint=hint)

    def await_events(self, reports: Iterable[Report], read: Callable[[Source], object]) -> None:
        """Read the events of failed requests that the log reports, with ``read``.

        The kernel logs a request before it traces it, and may be interrupted in between.
        """
        traced = self.open.get("tracepoint")
        if not isinstance(traced, TraceSource):
            return
        logged = [one for one in reports if _is_request(one) and traced.expects(one)]
        deadline = time.monotonic() + _EVENT_S
        while any(map(traced.expects, logged)) and (left := deadline - time.monotonic()) > 0:
            before = traced.events
            if not select.select([traced], [], [], left)[0]:
                return
            read(traced)
            if traced.events == before:
                # It was closed, or the spool has no room.
                return

    def mark_spooled(self, source: Source, reports: int) -> None:
        """Record that everything a source reported is in the spool; ``reports`` are new."""
        if isinstance(source, _DrainedSource):
            source.mark_spooled()
        elif isinstance(source, KmsgSource):
            self._reached = source.position
            if reports:
                self.save_position()

    def close_failed(self, source: Source, error: Exception) -> None:
        """Close a source that failed; the next sweep tries it again."""
        self.save_position()
        del self.open[source.name]
        with suppress(OSError):
            source.close()
        self._set_missing(source.name, error)

    def mounts_changed(self, mounts: list[MountedFilesystem]) -> Iterator[tuple[Source, OSError]]:
        """Watch the mounted filesystems; yield the sources that fail at it."""
        self._mounts = mounts
        for source in self:
            if isinstance(source, _MountWatcher):
                try:
                    source.mounts_changed(mounts)
                except OSError as error:
                    yield source, error

    @property
    def health(self) -> dict[str, tuple[bool, str]]:
        """Whether each source is watched, and its state in a few words."""
        opened = {name: (one.is_watching, one.health) for name, one in self.open.items()}
        return opened | {name: (False, why) for name, why in self.missing.items()}

    def save_position(self) -> None:
        """Save how far the log was read and spooled, if that has changed."""
        if self._reached == self._written:
            return
        try:
            # The log does not survive the machine either: the disk need not wake up for this.
            self._state.save("position.json", self._reached, durable=False)
        except OSError as error:
            # Messages that are read twice are journaled once.
            log_event("err", "position-not-kept", why=error.strerror)
        else:
            self._written = self._reached

    def __iter__(self) -> Iterator[Source]:
        return iter(list(self.open.values()))

    def close(self) -> None:
        """Close all sources."""
        self.save_position()
        for source in self:
            with suppress(OSError):
                source.close()
        self.open.clear()


def _is_request(report: Report) -> TypeGuard[FailedRange]:
    """Return whether a report is a message of the log about a failed request."""
    return (
        isinstance(report, FailedRange)
        and not report.past
        and _REQUEST in str(report.detail.get("message", ""))
    )


def instance_name(state: Path) -> str:
    """Return the name of the trace instance of the daemon with this state folder.

    Two daemons that shared an instance would get half of the events each.
    """
    if state == usual_state_folder():
        return "whoseblock"
    # hashlib would load two megabytes of OpenSSL into a process that never ends.
    return f"whoseblock-{crc32(bytes(state.resolve())):08x}"
