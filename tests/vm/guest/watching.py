"""The daemon, for scenarios: started with a journal in memory, killed, started again."""

import json
import os
import socket
import subprocess
import sys
from collections.abc import Collection
from pathlib import Path
from signal import SIGKILL, SIGTERM, Signals

from tests.support.systemd_unit import as_the_unit
from tests.support.tools import CHECKOUT, run
from tests.support.watch_daemon import from_now_on, histories, is_idle
from tests.vm.guest.asking import Json
from tests.vm.guest.machine import Undo, wait_for

from whoseblock.journal import History

__all__ = ["LOG_AND_TRACE", "Watch", "answer_of", "detail_of"]

#: Who tells of a failure of memory: each of them, if all goes well.
LOG_AND_TRACE = frozenset({"kmsg", "tracepoint"})


def answer_of(entry: History) -> Json:
    """Return the finding of a failure, in the form of ``lookup --json``."""
    (finding,) = entry.findings
    return finding.answer


def detail_of(entry: History, source: str) -> Json:
    """Return the reports of a source about a failure, each once."""
    (report,) = (one for one in entry.reports if one.source == source)
    return report.detail


class Watch:
    """``whoseblock watch`` with options, and the journal that it keeps in a folder in memory.

    It may do what its unit for systemd lets it do.  What it says is in ``log``, and printed if a
    scenario fails.
    """

    def __init__(self, undo: Undo, *options: str) -> None:
        self.folder = Path("/run/watch")
        self.folder.mkdir(exist_ok=True)
        run(["mount", "-t", "tmpfs", "-o", "size=256m,mode=755", "tmpfs", self.folder])
        undo.then("umount", self.folder)
        self.journal = self.folder / "journal.db"
        self.log = self.folder / "log"
        self._state = str(self.folder / "state")
        self._command = ["watch", "--journal", str(self.journal), "--state", self._state, *options]
        self._process: subprocess.Popen[bytes] | None = None
        # The log still has what failed in the scenarios before.
        from_now_on(self.folder)
        undo.callback(self._end)

    @staticmethod
    def _whoseblock(arguments: list[str]) -> list[str]:
        return [sys.executable, "-m", "whoseblock", *arguments]

    def start(self) -> None:
        """Start it, and wait until it says that it is ready, as it says it to systemd."""
        place = self.folder / "notify"
        place.unlink(missing_ok=True)
        with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as told, self.log.open("ab") as log:
            told.bind(str(place))
            told.settimeout(180)
            self._process = subprocess.Popen(
                [*as_the_unit(), *self._whoseblock(self._command)],
                stdout=log,
                stderr=log,
                cwd=CHECKOUT,
                env={**os.environ, "NOTIFY_SOCKET": str(place)},
            )
            while b"READY=1" not in told.recv(4096):
                assert not self._has_ended(), self.output

    def _has_ended(self) -> bool:
        return self._process is None or self._process.poll() is not None

    @property
    def output(self) -> str:
        return self.log.read_text(errors="replace") if self.log.exists() else ""

    @property
    def pid(self) -> int:
        assert self._process is not None
        return self._process.pid

    def signal(self, number: Signals) -> None:
        """Send it a signal: SIGHUP has it read its policy again, SIGKILL is a crash."""
        os.kill(self.pid, number)

    def kill(self) -> None:
        """Crash it."""
        self.stop(SIGKILL)

    def stop(self, number: Signals = SIGTERM) -> int:
        """End it, and give its exit code."""
        assert self._process is not None
        self._process.send_signal(number)
        return self._process.wait(180)

    def status(self) -> Json:
        """Ask it how it is, as a user does."""
        told: Json = json.loads(run(self._whoseblock(["status", "--json", "--state", self._state])))
        return told

    def entries(self) -> list[History]:
        """Read the journal, the first failure first."""
        return sorted(histories(self.journal), key=lambda one: one.failure.id)

    def wait_for(
        self, count: int, sources: Collection[str] = (), seconds: float = 180
    ) -> list[History]:
        """Wait until so many failures have their owners, and these sources have told of each."""
        return wait_for(lambda: self._known(count, sources), seconds)

    def _known(self, count: int, sources: Collection[str]) -> list[History]:
        # The journal is read last, so that it has what was finished before.
        if not is_idle(Path(self._state)):
            return []
        found = self.entries()
        told = all({report.source for report in one.reports} >= {*sources} for one in found)
        known = told and all(one.findings for one in found)
        return found if len(found) >= count and known else []

    def _end(self) -> None:
        if not self._has_ended():
            self.kill()
        print(f"--- what watch said ---\n{self.output}")
