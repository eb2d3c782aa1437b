"""The ranges to look up in an image whose rows are known."""

import random
from collections import defaultdict
from collections.abc import Iterator

from tests.support.truth import Row, Truth

__all__ = ["around_edges", "everywhere", "large", "sample_rows"]

Question = tuple[int, int]


def _on_device(questions: Iterator[Question], size: int) -> Iterator[Question]:
    """Cut questions to what is on the device."""
    for start, length in questions:
        first, last = max(start, 0), min(start + length, size)
        if first < last:
            yield first, last - first


def around_edges(truth: Truth, rows: list[Row]) -> list[Question]:
    """Begin and end on, before and after both edges of rows: by a byte, a sector and a block."""
    block, sector = truth.superblock.block, truth.superblock.sector
    edges = sorted({edge for row in rows for edge in (row.start, row.end)})
    near = (
        (edge + before, length)
        for edge in edges
        for before, length in (
            (-1, 1),
            (0, 1),
            (-1, 2),
            (-512, 1024),
            (-sector, sector),
            (0, sector),
            (-block, block),
            (0, block),
            (-block, 2 * block),
            (1 - block, 2 * block - 2),
            (-3 * block - 1, 5 * block + 2),
        )
    )
    exact = (
        (row.start + before, row.length - before + after)
        for row in rows
        for before in (-1, 0, 1)
        for after in (-1, 0, 1)
    )
    size = truth.image.stat().st_size
    return [*_on_device(near, size), *_on_device(exact, size)]


def sample_rows(truth: Truth, rng: random.Random, count: int) -> list[Row]:
    """Choose rows so that every sort of them is among those chosen, however rare."""
    sorts: dict[tuple[object, ...], list[Row]] = defaultdict(list)
    for row in truth.rows:
        mode = truth.inodes[row.inode].mode >> 12 if row.kind == "file" else 0
        sort = (row.kind, mode, row.attr, row.extent_map, row.unwritten, row.shared)
        sorts[sort].append(row)
    share = max(1, count // len(sorts))
    return [row for rows in sorts.values() for row in rng.sample(rows, min(share, len(rows)))]


def everywhere(truth: Truth, rng: random.Random, count: int) -> list[Question]:
    """Ask anywhere, for anything from a byte to a megabyte."""
    size = truth.image.stat().st_size
    anywhere = ((rng.randrange(size), 1 << rng.randrange(21)) for _ in range(count))
    # Most of an image may be one free run; so half of the questions begin in any row.
    some = (
        (row.start + rng.randrange(row.length), rng.randint(1, 1 << rng.randrange(1, 18)))
        for row in rng.choices(truth.rows, k=count)
    )
    return [*_on_device(anywhere, size), *_on_device(some, size)]


def large(truth: Truth) -> list[Question]:
    """Ask for allocation groups, for what spans them, for the ends, and for all."""
    block = truth.superblock
    group, end, size = block.group_size, block.size, truth.image.stat().st_size
    asked = [(0, size), (0, 1), (0, end), (end - 1, 2), (end, 1), (size - 1, 1), (end - 5000, size)]
    for number in range(block.groups + 1):
        start = number * group
        asked += [(start, group), (start - 1, 2), (start - 100_000, 200_000), (start - group, size)]
    return list(_on_device(iter(asked), size))
