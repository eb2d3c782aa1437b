"""A long run of the daemon on failing disks: ``python -m bench.soak --minutes 120``.

Images come and go as loop devices over emulated failing disks, are mounted and unmounted, and
blocks of their files, of free space and of metadata fail.  Meanwhile the policy is reloaded, valid
and invalid, and the journal is locked for some seconds.  At the end each failure must be in the
journal with its file, or the daemon must have reported lost events. No other file may be named.
Memory and descriptors must not have grown.
"""

import argparse
import json
import os
import random
import signal
import sqlite3
import subprocess
import sys
import tempfile
import threading
import time
from collections import Counter, defaultdict
from collections.abc import Iterator
from contextlib import ExitStack, closing, suppress
from pathlib import Path
from typing import Any, Final, NamedTuple

from tests.scenarios.test_emulated_device import place_of
from tests.support.emulated_device import emulated
from tests.support.failing_disk import read_direct, traced
from tests.support.mounts import mounted
from tests.support.watch_daemon import from_now_on
from tests.support.xfs_images import MIB, Geometry, make_image

from whoseblock.ranges import ByteRange

__all__ = ["main"]

BLOCK: Final = 4096
#: Disks at a time, files on each, their blocks, and blocks that fail while a disk is there.
_DISKS, _FILES, _FILE_BLOCKS, _ROUND = 2, 8, 64, 60
#: Seconds between samples, policy reloads, and absences of the journal; and how long those are.
_SAMPLE_S, _RELOAD_S, _AWAY_S, _ABSENCE_S = 10.0, 37.0, 151.0, 12.0
#: The most that a process may grow between the first and the last third of the run, in bytes.
_GROWTH: Final = 4 << 20
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
    """Resident bytes and open descriptors of one process of the daemon."""

    at: float
    role: str
    pid: int
    resident: int
    descriptors: int


class _Soak:
    def __init__(self, folder: Path, seconds: float, pause: float) -> None:
        self.folder = folder
        self.until = time.monotonic() + seconds
        self.pause = pause
        self.hits: list[_Hit] = []
        self.samples: list[_Sample] = []
        self.counts: Counter[str] = Counter()
        self.faults: list[str] = []
        self._lock = threading.Lock()

    @property
    def goes_on(self) -> bool:
        return time.monotonic() < self.until

    # ------------------------------------------------------------------ what happens

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
                with mounted(loop, loop=False) as name:
                    root = Path(os.fsdecode(name))
                    places = self._fill(root, rng)
                    uuid = _uuid(loop)
                    for start, path in rng.sample(sorted(places.items()), _ROUND):
                        if time.monotonic() >= self.until:
                            break
                        served.add(ByteRange(start, BLOCK))
                        with self._lock:
                            self.hits.append(_Hit(f"xfs {uuid}", start, path))
                        if read_direct(loop, start):
                            self.faults.append(f"{loop} {start} could be read")
                        time.sleep(rng.expovariate(1 / self.pause))
                    # Most disks stay until their failures are journaled; some vanish at once.
                    if rng.random() < 0.8:
                        self.settle(30)
                    began = time.monotonic()
                self.counts["unmounted"] += 1
                if time.monotonic() - began > 10:
                    self.faults.append(f"unmounting {loop} took {time.monotonic() - began:.0f} s")
            image.unlink()

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
        """Wait until all reports are processed."""
        spool = self.folder / "state" / "spool"
        deadline = time.monotonic() + seconds
        time.sleep(1)
        while any(spool.glob("*.reports")) and time.monotonic() < deadline:
            time.sleep(0.5)

    def reloads(self, daemon: "subprocess.Popen[bytes]") -> None:
        """Replace the policy again and again."""
        number = 0
        while self._sleep(_RELOAD_S):
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
                    pages = int(Path(f"/proc/{pid}/statm").read_text().split()[1])
                    role = ("collector", "worker", "probe")[min(depth, 2)]
                    files = len(os.listdir(f"/proc/{pid}/fd"))  # noqa: PTH208 - numbers
                    resident = pages * os.sysconf("SC_PAGE_SIZE")
                    self.samples.append(_Sample(time.monotonic(), role, pid, resident, files))
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
        missing = len(wanted) - len(found)
        if missing > elsewhere and not lost:
            self.faults.append(f"{missing - elsewhere} failures are missing, none reported lost")
        self.faults += wrong
        growth = self._growth()
        self.faults += [f"{role} grew by {by} bytes" for role, by in growth.items() if by > _GROWTH]
        return {
            "failures": len(wanted),
            "journaled under their filesystem": len(found),
            "with their file": named,
            "journaled without a filesystem": elsewhere,
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

    def _without_identity(self) -> int:
        query = "SELECT count(*) FROM failures WHERE identity NOT LIKE 'xfs %'"
        with closing(sqlite3.connect(self.folder / "journal.sqlite")) as journal:
            (number,) = journal.execute(query).fetchone()
        return int(number)

    def _growth(self) -> dict[str, int]:
        """Return by how much the peak of each role grew from the first to the last third."""
        if not self.samples:
            return {}
        begin, end = self.samples[0].at, self.samples[-1].at
        third = (end - begin) / 3
        grown = {}
        for role in {one.role for one in self.samples}:
            early = [s.resident for s in self.samples if s.role == role and s.at < begin + third]
            late = [s.resident for s in self.samples if s.role == role and s.at > end - third]
            if early and late:
                grown[role] = max(late) - max(early)
        return grown


def _uuid(loop: Path) -> str:
    words = ["blkid", "-p", "-s", "UUID", "-o", "value", str(loop)]
    return subprocess.run(words, capture_output=True, check=True, text=True).stdout.strip()


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
        time.sleep(3)
        soak = _Soak(folder, given.minutes * 60, given.pause)
        workers = [threading.Thread(target=soak.disks, args=(one,)) for one in range(_DISKS)]
        workers += [
            threading.Thread(target=soak.reloads, args=(daemon,)),
            threading.Thread(target=soak.absences),
            threading.Thread(target=soak.watch, args=(daemon,)),
        ]
        for one in workers:
            one.start()
        for one in workers:
            one.join()
        soak.settle(900)
        daemon.terminate()
        daemon.wait(120)
        result = soak.check()
        result["minutes"] = given.minutes
    print(json.dumps(result, indent=2))
    Path("build").mkdir(exist_ok=True)
    Path("build/soak.json").write_text(json.dumps(result, indent=2) + "\n")
    return 1 if soak.faults else 0


if __name__ == "__main__":
    sys.exit(main())
