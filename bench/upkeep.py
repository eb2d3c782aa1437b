"""The cost of a reverse map for the kernel: the same work with and without it.

``python -m bench.upkeep`` measures it alone; ``make study`` includes it.
"""

import os
import random
import statistics
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

from tests.support import system_calls
from tests.support.mounts import loop_device, mounted
from tests.support.tools import Missing, need_loop_mounts, run, xfsprogs

from whoseblock.study.report.table import Table, as_text

__all__ = ["Price", "price", "table"]

_FOLDER = Path("build/study")
_PAGE = 4096
_MIB = 1 << 20
_SIZE = 1024 * _MIB
_DATA = 16 * _MIB
_CLONES = 16
_WRITES = 6000
_ROUNDS = 6
#: Of what a filesystem counts of itself: the line of its statistics, and the numbers there.
_WORK = {
    "transactions": ("trans", (0, 1)),
    "buffers of metadata got": ("buf", (0,)),
    "blocks of 512 bytes logged": ("log", (1,)),
}


class Price(NamedTuple):
    """With a reverse mapping, by without: medians of the ratios of neighbouring rounds.

    ``work`` is what the filesystem counted of itself for one write, with and without;
    ``space_with`` and ``space_without`` are the bytes that a fresh filesystem offers.
    """

    rounds: int
    writes: int
    time: float
    time_least: float
    time_most: float
    #: Seconds of one write.
    write_with: float
    write_without: float
    written: float
    work: dict[str, tuple[float, float]]
    space_with: int
    space_without: int


class _Round(NamedTuple):
    seconds: float
    written: int
    work: dict[str, int]
    space: int


def price(folder: Path) -> Price:
    """Break the sharing of clones by random writes, with ``rmapbt=1`` and ``rmapbt=0`` in turn.

    Which of the two goes first alternates, so that neither always finds what the other left.
    """
    _round(folder, rmap=True)
    pairs: list[tuple[_Round, _Round]] = []
    for number in range(_ROUNDS):
        found = {rmap: _round(folder, rmap=rmap) for rmap in (number % 2 == 0, number % 2 != 0)}
        pairs.append((found[True], found[False]))
    times = [one.seconds / other.seconds for one, other in pairs]

    def a_write(side: int, count: Callable[[_Round], float]) -> float:
        return statistics.median(count(pair[side]) for pair in pairs) / _WRITES

    def work(name: str) -> tuple[float, float]:
        with_it, without = (a_write(side, lambda one: one.work[name]) for side in (0, 1))
        return with_it, without

    return Price(
        rounds=_ROUNDS,
        writes=_WRITES,
        time=statistics.median(times),
        time_least=min(times),
        time_most=max(times),
        write_with=a_write(0, lambda one: one.seconds),
        write_without=a_write(1, lambda one: one.seconds),
        written=statistics.median(one.written / other.written for one, other in pairs),
        work={name: work(name) for name in _WORK},
        space_with=pairs[0][0].space,
        space_without=pairs[0][1].space,
    )


def table(paid: Price) -> Table:
    """Return a price as a table."""
    kept = paid.space_without - paid.space_with
    return Table(
        "kernel",
        "What the kernel pays",
        ("with a reverse mapping, against without", "value"),
        [
            (f"time of {paid.writes:,} writes that break sharing, median of {paid.rounds} rounds",
             f"{paid.time:.2f} times"),
            ("the same, least and most of the rounds",
             f"{paid.time_least:.2f} to {paid.time_most:.2f} times"),
            ("one such write, with and without",
             f"{paid.write_with * 1e6:.0f} µs and {paid.write_without * 1e6:.0f} µs"),
            *((f"{name} of one such write, with and without",
               f"{with_it:.1f} and {without:.1f}, {with_it / without:.2f} times")
              for name, (with_it, without) in paid.work.items()),
            ("bytes written to the device meanwhile", f"{paid.written:.2f} times"),
            ("space that a fresh filesystem of 1 GiB offers",
             f"{kept / _MIB:.1f} MiB less, {kept / _SIZE:.2%} of the device"),
        ],
    )  # fmt: skip


def _round(folder: Path, *, rmap: bool) -> _Round:
    path = folder / "upkeep.img"
    path.unlink(missing_ok=True)
    with path.open("wb") as file:
        file.truncate(_SIZE)
    options = ["-q", "-m", f"rmapbt={rmap:d},reflink=1", "-d", "agcount=4"]
    run([xfsprogs("mkfs.xfs", newest=False), *options, path])
    rng = random.Random(307)  # noqa: S311 - repeatable
    with loop_device(path) as device, mounted(Path(device), loop=False) as root:
        status = os.statvfs(root)
        space = status.f_bavail * status.f_frsize
        files = _clones(root)
        os.sync()
        before, counted = _written(device), _counted(device)
        begun = time.perf_counter()
        for number in range(_WRITES):
            chosen = rng.choice(files)
            os.pwrite(chosen, bytes(_PAGE), rng.randrange(_DATA // _PAGE) * _PAGE)
            if number % 100 == 99:
                os.fsync(chosen)
        for one in files:
            os.fsync(one)
            os.close(one)
        seconds = time.perf_counter() - begun
        run(["sync", "-f", os.fsdecode(root)])
        written = _written(device) - before
        work = {name: count - counted[name] for name, count in _counted(device).items()}
    path.unlink()
    return _Round(seconds, written, work, space)


def _clones(root: bytes) -> list[int]:
    files = [os.open(root + b"/0", os.O_RDWR | os.O_CREAT, 0o644)]
    for at in range(0, _DATA, _MIB):
        os.pwrite(files[0], bytes(_MIB), at)
    os.fsync(files[0])
    for clone in range(1, _CLONES):
        files.append(os.open(root + b"/%d" % clone, os.O_RDWR | os.O_CREAT, 0o644))
        system_calls.clone_range(files[0], 0, 0, files[-1], 0)
    return files


def _written(device: str) -> int:
    """Return the bytes that were ever written to a block device."""
    fields = Path("/sys/block", Path(device).name, "stat").read_text().split()
    return int(fields[6]) * 512


def _counted(device: str) -> dict[str, int]:
    """Return the statistics of the filesystem on a device."""
    lines = Path("/sys/fs/xfs", Path(device).name, "stats/stats").read_text().splitlines()
    counts = {name: numbers for name, *numbers in map(str.split, lines)}
    return {name: sum(int(counts[group][at]) for at in of) for name, (group, of) in _WORK.items()}


def main() -> int:
    """Measure, and print a table."""
    try:
        need_loop_mounts()
    except Missing as reason:
        print(f"nothing measured: {reason}", file=sys.stderr)
        return 0
    _FOLDER.mkdir(parents=True, exist_ok=True)
    for line in as_text([table(price(_FOLDER))]):
        print(line)
    return 0


if __name__ == "__main__":
    sys.exit(main())
