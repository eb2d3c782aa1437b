"""Child processes that do one task and may get stuck at it."""

import ctypes
import gc
import os
import signal
import time
from collections.abc import Callable, Iterable
from contextlib import suppress
from pathlib import Path
from typing import Final

from whoseblock.process_stat import read_stat_fields

__all__ = ["STANDARD", "end_child", "fork", "signs_of_life"]

#: Standard input, output and error.
STANDARD: Final = (0, 1, 2)
#: Seconds to wait for the end of a killed child.
_TIMEOUT_S: Final = 1.0
_PR_SET_PDEATHSIG: Final = 1  # linux/prctl.h
_PR_SET_NAME: Final = 15


def fork(
    name: str, body: Callable[[], int], keep: Iterable[int], marker_file: Path | None = None
) -> int:
    """Run ``body`` in a child, which exits with its value; return the child's pid.

    The child appears in ps(1) and top(1) as ``watch-NAME``, of which 15 bytes are shown.

    The child has only the descriptors ``keep``: one that is stuck for good would hold our locks and
    pipes as long. It dies with its parent. It also has the file ``marker_file`` open, which marks
    it as a process of the daemon.
    """
    pid = os.fork()
    if pid:
        return pid
    code = 1
    try:
        libc = ctypes.CDLL(None)
        libc.prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
        libc.prctl(_PR_SET_NAME, f"watch-{name}".encode())
        signal.set_wakeup_fd(-1)
        for number in (signal.SIGTERM, signal.SIGHUP):
            signal.signal(number, signal.SIG_DFL)
        # Ctrl-C reaches every process; the collector decides when to end.
        signal.signal(signal.SIGINT, signal.SIG_IGN)
        # The objects whose descriptors are closed here are never used again, nor finalized.
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
                # The descriptor of the listing itself.
                continue


def end_child(pid: int) -> None:
    """Kill a child; wait only briefly for one that is stuck."""
    with suppress(ProcessLookupError):
        os.kill(pid, signal.SIGKILL)
    deadline = time.monotonic() + _TIMEOUT_S
    with suppress(ChildProcessError):
        while os.waitpid(pid, os.WNOHANG) == (0, 0) and time.monotonic() < deadline:
            time.sleep(0.001)


def signs_of_life(pid: int) -> tuple[bytes, ...]:
    """Return what changes while a process makes progress: its CPU time and its I/O counters."""
    try:
        moved = Path(f"/proc/{pid}/io").read_bytes()
    except OSError:
        moved = b""
    return (*read_stat_fields(pid)[11:13], moved)
