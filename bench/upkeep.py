"""What the kernel pays to keep a reverse mapping: the same work with it and without it."""

import os
import random
import statistics
import time
from pathlib import Path
from typing import NamedTuple

from tests.support import calls
from tests.support.mounts import loop_device, mounted
from tests.support.tools import run, xfsprogs

__all__ = ["Price", "price"]

_PAGE = 4096
_MIB = 1 << 20
_SIZE = 1024 * _MIB
_DATA = 16 * _MIB
_CLONES = 16
_WRITES = 6000
_ROUNDS = 5


class Price(NamedTuple):
    """With a reverse mapping, by without: medians of the ratios of neighbouring rounds.

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
    space_with: int
    space_without: int


class _Round(NamedTuple):
    seconds: float
    written: int
    space: int


def price(folder: Path) -> Price:
    """Break the sharing of clones by random writes, in turn with ``rmapbt=1`` and ``rmapbt=0``."""
    _round(folder, rmap=True)
    pairs = [(_round(folder, rmap=True), _round(folder, rmap=False)) for _ in range(_ROUNDS)]
    times = [one.seconds / other.seconds for one, other in pairs]
    return Price(
        _ROUNDS,
        _WRITES,
        statistics.median(times),
        min(times),
        max(times),
        statistics.median(one.seconds for one, _ in pairs) / _WRITES,
        statistics.median(other.seconds for _, other in pairs) / _WRITES,
        statistics.median(one.written / other.written for one, other in pairs),
        pairs[0][0].space,
        pairs[0][1].space,
    )


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
        before = _written(device)
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
    path.unlink()
    return _Round(seconds, written, space)


def _clones(root: bytes) -> list[int]:
    files = [os.open(root + b"/0", os.O_RDWR | os.O_CREAT, 0o644)]
    for at in range(0, _DATA, _MIB):
        os.pwrite(files[0], bytes(_MIB), at)
    os.fsync(files[0])
    for clone in range(1, _CLONES):
        files.append(os.open(root + b"/%d" % clone, os.O_RDWR | os.O_CREAT, 0o644))
        calls.clone_range(files[0], 0, 0, files[-1], 0)
    return files


def _written(device: str) -> int:
    """Give the bytes that were ever written to a block device."""
    fields = Path("/sys/block", Path(device).name, "stat").read_text().split()
    return int(fields[6]) * 512
