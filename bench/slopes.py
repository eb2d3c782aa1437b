"""The processor time and the memory of a lookup at three sizes of each thing that may be large.

A lookup must cost no more than in proportion to its input and its output: with ten times as much,
the time may be ten times as long.  Inodes without a reverse map have three sizes in
`bench.xfs_scan` and `bench.ext4`.
"""

import os
import random
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Final

from tests.support import system_calls
from tests.support.mounts import mounted
from tests.support.tools import run

import whoseblock
from bench.images import BLOCK, made, make_empty
from bench.measure import Command, Result, Table, Usage, measure_usage
from bench.memory import LIMIT
from bench.xfs import EXTENTS, image
from whoseblock.fs.base import FileOwner

__all__ = ["measure_all"]

RANGES: Final = (100_000, 1_000_000, 10_000_000)
SHARERS: Final = (50, 500, 5_000)
SNAPSHOTS: Final = (10, 100, 1_000)
_RUNS: Final = 5
#: A run of so many seconds is not repeated.
_LONG_S: Final = 5.0
_LOOKUP: Final = [sys.executable, "-m", "whoseblock", "lookup"]


def measure_all(folder: Path) -> Iterator[Result | Table]:
    """Measure all slopes."""
    yield from _slope("ranges", RANGES, [_of_ranges(folder, number) for number in RANGES])
    yield from _slope("sharers", SHARERS, [_of_sharers(folder, number) for number in SHARERS])
    commands = [_of_snapshots(folder, number) for number in SNAPSHOTS]
    yield from _slope("btrfs snapshots", SNAPSHOTS, commands)


def _slope(
    what: str, sizes: tuple[int, int, int], commands: list[Command]
) -> Iterator[Result | Table]:
    """Measure a command for each size."""
    usages = [_least(command) for command in commands]
    rows: list[tuple[str | float, ...]] = []
    for size, usage in zip(sizes, usages, strict=True):
        each = usage.processor / size * 1e6
        rows.append((f"{size:,}", usage.processor, each, usage.memory / (1 << 20)))
    yield Table(what, (what, "processor s", "µs for each", "MiB"), rows)
    growth, input_growth = usages[2].processor / usages[1].processor, sizes[2] / sizes[1]
    yield Result(
        f"{what}: growth of the time (by growth of the input)",
        growth, input_growth, "", growth / input_growth, 1, at_least=False,
    )  # fmt: skip
    peak = max(usage.memory for usage in usages)
    yield Result(
        f"{what}: peak memory", peak / (1 << 20), LIMIT / (1 << 20), "MiB", peak / LIMIT, 1,
        at_least=False,
    )  # fmt: skip


def _least(command: Command) -> Usage:
    """Return the least of some runs; a long one is run once."""
    runs = [measure_usage(command)]
    while runs[-1].processor < _LONG_S and len(runs) < _RUNS:
        runs.append(measure_usage(command))
    return Usage(min(one.processor for one in runs), max(one.memory for one in runs))


def _of_ranges(folder: Path, number: int) -> Command:
    """Ask for blocks in random order, without paths."""
    path = image(folder, f"extents-{EXTENTS}")
    ranges = folder / f"ranges-{number}.txt"
    if not ranges.exists():
        rng = random.Random(5)  # noqa: S311 - a sample, not a secret
        blocks = path.stat().st_size // BLOCK
        with ranges.open("w") as file:
            for _ in range(number):
                file.write(f"{rng.randrange(blocks)}p\n")
    return [*_LOOKUP, path, "--ranges", ranges, "--json", "--no-paths"]


def _of_sharers(folder: Path, number: int) -> Command:
    """Ask for one block of an extent that so many files share."""

    def make(path: Path) -> None:
        make_empty(path, 1 << 30)
        with mounted(path) as root:
            first = Path(os.fsdecode(root), "first")
            first.write_bytes(b"s" * BLOCK)
            with first.open("rb") as source:
                for copy in range(number - 1):
                    with first.with_name(f"copy-{copy}").open("wb") as target:
                        system_calls.clone_range(source.fileno(), 0, BLOCK, target.fileno(), 0)

    path = made(folder, f"slope-sharers-{number}", make)
    return [*_LOOKUP, path, str(_start_of_data(path)), "--json"]


def _of_snapshots(folder: Path, number: int) -> Command:
    """Ask for one block of a file of a btrfs subvolume with so many snapshots."""

    def make(path: Path) -> None:
        path.unlink(missing_ok=True)
        with path.open("wb") as file:
            file.truncate(1 << 30)
        run(["mkfs.btrfs", "-q", path])
        with mounted(path, kind="btrfs") as root:
            volume = Path(os.fsdecode(root), "volume")
            run(["btrfs", "-q", "subvolume", "create", volume])
            (volume / "file").write_bytes(b"s" * BLOCK * 16)
            for snapshot in range(number):
                other = volume.with_name(f"snapshot-{snapshot}")
                run(["btrfs", "-q", "subvolume", "snapshot", volume, other])

    path = made(folder, f"slope-snapshots-{number}", make)
    return [*_LOOKUP, path, str(_start_of_data(path)), "--json"]


def _start_of_data(path: Path) -> int:
    """Return where the only data on an image begins."""
    with whoseblock.open(path) as filesystem:
        rows = filesystem.owners(0, filesystem.device_size, paths=False)
    return next(row.start for row in rows if isinstance(row, FileOwner) and row.what == "data")
