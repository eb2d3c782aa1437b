"""The cost of the idle daemon, and the time from a failure to its owners in the journal.

A real daemon, before which sectors of a loop device fail one after the other.  The bench sees on
the daemon's standard error when the owners of one are in the journal, and there when the kernel had
the event.  Beside it stands `whoseblock lookup` of the same place, as a process of its own.
"""

import json
import os
import random
import re
import signal
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import NamedTuple

from tests.support.failing_disk import failing_disk, read_direct, traced
from tests.support.watch_daemon import from_now_on
from tests.support.xfs_images import MIB, Geometry, make_image

import whoseblock
from bench.images import BLOCK
from bench.measure import Command, Result, Table, measured
from bench.xfs import EXTENTS, FILES, image
from whoseblock.fs.base import FileOwner
from whoseblock.journal import open_journal
from whoseblock.ranges import ByteRange

__all__ = ["IDLE_S", "measure_all", "measure_crowded", "measure_idle"]

#: So long the daemon is watched while it has nothing to do, in seconds.
IDLE_S = 600.0
#: So many failures each are waited for, by themselves.
WARM, COLD, WALKS = 100, 20, 10
#: So many searches for processes are waited for.
SEARCHES = 20
#: The processes of a machine, besides those that are there anyway.
FEW, MANY = 100, 3000
INTERVAL_S = 60
#: A daemon that needs longer than that is broken.
_TIMEOUT_S = 120.0
_WHOSEBLOCK: Command = [sys.executable, "-m", "whoseblock"]


def measure_all(folder: Path, idle: float = IDLE_S) -> Iterator[Result | Table]:
    """Measure reactions on images small and large, then wait."""
    yield from measure_crowded(folder)
    with traced():
        yield from _reactions(folder)
    yield from measure_idle(idle=idle)


def measure_crowded(folder: Path) -> Iterator[Result | Table]:
    """Measure reactions with few and with many processes."""
    with traced():
        yield from _crowded(folder)


# ------------------------------------------------------------------ a daemon


class _Daemon:
    """A daemon that runs, and what it says on standard error."""

    def __init__(self, folder: Path, process: "subprocess.Popen[bytes]") -> None:
        self.pid = process.pid
        self.journal = folder / "journal.sqlite"
        self.state = folder / "state"
        assert process.stderr is not None  # noqa: S101 - for the type checker: it is a pipe
        self._stderr = process.stderr

    def wait_for(self, pattern: "re.Pattern[bytes]") -> tuple[float, re.Match[bytes]]:
        """Wait for a line of the log; return the time of day at which it arrived."""
        while line := self._stderr.readline():
            at = time.time()
            if match := pattern.search(line):
                return at, match
        raise RuntimeError("the daemon has ended")

    def children(self) -> list[int]:
        """Return its processes besides itself: the worker, if there is one."""
        text = Path(f"/proc/{self.pid}/task/{self.pid}/children").read_text()
        return list(map(int, text.split()))

    def counts(self) -> tuple[int, int]:
        """Return the numbers of messages of the kernel's log and of reports that it has read."""
        output = measured([*_WHOSEBLOCK, "status", "--json", "--state", self.state]).output
        status = json.loads(output)
        messages = status["sources"]["kmsg"]["health"].rpartition(" ")[2]
        return int(messages), sum(status["counts"]["reports"].values())

    def dismiss_worker(self) -> None:
        """End the worker, as the daemon does after an idle time."""
        os.kill(self.pid, signal.SIGHUP)
        while self.children():
            time.sleep(0.01)


@contextmanager
def _daemon() -> Iterator[_Daemon]:
    with tempfile.TemporaryDirectory(prefix="whoseblock-bench-") as name:
        folder = Path(name)
        from_now_on(folder)
        where = [f"--journal={folder}/journal.sqlite", f"--state={folder}/state"]
        words = [*_WHOSEBLOCK, "watch", *where, f"--interval={INTERVAL_S}"]
        with subprocess.Popen(words, stderr=subprocess.PIPE) as process:
            try:
                daemon = _Daemon(folder, process)
                daemon.wait_for(re.compile(rb"event=watching"))
                yield daemon
            finally:
                process.terminate()


# ------------------------------------------------------------------ reactions


class _Disk(NamedTuple):
    """Places whose sectors can be made to fail, each once."""

    name: str
    loop: Path
    root: Path
    places: list[int]
    fail: Callable[[int], None]


@contextmanager
def _disk(name: str, path: Path, wanted: int) -> Iterator[_Disk]:
    """Provide a disk with an image; ``wanted`` places on it belong to files."""
    with (
        tempfile.TemporaryDirectory(prefix="whoseblock-bench-") as folder,
        failing_disk(path, Path(folder) / "at", in_place=False) as (served, loop, root),
    ):
        with whoseblock.open(root) as fs:
            rows = fs.owners(0, fs.size, paths=False)
            starts = [
                at
                for row in rows
                if isinstance(row, FileOwner) and row.what == "data"
                for at in range(row.start, row.start + row.length, BLOCK)
            ]
        places = random.Random(5).sample(starts, wanted)  # noqa: S311 - a sample, not a secret

        def fail(at: int) -> None:
            served.add(ByteRange(at, BLOCK))
            if read_direct(loop, at):
                raise RuntimeError("it did not fail")

        yield _Disk(name, loop, root, places, fail)


@contextmanager
def _many_processes(number: int) -> Iterator[None]:
    """Start processes until the machine has ``number``."""
    present = sum(one.name.isdecimal() for one in Path("/proc").iterdir())
    with ExitStack() as undo:
        for _ in range(max(number - present, 0)):
            process = undo.enter_context(subprocess.Popen(["sleep", "infinity"]))
            undo.callback(process.kill)
        yield


def _crowded(folder: Path) -> Iterator[Result | Table]:
    """Measure reactions with few and with many processes on the machine.

    The processes are searched after the owners are journaled.  This process has the file open, so
    that the daemon logs when it has found it.
    """
    rows: list[tuple[str | float, ...]] = []
    medians: list[float] = []
    for number in (FEW, MANY):
        path = _small(folder, parent=True)
        with (
            _many_processes(number),
            _disk("crowded", path, WARM + 1 + SEARCHES) as disk,
            _daemon() as daemon,
            (disk.root / "file").open("rb"),
        ):
            load = os.getloadavg()[0]
            present = sum(one.name.isdecimal() for one in Path("/proc").iterdir())
            times = list(_react(disk, daemon, disk.places[SEARCHES:], cold=False))
            searches = list(_search(disk, daemon, disk.places[:SEARCHES]))
        words = f"{present:,} processes, load {load:.1f}"
        rows += [
            (f"{words}: one more", *_distribution(times)),
            (f"{words}: then, to its processes", *_distribution(searches)),
        ]
        medians.append(statistics.median(times))
    heads = ("milliseconds from the event to the owners", "n", "min", "median", "p90", "p99", "max")
    yield Table("processes", heads, rows)
    few, many = medians
    yield Result(
        f"reaction with {MANY:,} processes (by {FEW})",
        many * 1e3, few * 1e3, "ms", many / few, 4 / 3, at_least=False,
    )  # fmt: skip


def _search(disk: _Disk, daemon: _Daemon, places: list[int]) -> Iterator[float]:
    """Make places fail one by one; return the seconds from the owners to the processes of each."""
    for number, at in enumerate(places):
        disk.fail(at)
        journaled, match = daemon.wait_for(_failure(disk, at))
        found, _ = daemon.wait_for(re.compile(rb"event=failure-users failure=%s " % match[1]))
        # The first waits for the search of the failures before.
        if number:
            yield found - journaled


def _small(folder: Path, *, parent: bool) -> Path:
    """Make an image with one file of a thousand blocks."""
    path = folder / f"watched-{parent:d}.img"
    if not path.exists():
        with tempfile.TemporaryDirectory() as content:
            (Path(content) / "file").write_bytes(random.Random(5).randbytes(1000 * BLOCK))  # noqa: S311 - as above
            geometry = Geometry("watched", size=64 * MIB, parent=parent)
            make_image(path, geometry, content=Path(content))
    return path


def _reactions(folder: Path) -> Iterator[Result | Table]:
    rows: list[tuple[str | float, ...]] = []
    extents = image(folder, f"extents-{EXTENTS}")
    files = image(folder, f"files-{FILES}")
    cases = [
        ("one file, parent pointers", _small(folder, parent=True), WARM, COLD),
        ("one file, none", _small(folder, parent=False), WARM, COLD),
        (f"{EXTENTS:,} extents in 60 files", extents, WARM, COLD),
        (f"{FILES:,} files, no parent pointers", files, WALKS, WALKS),
    ]
    for name, path, warm, cold in cases:
        with _disk(name, path, warm + cold) as disk, _daemon() as daemon:
            places = iter(disk.places)
            cold_times = list(_react(disk, daemon, [next(places) for _ in range(cold)], cold=True))
            warm_times = list(_react(disk, daemon, list(places), cold=False))
            asked = disk.places[: min(cold, 10)]
            lookups = [_lookup(disk, at) for at in asked]
        rows += [
            (f"{name}: the first failure", *_distribution(cold_times)),
            (f"{name}: one more", *_distribution(warm_times)),
            (f"{name}: whoseblock lookup", *_distribution(lookups)),
        ]
        for what, times, target in (("the first", cold_times, 3), ("one more", warm_times, 1)):
            ours, theirs = statistics.median(times), statistics.median(lookups)
            yield Result(
                f"{name}: reaction to {what} failure (by one lookup)",
                ours * 1e3, theirs * 1e3, "ms", ours / theirs, target, at_least=False,
            )  # fmt: skip
    heads = ("milliseconds from the event to the owners", "n", "min", "median", "p90", "p99", "max")
    yield Table("reaction", heads, rows)


def _failure(disk: _Disk, at: int) -> "re.Pattern[bytes]":
    """Return the pattern of the log line of a failure: other disks may fail meanwhile."""
    name = os.fsencode(disk.loop.name)
    return re.compile(rb"event=failure failure=(\d+) device=%s start=%d " % (name, at))


def _react(disk: _Disk, daemon: _Daemon, places: list[int], *, cold: bool) -> Iterator[float]:
    """Make places fail one by one; return the seconds from each event to its owners."""
    if not cold:
        # The worker is there from now on.
        first, *places = places
        disk.fail(first)
        daemon.wait_for(_failure(disk, first))
    for at in places:
        if cold:
            daemon.dismiss_worker()
        # What is still written of the one before is not counted to this one.
        time.sleep(0.1)
        disk.fail(at)
        until, match = daemon.wait_for(_failure(disk, at))
        yield until - _failed_at(daemon.journal, int(match[1]), disk.loop.name, at)


def _failed_at(journal: Path, failure: int, device: str, start: int) -> float:
    """Return the time of the kernel's event for a failure whose owners are in the journal."""
    with open_journal(str(journal), write=False) as opened:
        history = opened.history(failure)
    (finding,) = history.findings
    (owner,) = finding.answer["owners"]
    if (history.failure.device, history.failure.start) != (device, start) or not owner["paths"]:
        raise RuntimeError(f"another failure than that of {start} on {device}: {history}")
    return min(report.at for report in history.reports).timestamp()


def _lookup(disk: _Disk, at: int) -> float:
    ask = (f"{at}+512", "--json", "--processes", "--verify")
    return measured([*_WHOSEBLOCK, "lookup", disk.loop, *ask]).seconds


def _distribution(times: Sequence[float]) -> tuple[float, ...]:
    ordered = sorted(time * 1e3 for time in times)

    def at(share: float) -> float:
        return ordered[min(int(share * len(ordered)), len(ordered) - 1)]

    middle = statistics.median(ordered)
    return len(ordered), ordered[0], middle, at(0.9), at(0.99), ordered[-1]


# ------------------------------------------------------------------ idle


class _Cost(NamedTuple):
    """Processor time and wake-ups of a process and its children, and its present memory."""

    processor: float
    wakes: int
    resident: int
    proportional: int


def measure_idle(_: Path | None = None, *, idle: float = IDLE_S) -> Iterator[Result | Table]:
    """Watch a daemon that has nothing to do, beside a Python process that only sleeps."""
    sleep: Command = [sys.executable, "-c", "import signal; signal.pause()"]
    with traced(), _daemon() as daemon, subprocess.Popen(sleep) as bare:
        try:
            while daemon.children():
                time.sleep(0.1)
            # The first minute is that of its start: what it reads once is read.
            time.sleep(min(idle, INTERVAL_S))
            print(f"the daemon is idle for {idle:g} s …", file=sys.stderr)
            messages, reports = daemon.counts()
            before, peer_before = _cost(daemon.pid), _cost(bare.pid)
            time.sleep(idle)
            after, peer = _cost(daemon.pid), _cost(bare.pid)
            # A status request wakes the daemon.
            messages_now, reports_now = daemon.counts()
        finally:
            bare.terminate()
    rows = [
        (
            name,
            (now.processor - then.processor) * 1e3,
            now.wakes - then.wakes,
            now.resident / 1e6,
            now.proportional / 1e6,
        )
        for name, then, now in (("daemon", before, after), ("bare Python", peer_before, peer))
    ]
    heads = (f"idle for {idle:g} s", "ms of processor", "wake-ups", "RSS in MB", "PSS in MB")
    yield Table("idle", heads, rows)
    if reports_now > reports:
        print("another disk failed meanwhile: the daemon was not idle", file=sys.stderr)
    wakes = after.wakes - before.wakes
    due = round(idle / INTERVAL_S) + messages_now - messages
    yield Result(
        f"wake-ups in {idle:g} s (by re-reads due and messages of the kernel)",
        wakes, due, "", wakes / max(due, 1), 1, at_least=False,
    )  # fmt: skip
    yield Result(
        "memory of the idle daemon (by a bare Python process)",
        after.proportional / 1e6, peer.proportional / 1e6, "MB",
        after.proportional / peer.proportional, 4, at_least=False,
    )  # fmt: skip


def _cost(pid: int) -> _Cost:
    processor, wakes, resident, proportional = 0.0, 0, 0, 0
    for task in Path(f"/proc/{pid}/task").iterdir():
        processor += int((task / "schedstat").read_text().split()[0]) / 1e9
        wakes += _number(task / "status", "voluntary_ctxt_switches")
    # Of children that have ended; they come and go with failures.
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(") ")[2].split()
    processor += sum(map(int, fields[13:15])) / os.sysconf("SC_CLK_TCK")
    memory = Path(f"/proc/{pid}/smaps_rollup")
    resident, proportional = _number(memory, "Rss") << 10, _number(memory, "Pss") << 10
    return _Cost(processor, wakes, resident, proportional)


def _number(file: Path, name: str) -> int:
    (line,) = (line for line in file.read_text().splitlines() if line.startswith(f"{name}:"))
    return int(line.split()[1])
