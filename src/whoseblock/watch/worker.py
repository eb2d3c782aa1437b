"""The worker: a process that lives as long as there is something in the spool, and a little longer.

It has the libraries that a lookup and the journal need, which the collector never loads.  It may
wait for a filesystem that does not answer, and the collector still takes in what the kernel says.
"""

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
    "act_through",
    "start_actor",
    "start_worker",
    "work_through",
]

#: So many reports are dealt with together.
BATCH: Final = 256
#: So long the worker waits for more, in seconds: failures come in swarms.
_LINGER: Final = 20.0
_PIECE: Final = 1 << 16


#: Says what is to be counted.
SendStatistics = Callable[[Statistics], None]


class More(Protocol):
    """Waits for more, and says whether there is."""

    def __call__(self, *, busy: bool) -> bool:
        """Wait only if the worker was ``busy``."""


def work_through(
    spool: Spool,
    make_setup: "Callable[[], Setup]",
    tell: SendStatistics,
    more: "More",
) -> None:
    """Deal with all that is in the spool, and with what comes as long as ``more`` waits for it.

    ``more`` is told whether there was anything, and ``tell`` after every batch what there is to
    count.  Raises `JournalError`.
    """
    from whoseblock.watch.processor import Processor

    with Processor(make_setup()) as processor:
        tell(processor.unfinished())
        busy = False
        while True:
            batch = spool.take(BATCH)
            if batch.files:
                _deal_with(batch, spool, processor, tell)
            if not spool.has_more:
                tell(processor.retry_unknown())
                tell(processor.count_unhealed())
            busy = busy or bool(batch.files)
            if not more(busy=busy):
                return


def _deal_with(batch: Batch, spool: Spool, processor: "Processor", tell: SendStatistics) -> None:
    """Deal with a batch; what nobody can deal with must not stay before all that follows."""
    try:
        done = processor.process(batch.groups)
    except (OSError, MemoryError, JournalError):
        # It is not the reports: do it again later.
        raise
    except Exception as error:  # noqa: BLE001 - whatever it is, the others must not wait
        if len(batch.files) > 1:
            for group, file in zip(batch.groups, batch.files, strict=True):
                _deal_with(Batch((group,), (file,)), spool, processor, tell)
            return
        log_event("err", "report-set-aside", file=batch.files[0].name, why=f"{error!r}")
        spool.set_aside(batch.files[0])
        done = Statistics(lost={"spool": len(batch.groups[0])})
    else:
        spool.drop(batch.files)
    done.batches = 1
    tell(done)


def act_through(
    make_setup: "Callable[[], Setup]",
    tell: SendStatistics,
    go_on: Callable[[], bool] = lambda: True,
) -> None:
    """Do what is planned, as long as ``go_on`` says so; raises `JournalError`."""
    from whoseblock.watch.processor import Processor

    with Processor(make_setup()) as processor:
        tell(processor.perform(go_on))


class HelperProcess:
    """A process that was started to do some work, as its parent sees it.

    ``body`` is what it does: it is given how to tell what is to be counted, and a descriptor at
    whose end it is to come to an end itself, with what it has in hand done.  ``badge`` is as of
    `fork`.
    """

    def __init__(
        self, name: str, body: "Callable[[SendStatistics, int], None]", marker_file: Path
    ) -> None:
        told, tell = os.pipe2(os.O_CLOEXEC | os.O_NONBLOCK)
        wake, waken = os.pipe2(os.O_CLOEXEC | os.O_NONBLOCK)
        self.name = name
        self.started = time.time()
        self._rest = b""
        self._decoder = msgspec.json.Decoder(Statistics)
        self.pid = fork(lambda: _live(name, body, tell, wake), (*STANDARD, tell, wake), marker_file)
        os.close(tell)
        os.close(wake)
        self._told, self._waken = told, waken

    def fileno(self) -> int:
        """Give the descriptor on which it tells what it has done, and that it has ended."""
        return self._told

    def wake(self) -> None:
        """Tell it that there is more."""
        if self._waken < 0:
            # It was dismissed, and what is left when it has ended is for the next.
            return
        # A full pipe has told it already; a closed one, that it is about to end.
        with suppress(BlockingIOError, BrokenPipeError):
            os.write(self._waken, b".")

    def dismiss(self) -> None:
        """Have it end once it has dealt with what it has in hand."""
        if self._waken >= 0:
            os.close(self._waken)
            self._waken = -1

    def read(self) -> tuple[list[Statistics], bool]:
        """Give what it has told, and whether it still lives."""
        found = []
        with suppress(BlockingIOError):
            while data := os.read(self._told, _PIECE):
                *lines, self._rest = (self._rest + data).split(b"\n")
                found += [self._decoder.decode(line) for line in lines]
            return found, False
        return found, True

    def kill(self) -> None:
        """End it; one that waits for a disk ends when that answers, and nobody waits for it."""
        end_child(self.pid)

    def wait(self) -> int:
        """Let go of it after its end; give its exit status, negative if a signal ended it."""
        self.dismiss()
        os.close(self._told)
        _, status = os.waitpid(self.pid, 0)
        return os.waitstatus_to_exitcode(status)


def start_worker(
    spool: Spool, make_setup: "Callable[[], Setup]", marker_file: Path
) -> HelperProcess:
    """Start one that deals with the spool, as long as something comes, and a little longer."""

    def body(tell: SendStatistics, wake: int) -> None:
        def more(*, busy: bool) -> bool:
            waiting = spool.has_more
            ready, _, _ = select.select([wake], [], [], _LINGER if busy and not waiting else 0.0)
            with suppress(BlockingIOError):
                while os.read(wake, _PIECE):
                    pass
                # The pipe is at its end: the collector wants us to end, whatever it said before.
                return False
            return bool(ready) or waiting

        work_through(spool, make_setup, tell, more)

    return HelperProcess("worker", body, marker_file)


def start_actor(make_setup: "Callable[[], Setup]", marker_file: Path) -> HelperProcess:
    """Start one that does what is planned: a program may take an hour, and no record waits."""

    def body(tell: SendStatistics, wake: int) -> None:
        # Nobody wakes it: what comes is the end, and then the next one has the policy of then.
        act_through(make_setup, tell, lambda: not select.select([wake], [], [], 0)[0])

    return HelperProcess("actor", body, marker_file)


def _load() -> None:
    """Import what work takes, with nobody looking for garbage among it: that is a quarter quicker.

    Somebody waits, and none of it ever goes away.
    """
    gc.disable()
    import whoseblock.watch.processor  # noqa: F401 - loaded here, and used by those who work

    gc.freeze()
    gc.enable()


def _live(name: str, body: "Callable[[SendStatistics, int], None]", tell: int, wake: int) -> int:
    """Be the helper; give the exit code."""

    def say_so(done: Statistics) -> None:
        os.write(tell, msgspec.json.encode(done) + b"\n")

    try:
        os.set_blocking(tell, True)
        _load()
        body(say_so, wake)
    except WhoseblockError as error:
        log_event("err", f"{name}-failed", why=str(error), hint=error.hint or None)
        return error.exit_code
    except BrokenPipeError:
        # The collector has gone.
        return WhoseblockError.exit_code
    except BaseException as error:
        log_event("err", f"{name}-failed", why=f"{type(error).__name__}: {error}")
        raise
    return 0
