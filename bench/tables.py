"""The owner map of a filesystem with millions of files, as a Parquet file: rows a second, reads."""

import os
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Final

import pyarrow.parquet

import whoseblock
from bench.measure import Command, Table, measured
from bench.xfs import image
from whoseblock.fs.pieces import DIRECTORY, FILE, METADATA

__all__ = ["measure_all"]

FILES: Final = (200_000, 2_000_000)
MIB: Final = 1 << 20

_MAP: Final = [sys.executable, "-m", "whoseblock", "map"]
#: Runs a command, and prints how many bytes its system calls read, and its peak memory in KiB.
_COUNT_READS: Final = """
import os, sys
pid = os.spawnv(os.P_NOWAIT, sys.argv[1], sys.argv[1:])
os.waitid(os.P_PID, pid, os.WEXITED | os.WNOWAIT)
read = next(line for line in open(f"/proc/{pid}/io") if line.startswith("rchar")).split()[1]
_, status, usage = os.wait4(pid, 0)
print(read, usage.ru_maxrss)
sys.exit(os.waitstatus_to_exitcode(status))
"""


def measure_all(folder: Path) -> Iterator[Table]:
    """Write the maps of two filesystems, with paths and without."""
    rows = []
    table = folder / "owners.parquet"
    for files in FILES:
        path = image(folder, f"reserved-{files}")
        metadata, seconds_plain = _read_metadata(path)
        for form, options in (("with paths", []), ("without paths", ["--no-paths"])):
            command: Command = [*_MAP, path, "--output", table, *options]
            run = measured([sys.executable, "-I", "-c", _COUNT_READS, *command])
            read, peak = map(int, run.output.split()[-2:])
            count = pyarrow.parquet.read_metadata(table).num_rows
            rows.append(
                (
                    f"{files:,} files, {form}",
                    count,
                    run.seconds,
                    count / run.seconds,
                    read / MIB,
                    metadata / MIB,
                    seconds_plain,
                    peak / 1024,
                )
            )
    heads = ("map", "rows", "s", "rows/s", "MiB read", "MiB metadata", "s to read it", "MiB peak")
    yield Table("owner maps", heads, rows)


def _read_metadata(path: Path) -> tuple[int, float]:
    """Read all metadata of an image in its order; return the bytes, and the seconds it took."""
    with whoseblock.open(path) as filesystem:
        size = filesystem.device_size
        arrays = filesystem.owners_of(*_pieces(size))
    wanted = (arrays.kind == METADATA) | ((arrays.kind == FILE) & (arrays.what == DIRECTORY))
    starts, lengths = arrays.start[wanted].tolist(), arrays.length[wanted].tolist()
    descriptor = os.open(path, os.O_RDONLY)
    try:
        begun = time.perf_counter()
        for start, length in zip(starts, lengths, strict=True):
            for at in range(start, start + length, MIB):
                os.pread(descriptor, min(MIB, start + length - at), at)
        return sum(lengths), time.perf_counter() - begun
    finally:
        os.close(descriptor)


def _pieces(size: int) -> tuple[list[int], list[int]]:
    piece = 64 * MIB
    starts = list(range(0, size, piece))
    return starts, [min(piece, size - start) for start in starts]
