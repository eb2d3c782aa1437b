"""Measure the reverse mapping on the disk: its size, and the effect of a lost block."""

from collections import defaultdict
from typing import Final

import numpy as np

from whoseblock.fs.arrays import FORKS, KINDS, WHATS, OwnerArrays
from whoseblock.fs.driver import IndexLeaf, Volume
from whoseblock.fs.opening import open_volume
from whoseblock.media.device import FileMedia
from whoseblock.media.pmem import EmulatedPmem
from whoseblock.ranges import ByteRange
from whoseblock.study.results import LostLeaf, LostLeaves, Upkeep
from whoseblock.study.sizes import PAGE, rmap_reserve

__all__ = ["lost_leaves", "upkeep"]

_FILE, _METADATA = KINDS.index("file"), KINDS.index("metadata")
_UNKNOWN = KINDS.index("unknown")
_DATA_FORK, _DATA = FORKS.index("data"), WHATS.index("data")
_QUESTION: Final = 1 << 30
#: A leaf may tell of a whole allocation group: of so many of its pages at most the answer is read.
_ASKED: Final = 10_000


def upkeep(filesystem: Volume) -> Upkeep:
    """Measure the reverse mapping, compared with all metadata and with the data."""
    index = filesystem.index_size()
    starts = range(0, filesystem.size, _QUESTION)
    lengths = [min(_QUESTION, filesystem.size - start) for start in starts]
    rows = filesystem.owners_of(list(starts), lengths)
    data = (rows.kind == _FILE) & (rows.fork == _DATA_FORK) & (rows.what == _DATA)
    metadata = (rows.kind == _METADATA) | ((rows.kind == _FILE) & ~data)
    owned = np.unique(np.concatenate([
        np.arange(start, start + length, PAGE)
        for start, length in zip(rows.start[data], rows.length[data], strict=True)
    ])).size if data.any() else 0  # fmt: skip
    return Upkeep(
        size=filesystem.size,
        rmap_bytes=index.size,
        kept_bytes=sum(map(rmap_reserve, index.groups)) * filesystem.block_size,
        metadata_bytes=int(rows.length[metadata].sum()),
        data_bytes=owned * PAGE,
        records=sum(leaf.records for leaf in filesystem.index_leaves()),
        file_records=int(data.sum()),
        levels=index.levels,
        groups=len(index.groups),
    )


def lost_leaves(path: str) -> LostLeaves:
    """Poison the median leaf of the reverse mapping, and the worst, and query their blocks.

    A leaf covers the blocks between the keys above it, whatever its records. So the effect of a
    lost leaf follows from these keys, and the two queries confirm it.
    """
    with open_volume([FileMedia(path)]) as filesystem:
        leaves = sorted(filesystem.index_leaves(), key=lambda leaf: (leaf.length, leaf.start))
    return LostLeaves(
        leaves=len(leaves),
        mean=sum(leaf.length for leaf in leaves) / len(leaves) / PAGE,
        median=_lose(path, leaves[len(leaves) // 2]),
        worst=_lose(path, leaves[-1]),
    )


def _lose(path: str, leaf: IndexLeaf) -> LostLeaf:
    """Poison a leaf, and query pages that it covers: all of them, or evenly spread ones."""
    pages = leaf.length // PAGE
    asked = np.unique(np.linspace(0, pages - 1, min(pages, _ASKED)).astype(np.int64))
    starts = leaf.start + asked * PAGE
    lengths = np.full(asked.size, PAGE)
    with open_volume([FileMedia(path)]) as whole:
        right = whole.owners_of(starts, lengths)
    media = EmulatedPmem(FileMedia(path), poison=[ByteRange(leaf.block, PAGE)])
    with open_volume([media]) as wounded:
        rows = wounded.owners_of(starts, lengths)
    expected, told = _claims(right), _claims(rows)
    complete = set(np.flatnonzero(rows.complete).tolist())
    return LostLeaf(
        records=leaf.records,
        pages=pages,
        asked=asked.size,
        complete=len(complete),
        # What is said must be so, and all of it where nothing is said to be missing.
        wrong=sum(
            not told[page] <= expected[page] or (page in complete and told[page] != expected[page])
            for page in range(asked.size)
        ),
    )


def _claims(rows: OwnerArrays) -> dict[int, set[tuple[int, ...]]]:
    """Return the kind, inode and file offset of all rows that are not unknown, by question."""
    claims: dict[int, set[tuple[int, ...]]] = defaultdict(set)
    columns = (rows.question, rows.kind, rows.inode, rows.file_offset)
    for question, kind, *owner in zip(*(column.tolist() for column in columns), strict=True):
        if kind != _UNKNOWN:
            claims[question].add((kind, *owner))
    return claims
