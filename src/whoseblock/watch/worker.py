"""The worker: a process that lives as long as there is something in the spool, and a little longer.

It has the libraries that a lookup and the journal need, which the collector never loads.  It may
wait for a filesystem that does not answer, and the collector still takes in what the kernel says.
"""

import ctypes
import gc
import os
import select
import signal
import time
from collections.abc import Callable
from contextlib import suppress
from typing import TYPE_CHECKING, Final, Protocol

import msgspec

from whoseblock.errors import WhoseblockError
from whoseblock.watch.log import say
from whoseblock.watch.spool import Spool
from whoseblock.watch.statistics import Statistics

if TYPE_CHECKING:
    from whoseblock.watch.process import Setup

__all__ = ["Worker", "work_through"]

#: So many reports are dealt with together.
BATCH: Final = 256
#: So long the worker waits for more, in seconds: failures come in swarms.
_LINGER: Final = 20.0
_PR_SET_PDEATHSIG: Final = 1  # linux/prctl.h
_PIECE: Final = 1 << 16


class More(Protocol):
    """Waits for more, and says whether there is."""

    def __call__(self, *, busy: bool) -> bool:
        """Wait only if the worker was ``busy``."""


def work_through(
    spool: Spool,
    make_setup: "Callable[[], Setup]",
    tell: Callable[[Statistics], None],
    more: "More",
) -> None:
    """Deal with all that is in the spool, and with what comes as long as ``more`` waits for it.

    ``more`` is told whether there was anything, and ``tell`` after every batch what there is to
    count.  Raises `JournalError`.
    """
    from whoseblock.watch.process import Processor

    with Processor(make_setup()) as processor:
        tell(processor.resume())
        busy = False
        while True:
            batch = spool.take(BATCH)
            if batch.files:
                done = processor.process(batch.groups)
                spool.drop(batch.files)
                tell(done)
            if not spool.has_more:
                tell(processor.count_unhealed())
            busy = busy or bool(batch.files)
            if not more(busy=busy):
                return


class Worker:
    """A worker that was started, as its parent sees it."""

    def __init__(self, spool: Spool, make_setup: "Callable[[], Setup]") -> None:
        told, tell = os.pipe2(os.O_CLOEXEC | os.O_NONBLOCK)
        wake, waken = os.pipe2(os.O_CLOEXEC | os.O_NONBLOCK)
        self.started = time.time()
        self._rest = b""
        self._decoder = msgspec.json.Decoder(Statistics)
        self.pid = os.fork()
        if self.pid == 0:
            os.close(told)
            os.close(waken)
            _live(spool, make_setup, tell, wake)
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

    def wait(self) -> int:
        """Let go of it after its end; give its exit status, negative if a signal ended it."""
        self.dismiss()
        os.close(self._told)
        _, status = os.waitpid(self.pid, 0)
        return os.waitstatus_to_exitcode(status)


def _load() -> None:
    """Import what work takes, with nobody looking for garbage among it: that is a quarter quicker.

    Somebody waits, and none of it ever goes away.
    """
    gc.disable()
    import whoseblock.watch.process  # noqa: F401 - loaded here, and used by `work_through`

    gc.freeze()
    gc.enable()


def _live(spool: Spool, make_setup: "Callable[[], Setup]", tell: int, wake: int) -> None:
    """Be the worker; does not return."""
    code = WhoseblockError.exit_code
    try:
        # Nobody is left to do the same when the collector is killed and started again.
        ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
        signal.set_wakeup_fd(-1)
        for number in (signal.SIGTERM, signal.SIGHUP):
            signal.signal(number, signal.SIG_DFL)
        # Ctrl-C goes to both; the collector says when to end.
        signal.signal(signal.SIGINT, signal.SIG_IGN)
        os.set_blocking(tell, True)
        _load()

        def more(*, busy: bool) -> bool:
            waiting = spool.has_more
            ready, _, _ = select.select([wake], [], [], _LINGER if busy and not waiting else 0.0)
            with suppress(BlockingIOError):
                while os.read(wake, _PIECE):
                    pass
                # The pipe is at its end: the collector wants us to end, whatever it said before.
                return False
            return bool(ready) or waiting

        def say_so(done: Statistics) -> None:
            os.write(tell, msgspec.json.encode(done) + b"\n")

        work_through(spool, make_setup, say_so, more)
        code = 0
    except WhoseblockError as error:
        code = error.exit_code
        say("err", "worker-failed", why=str(error), hint=error.hint or None)
    except BrokenPipeError:
        # The collector has gone.
        pass
    except BaseException as error:  # noqa: BLE001 - whatever it is, the collector goes on
        import traceback

        say("err", "worker-failed", why=f"{type(error).__name__}: {error}")
        traceback.print_exc()
    finally:
        os._exit(code)
