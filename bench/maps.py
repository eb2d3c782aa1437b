"""A map with a million ranges, from a disk with partitions: what does it cost, and is it linear?"""

import sys
from collections.abc import Iterator
from pathlib import Path

from tests.support.disk_images import copy_range, partition
from tests.support.xfs_images import MIB, sparse_file

from bench.measure import Result, compare, measured, peak_memory
from bench.xfs import EXTENTS, image

__all__ = ["measure_all"]

MILLION = 1_000_000
PARTS = 4
FIRST_SECTOR = 2051
SECTOR = 512

_LOOKUP = [sys.executable, "-m", "whoseblock", "lookup"]


def measure_all(folder: Path) -> Iterator[Result]:
    """Measure a map of a million ranges against parts of it, and against the bare filesystem."""
    disk = _disk(folder)
    whole, quarter = _map(folder, disk, MILLION), _map(folder, disk, MILLION // PARTS)
    yield _against_ranges(folder, disk, whole)
    for words, options in (("JSON", ["--json", "--no-paths"]), ("summary", ["--summary"])):
        commands = [
            [*_LOOKUP, str(disk), "--mapfile", str(one), *options] for one in (whole, quarter)
        ]
        times = compare(
            lambda commands=commands: measured(commands[0]).seconds,  # type: ignore[misc]
            lambda commands=commands: PARTS * measured(commands[1]).seconds,  # type: ignore[misc]
            rounds=3,
        )
        what = f"1,000,000 ranges of a map, as {words}"
        yield Result(
            f"{what}: time, against 4 x 250,000",
            times.ours,
            times.theirs,
            "s",
            times.ours / times.theirs,
            1.2,
            at_least=False,
        )
        memory, part = (peak_memory(command) / MIB for command in commands)
        yield Result(
            f"{what}: memory, against 4 x 250,000",
            memory,
            PARTS * part,
            "MiB",
            memory / (PARTS * part),
            1.2,
            at_least=False,
        )


def _against_ranges(folder: Path, disk: Path, mapfile: Path) -> Result:
    """Measure what the lines of a map, partitions, via and origin add to a list of ranges."""
    step = disk.stat().st_size // MILLION // SECTOR * SECTOR
    ranges = folder / "sectors.txt"
    size = disk.stat().st_size - 16 * MIB
    ranges.write_text("".join(f"{at % size}+{SECTOR}\n" for at in range(0, MILLION * step, step)))
    options = ["--json", "--no-paths"]
    bare = image(folder, f"extents-{EXTENTS}")
    times = compare(
        lambda: measured([*_LOOKUP, str(disk), "--mapfile", str(mapfile), *options]).seconds,
        lambda: measured([*_LOOKUP, str(bare), "--ranges", str(ranges), *options]).seconds,
        rounds=3,
    )
    return Result(
        "1,000,000 ranges of a map, as JSON: time, against ranges of a bare filesystem",
        times.ours,
        times.theirs,
        "s",
        times.ours / times.theirs,
        2.5,
        at_least=False,
    )


def _disk(folder: Path) -> Path:
    """Make a disk with a GPT, on which the many extents are at an odd offset."""
    bare = image(folder, f"extents-{EXTENTS}")
    path = folder / "disk.img"
    size = bare.stat().st_size
    if not path.exists():
        unfinished = sparse_file(folder / "disk.unfinished", size + 16 * MIB)
        partition(unfinished, f"label: gpt\nstart={FIRST_SECTOR}, size={size // SECTOR}\n")
        copy_range(bare, 0, unfinished, FIRST_SECTOR * SECTOR, size)
        unfinished.rename(path)
    return path


def _map(folder: Path, disk: Path, ranges: int) -> Path:
    """Write a map in which every so many sectors one is bad."""
    path = folder / f"disk-{ranges}.map"
    step = disk.stat().st_size // ranges // SECTOR * SECTOR
    with path.open("w") as file:
        file.write("# Mapfile. Written for a benchmark\n0x00000000     ?               1\n")
        for start in range(0, ranges * step, step):
            file.write(f"0x{start:08X}  0x{SECTOR:08X}  -\n")
            file.write(f"0x{start + SECTOR:08X}  0x{step - SECTOR:08X}  +\n")
    return path
