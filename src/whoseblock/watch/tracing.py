"""Tracepoints as a source: memory failures, and requests to disks that failed.

They come through a trace instance of its own, so that nobody else's tracing is disturbed.  Unlike
the kernel's log they are not thinned out, and where the buffer was too small the kernel says so.
An instance that a killed daemon left behind is taken over, with what it holds.
"""

import errno
import os
import time
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import Final

from whoseblock.errors import UnsupportedError
from whoseblock.stack.base import PHYSICAL_MEMORY
from whoseblock.stack.host import SECTOR, Host
from whoseblock.watch.base import Clock
from whoseblock.watch.formats.trace import BlockError, LostEvents, MemoryFailure, read_trace_line
from whoseblock.watch.reports import Failed, Lost, Report

__all__ = ["TraceSource"]

#: Where the kernel has had the event of memory failures, and where it has that of requests.
_EVENTS: Final = (
    "ras/memory_failure_event",
    "memory_failure/memory_failure_event",
    "block/block_rq_error",
)
#: The buffer of each processor: thousands of events.
_BUFFER_KIB: Final = 256
_PIECE: Final = 1 << 16
#: So many bytes are read before others have their turn.
_MOST_PIECES: Final = 4
#: Longer than any line of these events.
_LONGEST: Final = 4096
#: The words of blk_errors that blame the medium, as errno: see `whoseblock.sources.dmesg`.
_OF_THE_MEDIUM: Final = frozenset({errno.EIO, errno.ENODATA, errno.EILSEQ})
#: The first letter of the operations that carry data (blk_fill_rwbs).
_OPERATIONS: Final = frozenset("RW")


class TraceSource:
    """Reads the tracepoints below ``tracefs``, through the instance that is called ``instance``.

    Raises `UnsupportedError` where the kernel has none of them, and OSError if they may not be
    used.
    """

    name = "tracepoint"

    def __init__(self, tracefs: Path, host: Host, instance: str) -> None:
        self._host = host
        self._folder = tracefs / "instances" / instance
        self._rest = b""
        #: What the kernel counts of events that found no room, when we last looked.
        self._overrun = 0
        if not (tracefs / "instances").is_dir():
            raise UnsupportedError(
                f"no tracefs at {tracefs}", hint=f"mount -t tracefs tracefs {tracefs}"
            )
        with suppress(FileExistsError):
            self._folder.mkdir()
        try:
            self._events = [event for event in _EVENTS if self._enable(event)]
            self._fd = self._open()
        except BaseException:
            self._remove()
            raise

    def _open(self) -> int:
        if not self._events:
            raise UnsupportedError("the kernel has none of the tracepoints")
        return os.open(self._folder / "trace_pipe", os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)

    def _enable(self, event: str) -> bool:
        """Have an event recorded; False if the kernel does not have it."""
        switch = self._folder / "events" / event / "enable"
        if not switch.exists():
            return False
        if switch.read_text().strip() != "1":
            self._set("buffer_size_kb", str(_BUFFER_KIB))
            self._set("trace_clock", "mono")
            # Wake us at the first event, and not when the buffer is half full.
            self._set("buffer_percent", "0")
            switch.write_text("1")
        return True

    def _set(self, name: str, value: str) -> None:
        """Set an option, which older kernels may lack."""
        with suppress(OSError):
            (self._folder / name).write_text(value)

    @property
    def health(self) -> str:
        """Say how the source is."""
        return f"watching {', '.join(self._events)}"

    def fileno(self) -> int:
        """Give the descriptor of the pipe."""
        return self._fd

    def read(self) -> Iterator[Report]:
        """Give what the events tell that have come."""
        clock = Clock.now()
        for _ in range(_MOST_PIECES):
            try:
                data = os.read(self._fd, _PIECE)
            except BlockingIOError:
                return
            if not data:
                return
            *lines, self._rest = (self._rest + data).split(b"\n")
            self._rest = self._rest[-_LONGEST:]
            for line in lines:
                yield from self._told(line, clock)

    def _told(self, line: bytes, clock: Clock) -> Iterator[Report]:
        event = read_trace_line(line)
        if isinstance(event, MemoryFailure):
            page = self._host.page_size
            yield Failed(
                source=self.name,
                at=clock.at(event.seconds),
                device=PHYSICAL_MEMORY,
                start=event.pfn * page,
                length=page,
                origin="tracepoint memory_failure_event",
                detail={"pfn": hex(event.pfn), "page": event.kind, "verdict": event.result},
            )
        elif isinstance(event, LostEvents):
            yield self._lost(event.events)
        elif isinstance(event, BlockError):
            yield from self._request(event, clock)

    def _request(self, event: BlockError, clock: Clock) -> Iterator[Report]:
        """Give where a request began that failed: how far into it the fault was nobody says."""
        if -event.error not in _OF_THE_MEDIUM or event.operation[0] not in _OPERATIONS:
            return
        device = self._host.device_numbered(os.makedev(event.major, event.minor))
        start = event.sector * SECTOR
        if device is None or start + SECTOR > 1 << 63:
            return
        yield Failed(
            source=self.name,
            at=clock.at(event.seconds),
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

    def _lost(self, count: int) -> Lost:
        what = "the trace buffer was too small for what came at once"
        return Lost(source=self.name, at=time.time(), count=count, what=what)

    def sweep(self) -> Iterator[Report]:
        """Say whether events were lost that no later event has told of."""
        overrun = 0
        for stats in self._folder.glob("per_cpu/cpu*/stats"):
            for line in (self._host.text(stats) or "").splitlines():
                name, _, number = line.partition(": ")
                if name in ("overrun", "dropped events") and number.isdecimal():
                    overrun += int(number)
        if overrun > self._overrun:
            yield self._lost(overrun - self._overrun)
        self._overrun = overrun

    def close(self) -> None:
        """Remove the instance: until the next start the kernel's log has what happens."""
        os.close(self._fd)
        self._remove()

    def _remove(self) -> None:
        with suppress(OSError):
            self._folder.rmdir()
