"""The cost of lookups on XFS images without a reverse map, against xfs_db."""

import random
import re
import statistics
import sys
import time
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import numpy as np
from tests.support.tools import xfsprogs

import whoseblock
from bench.images import BLOCK, made, unmapped_files
from bench.measure import Command, Result, Table, compare, measured, peak_memory
from whoseblock.fs.base import Answer, FileOwner
from whoseblock.fs.xfs import XfsFilesystem

__all__ = ["measure_all"]

FILES = 200_000
FEW = 1_000
MANY = 100_000
GROWTH = (50_000, 200_000, 800_000)
#: Single blocks, each another in every round.
ROUNDS = 7

_LOOKUP = [sys.executable, "-m", "whoseblock", "lookup"]
_BLOCKUSE = re.compile(rb"^block (\d+) \(\d+/\d+\) type data inode (\d+) (\S+)$", re.MULTILINE)


def measure_all(folder: Path) -> Iterator[Result | Table]:
    """Make the images that are not there yet, and measure."""
    for reflink in (True, False):

        def make(path: Path, *, reflink: bool = reflink) -> None:
            unmapped_files(path, FILES, reflink=reflink)

        kind = "reflink" if reflink else "plain"
        yield from _measure(made(folder, f"unmapped-{kind}-{FILES}", make), kind, folder)
    yield from _growth(folder)


class _Numbers:
    """The blocks of regular files, as bytes of the image and as xfs_db numbers them."""

    def __init__(self, image: Path) -> None:
        with whoseblock.open(image) as filesystem:
            assert isinstance(filesystem, XfsFilesystem)  # noqa: S101 - its geometry is used
            rows = filesystem.owners_of([0], [filesystem.size])
            sb = filesystem.volume.sb
        which = (rows.kind == 0) & (rows.what == 1)
        self.starts: list[int] = rows.start[which].tolist()
        self._agblocks, self._log = sb.agblocks, sb.agblklog

    def fsbno(self, start: int) -> int:
        """Return the filesystem block number of a byte."""
        agno, agbno = divmod(start // BLOCK, self._agblocks)
        return agno << self._log | agbno


def _theirs(image: Path, numbers: list[int]) -> Command:
    each = (word for one in numbers for word in ("-c", f"fsblock {one}", "-c", "blockuse -n"))
    return [xfsprogs("xfs_db"), "-r", "-c", "blockget -n", *each, image]


def _check_same(answers: list[Answer], numbers: list[int], output: bytes) -> None:
    """Raise `RuntimeError` unless xfs_db names the same inodes and paths."""
    found = {
        int(number): (int(inode), "/" + path.decode())
        for number, inode, path in _BLOCKUSE.findall(output)
    }
    for answer, number in zip(answers, numbers, strict=True):
        (row,) = answer
        if not isinstance(row, FileOwner) or not answer.complete or not row.paths:
            raise RuntimeError(f"block {number} has no owner")
        if (row.inode, *row.paths) != found[number]:
            raise RuntimeError(f"xfs_db and whoseblock name different files for block {number}")


def _measure(image: Path, kind: str, folder: Path) -> Iterator[Result | Table]:
    known = _Numbers(image)
    yield from _one(image, kind, known)
    yield from _few(image, kind, known, folder)
    yield from _many(image, kind, known, folder)


def _reads(name: str, reads: Counter[str], size: int) -> Table:
    return Table(name, (name, "number"), [*sorted(reads.items()), ("bytes", size)])


def _answers(image: Path, starts: list[int]) -> tuple[list[Answer], Counter[str], int]:
    """Return answers with paths, and how much was read for them."""
    with whoseblock.open(image) as filesystem:
        assert isinstance(filesystem, XfsFilesystem)  # noqa: S101 - its medium is counted
        media = filesystem.volume.media
        pread = media.pread
        size = 0

        def counted(offset: int, length: int) -> bytes:
            nonlocal size
            size += length
            return pread(offset, length)

        media.pread = counted  # type: ignore[method-assign]
        answers = list(filesystem.owners_many([(start, BLOCK) for start in starts]))
        return answers, filesystem.reads.copy(), size


def _one(image: Path, kind: str, known: _Numbers) -> Iterator[Result | Table]:
    """Look up one block with its path, through the API and as a whole process."""
    sample = random.Random(19).sample(known.starts, ROUNDS + 1)  # noqa: S311 - a sample
    for start in sample[:3]:
        numbers = [known.fsbno(start)]
        output = measured(_theirs(image, numbers)).output
        answers, reads, size = _answers(image, [start])
        _check_same(answers, numbers, output)
    mine, peers = iter(sample), iter(sample)
    times = compare(
        lambda: _open_and_ask(image, next(mine)),
        lambda: measured(_theirs(image, [known.fsbno(next(peers))])).seconds,
        rounds=ROUNDS,
    )
    title = f"one block with path of {FILES:,} files, no reverse map, {kind}, API with open"
    yield Result(title, times.ours, times.theirs, "s", times.ratio, 5, at_least=True)
    mine, peers = iter(sample), iter(sample)
    times = compare(
        lambda: measured([*_LOOKUP, image, f"{next(mine)}+{BLOCK}"]).seconds,
        lambda: measured(_theirs(image, [known.fsbno(next(peers))])).seconds,
        rounds=ROUNDS,
    )
    title = f"one block with path of {FILES:,} files, no reverse map, {kind}, process"
    yield Result(title, times.ours, times.theirs, "s", times.ratio, 5, at_least=True)
    ours = peak_memory([*_LOOKUP, image, f"{sample[0]}+{BLOCK}"])
    theirs = peak_memory(_theirs(image, [known.fsbno(sample[0])]))
    yield Result("its memory", ours / 1e6, theirs / 1e6, "MB", theirs / ours, 10, at_least=True)
    yield _reads(f"read for one block, {kind}", reads, size)


def _open_and_ask(image: Path, start: int) -> float:
    """Return the seconds to open an image and to look up one block."""
    begun = time.perf_counter()
    with whoseblock.open(image) as filesystem:
        filesystem.owners(start, BLOCK)
    return time.perf_counter() - begun


def _few(image: Path, kind: str, known: _Numbers, folder: Path) -> Iterator[Result | Table]:
    """Look up many blocks with paths in one process."""
    starts = random.Random(20).sample(known.starts, FEW)  # noqa: S311 - a sample, not a secret
    numbers = [known.fsbno(start) for start in starts]
    ranges = folder / "unmapped.txt"
    ranges.write_text("".join(f"{start}+{BLOCK}\n" for start in starts))
    theirs = _theirs(image, numbers)
    answers, reads, size = _answers(image, starts)
    _check_same(answers, numbers, measured(theirs).output)
    ours: Command = [*_LOOKUP, image, "--ranges", ranges, "--json"]
    times = compare(lambda: measured(ours).seconds, lambda: measured(theirs).seconds)
    title = f"{FEW:,} blocks with paths, no reverse map, {kind}, process"
    yield Result(title, times.ours, times.theirs, "s", times.ratio, 0.5, at_least=True)
    yield _reads(f"read for {FEW:,} blocks, {kind}", reads, size)


def _many(image: Path, kind: str, known: _Numbers, folder: Path) -> Iterator[Table]:
    """Look up very many blocks without paths."""
    starts = random.Random(21).choices(known.starts, k=MANY)  # noqa: S311 - a sample
    ranges = folder / "unmapped.txt"
    ranges.write_text("".join(f"{start}+{BLOCK}\n" for start in starts))
    command: Command = [*_LOOKUP, image, "--ranges", ranges, "--json", "--no-paths"]
    low, length = np.array(starts), np.full(MANY, BLOCK)

    def through_api() -> float:
        begun = time.perf_counter()
        with whoseblock.open(image) as filesystem:
            filesystem.owners_of(low, length)
        return time.perf_counter() - begun

    api = statistics.median(through_api() for _ in range(3))
    process = statistics.median(measured(command).seconds for _ in range(3))
    name = f"{MANY:,} blocks without paths, no reverse map, {kind}"
    yield Table(name, (name, "seconds"), [("API with open", api), ("process", process)])


def _growth(folder: Path) -> Iterator[Table]:
    """Measure time and memory of many blocks without paths on filesystems of several sizes."""
    rows: list[tuple[str | float, ...]] = []
    for files in GROWTH:

        def make(path: Path, files: int = files) -> None:
            unmapped_files(path, files, reflink=True, written=False)

        image = made(folder, f"unmapped-reserved-{files}", make)
        ranges = folder / "unmapped.txt"
        blocks = range(0, image.stat().st_size // BLOCK, image.stat().st_size // BLOCK // FEW)
        ranges.write_text("".join(f"{block * BLOCK}+{BLOCK}\n" for block in blocks))
        command: Command = [*_LOOKUP, image, "--ranges", ranges, "--json", "--no-paths"]
        seconds = statistics.median(measured(command).seconds for _ in range(3))
        rows.append((files, seconds, peak_memory(command) / (1 << 20)))
    yield Table("growth", ("files, no reverse map", "seconds", "MiB"), rows)
