"""The daemon as a real process, and what it writes to its journal."""

import contextlib
import errno
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from tests.support.tools import CHECKOUT

from whoseblock.errors import TargetError, WhoseblockError
from whoseblock.journal import Filter, History, open_journal
from whoseblock.watch.clock import boot_id
from whoseblock.watch.formats.kmsg import read_kmsg
from whoseblock.watch.store.state import LogPosition, StateFolder

__all__ = [
    "Daemon",
    "from_now_on",
    "histories",
    "is_idle",
    "once",
    "peak_memory",
    "until",
    "watching",
]

_PATIENCE_S = 30.0


def until(condition: Callable[[], Any], patience: float = _PATIENCE_S) -> Any:  # noqa: ANN401 - what it waits for
    """Wait until something is true, and give it."""
    deadline = time.monotonic() + patience
    while not (found := condition()):
        assert time.monotonic() < deadline, "it never came true"
        time.sleep(0.05)
    return found


def histories(journal: Path, wanted: Filter | None = None) -> list[History]:
    """Return all failures of a journal that may not be there yet."""
    try:
        with open_journal(str(journal), write=False) as opened:
            return list(opened.histories(wanted or Filter()))
    except WhoseblockError:
        return []


def is_idle(state: Path) -> bool:
    """Return whether no report waits in a daemon's spool, and no search for processes.

    A report is in the spool until its owners are journaled and the search is noted.
    """
    if any((state / "spool").glob("*.reports")):
        return False
    try:
        return not json.loads((state / "unsearched.json").read_bytes())["waiting"]
    except FileNotFoundError:
        return True


def from_now_on(folder: Path) -> None:
    """Make a new daemon skip the messages that the kernel has logged so far in this boot."""
    sequence = -1
    with Path("/dev/kmsg").open("rb", 0) as file:
        os.set_blocking(file.fileno(), False)
        while True:
            try:
                data = os.read(file.fileno(), 8192)
            except BrokenPipeError:
                continue
            except BlockingIOError:
                break
            record = read_kmsg(data)
            sequence = record.sequence if record else sequence
    with StateFolder(folder / "state") as state:
        state.save("position.json", LogPosition(boot_id(), sequence))


def peak_memory(pid: int) -> int:
    """Return the most memory that a process has had resident, in bytes.

    Raises `ProcessLookupError` if it has ended, even if it was not waited for yet.
    """
    status = Path(f"/proc/{pid}/status").read_text()
    for line in status.splitlines():
        if line.startswith("VmHWM:"):
            return int(line.split()[1]) * 1024
    raise ProcessLookupError(errno.ESRCH, "it has no memory any more")


class Daemon:
    """A daemon that runs, with its journal and its log."""

    def __init__(self, process: "subprocess.Popen[bytes]", folder: Path) -> None:
        self.process = process
        self.folder = folder

    @property
    def journal(self) -> Path:
        return self.folder / "journal.sqlite"

    @property
    def state(self) -> Path:
        return self.folder / "state"

    def log(self) -> str:
        return (self.folder / "log").read_text("utf-8")

    def histories(self) -> list[History]:
        return histories(self.journal)

    def status(self) -> dict[str, Any]:
        """Ask it how it is, as a user does, or how it was if it has ended."""
        done = subprocess.run(
            [*_WHOSEBLOCK, "status", "--json", "--state", self.state],
            cwd=CHECKOUT,
            capture_output=True,
            check=False,
        )
        assert done.returncode in (0, TargetError.exit_code), done.stderr
        told: dict[str, Any] = json.loads(done.stdout)
        return told

    def idle(self) -> bool:
        """Return whether all of its reports are processed."""
        spool = self.state / "spool"
        return spool.is_dir() and not any(spool.glob("*.reports"))

    def stop(self) -> None:
        self.process.send_signal(signal.SIGTERM)
        assert self.process.wait(_PATIENCE_S) == 0, self.log()

    def kill(self) -> None:
        self.process.kill()
        self.process.wait(_PATIENCE_S)


_WHOSEBLOCK = [sys.executable, "-m", "whoseblock"]


def _words(folder: Path, options: tuple[str | Path, ...]) -> list[str | Path]:
    # A daemon hears whatever fails on a machine, and the tests beside it have disks that fail.
    alone = "PYTEST_XDIST_WORKER" not in os.environ
    assert alone or "--root" in options, "a test with a daemon of this machine is in tests/alone"
    where = (f"--journal={folder / 'journal.sqlite'}", f"--state={folder / 'state'}")
    return [*_WHOSEBLOCK, "watch", *where, *options]


@contextlib.contextmanager
def watching(
    folder: Path, *options: str | Path, environment: dict[str, str] | None = None
) -> Iterator[Daemon]:
    """Run the daemon with its files in ``folder``; it does not outlive the block."""
    with (
        (folder / "log").open("ab") as log,
        subprocess.Popen(
            _words(folder, options),
            cwd=CHECKOUT,
            stderr=log,
            env=os.environ | (environment or {}),
        ) as process,
    ):
        daemon = Daemon(process, folder)
        try:
            already = daemon.log().count("event=watching")
            until(lambda: daemon.log().count("event=watching") > already or process.poll())
            assert process.poll() is None, daemon.log()
            yield daemon
        finally:
            if process.poll() is None:
                process.terminate()
                try:
                    process.wait(_PATIENCE_S)
                except subprocess.TimeoutExpired:
                    process.kill()


def once(folder: Path, *options: str | Path) -> tuple[int, str, str]:
    """Make one sweep; give its exit code and what it said."""
    done = subprocess.run(
        _words(folder, ("--once", *options)),
        cwd=CHECKOUT,
        capture_output=True,
        check=False,
        text=True,
    )
    return done.returncode, done.stdout, done.stderr
