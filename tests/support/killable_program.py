"""Runs of whoseblock that are killed at requested points.

``python -m tests.support.killable_program`` reads one JSON object per line:

- ``arguments`` of a command line;
- ``trace``, a file to which each boundary is appended as it is passed;
- ``output``, a file for all output;
- the point to die by SIGKILL: ``at`` the boundary of this number, ``after`` it or before, or
  ``delay`` seconds after the start;
- ``guard``: the guard of the frozen filesystem dies instead, and with ``both`` first;
- ``group``: a control group to make, in which it runs, and with all of which it dies.

For each it prints one line, the outcome of the run.  Each runs in its own process, forked from one
that has imported everything, so that hundreds of them are fast.

A boundary is a call that makes something durable, or acts on a device or a file.
"""

import errno
import functools
import importlib
import json
import os
import pkgutil
import select
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import whoseblock
from whoseblock import cli
from whoseblock.fs.xfs.mounted import exchange
from whoseblock.journal.run import Run
from whoseblock.media.direct import DirectMedia
from whoseblock.respond import freezing, relocate, syscalls
from whoseblock.respond.device import Device
from whoseblock.respond.quarantine import QuarantineKeeper
from whoseblock.respond.relocate import Keeper

#: The boundaries that change a device or a file; all come after a step is durably started.
ACTING = frozenset(
    "freeze Device.zero pwritev clone_range exchange_range punch_hole set_immutable pwrite"
    " ftruncate mkdir utime fchmod setxattr temporary QuarantineKeeper".split()
)

_CALLS = "clone_range punch_hole set_immutable sync_filesystem".split()
_SYSTEM = "fsync fdatasync pwrite pwritev ftruncate unlink mkdir utime fchmod setxattr".split()
_METHODS: list[tuple[type, list[str]]] = [
    (
        Run,
        (
            "__init__ record_failure record_finding plan started done verified failed skipped"
            " close_failure close"
        ).split(),
    ),
    (Device, ["zero"]),
    (DirectMedia, ["pwrite", "sync"]),
    (Keeper, "share heal close".split()),
    (QuarantineKeeper, "__init__ keep release close".split()),
]


class Boundaries:
    """Counts the boundaries of this process, and ends it at one of them."""

    def __init__(self) -> None:
        self.trace: int | None = None
        self._guard: int | None = None
        self._instead = self._both = False
        self._group: str | None = None
        self._at: int | None = None
        self._after = False
        self._count = 0

    def watch(self, order: dict[str, Any]) -> None:
        self.trace = os.open(order["trace"], os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600)
        self._at, self._after, self._instead = order["at"], order["after"], order["guard"]
        self._group, self._both = order["group"], order["both"]

    def wrap(self, owner: object, attribute: str, name: str = "") -> None:
        """Make a boundary of a function of a module, or of a method."""
        function = getattr(owner, attribute)
        told = name or attribute

        @functools.wraps(function)
        def bounded(*arguments: object, **more: object) -> object:
            return self.passing(told, functools.partial(function, *arguments, **more))

        setattr(owner, attribute, bounded)

    def passing(self, name: str, act: Callable[[], object]) -> object:
        if self.trace is None:
            return act()
        self._count += 1
        number = self._count
        self._pass(f"< {number} {name}", number, after=False)
        try:
            result = act()
        except BaseException as error:
            name += f": {error!r}"
            raise
        else:
            if isinstance(result, subprocess.Popen):
                self._guard = result.pid
            return result
        finally:
            if name == "Guard.close":
                self._guard = None
            self._pass(f"> {number} {name}", number, after=True)

    def _pass(self, told: str, number: int, *, after: bool) -> None:
        assert self.trace is not None
        os.write(self.trace, f"{told}\n".encode())
        if number == self._at and after is self._after:
            if self._group is not None:
                kill_group(self._group)
            if self._instead and (self._guard is not None or not self._both):
                assert self._guard is not None
                os.kill(self._guard, signal.SIGKILL)
            if self._both or not self._instead:
                os.kill(os.getpid(), signal.SIGKILL)


def kill_group(folder: str) -> None:
    """Kill all processes of a control group."""
    Path(folder, "cgroup.kill").write_text("1", "ascii")


def _bound() -> Boundaries:
    boundaries = Boundaries()
    for name in _CALLS:
        boundaries.wrap(syscalls, name)
    for name in "exchange_range", "sample_file":
        boundaries.wrap(exchange, name)
    for name in _SYSTEM:
        boundaries.wrap(os, name)
    for owner, names in _METHODS:
        for name in names:
            told = owner.__name__ if name == "__init__" else f"{owner.__name__}.{name}"
            boundaries.wrap(owner, name, told)
    boundaries.wrap(relocate, "_temporary", "temporary")
    boundaries.wrap(relocate, "_free_and_close", "free_and_close")
    boundaries.wrap(freezing, "_start_guard", "start_guard")
    for name in ("freeze", "thaw", "close"):
        boundaries.wrap(freezing._Guard, name, {"close": "Guard.close"}.get(name, name))
    return boundaries


def _import_everything() -> None:
    for module in pkgutil.walk_packages(whoseblock.__path__, "whoseblock."):
        if not module.name.endswith("__main__"):
            importlib.import_module(module.name)
    importlib.import_module("sqlalchemy.dialects.sqlite")


def _child(boundaries: Boundaries, order: dict[str, Any]) -> None:
    """Run whoseblock once, in this process."""
    output = os.open(order["output"], os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600)
    nothing = os.open(os.devnull, os.O_RDONLY)
    for fd, to in ((nothing, 0), (output, 1), (output, 2)):
        os.dup2(fd, to)
    os.closerange(3, 64)
    if order["group"] is not None:
        Path(order["group"], "cgroup.procs").write_text("0", "ascii")
    boundaries.watch(order)
    sys.argv = ["whoseblock", *order["arguments"]]
    try:
        cli.main()
    except SystemExit as end:
        sys.stdout.flush()
        os._exit(end.code if isinstance(end.code, int) else 1)
    except BaseException:  # noqa: BLE001 - a child of a fork ends here, whatever it is
        sys.excepthook(*sys.exc_info())
        sys.stderr.flush()
        os._exit(99)


def _remove_group(folder: Path) -> None:
    """Remove a control group once all of its processes have ended."""
    while True:
        try:
            folder.rmdir()
        except OSError as error:
            if error.errno != errno.EBUSY:
                raise
            time.sleep(0.002)
        else:
            return


def main() -> None:
    _import_everything()
    boundaries = _bound()
    for line in sys.stdin:
        order = json.loads(line)
        begun = time.monotonic()
        group = order["group"]
        if group is not None:
            Path(group).mkdir()
        child = os.fork()
        if child == 0:
            _child(boundaries, order)
        handle = os.pidfd_open(child)
        # Not reaped yet, so its number is not reused.
        if not select.select([handle], [], [], order["delay"])[0]:
            if group is not None:
                kill_group(group)
            signal.pidfd_send_signal(handle, signal.SIGKILL)
        _, status = os.waitpid(child, 0)
        os.close(handle)
        if group is not None:
            _remove_group(Path(group))
        code = os.waitstatus_to_exitcode(status)
        told = {"pid": child, "code": code, "seconds": time.monotonic() - begun}
        sys.stdout.write(json.dumps(told) + "\n")
        sys.stdout.flush()


if __name__ == "__main__":
    main()
