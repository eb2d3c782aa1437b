"""A long run of the daemon on failing disks: ``make soak``, in a virtual machine.

Images come and go as loop devices over emulated failing disks, are mounted and unmounted, and
blocks of their files fail: as fast as the daemon keeps up.  Meanwhile the policy is reloaded, valid
and invalid, and the journal is locked for some seconds.  A filesystem whose failures are journaled
must be unmounted within a second.  At the end each failure must be in the journal with its file, or
the daemon must have reported lost events. No other file may be named.  Memory and descriptors must
not have grown.
"""

import argparse
import ctypes
import errno
import json
import os
import random
import re
import shutil
import signal
import sqlite3
import subprocess
import sys
import tempfile
import threading
import time
import traceback
from collections import Counter, defaultdict
from collections.abc import Callable, Iterator
from contextlib import ExitStack, closing, contextmanager, suppress
from pathlib import Path
from typing import Any, Final, NamedTuple

from tests.scenarios.test_emulated_device import place_of
from tests.support.emulated_device import emulated
from tests.support.failing_disk import read_direct, traced
from tests.support.tools import run
from tests.support.watch_daemon import from_now_on, is_idle
from tests.support.xfs_images import MIB, Geometry, make_image

from whoseblock.ranges import ByteRange

__all__ = ["main"]

BLOCK: Final = 4096
#: Disks at a time, files on each, their blocks, and blocks that fail while a disk is there.
_DISKS, _FILES, _FILE_BLOCKS, _ROUND = 2, 8, 64, 60
#: Seconds between samples and absences of the journal; and how long those are.
_SAMPLE_S, _AWAY_S, _ABSENCE_S = 10.0, 151.0, 12.0
#: No further block fails while so many files of reports wait.
_BACKLOG: Final = 4
#: All reports have arrived after so many seconds without another.
_QUIET_S: Final = 15
#: A filesystem may be busy for so many seconds after its failures are journaled.
_BUSY_S: Final = 1.0
#: The most that a process may grow between the first and the last third of the run: bytes, files.
_GROWTH, _MORE_FILES = 4 << 20, 4
_POLICIES: Final = (
    '[[rule]]\nname = "a"\nowner = ["file"]\nexec = ["/bin/true"]\n[limits]\nexec = 20\n',
    '[[rule]]\nname = "b"\nowner = ["free"]\nexec = ["/bin/true"]\n[limits]\nexec = 20\n',
    "this is no policy\n",
)


class _Hit(NamedTuple):
    """A block that was made to fail: the filesystem, where, and the path of its file."""

    identity: str
    start: int
    path: str


class _Sample(NamedTuple):
    """Bytes and open descriptors of one process of the daemon.

    ``resident`` is all that it has in memory, ``own`` the part that no other process shares, and
    ``anonymous`` the part that is not of a file.
    """

    at: float
    role: str
    pid: int
    resident: int
    own: int
    anonymous: int
    descriptors: int


class _Soak:
    def __init__(self, folder: Path, given: argparse.Namespace) -> None:
        self.folder = folder
        self.until: float = time.monotonic() + given.minutes * 60
        self.pause: float = given.pause
        self.patience: float = given.patience
        self.reload_s: float = given.reload
        #: Seconds until a filesystem could be unmounted: its failures journaled, or not yet.
        self.busy: dict[str, list[float]] = {"journaled": [], "pending": []}
        self.hits: list[_Hit] = []
        self.samples: list[_Sample] = []
        self.counts: Counter[str] = Counter()
        self.faults: list[str] = []

    @property
    def goes_on(self) -> bool:
        return time.monotonic() < self.until

    # ------------------------------------------------------------------ what happens

    def run(self, part: Callable[..., None], *about: object) -> threading.Thread:
        """Run a part of the soak in a thread; an error of it is a fault."""

        def body() -> None:
            try:
                part(*about)
            except Exception:  # noqa: BLE001 - whatever it is, it is in the result
                self.faults.append(f"{part.__name__}: {traceback.format_exc()}")

        thread = threading.Thread(target=body)
        thread.start()
        return thread

    def disks(self, number: int) -> None:
        """Attach one disk after the other, and make blocks of it fail."""
        rng = random.Random(number)  # noqa: S311 - a sample, not a secret
        turn = 0
        while self.goes_on:
            turn += 1
            folder = self.folder / f"disk{number}-{turn}"
            folder.mkdir()
            image = make_image(folder / "disk", Geometry(f"soak{number}", size=64 * MIB))
            with emulated(image, folder / "at") as served, served.loop() as loop:
                hits: list[_Hit] = []
                with self._mounted(loop, hits) as root:
                    places = self._fill(root, rng)
                    uuid = _uuid(loop)
                    for start, path in rng.sample(sorted(places.items()), _ROUND):
                        self._keep_pace()
                        if time.monotonic() >= self.until:
                            break
                        served.add(ByteRange(start, BLOCK))
                        hits.append(_Hit(f"xfs {uuid}", start, path))
                        self.hits.append(hits[-1])
                        if read_direct(loop, start):
                            self.faults.append(f"{loop} {start} could be read")
                        time.sleep(rng.expovariate(1 / self.pause))
                    # Most disks stay until their failures are journaled; some vanish at once.
                    if rng.random() < 0.8 and not self._wait_for(hits):
                        self.counts["not journaled in time"] += 1
            image.unlink()

    def _keep_pace(self) -> None:
        """Wait while the daemon is behind."""
        spool = self.folder / "state" / "spool"
        while len(list(spool.glob("*.reports"))) > _BACKLOG and self.goes_on:
            self.counts["waits for the daemon"] += 1
            time.sleep(1)

    def _wait_for(self, hits: list[_Hit]) -> bool:
        """Wait until failures are journaled with their owners; whether they were in time."""
        deadline = time.monotonic() + self.patience
        while not self._are_journaled(hits):
            if time.monotonic() > deadline:
                return False
            time.sleep(0.2)
        return True

    def _are_journaled(self, hits: list[_Hit]) -> bool:
        query = """
            SELECT DISTINCT f.start FROM failures f JOIN findings i ON i.failure = f.id
             WHERE f.identity = ?
        """
        try:
            with closing(sqlite3.connect(self.folder / "journal.sqlite", timeout=0)) as journal:
                rows = journal.execute(query, (hits[0].identity,)) if hits else ()
                found = {start // BLOCK * BLOCK for (start,) in rows}
        except sqlite3.OperationalError:
            # It is away.
            return not hits
        return {one.start for one in hits} <= found

    @contextmanager
    def _mounted(self, loop: Path, hits: list[_Hit]) -> Iterator[Path]:
        """Mount a disk, and see for how long it is busy in the end."""
        libc = ctypes.CDLL(None, use_errno=True)
        with tempfile.TemporaryDirectory(prefix="whoseblock-mount-") as name:
            run(["mount", "-t", "xfs", "-o", "nouuid", loop, name])
            try:
                yield Path(name)
            finally:
                journaled = self._are_journaled(hits)
                kind = "journaled" if journaled else "pending"
                limit = _BUSY_S if journaled else self.patience
                began = busy = time.monotonic()
                holders: list[str] = []
                while libc.umount2(os.fsencode(name), 0) != 0:
                    if ctypes.get_errno() != errno.EBUSY:
                        raise OSError(ctypes.get_errno(), "umount2", name)
                    busy = time.monotonic()
                    if busy - began > self.patience * 4:
                        run(["umount", "--lazy", name])
                        break
                    if busy - began > limit / 2 and not holders:
                        holders = _holders(name)
                    time.sleep(0.02)
                self.busy[kind].append(busy - began)
                self.counts["unmounted"] += 1
                if busy - began > limit:
                    self.faults.append(
                        f"{loop} was busy for {busy - began:.1f} s, {kind}, held by {holders}"
                    )

    @staticmethod
    def _fill(root: Path, rng: random.Random) -> dict[int, str]:
        """Write files; return the path of the file at each of their blocks."""
        places: dict[int, str] = {}
        for number in range(_FILES):
            path = root / f"file{number}"
            path.write_bytes(rng.randbytes(_FILE_BLOCKS * BLOCK))
        os.sync()
        for number in range(_FILES):
            path = root / f"file{number}"
            for block in range(_FILE_BLOCKS):
                places[place_of(root, path, block)] = f"/{path.name}"
        return places

    def settle(self, seconds: float) -> None:
        """Wait until all reports are processed, and no others arrive for a while."""
        deadline = time.monotonic() + seconds
        quiet = 0
        while quiet < _QUIET_S and time.monotonic() < deadline:
            time.sleep(1)
            quiet = 0 if not is_idle(self.folder / "state") else quiet + 1

    def reloads(self, daemon: "subprocess.Popen[bytes]") -> None:
        """Replace the policy again and again."""
        number = 0
        while self._sleep(self.reload_s):
            number += 1
            (self.folder / "policy.toml").write_text(_POLICIES[number % len(_POLICIES)])
            daemon.send_signal(signal.SIGHUP)
            self.counts["reloads"] += 1

    def absences(self) -> None:
        """Lock the journal, so that the worker cannot write to it."""
        while self._sleep(_AWAY_S):
            with closing(sqlite3.connect(self.folder / "journal.sqlite", timeout=60)) as journal:
                with suppress(sqlite3.OperationalError):
                    journal.execute("BEGIN EXCLUSIVE")
                    self.counts["absences"] += 1
                    self._sleep(_ABSENCE_S)
                with suppress(sqlite3.OperationalError):
                    journal.rollback()

    def watch(self, daemon: "subprocess.Popen[bytes]") -> None:
        """Sample the processes of the daemon."""
        while self._sleep(_SAMPLE_S):
            for depth, pid in _family(daemon.pid, 0):
                with suppress(OSError, ValueError, IndexError):
                    smaps = Path(f"/proc/{pid}/smaps_rollup").read_text()
                    sizes = dict(re.findall(r"(\w+): +(\d+) kB", smaps))
                    name = Path(f"/proc/{pid}/comm").read_text().strip()
                    if depth and not name.startswith("watch-"):
                        # A program of the policy, or a process that has no name yet.
                        continue
                    role = name.removeprefix("watch-") if depth else "collector"
                    files = len(os.listdir(f"/proc/{pid}/fd"))  # noqa: PTH208 - numbers
                    resident = int(sizes["Rss"]) << 10
                    own = int(sizes["Private_Dirty"]) + int(sizes["Private_Clean"]) << 10
                    anonymous = int(sizes["Anonymous"]) << 10
                    now = time.monotonic()
                    self.samples.append(_Sample(now, role, pid, resident, own, anonymous, files))
            if daemon.poll() is not None:
                self.faults.append(f"the daemon ended with {daemon.returncode}")
                self.until = 0
            print(self._line(), flush=True)

    def _line(self) -> str:
        latest: dict[str, _Sample] = {one.role: one for one in self.samples}
        memory = ", ".join(
            f"{role} {one.resident / 1e6:.0f} MB {one.descriptors} fds"
            for role, one in sorted(latest.items())
        )
        left = max(self.until - time.monotonic(), 0)
        return f"{left:.0f} s left, {len(self.hits)} failures, {dict(self.counts)}: {memory}"

    def _sleep(self, seconds: float) -> bool:
        end = time.monotonic() + seconds
        while self.goes_on and time.monotonic() < end:
            time.sleep(0.5)
        return self.goes_on

    # ------------------------------------------------------------------ what must be true

    def check(self) -> dict[str, Any]:
        """Compare the journal with what was made to fail."""
        wanted = {(one.identity, one.start): one.path for one in self.hits}
        found = {key: rows for key, rows in self._journaled() if key in wanted}
        wrong = [
            f"{key}: {paths} instead of {wanted[key]}"
            for key, rows in found.items()
            for paths, complete, kinds in rows
            if set(paths) - {wanted[key]} or (complete and kinds != {"file"})
        ]
        named = sum(
            any(wanted[key] in paths for paths, _, _ in rows) for key, rows in found.items()
        )
        log = (self.folder / "log").read_text()
        lost = log.count("event=events-lost source=tracepoint")
        # A disk that vanished at once has failures under its own name or number.
        elsewhere = self._without_identity()
        missing = [key for key in wanted if key not in found and key[1] not in elsewhere]
        if missing and not lost:
            self.faults.append(f"missing, and none reported lost: {missing}")
        self.faults += wrong
        growth = self._growth()
        self.faults += [f"{role} grew by {by} bytes" for role, by in growth.items() if by > _GROWTH]
        files = self._growth("descriptors")
        self.faults += [
            f"{role} has {by} more descriptors" for role, by in files.items() if by > _MORE_FILES
        ]
        return {
            "failures": len(wanted),
            "journaled under their filesystem": len(found),
            "with their file": named,
            "journaled without a filesystem": len(elsewhere),
            "missing": len(missing),
            "log lines of lost events": lost,
            "reports left in the spool": len(list((self.folder / "state/spool").glob("*.reports"))),
            "aside": log.count("event=report-set-aside"),
            "worker failures": log.count("event=worker-ended"),
            "peaks in MB": {
                role: round(max(one.resident for one in self.samples if one.role == role) / 1e6, 1)
                for role in sorted({one.role for one in self.samples})
            },
            "descriptors at most": {
                role: max(one.descriptors for one in self.samples if one.role == role)
                for role in sorted({one.role for one in self.samples})
            },
            "growth in KiB, first to last third": {role: by >> 10 for role, by in growth.items()},
            "of that, not shared": {role: by >> 10 for role, by in self._growth("own").items()},
            "of that, not of a file": {
                role: by >> 10 for role, by in self._growth("anonymous").items()
            },
            "more descriptors in the last third": files,
            "seconds busy at umount": {
                kind: {"times": len(some), "longest": round(max(some, default=0.0), 2)}
                for kind, some in self.busy.items()
            },
            **self.counts,
            "faults": self.faults,
        }

    def _journaled(
        self,
    ) -> Iterator[tuple[tuple[str, int], list[tuple[list[str], bool, set[str]]]]]:
        query = """
            SELECT f.identity, f.start, i.id, i.complete, o.kind, p.path
              FROM failures f JOIN findings i ON i.failure = f.id
              JOIN owners o ON o.finding = i.id
              LEFT JOIN owner_paths p ON p.finding = i.id AND p.owner = o.number AND NOT p.mounted
        """
        rows: dict[tuple[str, int], dict[int, tuple[list[str], bool, set[str]]]] = defaultdict(dict)
        with closing(sqlite3.connect(self.folder / "journal.sqlite")) as journal:
            for identity, start, finding, complete, kind, path in journal.execute(query):
                place = rows[identity, start // BLOCK * BLOCK]
                paths, _, kinds = place.setdefault(finding, ([], bool(complete), set()))
                kinds.add(kind)
                if path is not None:
                    paths.append(path.decode() if isinstance(path, bytes) else path)
        for key, findings in rows.items():
            yield key, list(findings.values())

    def _without_identity(self) -> set[int]:
        """Return the starts of the blocks that are journaled under no filesystem."""
        query = "SELECT start FROM failures WHERE identity NOT LIKE 'xfs %'"
        with closing(sqlite3.connect(self.folder / "journal.sqlite")) as journal:
            return {start // BLOCK * BLOCK for (start,) in journal.execute(query)}

    def _growth(self, what: str = "resident") -> dict[str, int]:
        """Return by how much the peak of each role grew from the first to the last third."""
        if not self.samples:
            return {}
        begin, end = self.samples[0].at, self.samples[-1].at
        third = (end - begin) / 3
        grown = {}
        for role in {one.role for one in self.samples}:
            some = [(s.at, int(getattr(s, what))) for s in self.samples if s.role == role]
            early = [value for at, value in some if at < begin + third]
            late = [value for at, value in some if at > end - third]
            if early and late:
                grown[role] = max(late) - max(early)
        return grown


def _uuid(loop: Path) -> str:
    words = ["blkid", "-p", "-s", "UUID", "-o", "value", str(loop)]
    return subprocess.run(words, capture_output=True, check=True, text=True).stdout.strip()


def _holders(point: str) -> list[str]:
    """Return the processes that have something open below a mount point, and what they run."""
    found = []
    for file in Path("/proc").glob("[0-9]*/fd/*"):
        with suppress(OSError):
            to, process = str(file.readlink()), file.parents[1]
            if to.startswith(point):
                words = (process / "cmdline").read_bytes().replace(b"\0", b" ").decode()
                found.append(f"{process.name} {words}: {to}")
    return found


def _family(pid: int, depth: int) -> Iterator[tuple[int, int]]:
    yield depth, pid
    with suppress(OSError):
        for child in Path(f"/proc/{pid}/task/{pid}/children").read_text().split():
            yield from _family(int(child), depth + 1)


def main() -> int:
    """Run the soak; the exit status is 1 if anything was lost, wrong, or grew."""
    parser = argparse.ArgumentParser(prog="bench.soak")
    parser.add_argument("--minutes", type=float, default=120.0, help="(default: %(default)g)")
    parser.add_argument(
        "--pause", type=float, default=0.1, help="seconds between failures (default: %(default)g)"
    )
    parser.add_argument(
        "--reload", type=float, default=37.0, help="seconds between policies (default: %(default)g)"
    )
    parser.add_argument(
        "--patience",
        type=float,
        default=60.0,
        help="seconds that the daemon may take for a disk's failures (default: %(default)g)",
    )
    given = parser.parse_args()
    with traced(), ExitStack() as undo:
        name = undo.enter_context(tempfile.TemporaryDirectory(prefix="whoseblock-soak-"))
        folder = Path(name)
        from_now_on(folder)
        (folder / "policy.toml").write_text(_POLICIES[0])
        words = [sys.executable, "-m", "whoseblock", "watch", f"--policy={folder}/policy.toml"]
        words += [f"--journal={folder}/journal.sqlite", f"--state={folder}/state", "--interval=10"]
        log = undo.enter_context((folder / "log").open("ab"))
        daemon = undo.enter_context(subprocess.Popen(words, stderr=log))
        undo.callback(daemon.kill)
        while "event=watching" not in (folder / "log").read_text():
            time.sleep(0.1)
        soak = _Soak(folder, given)
        parts = [soak.run(soak.disks, one) for one in range(_DISKS)]
        parts += [soak.run(soak.reloads, daemon), soak.run(soak.absences)]
        parts.append(soak.run(soak.watch, daemon))
        for one in parts:
            one.join()
        soak.settle(900)
        daemon.terminate()
        daemon.wait(300)
        Path("build").mkdir(exist_ok=True)
        for name in ("log", "journal.sqlite"):
            shutil.copy(folder / name, Path("build") / f"soak.{name}")
        with Path("build/soak.samples").open("w") as file:
            file.writelines(json.dumps(one) + "\n" for one in soak.samples)
        result = soak.check()
        result["minutes"] = given.minutes
    print(json.dumps(result, indent=2))
    Path("build/soak.json").write_text(json.dumps(result, indent=2) + "\n")
    return 1 if soak.faults else 0


if __name__ == "__main__":
    sys.exit(main())
