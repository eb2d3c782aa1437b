"""The daemon, for scenarios: started with a journal in memory, killed, started again."""

import json
import os
import socket
import subprocess
import sys
from pathlib import Path
from signal import SIGKILL, SIGTERM, Signals

from tests.support.tools import CHECKOUT, run
from tests.vm.guest.asking import Json
from tests.vm.guest.machine import Undo, wait_for

__all__ = ["Watch"]


class Watch:
    """``whoseblock watch`` with options, and the journal that it keeps in a folder in memory.

    ``entries`` are whatever the command in ``reading`` prints of the journal, one JSON object a
    line.  What the daemon says is in ``log``, and printed if a scenario fails.
    """

    def __init__(
        self, undo: Undo, *options: str, reading: tuple[str, ...] = ("journal", "export")
    ) -> None:
        self.folder = Path("/run/watch")
        self.folder.mkdir(exist_ok=True)
        run(["mount", "-t", "tmpfs", "-o", "size=256m", "tmpfs", self.folder])
        undo.then("umount", self.folder)
        self.journal = self.folder / "journal.db"
        self.log = self.folder / "log"
        state = str(self.folder / "state")
        self._command = ["watch", "--journal", str(self.journal), "--state", state, *options]
        self._reading = [*reading, "--journal", str(self.journal)]
        self._process: subprocess.Popen[bytes] | None = None
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
            told.settimeout(60)
            self._process = subprocess.Popen(
                self._whoseblock(self._command),
                stdout=log,
                stderr=log,
                cwd=CHECKOUT,
                env={**os.environ, "NOTIFY_SOCKET": str(place)},
            )
            while b"READY=1" not in told.recv(4096):
                assert not self._has_ended(), self.said

    def _has_ended(self) -> bool:
        return self._process is None or self._process.poll() is not None

    @property
    def said(self) -> str:
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
        return self._process.wait(60)

    def entries(self) -> list[Json]:
        """Read the journal as a user does."""
        if not self.journal.exists():
            return []
        lines = run(self._whoseblock(self._reading)).splitlines()
        return [json.loads(line) for line in lines]

    def wait_for_entries(self, count: int, seconds: float = 180) -> list[Json]:
        """Wait until the journal has so many entries, and the owners of all."""
        return wait_for(lambda: self._known(count), seconds)

    def _known(self, count: int) -> list[Json]:
        found = self.entries()
        return found if len(found) >= count and all(one["findings"] for one in found) else []

    def _end(self) -> None:
        if not self._has_ended():
            self.kill()
        print(f"--- what watch said ---\n{self.said}")
