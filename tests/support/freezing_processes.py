"""Processes that freeze a filesystem as respond does, and are treated badly meanwhile."""

import contextlib
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from tests.support.killed_repairs import guards_of
from tests.support.tools import CHECKOUT

__all__ = ["Freezer", "Waiter", "freezing", "state_of"]

#: Reports its states, line by line.  ``go`` waits for a line from the test.
_PROGRAM = """
import os, sys, time
from whoseblock.respond.freezing import FreezeLimits, frozen

def report(*words):
    print(*words, flush=True)

go = sys.stdin.readline
root, limit, block = sys.argv[1:]
place = os.open(root, os.O_RDONLY | os.O_DIRECTORY)
try:
    with frozen(place, FreezeLimits(longest_s=float(limit))) as hold:
        report("frozen")
        exec(block)
    report("thawed")
except BaseException as error:
    report(type(error).__name__, error)
"""
_PATIENCE_S = 30


@dataclass
class Freezer:
    """A process that freezes; the leader of a process group of its own."""

    process: "subprocess.Popen[str]"

    @property
    def pid(self) -> int:
        return self.process.pid

    def line(self) -> str:
        """Return the next line of its output, "" at the end."""
        assert self.process.stdout is not None
        return self.process.stdout.readline().strip()

    def go(self) -> None:
        assert self.process.stdin is not None
        self.process.stdin.write("\n")
        self.process.stdin.flush()

    def guard(self) -> int:
        """Find its guard, which may just be starting."""
        deadline = time.monotonic() + _PATIENCE_S
        while not (found := guards_of(self.pid)):
            assert time.monotonic() < deadline
            time.sleep(0.005)
        (guard,) = found
        return guard

    def signal(self, number: int) -> None:
        """Send a signal to its whole group."""
        os.killpg(self.pid, number)


@contextlib.contextmanager
def freezing(root: Path, limit_s: float = 20, block: str = "go()") -> Iterator[Freezer]:
    """Start one; it is ended with the block, in any case, and so is its guard."""
    with subprocess.Popen(
        [sys.executable, "-c", _PROGRAM, root, str(limit_s), block],
        cwd=CHECKOUT,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        start_new_session=True,
    ) as process:
        try:
            yield Freezer(process)
        finally:
            for guard in guards_of(process.pid):
                with contextlib.suppress(ProcessLookupError):
                    os.kill(guard, signal.SIGCONT)
            process.kill()


def state_of(pid: int) -> str:
    """Return the letter of the state of a process, "" if there is none."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
    except (FileNotFoundError, ProcessLookupError):
        return ""


class Waiter(threading.Thread):
    """Makes a file on a frozen filesystem, and so waits until it is thawed.

    ``done`` is when that was, and ``saw`` what the process ``watched`` did at that moment.
    """

    def __init__(self, root: Path, watched: int) -> None:
        super().__init__(daemon=True)
        self._root = root
        self._watched = watched
        self.done = 0.0
        self.saw = "?"

    def run(self) -> None:
        file = os.open(self._root / f"waited{self._watched}", os.O_CREAT | os.O_WRONLY, 0o600)
        self.saw = state_of(self._watched)
        self.done = time.monotonic()
        os.close(file)

    def waits(self) -> bool:
        """Return whether it still waits after a moment."""
        self.join(0.2)
        return self.is_alive()

    def check_soon(self, seconds: float = 10) -> None:
        self.join(seconds)
        assert not self.is_alive(), "the filesystem is still frozen"
