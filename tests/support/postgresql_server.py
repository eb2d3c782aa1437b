"""A real PostgreSQL server: Debian's, in a folder of its own, for as long as the tests run."""

import contextlib
import os
import shutil
import signal
import subprocess
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

from tests.support.tools import Missing, run

__all__ = ["Postgres", "server"]

#: The user that runs the server, which refuses root.
_USER = "postgres"
_PATIENCE_S = 60.0
#: What a server needs, in bytes.
_ROOM = 512 << 20


class Postgres:
    """A server on a unix socket; ``folder`` is where that is."""

    def __init__(self, folder: Path, programs: Path) -> None:
        self.folder = folder
        self._programs = programs
        self._process: subprocess.Popen[bytes] | None = None
        self._databases = 0

    def start(self) -> None:
        """Start the server, and wait until it answers."""
        data = self.folder / "data"
        words: list[str | Path] = ["-D", data, "-k", self.folder, "-c", "listen_addresses="]
        with (self.folder / "log").open("ab") as log:
            self._process = subprocess.Popen(
                [*_as_user(), self._programs / "postgres", *words],
                stdout=subprocess.DEVNULL,
                stderr=log,
                cwd=self.folder,
            )
        deadline = time.monotonic() + _PATIENCE_S
        ready: list[str | Path] = [self._programs / "pg_isready", "-q", "-h", self.folder]
        while subprocess.run(ready, check=False).returncode:
            if time.monotonic() > deadline or self._process.poll() is not None:
                raise RuntimeError((self.folder / "log").read_text(errors="replace"))
            time.sleep(0.05)

    def stop(self, how: signal.Signals = signal.SIGINT) -> None:
        """Stop the server: at once, or with SIGQUIT as if it had crashed."""
        if self._process is not None:
            self._process.send_signal(how)
            self._process.wait(_PATIENCE_S)
            self._process = None

    def ask_for_password(self, user: str) -> None:
        """Require the right password of ``user``."""
        rules = self.folder / "data" / "pg_hba.conf"
        rules.write_text(f"local all {user} scram-sha-256\n{rules.read_text()}")
        self.sql("SELECT pg_reload_conf()")

    @contextlib.contextmanager
    def paused(self) -> Iterator[None]:
        """Stop the server and all its sessions: they exist, and do not answer."""
        assert self._process is not None
        sessions = map(
            int, self.sql("SELECT pid FROM pg_stat_activity WHERE datname <> ''").split()
        )
        alive = [pid for pid in (*sessions, self._process.pid) if os.path.exists(f"/proc/{pid}")]
        try:
            for pid in alive:
                _signal(pid, signal.SIGSTOP)
            yield
        finally:
            for pid in alive:
                _signal(pid, signal.SIGCONT)

    def sql(self, statement: str, database: str = "postgres") -> str:
        """Run a statement with psql; return its output."""
        words = f"-XAtq -v ON_ERROR_STOP=1 -h {self.folder} -d {database} -U {_USER} -c".split()
        return run([self._programs / "psql", *words, statement]).decode()

    def psql(self, statement: str, database: str, user: str) -> subprocess.CompletedProcess[str]:
        """Run statements with psql as a user, whether or not they succeed."""
        words = f"-XAtq -v ON_ERROR_STOP=1 -h {self.folder} -d {database} -U {user} -c".split()
        return subprocess.run(
            [self._programs / "psql", *words, statement],
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            check=False,
        )

    def script(self, text: str, database: str) -> None:
        """Run a script with psql."""
        words = f"-Xq -h {self.folder} -d {database} -U {_USER}".split()
        run([self._programs / "psql", *words], text.encode())

    def new_database(self) -> str:
        """Make a database; give its URL."""
        self._databases += 1
        name = f"journal{os.getpid()}_{self._databases}"
        self.sql(f"CREATE DATABASE {name}")
        return self.url(name)

    def url(self, database: str, user: str = _USER) -> str:
        """Return the URL of a database, as root may use it."""
        return f"postgresql://{user}@/{database}?host={self.folder}"


def _signal(pid: int, number: signal.Signals) -> None:
    # The session of psql itself may have ended since it was listed.
    with contextlib.suppress(ProcessLookupError):
        os.kill(pid, number)


def _as_user() -> list[str | Path]:
    if os.geteuid() != 0:
        return []
    return ["setpriv", f"--reuid={_USER}", f"--regid={_USER}", "--clear-groups", "--"]


def _programs() -> Path:
    found = sorted(
        Path("/usr/lib/postgresql").glob("*/bin/postgres"),
        key=lambda path: int(path.parts[4]) if path.parts[4].isdecimal() else 0,
    )
    if not found:
        raise Missing("a PostgreSQL server is not here: install the package postgresql")
    return found[-1].parent


@contextlib.contextmanager
def server() -> Iterator[Postgres]:
    """Make a server and start it; it is gone in any case, with all that it had."""
    programs = _programs()
    # A unix socket has a short name: not in the folder of a test, whose name is long.
    folder = Path(tempfile.mkdtemp(prefix="whoseblock-pg-", dir=_fast_folder()))
    postgres = Postgres(folder, programs)
    try:
        if os.geteuid() == 0:
            shutil.chown(folder, _USER, _USER)
        words = f"--auth=trust --encoding=UTF8 --locale=C.UTF-8 --username={_USER} -D".split()
        run([*_as_user(), programs / "initdb", *words, folder / "data"])
        postgres.start()
        yield postgres
    finally:
        postgres.stop(signal.SIGQUIT)
        shutil.rmtree(folder)


def _fast_folder() -> str | None:
    """Return a folder in memory, where fsync costs nothing, if there is one with room."""
    memory = "/dev/shm"  # noqa: S108 - a folder of our own is made in it
    roomy = os.path.isdir(memory) and shutil.disk_usage(memory).free > _ROOM
    return memory if roomy else None
