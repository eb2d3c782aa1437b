"""Measure the reverse mapping on the disk: its size, and the effect of a lost block."""

from collections import defaultdict
from typing import Final, NamedTuple

import numpy as np

from whoseblock.fs.arrays import FORKS, KINDS, WHATS, OwnerArrays
from whoseblock.fs.registry import open_volume
from whoseblock.fs.xfs import XfsFilesystem
from whoseblock.fs.xfs.btree import RMAPBT, AgTree, Fault, Leaf
from whoseblock.media.device import FileMedia
from whoseblock.media.pmem import EmulatedPmem
from whoseblock.ranges import ByteRange
from whoseblock.study.results import LostLeaf, LostLeaves, Upkeep
from whoseblock.study.sizes import PAGE, rmap_reserve

__all__ = ["leaves_of", "lost_leaves", "upkeep"]

_FILE, _METADATA = KINDS.index("file"), KINDS.index("metadata")
_UNKNOWN = KINDS.index("unknown")
_DATA_FORK, _DATA = FORKS.index("data"), WHATS.index("data")
_QUESTION: Final = 1 << 30
#: A leaf may tell of a whole allocation group: of so many of its pages at most the answer is read.
_ASKED: Final = 10_000


def upkeep(filesystem: XfsFilesystem) -> Upkeep:
    """Measure the reverse mapping, compared with all metadata and with the data."""
    volume = filesystem.volume
    groups = range(volume.groups_on_device)
    headers = [volume.agf(agno) for agno in groups]
    starts = range(0, filesystem.size, _QUESTION)
    lengths = [min(_QUESTION, filesystem.size - start) for start in starts]
    rows = filesystem.owners_of(list(starts), lengths)
    data = (rows.kind == _FILE) & (rows.fork == _DATA_FORK) & (rows.what == _DATA)
    metadata = (rows.kind == _METADATA) | ((rows.kind == _FILE) & ~data)
    owned = np.unique(np.concatenate([
        np.arange(start, start + length, PAGE)
        for start, length in zip(rows.start[data], rows.length[data], strict=True)
    ])).size if data.any() else 0  # fmt: skip
    records = sum(leaf.numrecs for agno in groups for leaf in leaves_of(filesystem, agno))
    return Upkeep(
        size=filesystem.size,
        rmap_bytes=sum(header.rmap_blocks for header in headers) * filesystem.block_size,
        kept_bytes=_kept_back(filesystem) * filesystem.block_size,
        metadata_bytes=int(rows.length[metadata].sum()),
        data_bytes=owned * PAGE,
        records=records,
        file_records=int(data.sum()),
        levels=max(header.rmap_level for header in headers),
        groups=len(headers),
    )


def _kept_back(filesystem: XfsFilesystem) -> int:
    """Return the blocks that the kernel reserves for growth of the reverse mapping."""
    volume = filesystem.volume
    blocks = [volume.ag_blocks(agno) for agno in range(volume.sb.agcount)]
    if volume.sb.logstart:
        blocks[volume.sb.logstart >> volume.sb.agblklog] -= volume.sb.logblocks
    return sum(map(rmap_reserve, blocks))


class _Place(NamedTuple):
    """A leaf: of how many blocks it tells, from which one of its group on, and where it is."""

    blocks: int
    agno: int
    low: int
    agbno: int
    records: int


def lost_leaves(path: str) -> LostLeaves:
    """Poison the median leaf of the reverse mapping, and the worst, and query their blocks.

    A leaf covers the blocks between the keys above it, whatever its records. So the effect of a
    lost leaf follows from these keys, and the two queries confirm it.
    """
    with XfsFilesystem(FileMedia(path)) as filesystem:
        places = sorted(
            _Place(leaf.high - leaf.low, agno, leaf.low, leaf.agbno, leaf.numrecs)
            for agno in range(filesystem.volume.groups_on_device)
            for leaf in leaves_of(filesystem, agno)
        )
    return LostLeaves(
        leaves=len(places),
        mean=sum(place.blocks for place in places) / len(places),
        median=_lose(path, places[len(places) // 2]),
        worst=_lose(path, places[-1]),
    )


def _lose(path: str, place: _Place) -> LostLeaf:
    """Poison a leaf, and ask about blocks that it told of, all or evenly spread."""
    asked = np.unique(np.linspace(0, place.blocks - 1, min(place.blocks, _ASKED)).astype(np.int64))
    with XfsFilesystem(FileMedia(path)) as whole:
        block = whole.volume.ag_to_byte(place.agno, place.agbno)
        starts = whole.volume.ag_to_byte(place.agno, place.low) + asked * whole.block_size
        lengths = np.full(asked.size, whole.block_size)
        right = whole.owners_of(starts, lengths)
    media = EmulatedPmem(FileMedia(path), poison=[ByteRange(block, PAGE)])
    with open_volume([media]) as wounded:
        rows = wounded.owners_of(starts, lengths)
    expected, told = _claims(right), _claims(rows)
    complete = set(np.flatnonzero(rows.complete).tolist())
    return LostLeaf(
        records=place.records,
        pages=place.blocks,
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


def leaves_of(filesystem: XfsFilesystem, agno: int) -> list[Leaf]:
    """Return the leaves of the reverse mapping of a group."""
    faults: list[Fault] = []
    volume = filesystem.volume
    tree = AgTree(volume, agno, RMAPBT, volume.ag_blocks(agno))
    return list(tree.leaves(lambda node: list(range(len(node.starts))), faults))
