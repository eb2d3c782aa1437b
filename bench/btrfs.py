"""The cost of lookups on btrfs images, against the kernel and btrfs-progs."""

import ctypes
import fcntl
import os
import random
import struct
import sys
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

from tests.support.mounts import mounted
from tests.support.tools import program

import whoseblock
from bench.images import BLOCK, btrfs_snapshots, made, many_btrfs_files
from bench.measure import Command, Result, Table, compare, measured
from whoseblock.fs.base import FileOwner

__all__ = ["measure_all"]

FILES = 200_000
FEW = 1_000
MANY = 100_000
ROUNDS = 11
SNAPSHOTS = (1, 10, 100, 500)

_LOOKUP = [sys.executable, "-m", "whoseblock", "lookup"]
_LOGICAL_INO_V2 = 0xC038943B  # linux/btrfs.h
_ROOM = 1 << 12


class _Place(NamedTuple):
    """A sector of a file: its byte of the device, its logical address and its inode."""

    start: int
    logical: int
    inode: int


def measure_all(folder: Path) -> Iterator[Result | Table]:
    """Make the images that are not there yet, and measure."""

    def make(path: Path) -> None:
        many_btrfs_files(path, FILES)

    image = made(folder, f"btrfs-files-{FILES}", make)
    owned = _owned_sectors(image)
    yield from _one(image, owned)
    yield from _few(image, owned, folder)
    yield from _many(image, owned, folder)
    yield from _mounted(image, owned)
    yield from _snapshots(folder)


def _owned_sectors(image: Path) -> list[_Place]:
    """Return the sectors of regular files."""
    with whoseblock.open(image) as volume:
        answer = volume.owners(0, volume.size, paths=False)
    return [
        _Place(row.start + at, row.logical + at, row.inode)
        for row in answer
        if isinstance(row, FileOwner) and isinstance(row.logical, int)
        for at in range(0, row.length, BLOCK)
    ]


def _sample(owned: Sequence[_Place], count: int, seed: int) -> list[_Place]:
    return random.Random(seed).sample(owned, count)  # noqa: S311 - a sample, not a secret


def _resolve(folder: bytes, place: _Place) -> bytes:
    """Return what logical-resolve prints, as one process."""
    command: Command = [program("btrfs"), "inspect-internal", "logical-resolve"]
    return measured([*command, str(place.logical), os.fsdecode(folder)]).output


def _one(image: Path, owned: Sequence[_Place]) -> Iterator[Result | Table]:
    """Look up one sector with its path as a process, against a mount and logical-resolve."""
    sample = _sample(owned, ROUNDS + 1, 19)
    ours, others = iter(sample), iter(sample)
    reads: list[int] = []
    for place in sample:
        with whoseblock.open(image) as volume:
            (row,) = volume.owners(place.start, BLOCK)
            reads.append(volume.reads.total())
        if not isinstance(row, FileOwner) or row.inode != place.inode:
            raise RuntimeError(f"another owner of byte {place.start}")

    def process() -> float:
        return measured([*_LOOKUP, image, f"{next(ours).start}+{BLOCK}"]).seconds

    def theirs() -> float:
        begun = time.perf_counter()
        with mounted(image, "ro", kind="btrfs") as folder:
            found = _resolve(folder, next(others))
        seconds = time.perf_counter() - begun
        if b"/file-" not in found:
            raise RuntimeError("logical-resolve found no path")
        return seconds

    times = compare(process, theirs, rounds=ROUNDS)
    yield Result(
        f"one sector with path of {FILES:,} files, process",
        times.ours * 1e3, times.theirs * 1e3, "ms", times.ratio, 1.5, at_least=True,
    )  # fmt: skip
    yield Result(
        "tree blocks read for one (at most)",
        max(reads), 1, "", max(reads), 40, at_least=False,
    )  # fmt: skip


def _few(image: Path, owned: Sequence[_Place], folder: Path) -> Iterator[Result | Table]:
    """Look up many sectors with paths, against logical-resolve for each."""
    sample = _sample(owned, FEW, 20)
    ranges = folder / "btrfs.txt"
    ranges.write_text("".join(f"{place.start}+{BLOCK}\n" for place in sample))
    command: Command = [*_LOOKUP, image, "--ranges", ranges, "--json"]
    with mounted(image, "ro", kind="btrfs") as point:

        def theirs() -> float:
            begun = time.perf_counter()
            for place in sample:
                _resolve(point, place)
            return time.perf_counter() - begun

        times = compare(lambda: measured([*command, "--offline"]).seconds, theirs, rounds=3)
    yield Result(
        f"{FEW:,} sectors with paths, process",
        times.ours, times.theirs, "s", times.ratio, 3, at_least=True,
    )  # fmt: skip


def _by_kernel(point: bytes, logicals: Sequence[int]) -> list[int]:
    """Return the inode of each logical address, by LOGICAL_INO_V2."""
    answer = ctypes.create_string_buffer(_ROOM)
    descriptor = os.open(point, os.O_RDONLY)
    found = []
    try:
        for logical in logicals:
            request = struct.pack("=QQ24xQQ", logical, _ROOM, 0, ctypes.addressof(answer))
            fcntl.ioctl(descriptor, _LOGICAL_INO_V2, request)
            found.append(struct.unpack_from("=Q", answer, 16)[0])
    finally:
        os.close(descriptor)
    return found


def _many(image: Path, owned: Sequence[_Place], folder: Path) -> Iterator[Result | Table]:
    """Look up very many sectors without paths, against LOGICAL_INO_V2 in a loop."""
    sample = _sample(owned, MANY, 21)
    ranges = folder / "btrfs.txt"
    ranges.write_text("".join(f"{place.start}+{BLOCK}\n" for place in sample))
    command: Command = [*_LOOKUP, image, "--ranges", ranges, "--json", "--no-paths", "--offline"]
    inodes = [place.inode for place in sample]

    def through_api() -> float:
        begun = time.perf_counter()
        with whoseblock.open(image, offline=True) as volume:
            rows = volume.owners_of([place.start for place in sample], [BLOCK] * len(sample))
        seconds = time.perf_counter() - begun
        if rows.inode.tolist() != inodes:
            raise RuntimeError("other owners")
        return seconds

    with mounted(image, "ro", kind="btrfs") as point:
        logicals = [place.logical for place in sample]

        def theirs() -> float:
            begun = time.perf_counter()
            found = _by_kernel(point, logicals)
            seconds = time.perf_counter() - begun
            if found != inodes:
                raise RuntimeError("the kernel names other owners")
            return seconds

        api = compare(through_api, theirs, rounds=3)
        whole = compare(lambda: measured(command).seconds, theirs, rounds=3)
    for what, times in (("API with open", api), ("process", whole)):
        yield Result(
            f"{MANY:,} sectors without paths, {what}",
            times.ours, times.theirs, "s", times.ratio, 10, at_least=True,
        )  # fmt: skip


def _mounted(image: Path, owned: Sequence[_Place]) -> Iterator[Result | Table]:
    """Look up many sectors with paths while it is mounted, against the same offline."""
    asked = [(place.start, BLOCK) for place in _sample(owned, FEW, 22)]
    reads: Counter[str] = Counter()

    def seconds(*, offline: bool) -> float:
        begun = time.perf_counter()
        with whoseblock.open(image, offline=offline) as volume:
            answers = list(volume.owners_many(asked))
            taken = time.perf_counter() - begun
            if not offline:
                reads.update(volume.reads - reads)
        if not offline and not all(answer.complete for answer in answers):
            raise RuntimeError("an answer is incomplete")
        return taken

    with mounted(image, "ro", kind="btrfs"):
        times = compare(lambda: seconds(offline=False), lambda: seconds(offline=True), rounds=5)
    yield Result(
        f"{FEW:,} sectors with paths mounted (ours by those offline)",
        times.ours * 1e3, times.theirs * 1e3, "ms", 1 / times.ratio, 2, at_least=False,
    )  # fmt: skip
    yield Table("read mounted", (f"read for {FEW:,} mounted", "number"), sorted(reads.items()))


def _snapshots(folder: Path) -> Iterator[Table]:
    """Measure one question about a file that so many snapshots share."""
    rows: list[tuple[str | float, ...]] = []
    for count in SNAPSHOTS:

        def make(path: Path, count: int = count) -> None:
            btrfs_snapshots(path, count)

        image = made(folder, f"btrfs-snapshots-{count}", make)
        place = next(one for one in _owned_sectors(image) if one.inode > BLOCK // 16)
        begun = time.perf_counter()
        with whoseblock.open(image) as volume:
            answer = volume.owners(place.start, BLOCK)
            rows.append(
                (count, len(answer), (time.perf_counter() - begun) * 1e3, volume.reads.total())
            )
    yield Table("snapshots", ("snapshots", "rows", "ms", "tree blocks read"), rows)
