"""Watch tracepoints for memory failures and failed disk requests.

They come through a trace instance of the daemon's own, so no other tracing is disturbed. Unlike the
kernel log they are not rate-limited, and the kernel counts what a full buffer drops. An instance
that a killed daemon left is taken over with its events, and so is what that daemon had read last.
"""

import errno
import os
import time
from collections.abc import Iterator
from contextlib import ExitStack, suppress
from pathlib import Path
from typing import Final

from msgspec.structs import astuple

from whoseblock.errors import UnsupportedError
from whoseblock.fs.monitor import MEDIUM_ERRORS
from whoseblock.ranges import PHYSICAL_MEMORY
from whoseblock.stack.kernel.host import SECTOR, Host
from whoseblock.watch.clock import Clock
from whoseblock.watch.formats.trace import (
    BlockError,
    LostEvents,
    MemoryFailure,
    is_event,
    read_trace_line,
)
from whoseblock.watch.sources.base import device_name
from whoseblock.watch.store.reports import EventsLost, FailedRange, Report
from whoseblock.watch.store.trace_checkpoint import TraceCheckpoint, TraceCounts

__all__ = ["TraceSource"]

#: The event of memory failures, at both of its places in kernels, and that of requests.
_MEMORY_EVENTS: Final = ("ras/memory_failure_event", "memory_failure/memory_failure_event")
_REQUEST_EVENT: Final = "block/block_rq_error"
_EVENTS: Final = (*_MEMORY_EVENTS, _REQUEST_EVENT)
#: The buffer of each processor, in KiB: thousands of events.
_BUFFER_KIB: Final = 256
_PIECE: Final = 1 << 16
#: The number of pieces read before other sources get their turn.
_MOST_PIECES: Final = 4
#: The number of requests that are remembered.
_MOST_REQUESTS: Final = 4096
#: Longer than any line of these events.
_LONGEST: Final = 4096
_NO_ROOM: Final = "the trace buffer overflowed"
#: The first letter of operations that carry data (blk_fill_rwbs).
_OPERATIONS: Final = frozenset("RW")


class TraceSource:
    """Reads the tracepoints below ``tracefs`` through the trace instance ``instance``.

    The file ``consumed`` holds what was read and is not spooled yet, of this ``boot``. Raises
    `UnsupportedError` if the kernel has none of the tracepoints, and OSError without permission.
    """

    name = "tracepoint"

    def __init__(
        self, tracefs: Path, host: Host, instance: str, *, consumed: Path, boot: str
    ) -> None:
        self._host = host
        self._boot = boot
        self._folder = tracefs / "instances" / instance
        self._rest = b""
        #: The device and the first byte of requests that were read.
        self._requests: set[tuple[str, int]] = set()
        #: Events that were read, and events that were dropped, as far as they are reported. The
        #: lines of the latter count the same events: ``_by_lines``.
        self._read = self._overrun = self._by_lines = 0
        if not (tracefs / "instances").is_dir():
            raise UnsupportedError(
                f"no tracefs at {tracefs}", hint=f"mount -t tracefs tracefs {tracefs}"
            )
        try:
            self._folder.mkdir()
            taken_over = False
        except FileExistsError:
            taken_over = True
        with ExitStack() as undo:
            undo.callback(self._remove)
            self._events = [event for event in _EVENTS if self._enable(event)]
            self._checkpoint = undo.enter_context(TraceCheckpoint(consumed))
            self._fd = self._open()
            undo.pop_all()
        #: When the instance began to record these events.
        self._since = time.time()
        #: Reports that the previous daemon left.
        self._before = list(self._recover(taken_over=taken_over))

    def _recover(self, *, taken_over: bool) -> Iterator[Report]:
        """Yield what the previous daemon had read but not spooled, and how much of it is lost."""
        mark, clock = self._checkpoint.mark, Clock.now()
        lines = self._checkpoint.left.split(b"\n")
        if mark is not None and mark.boot != self._boot:
            # The clock has started anew since, and device numbers may differ.
            if lost := sum(map(is_event, lines)):
                yield self._events_lost(lost, "the machine went down before they were processed")
            mark, lines = None, []
        if mark is not None and taken_over:
            _, self._read, self._overrun, self._by_lines, since = astuple(mark)
            self._since = since or self._since
        for line in lines:
            yield from self._parse_line(line, clock)
        # A new instance begins at zero.
        read, overrun = self._read_counts()
        if mark is None or not taken_over:
            self._overrun = self._by_lines = overrun
        elif read > self._read:
            yield self._events_lost(read - self._read, "a daemon was killed while reading them")
        self._read = read

    def _open(self) -> int:
        if not self._events:
            raise UnsupportedError("the kernel has none of the tracepoints")
        return os.open(self._folder / "trace_pipe", os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)

    def _enable(self, event: str) -> bool:
        """Enable an event; return False if the kernel does not have it."""
        switch = self._folder / "events" / event / "enable"
        if not switch.exists():
            return False
        if switch.read_text().strip() != "1":
            self._set("buffer_size_kb", str(_BUFFER_KIB))
            self._set("trace_clock", "mono")
            # Wake up at the first event, not when the buffer is half full.
            self._set("buffer_percent", "0")
            switch.write_text("1")
        return True

    def _set(self, name: str, value: str) -> None:
        """Set an option that older kernels may lack."""
        with suppress(OSError):
            (self._folder / name).write_text(value)

    @property
    def is_watching(self) -> bool:
        """Whether any failure would be noticed; if not, ``health`` has the reason."""
        return True

    @property
    def health(self) -> str:
        """The state of the source in a few words."""
        return f"watching {', '.join(self._events)}"

    def covers(self, since: float) -> bool:
        """Return whether it has all failures since a time, or has reported how many it lost."""
        memory = any(event in self._events for event in _MEMORY_EVENTS)
        return memory and _REQUEST_EVENT in self._events and since >= self._since

    def expects(self, logged: FailedRange) -> bool:
        """Return whether the event of a request that the kernel has logged is still to be read."""
        is_traced = _REQUEST_EVENT in self._events and logged.at >= self._since
        return is_traced and (logged.device, logged.start) not in self._requests

    @property
    def events(self) -> int:
        """The number of events that were read."""
        return self._read

    def fileno(self) -> int:
        """Return the descriptor of the trace pipe."""
        return self._fd

    def read(self) -> Iterator[Report]:
        """Yield the reports of the events that have arrived."""
        clock = Clock.now()
        for _ in range(_MOST_PIECES):
            try:
                data = os.read(self._fd, _PIECE)
            except BlockingIOError:
                return
            if not data:
                return
            self._checkpoint.append(data)
            *lines, self._rest = (self._rest + data).split(b"\n")
            self._rest = self._rest[-_LONGEST:]
            for line in lines:
                yield from self._parse_line(line, clock)

    def mark_spooled(self) -> None:
        """Record that everything it reported is in the spool."""
        counts = (self._read, self._overrun, self._by_lines)
        self._checkpoint.commit(TraceCounts(self._boot, *counts, self._since))
        if self._rest:
            # The first part of an unfinished line is still needed.
            self._checkpoint.append(self._rest)

    def _parse_line(self, line: bytes, clock: Clock) -> Iterator[Report]:
        self._read += is_event(line)
        event = read_trace_line(line)
        if isinstance(event, MemoryFailure):
            page = self._host.page_size
            yield FailedRange(
                source=self.name,
                at=clock.at(event.seconds),
                key=f"{self._boot}:{event.seconds}:{event.pfn}",
                device=PHYSICAL_MEMORY,
                start=event.pfn * page,
                length=page,
                origin="tracepoint memory_failure_event",
                detail={"pfn": hex(event.pfn), "page": event.kind, "verdict": event.result},
            )
        elif isinstance(event, LostEvents):
            self._by_lines += event.events
            yield from (
                self._report_overrun(self._by_lines)
                if event.events
                else (self._events_lost(0, _NO_ROOM),)
            )
        elif isinstance(event, BlockError):
            yield from self._convert_request(event, clock)

    def _convert_request(self, event: BlockError, clock: Clock) -> Iterator[Report]:
        """Report the first sector of a failed request: the kernel does not say which one failed."""
        start = event.sector * SECTOR
        if start + SECTOR > 1 << 63:
            return
        device = device_name(self._host, os.makedev(event.major, event.minor))
        if len(self._requests) >= _MOST_REQUESTS:
            self._requests.clear()
        self._requests.add((device, start))
        if -event.error not in MEDIUM_ERRORS or event.operation[0] not in _OPERATIONS:
            return
        yield FailedRange(
            source=self.name,
            at=clock.at(event.seconds),
            key=f"{self._boot}:{event.seconds}:{device}:{start}",
            device=device,
            start=start,
            length=SECTOR,
            origin="tracepoint block_rq_error",
            detail={
                "operation": event.operation,
                "request": event.sectors * SECTOR,
                "error": errno.errorcode.get(-event.error, str(event.error)),
            },
        )

    def _events_lost(self, count: int, what: str) -> EventsLost:
        return EventsLost(source=self.name, at=time.time(), count=count, what=what)

    def _report_overrun(self, count: int) -> Iterator[EventsLost]:
        """Report dropped events that were not reported yet."""
        if count > self._overrun:
            yield self._events_lost(count - self._overrun, _NO_ROOM)
            self._overrun = count

    def _read_counts(self) -> tuple[int, int]:
        """Return how many events were read and how many were dropped, as the kernel counts them."""
        read = overrun = 0
        for stats in self._folder.glob("per_cpu/cpu*/stats"):
            for line in (self._host.read_text(stats) or "").splitlines():
                name, _, number = line.partition(": ")
                if number.isdecimal():
                    read += int(number) * (name == "read events")
                    overrun += int(number) * (name in ("overrun", "dropped events"))
        return read, overrun

    def sweep(self) -> Iterator[Report]:
        """Report lost events that no later event has shown."""
        before, self._before = self._before, []
        yield from before
        yield from self._report_overrun(self._read_counts()[1])

    def close(self) -> None:
        """Remove the instance: until the next start the kernel log has the failures."""
        os.close(self._fd)
        self._remove()
        self._checkpoint.close()

    def _remove(self) -> None:
        with suppress(OSError):
            self._folder.rmdir()
