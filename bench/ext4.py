"""The cost of lookups on ext4 images, against debugfs."""

import os
import random
import re
import statistics
import sys
import time
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import numpy as np
from tests.support.mounts import mounted
from tests.support.tools import program

import whoseblock
from bench.images import BLOCK, made, many_ext4_files
from bench.measure import Command, Result, Table, compare, measured, peak_memory
from whoseblock.fs.base import Answer, FileOwner

__all__ = ["measure_all"]

FILES = 200_000
FEW = 1_000
MANY = 100_000
#: Single blocks, each another in every round: debugfs ends at the owner, early or late.
ROUNDS = 21
GROWTH = (50_000, 200_000, 1_000_000)
#: debugfs reads lines of up to 8,191 bytes.
_LINE = 500

_LOOKUP = [sys.executable, "-m", "whoseblock", "lookup"]


def measure_all(folder: Path) -> Iterator[Result | Table]:
    """Make the images that are not there yet, and measure."""

    def make(path: Path) -> None:
        many_ext4_files(path, FILES)

    image = made(folder, f"ext4-files-{FILES}", make)
    owned = _owned_blocks(image)
    yield from _one(image, owned)
    yield from _few(image, owned, folder)
    yield from _many(image, owned, folder)
    yield from _mounted(image, owned)
    yield from _growth(folder)


def _owned_blocks(image: Path) -> list[int]:
    """Return the blocks of regular files, as numbers."""
    with whoseblock.open(image) as volume:
        answer = volume.owners(0, volume.size, paths=False)
    blocks: list[int] = []
    for row in answer:
        if isinstance(row, FileOwner) and row.what == "data":
            blocks += range(row.start // BLOCK, (row.start + row.length) // BLOCK)
    return blocks


def _debugfs(image: Path, request: str) -> bytes:
    return measured([program("debugfs"), "-R", request, image]).output


def _one(image: Path, owned: list[int]) -> Iterator[Result | Table]:
    """Look up one block with its path: through the API, and as a process."""
    sample = random.Random(19).sample(owned, ROUNDS + 1)  # noqa: S311 - a sample, not a secret
    reads: list[Counter[str]] = []

    def through_api(block: int) -> float:
        begun = time.perf_counter()
        with whoseblock.open(image) as volume:
            answer = volume.owners(block * BLOCK, BLOCK)
            reads.append(volume.reads)
        seconds = time.perf_counter() - begun
        _check_same([answer], [block], image)
        return seconds

    def theirs(block: int) -> float:
        begun = time.perf_counter()
        (found,) = _inodes(_debugfs(image, f"icheck {block}")).values()
        _debugfs(image, f"ncheck {found}")
        return time.perf_counter() - begun

    def process(block: int) -> float:
        return measured([*_LOOKUP, image, f"{block * BLOCK}+{BLOCK}"]).seconds

    blocks, again = iter(sample), iter(sample)
    times = compare(lambda: through_api(next(blocks)), lambda: theirs(next(again)), rounds=ROUNDS)
    yield Result(
        f"one block with path of {FILES:,} files, API with open",
        times.ours * 1e3, times.theirs * 1e3, "ms", times.ratio, 1, at_least=True,
    )  # fmt: skip
    first, second = iter(sample), iter(sample)
    whole = compare(lambda: process(next(first)), lambda: theirs(next(second)), rounds=ROUNDS)
    yield Result(
        "the same as a process (ours by theirs)",
        whole.ours * 1e3, whole.theirs * 1e3, "ms", 1 / whole.ratio, 3, at_least=False,
    )  # fmt: skip
    kinds = sorted({kind for read in reads for kind in read})
    middle = {kind: sorted(read[kind] for read in reads) for kind in kinds}
    rows = [(kind, counts[len(counts) // 2], counts[-1]) for kind, counts in middle.items()]
    yield Table("blocks read for one", ("blocks read for one", "median", "most"), rows)


def _inodes(output: bytes) -> dict[int, int]:
    """Return the inode of each block, as icheck prints them."""
    found = re.findall(rb"^(\d+)\t(\d+)$", output, re.MULTILINE)
    return {int(block): int(inode) for block, inode in found}


def _names(output: bytes) -> dict[int, str]:
    """Return the path of each inode, as ncheck prints them."""
    found = re.findall(rb"^(\d+)\t/?(/.*)$", output, re.MULTILINE)
    return {int(inode): path.decode() for inode, path in found}


def _check_same(answers: list[Answer], blocks: list[int], image: Path) -> None:
    """Raise `RuntimeError` unless debugfs reports the same inodes and paths."""
    inodes = _inodes(_debugfs(image, "icheck " + " ".join(map(str, blocks))))
    names = _names(_debugfs(image, "ncheck " + " ".join(map(str, set(inodes.values())))))
    for answer, block in zip(answers, blocks, strict=True):
        (row,) = answer
        if not isinstance(row, FileOwner) or not answer.complete:
            raise RuntimeError(f"block {block} has no owner")
        if (row.inode, row.paths) != (inodes[block], (names[row.inode],)):
            raise RuntimeError(f"debugfs and whoseblock name different files for block {block}")


def _requests(verb: str, numbers: list[int], file: Path) -> None:
    lines = (numbers[at : at + _LINE] for at in range(0, len(numbers), _LINE))
    file.write_text("".join(f"{verb} {' '.join(map(str, line))}\n" for line in lines))


def _few(image: Path, owned: list[int], folder: Path) -> Iterator[Result | Table]:
    """Look up many blocks with paths, against one debugfs each for owners and names."""
    blocks = random.Random(20).sample(owned, FEW)  # noqa: S311 - a sample, not a secret
    ranges, icheck, ncheck = (folder / name for name in ("ext4.txt", "icheck.txt", "ncheck.txt"))
    ranges.write_text("".join(f"{block * BLOCK}+{BLOCK}\n" for block in blocks))
    _requests("icheck", blocks, icheck)

    def theirs() -> float:
        begun = time.perf_counter()
        found = _inodes(measured([program("debugfs"), "-f", icheck, image]).output)
        _requests("ncheck", sorted(set(found.values())), ncheck)
        named = _names(measured([program("debugfs"), "-f", ncheck, image]).output)
        seconds = time.perf_counter() - begun
        if len(found) != len(blocks) or len(named) != len(set(found.values())):
            raise RuntimeError("debugfs did not find all")
        return seconds

    reads: Counter[str] = Counter()

    def through_api() -> float:
        begun = time.perf_counter()
        with whoseblock.open(image) as volume:
            answers = list(volume.owners_many([(block * BLOCK, BLOCK) for block in blocks]))
            seconds = time.perf_counter() - begun
            reads.update(volume.reads - reads)
        _check_same(answers[:20], blocks[:20], image)
        return seconds

    command: Command = [*_LOOKUP, image, "--ranges", ranges, "--json"]
    times = compare(through_api, theirs)
    yield Result(
        f"{FEW:,} blocks with paths, API with open",
        times.ours * 1e3, times.theirs * 1e3, "ms", times.ratio, 1.2, at_least=True,
    )  # fmt: skip
    whole = compare(lambda: measured(command).seconds, theirs)
    yield Result(
        "the same as a process",
        whole.ours * 1e3, whole.theirs * 1e3, "ms", whole.ratio, 1.2, at_least=True,
    )  # fmt: skip
    head = f"blocks read for {FEW:,}"
    yield Table(head, (head, "number"), sorted(reads.items()))


def _many(image: Path, owned: list[int], folder: Path) -> Iterator[Result | Table]:
    """Look up very many blocks without paths, against one debugfs, which takes a minute."""
    blocks = random.Random(21).sample(owned, MANY)  # noqa: S311 - a sample, not a secret
    ranges, icheck = folder / "ext4.txt", folder / "icheck.txt"
    ranges.write_text("".join(f"{block * BLOCK}+{BLOCK}\n" for block in blocks))
    _requests("icheck", blocks, icheck)
    run = measured([program("debugfs"), "-f", icheck, image])
    command: Command = [*_LOOKUP, image, "--ranges", ranges, "--json", "--no-paths"]
    starts, lengths = np.array(blocks) * BLOCK, np.full(len(blocks), BLOCK)

    def through_api() -> float:
        begun = time.perf_counter()
        with whoseblock.open(image) as volume:
            rows = volume.owners_of(starts, lengths)
        seconds = time.perf_counter() - begun
        inodes = _inodes(run.output)
        if rows.inode.tolist() != [inodes[block] for block in blocks]:
            raise RuntimeError("debugfs and whoseblock name different owners")
        return seconds

    api = compare(through_api, lambda: run.seconds, rounds=3)
    whole = compare(lambda: measured(command).seconds, lambda: run.seconds, rounds=3)
    for what, times in (("API with open", api), ("process", whole)):
        yield Result(
            f"{MANY:,} blocks without paths, {what}",
            times.ours, times.theirs, "s", times.ratio, 50, at_least=True,
        )  # fmt: skip


def _mounted(image: Path, owned: list[int]) -> Iterator[Result | Table]:
    """Look up many blocks with paths while it is mounted, against the same offline."""
    blocks = random.Random(22).sample(owned, FEW)  # noqa: S311 - a sample, not a secret
    asked = [(block * BLOCK, BLOCK) for block in blocks]
    reads: Counter[str] = Counter()

    def answers(target: Path | str) -> tuple[list[Answer], float]:
        begun = time.perf_counter()
        with whoseblock.open(target, offline=target == image) as volume:
            found = list(volume.owners_many(asked))
            seconds = time.perf_counter() - begun
            reads.clear()
            reads.update(volume.reads)
        return found, seconds

    with mounted(image, "ro", kind="ext4") as folder:
        place = os.fsdecode(folder)
        offline, live = answers(image)[0], answers(place)[0]
        if not all(answer.complete for answer in live) or _named(offline) != _named(live):
            raise RuntimeError("the mounted filesystem has other owners than the image")
        times = compare(lambda: answers(place)[1], lambda: answers(image)[1])
        answers(place)
    yield Result(
        f"{FEW:,} blocks with paths mounted (ours by those offline)",
        times.ours * 1e3, times.theirs * 1e3, "ms", 1 / times.ratio, 2, at_least=False,
    )  # fmt: skip
    head = f"asked and read for {FEW:,} mounted"
    yield Table(head, (head, "number"), sorted(reads.items()))


def _named(answers: list[Answer]) -> list[tuple[int, object]]:
    """Return inode and paths of each row."""
    return [(row.inode, row.paths) for one in answers for row in one if isinstance(row, FileOwner)]


def _growth(folder: Path) -> Iterator[Table]:
    """Measure time and memory of one question without owner, which takes a whole scan."""
    rows: list[tuple[str | float, ...]] = []
    for files in GROWTH:

        def make(path: Path, files: int = files) -> None:
            many_ext4_files(path, files, written=False)

        image = made(folder, f"ext4-reserved-{files}", make)
        ranges = folder / "ext4.txt"
        blocks = range(0, image.stat().st_size // BLOCK, image.stat().st_size // BLOCK // FEW)
        ranges.write_text("".join(f"{block * BLOCK}+{BLOCK}\n" for block in blocks))
        command: Command = [*_LOOKUP, image, "--ranges", ranges, "--json", "--no-paths"]
        seconds = statistics.median(measured(command).seconds for _ in range(3))
        rows.append((files, seconds, peak_memory(command) / (1 << 20)))
    yield Table("growth", ("files", "seconds", "MiB"), rows)
