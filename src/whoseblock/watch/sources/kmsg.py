"""Watch the kernel log for memory failures and failed disk requests."""

import errno
import os
import stat
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Final, Self

from whoseblock.errors import MalformedError
from whoseblock.ranges import PHYSICAL_MEMORY
from whoseblock.sources.kernel_log.dmesg import read_message, read_signal_page
from whoseblock.watch.clock import Clock
from whoseblock.watch.formats.kmsg import KmsgRecord, count_suppressed, is_from_kernel, read_kmsg
from whoseblock.watch.store.reports import EventsLost, FailedRange, Report
from whoseblock.watch.store.state import LogPosition

__all__ = ["KmsgSource"]

#: The longest record (CONSOLE_EXT_LOG_MAX and PRINTK_MESSAGE_MAX in the kernel).
_RECORD: Final = 8192
#: The messages about signals that are kept for the next memory failure, and the pages of 1 GiB.
_MOST_SIGNALS: Final = 16
_HUGE_PAGES: Final = 1 << 18
#: The number of records read before other sources get their turn.
_MOST: Final = 1024


class KmsgSource:
    """Reads messages from ``descriptor`` that come after a position.

    The skew of the position is how many seconds the log's clock is behind the monotonic one: NTP
    does not set it, and it is minutes off after days. It is measured when a message arrives while
    the daemon waits for it.

    ``is_traced`` returns whether the tracepoints have all failures since a time. Messages that were
    overwritten or suppressed since then are no loss: most of them are no failures, and the others
    are known.

    A regular file, from the snapshot of a machine, holds all messages at once.
    """

    name = "kmsg"

    def __init__(
        self,
        descriptor: int,
        position: LogPosition,
        page_size: int,
        is_traced: Callable[[float], bool] = lambda _: False,
    ) -> None:
        self.sequence = position.sequence
        self.skew = position.skew
        self._boot = position.boot
        self._page_size = page_size
        self._is_traced = is_traced
        #: When the last message was logged, and the last one of a failed request; 0 if unknown.
        self._last_at = position.at
        self._failed_at = 0.0
        #: The number of messages that were not read, and that the tracepoints have.
        self._known = 0
        self._overwritten = False
        #: Messages about signals, which the kernel logs before the failure that caused them.
        self._signals: list[tuple[int, str]] = []
        self._is_file = stat.S_ISREG(os.fstat(descriptor).st_mode)
        #: Whether the log was read to its end, so that the next message is of this moment.
        self._waited = False
        self._fd = descriptor

    @classmethod
    def at(
        cls,
        device: Path,
        position: LogPosition,
        page_size: int,
        is_traced: Callable[[float], bool] = lambda _: False,
    ) -> Self:
        """Open a log; raises OSError, since most machines require CAP_SYSLOG."""
        descriptor = os.open(device, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
        return cls(descriptor, position, page_size, is_traced)

    @property
    def position(self) -> LogPosition:
        """The position of the last message that was read."""
        return LogPosition(self._boot, self.sequence, self.skew, self._last_at)

    @property
    def is_watching(self) -> bool:
        """Whether any failure would be noticed; if not, ``health`` has the reason."""
        return True

    @property
    def health(self) -> str:
        """The state of the source in a few words."""
        words = f"read up to message {self.sequence}"
        return f"{words}; {self._known} were not read, but traced" if self._known else words

    def fileno(self) -> int:
        """Return the descriptor of the log, -1 for a file, which cannot be polled."""
        return -1 if self._is_file else self._fd

    def read(self) -> Iterator[Report]:
        """Yield the reports of the messages that have arrived."""
        clock, now = Clock.now(), time.monotonic()
        for data in self._lines() if self._is_file else self._records():
            record = read_kmsg(data)
            if record is not None and record.sequence > self.sequence:
                if self._waited:
                    self.skew = now - record.microseconds / 1e6
                at = clock.at(record.microseconds / 1e6 + self.skew)
                yield from self._report_gap(record, at)
                self.sequence = record.sequence
                self._last_at = at
                yield from self._parse_message(record, at)

    def _lines(self) -> Iterator[bytes]:
        with open(self._fd, "rb", closefd=False) as file:
            file.seek(0)
            yield from file

    def _records(self) -> Iterator[bytes]:
        for _ in range(_MOST):
            try:
                data = os.read(self._fd, _RECORD)
            except BlockingIOError:
                self._waited = True
                return
            except OSError as error:
                if error.errno not in (errno.EPIPE, errno.EINVAL):
                    raise
                # Messages were overwritten before they were read (or, EINVAL, one is longer than
                # expected); the next read continues after the gap.
                self._overwritten = True
                continue
            if not data:
                return
            yield data

    def _report_gap(self, record: KmsgRecord, at: float) -> Iterator[Report]:
        """Report how many messages were overwritten."""
        known = self.sequence >= 0
        missing = record.sequence - self.sequence - 1 if known else 0
        if missing and self._is_covered(self._last_at):
            self._known += missing
        elif missing or (self._overwritten and not known):
            yield EventsLost(
                source=self.name,
                at=at,
                key=f"{self._boot}:{record.sequence}:lost",
                count=missing,
                what="messages were overwritten before they were read",
            )
        self._overwritten = False

    def _is_covered(self, since: float) -> bool:
        """Return whether the tracepoints have what was logged since a time, if that is known."""
        return bool(since and self.skew) and self._is_traced(since)

    def _parse_message(self, record: KmsgRecord, at: float) -> Iterator[Report]:
        """Yield the reports of one message."""
        if not is_from_kernel(record):
            return
        key = f"{self._boot}:{record.sequence}"
        origin = f"/dev/kmsg, message {record.sequence}"
        if count := count_suppressed(record.text):
            # The kernel suppresses messages after one that it has printed.
            if self._is_covered(self._failed_at):
                self._known += count
                return
            what = "the kernel rate-limited its messages about failed requests"
            yield EventsLost(source=self.name, at=at, key=key, count=count, what=what)
            return
        if (page := read_signal_page(record.text)) is not None:
            self._signals = [*self._signals[1 - _MOST_SIGNALS :], (page, record.text)]
            return
        try:
            failure = read_message(record.text, "kmsg", page_size=self._page_size)
        except MalformedError as error:
            what = f"cannot parse a message: {error}"
            yield EventsLost(
                source=self.name,
                at=at,
                key=key,
                count=1,
                what=what,
                detail={"message": record.text},
            )
            return
        if failure is not None:
            detail: dict[str, object] = {"message": record.text}
            if failure.device != PHYSICAL_MEMORY:
                self._failed_at = at
            elif signals := self._take_signals(failure.start // self._page_size):
                detail["signals"] = signals
            yield FailedRange(
                source=self.name,
                at=at,
                key=key,
                device=failure.device,
                start=failure.start,
                length=failure.length,
                origin=origin,
                detail=detail,
            )

    def _take_signals(self, page: int) -> list[str]:
        """Return the kept messages about signals that a failed page explains, and drop the others.

        The kernel deals with one page after the other.
        """
        kept, self._signals = self._signals, []
        return [text for first, text in kept if first <= page < first + _HUGE_PAGES]

    def sweep(self) -> Iterator[Report]:
        """Yield what a file has that was not read; a log cannot be read again."""
        return self.read() if self._is_file else iter(())

    def close(self) -> None:
        """Close the log."""
        os.close(self._fd)
