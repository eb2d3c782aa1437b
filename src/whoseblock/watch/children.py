"""Processes of ours that do one thing, and may get stuck at it."""

import ctypes
import gc
import os
import signal
import time
from collections.abc import Callable, Iterable
from contextlib import suppress
from pathlib import Path
from typing import Final

from whoseblock.process_stat import stat_fields

__all__ = ["STANDARD", "end_child", "fork", "signs_of_life"]

#: Standard input, output and error.
STANDARD: Final = (0, 1, 2)
#: So long the end of a child that was killed is waited for, in seconds.
_TIMEOUT_S: Final = 1.0
_PR_SET_PDEATHSIG: Final = 1  # linux/prctl.h


def fork(body: Callable[[], int], keep: Iterable[int], marker_file: Path | None = None) -> int:
    """Have a child run ``body``, whose value is its exit code; give its pid.

    It has only the descriptors ``keep``: one that gets stuck for good would hold locks and pipes of
    ours for as long.  It does not outlive us.  The file ``badge`` it has open, too, by which it is
    known to be one of us.
    """
    pid = os.fork()
    if pid:
        return pid
    code = 1
    try:
        ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
        signal.set_wakeup_fd(-1)
        for number in (signal.SIGTERM, signal.SIGHUP):
            signal.signal(number, signal.SIG_DFL)
        # Ctrl-C goes to all of us; the collector says when to end.
        signal.signal(signal.SIGINT, signal.SIG_IGN)
        # What has the descriptors that are closed here is never used again, nor finalized.
        gc.freeze()
        _close_all_but({*keep})
        if marker_file is not None:
            os.open(marker_file, os.O_RDONLY | os.O_CLOEXEC)
        code = body()
    except BaseException:  # noqa: BLE001 - whatever it is, it must not go on as if it were us
        import traceback

        traceback.print_exc()
    finally:
        os._exit(code)


def _close_all_but(keep: set[int]) -> None:
    for name in os.listdir("/proc/self/fd"):  # noqa: PTH208 - numbers, not paths
        if int(name) not in keep:
            try:
                os.close(int(name))
            except OSError:
                # That of the listing itself.
                continue


def end_child(pid: int) -> None:
    """Kill a child of ours; nobody waits for long for one that cannot be ended now."""
    with suppress(ProcessLookupError):
        os.kill(pid, signal.SIGKILL)
    deadline = time.monotonic() + _TIMEOUT_S
    with suppress(ChildProcessError):
        while os.waitpid(pid, os.WNOHANG) == (0, 0) and time.monotonic() < deadline:
            time.sleep(0.001)


def signs_of_life(pid: int) -> tuple[bytes, ...]:
    """Give what changes while a process gets on: its processor time, and what it has read."""
    try:
        moved = Path(f"/proc/{pid}/io").read_bytes()
    except OSError:
        moved = b""
    return (*stat_fields(pid)[11:13], moved)
