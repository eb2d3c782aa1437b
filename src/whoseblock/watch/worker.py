"""Run worker and actor: processes that live only as long as there is work.

They load the libraries of lookup and journal, which the collector never does. They may wait for a
filesystem that does not answer, while the collector goes on reading.
"""

import ctypes
import gc
import os
import select
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Final, Protocol

import msgspec

from whoseblock.errors import JournalError, WhoseblockError
from whoseblock.watch.children import STANDARD, end_child, fork
from whoseblock.watch.log import log_event
from whoseblock.watch.statistics import Statistics
from whoseblock.watch.store.spool import Batch, Spool

if TYPE_CHECKING:
    from whoseblock.watch.processor import Processor, Setup

__all__ = [
    "HelperProcess",
    "SendStatistics",
    "perform_steps",
    "process_spool",
    "return_free_memory",
    "start_actor",
    "start_worker",
]

#: The number of reports processed together.
BATCH: Final = 256
#: Seconds after which a search for processes is checked even if it has no result.
_SEARCH_S: Final = 1.0
#: Seconds after which unknown owners are looked up even if more reports wait.
_RETRY_S: Final = 60.0
#: Seconds that new reports wait for such lookups.
_RETRIES_S: Final = 1.0
#: Seconds that the worker waits for more reports: failures come in bursts.
_LINGER: Final = 20.0
_PIECE: Final = 1 << 16


#: Sends counts to the collector.
SendStatistics = Callable[[Statistics], None]


class WaitForMore(Protocol):
    """Waits for more reports, and returns whether there are any, or something else to do."""

    def __call__(self, *, busy: bool, search: int) -> bool:
        """Wait only if the worker was ``busy``, or for ``search``, a descriptor, -1 for none."""


def process_spool(
    spool: Spool,
    make_setup: "Callable[[], Setup]",
    send: SendStatistics,
    more: "WaitForMore",
    clock: Callable[[], float] = time.monotonic,
) -> None:
    """Process all batches of the spool, and those that arrive while ``more`` waits for them.

    ``more`` is called with whether there was anything, and ``send`` with the counts of every batch.
    ``clock`` counts seconds.  Raises `JournalError`.
    """
    from whoseblock.watch.processor import Processor

    with Processor(make_setup()) as processor:
        send(processor.count_unfinished())
        busy = False
        retried = clock()
        while True:
            batch = spool.take(BATCH)
            if batch.files:
                _process_batch(batch, spool, processor, send)
            _send_if_any(processor.search_users(), send)
            # A disk that never stops failing must not keep the owners of others unknown.
            if not spool.has_more or clock() - retried > _RETRY_S:
                retried = clock()
                send(_retry_unknown(processor, spool, clock))
                send(processor.count_unhealed())
            busy = busy or bool(batch.files)
            if not more(busy=busy, search=processor.search):
                _send_if_any(processor.search_users(wait=True), send)
                return


def _retry_unknown(processor: "Processor", spool: Spool, clock: Callable[[], float]) -> Statistics:
    """Look up unknown owners again; new reports wait only briefly for that."""
    until = clock() + _RETRIES_S
    return processor.retry_unknown(lambda: clock() < until or not spool.has_more, wait=False)


def _send_if_any(done: Statistics, send: SendStatistics) -> None:
    if done != Statistics():
        send(done)


def _process_batch(
    batch: Batch, spool: Spool, processor: "Processor", send: SendStatistics
) -> None:
    """Process a batch; set a file aside that fails, so that it does not block the others."""
    try:
        done = processor.process(batch.groups, wait=False)
    except (OSError, MemoryError, JournalError):
        # The reports are not the cause: retry later.
        raise
    except Exception as error:  # noqa: BLE001 - whatever it is, the others must not wait
        if len(batch.files) > 1:
            for group, file in zip(batch.groups, batch.files, strict=True):
                _process_batch(Batch((group,), (file,)), spool, processor, send)
            return
        log_event("err", "report-set-aside", file=batch.files[0].name, why=f"{error!r}")
        spool.set_aside(batch.files[0])
        done = Statistics(lost={"spool": len(batch.groups[0])})
    else:
        spool.drop(batch.files)
    done.batches = 1
    send(done)


def perform_steps(
    make_setup: "Callable[[], Setup]",
    send: SendStatistics,
    go_on: Callable[[], bool] = lambda: True,
) -> None:
    """Perform planned steps while ``go_on`` returns true; raises `JournalError`."""
    from whoseblock.watch.processor import Processor

    with Processor(make_setup()) as processor:
        send(processor.perform(go_on))


class HelperProcess:
    """A child process that does some work, as its parent sees it.

    ``body`` is called with a function that sends counts, and with a descriptor whose end tells it
    to finish its present work and end. ``marker_file`` is as in `fork`.
    """

    def __init__(
        self, name: str, body: "Callable[[SendStatistics, int], None]", marker_file: Path
    ) -> None:
        self._counts, counts = os.pipe2(os.O_CLOEXEC | os.O_NONBLOCK)
        wake, self._wake = os.pipe2(os.O_CLOEXEC | os.O_NONBLOCK)
        self.name = name
        self.started = time.time()
        self._rest = b""
        self._decoder = msgspec.json.Decoder(Statistics)
        self.pid = fork(
            name,
            lambda: _run_child(name, body, counts, wake),
            (*STANDARD, counts, wake),
            marker_file,
        )
        os.close(counts)
        os.close(wake)

    def fileno(self) -> int:
        """Return the descriptor on which it sends counts, and whose end is its end."""
        return self._counts

    def wake(self) -> None:
        """Notify it of more work."""
        if self._wake < 0:
            # It was dismissed; the next process takes what it leaves.
            return
        # A full pipe has notified it already; a closed one means that it is about to end.
        with suppress(BlockingIOError, BrokenPipeError):
            os.write(self._wake, b".")

    def dismiss(self) -> None:
        """Ask it to end after its present work."""
        if self._wake >= 0:
            os.close(self._wake)
            self._wake = -1

    def read(self) -> tuple[list[Statistics], bool]:
        """Return the counts that it has sent, and whether it still lives."""
        found = []
        with suppress(BlockingIOError):
            while data := os.read(self._counts, _PIECE):
                *lines, self._rest = (self._rest + data).split(b"\n")
                found += [self._decoder.decode(line) for line in lines]
            return found, False
        return found, True

    def kill(self) -> None:
        """Kill it; do not wait for one that is stuck at a disk."""
        end_child(self.pid)

    def wait(self) -> int:
        """Reap it after its end; return its exit status, negative if a signal ended it."""
        self.dismiss()
        os.close(self._counts)
        _, status = os.waitpid(self.pid, 0)
        return os.waitstatus_to_exitcode(status)


def start_worker(
    spool: Spool, make_setup: "Callable[[], Setup]", marker_file: Path
) -> HelperProcess:
    """Start a process that empties the spool, and waits a little for more."""

    def body(send: SendStatistics, wake: int) -> None:
        def more(*, busy: bool, search: int) -> bool:
            waiting = spool.has_more
            sources, seconds = [wake], _LINGER if busy else 0.0
            if search >= 0:
                sources, seconds = [wake, search], _SEARCH_S
            ready, _, _ = select.select(sources, [], [], 0.0 if waiting else seconds)
            with suppress(BlockingIOError):
                while os.read(wake, _PIECE):
                    pass
                # The end of the pipe means that the collector wants the worker to end.
                return False
            return bool(ready) or waiting or search >= 0

        process_spool(spool, make_setup, send, more)

    return HelperProcess("worker", body, marker_file)


def start_actor(make_setup: "Callable[[], Setup]", marker_file: Path) -> HelperProcess:
    """Start a process that performs planned steps: a program may take an hour."""

    def body(send: SendStatistics, wake: int) -> None:
        # The collector never wakes an actor; only the end of the pipe arrives here.
        perform_steps(make_setup, send, lambda: not select.select([wake], [], [], 0)[0])

    return HelperProcess("actor", body, marker_file)


def return_free_memory() -> None:
    """Return memory that imports have freed to the system: the collector may run for months."""
    gc.collect()
    # Only glibc has it.
    with suppress(AttributeError):
        ctypes.CDLL(None).malloc_trim(0)


def _import_modules() -> None:
    """Import the modules of the work with garbage collection off, which is a quarter faster.

    They are needed at once, and stay loaded.
    """
    gc.disable()
    import whoseblock.watch.processor  # noqa: F401 - loaded here, and used by those who work

    gc.freeze()
    gc.enable()


def _run_child(
    name: str, body: "Callable[[SendStatistics, int], None]", counts: int, wake: int
) -> int:
    """Run the body in the child; return the exit code."""

    def send(done: Statistics) -> None:
        os.write(counts, msgspec.json.encode(done) + b"\n")

    try:
        os.set_blocking(counts, True)
        _import_modules()
        body(send, wake)
    except WhoseblockError as error:
        log_event("err", f"{name}-failed", why=str(error), hint=error.hint or None)
        return error.exit_code
    except BrokenPipeError:
        # The collector has ended.
        return WhoseblockError.exit_code
    except BaseException as error:
        log_event("err", f"{name}-failed", why=f"{type(error).__name__}: {error}")
        raise
    return 0
