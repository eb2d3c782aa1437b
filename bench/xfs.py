"""The cost of lookups on XFS images, against xfs_db."""

import random
import re
import sys
import time
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import numpy as np
from tests.support.tools import xfsprogs

import whoseblock
from bench.images import BLOCK, made, many_extents, many_files
from bench.measure import Command, Result, Run, Table, compare, measured, peak_memory
from whoseblock.fs.xfs import XfsFilesystem

__all__ = ["EXTENTS", "image", "measure_all"]

QUESTIONS = 100_000
MANY_QUESTIONS = 1_000_000
EXTENTS = 120_000
FILES = 200_000
GROWTH = (1_000, 10_000, 100_000, 1_000_000)

_LOOKUP = [sys.executable, "-m", "whoseblock", "lookup"]
_OWNER = re.compile(rb"^\d+: \d+/\d+ len \d+ owner (-?\d+) ", re.MULTILINE)


def measure_all(folder: Path) -> Iterator[Result | Table]:
    """Make the images that are not there yet, and measure."""
    yield from _bulk(image(folder, f"extents-{EXTENTS}"), folder)
    yield from _many(image(folder, f"extents-{EXTENTS}"), folder)
    yield from _one_path(image(folder, f"files-{FILES}"))
    for extents in GROWTH:
        yield from _blocks_read(image(folder, f"extents-{extents}"), extents)


def image(folder: Path, name: str) -> Path:
    """Return the image of a name such as ``extents-1000``, ``files-1000`` or ``reserved-1000``."""
    kind, _, count = name.partition("-")
    number = int(count)

    def make(path: Path) -> None:
        if kind in ("files", "reserved"):
            many_files(path, number, written=kind == "files")
        else:
            many_extents(path, number, files=max(number // 2000, 1))

    return made(folder, name, make)


def _open(path: Path) -> XfsFilesystem:
    filesystem = whoseblock.open(path)
    assert isinstance(filesystem, XfsFilesystem)  # noqa: S101 - its trees are looked into below
    return filesystem


def _fsbno(filesystem: XfsFilesystem, start: int) -> int:
    """Return the filesystem block number of a byte, as xfs_db expects it."""
    sb = filesystem.volume.sb
    agno, agbno = divmod(start // BLOCK, sb.agblocks)
    return agno << sb.agblklog | agbno


def _owned_blocks(filesystem: XfsFilesystem, wanted: int) -> list[int]:
    """Return ``wanted`` random blocks of files, each of another extent while there are enough."""
    size = filesystem.volume.ag_bytes
    whole = range(0, filesystem.size, size)
    lengths = [min(size, filesystem.size - start) for start in whole]
    rows = filesystem.owners_of(list(whole), lengths)
    starts = rows.start[rows.kind == 0]
    generator = np.random.default_rng(20201)
    return list(map(int, generator.choice(starts, wanted, replace=starts.size < wanted)))


def _bulk(image: Path, folder: Path) -> Iterator[Result]:
    """Look up the owners of many blocks, each once while there are enough."""
    with _open(image) as filesystem:
        theirs: Command = [xfsprogs("xfs_db"), "-r", image]
        blocks = _owned_blocks(filesystem, QUESTIONS)
        _write_questions(filesystem, blocks, folder)
        commands = folder / "commands.txt"
        _check_same(filesystem, blocks, measured(theirs, commands))
        yield _whole(image, folder, QUESTIONS, target=3)
        yield _through_api(filesystem, blocks, commands, target=30)

        few = blocks[:20_000]

        def one_by_one() -> float:
            begun = time.perf_counter()
            for start in few:
                filesystem.owners(start, BLOCK, paths=False)
            return (time.perf_counter() - begun) / len(few)

        def each_of_theirs() -> float:
            return measured(theirs, commands).seconds / len(blocks)

        point = compare(one_by_one, each_of_theirs)
        yield Result(
            "one warm question through the API (ours by theirs)",
            point.ours * 1e6, point.theirs * 1e6, "µs", 1 / point.ratio, 3, at_least=False,
        )  # fmt: skip


def _many(image: Path, folder: Path) -> Iterator[Result]:
    """Look up so many ranges that the start of the process counts for little."""
    with _open(image) as filesystem:
        blocks = _owned_blocks(filesystem, MANY_QUESTIONS)
        _write_questions(filesystem, blocks, folder)
        yield _through_api(filesystem, blocks, folder / "commands.txt", target=100, rounds=2)
    yield _whole(image, folder, MANY_QUESTIONS, target=5, rounds=1)


def _through_api(
    filesystem: XfsFilesystem, blocks: list[int], commands: Path, *, target: float, rounds: int = 5
) -> Result:
    """Compare arrays of answers with the commands of `_write_questions`."""
    theirs: Command = [xfsprogs("xfs_db"), "-r", filesystem.volume.media.name]
    starts, lengths = np.array(blocks), np.full(len(blocks), BLOCK)

    def through_api() -> float:
        begun = time.perf_counter()
        filesystem.owners_of(starts, lengths)
        return time.perf_counter() - begun

    api = compare(through_api, lambda: measured(theirs, commands).seconds, rounds=rounds)
    return Result(
        f"{len(blocks):,} ranges through the API, once open",
        api.ours, api.theirs, "s", api.ratio, target, at_least=True,
    )  # fmt: skip


def _write_questions(filesystem: XfsFilesystem, blocks: list[int], folder: Path) -> None:
    """Write blocks as ranges for whoseblock, and as commands for xfs_db."""
    (folder / "ranges.txt").write_text("".join(f"{start}+{BLOCK}\n" for start in blocks))
    numbers = (_fsbno(filesystem, start) for start in blocks)
    commands = "".join(f"fsmap {number} {number}\n" for number in numbers)
    (folder / "commands.txt").write_text(commands)


def _whole(image: Path, folder: Path, questions: int, *, target: float, rounds: int = 5) -> Result:
    """Compare whole processes that answer the questions of `_write_questions`."""
    ranges = folder / "ranges.txt"
    ours: Command = [*_LOOKUP, image, "--ranges", ranges, "--json", "--no-paths"]
    theirs: Command = [xfsprogs("xfs_db"), "-r", image]
    whole = compare(
        lambda: measured(ours).seconds,
        lambda: measured(theirs, folder / "commands.txt").seconds,
        rounds=rounds,
    )
    return Result(
        f"{questions:,} ranges on {EXTENTS:,} extents, whole process",
        whole.ours, whole.theirs, "s", whole.ratio, target, at_least=True,
    )  # fmt: skip


def _check_same(filesystem: XfsFilesystem, blocks: list[int], theirs: Run) -> None:
    """Raise `RuntimeError` unless both report the same inodes."""
    owners = list(map(int, _OWNER.findall(theirs.output)))
    rows = filesystem.owners_of(blocks, [BLOCK] * len(blocks))
    if rows.inode.tolist() != owners:
        raise RuntimeError("xfs_db and whoseblock name different owners")


def _one_path(image: Path) -> Iterator[Result]:
    """Look up the path of one block on an image without parent pointers."""
    with _open(image) as filesystem:
        rows = filesystem.owners_of([0], [filesystem.size])
        data = rows.start[(rows.kind == 0) & (rows.what == 1)].tolist()
        start = random.Random(7).choice(data)  # noqa: S311 - a sample, not a secret
        number = _fsbno(filesystem, start)
    ours: Command = [*_LOOKUP, image, f"{start}+{BLOCK}"]
    blockuse = ["-c", "blockget -n", "-c", f"fsblock {number}", "-c", "blockuse -n"]
    theirs: Command = [xfsprogs("xfs_db"), "-r", *blockuse, image]
    name = re.search(rb"file-\d+", measured(ours).output)
    if name is None or not measured(theirs).output.rstrip().endswith(name[0]):
        raise RuntimeError("xfs_db and whoseblock name different files")
    times = compare(lambda: measured(ours).seconds, lambda: measured(theirs).seconds, rounds=3)
    title = f"one question with path on {FILES:,} files, no parent pointers"
    yield Result(title, times.ours, times.theirs, "s", times.ratio, 6, at_least=True)
    mine, peer = peak_memory(ours), peak_memory(theirs)
    yield Result("its memory", mine / 1e6, peer / 1e6, "MB", peer / mine, 10, at_least=True)


def _blocks_read(image: Path, extents: int) -> Iterator[Result | Table]:
    """Count the btree blocks that one lookup reads, against the heights that xfs_db prints."""
    with _open(image) as filesystem:
        blocks = _owned_blocks(filesystem, 200)
        ag_bytes = filesystem.volume.ag_bytes
    heights: dict[int, int] = {}
    most_read = most_high = 0
    checked: Counter[str] = Counter()
    for start in blocks:
        agno = start // ag_bytes
        if agno not in heights:
            heights[agno] = _rmap_height(image, agno)
        with _open(image) as filesystem:
            filesystem.owners(start, BLOCK, paths=False)
            read = filesystem.reads["rmapbt"]
            checked.update(filesystem.reads)
        if read != heights[agno]:
            raise RuntimeError(f"{read} blocks read for byte {start}, not {heights[agno]}")
        most_read, most_high = max(most_read, read), max(most_high, heights[agno])
    yield Result(
        f"rmap btree blocks read by one lookup, {extents:,} extents",
        most_read, most_high, "", most_read / most_high, 1, at_least=False,
    )  # fmt: skip
    with _open(image) as filesystem:
        for start in blocks * 2:
            before = filesystem.reads.copy()
            filesystem.owners(start, BLOCK, paths=False)
        warm = filesystem.reads - before
    yield Table(
        f"blocks read, {extents:,} extents",
        ("blocks read", f"cold, mean of {len(blocks)}", "warm, the last"),
        [(kind, number / len(blocks), warm[kind]) for kind, number in sorted(checked.items())],
    )


def _rmap_height(image: Path, agno: int) -> int:
    ask = ["-c", f"agf {agno}", "-c", "print rmaplevel"]
    return int(measured([xfsprogs("xfs_db"), "-r", *ask, image]).output.split()[-1])
