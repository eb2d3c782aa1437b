"""What on-demand lives on: the reverse mapping on the disk, what it takes, and when it fails."""

from collections import defaultdict
from typing import Final

import numpy as np

from whoseblock.fs.arrays import FORKS, KINDS, WHATS, OwnerArrays
from whoseblock.fs.recognise import open_filesystem
from whoseblock.fs.xfs import XfsFilesystem
from whoseblock.fs.xfs.btree import RMAPBT, AgTree, Fault, Leaf
from whoseblock.media.device import FileMedia
from whoseblock.media.pmem import EmulatedPmem
from whoseblock.ranges import ByteRange
from whoseblock.study.results import LostLeaf, Upkeep
from whoseblock.study.sizes import PAGE

__all__ = ["lost_leaf", "upkeep"]

_FILE, _METADATA = KINDS.index("file"), KINDS.index("metadata")
_UNKNOWN = KINDS.index("unknown")
_DATA_FORK, _DATA = FORKS.index("data"), WHATS.index("data")
_QUESTION: Final = 1 << 30


def upkeep(filesystem: XfsFilesystem) -> Upkeep:
    """Say how large the reverse mapping is, against all metadata and against the data."""
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
    records = sum(leaf.numrecs for agno in groups for leaf in _leaves(filesystem, agno))
    return Upkeep(
        size=filesystem.size,
        rmap_bytes=sum(header.rmap_blocks for header in headers) * filesystem.block_size,
        metadata_bytes=int(rows.length[metadata].sum()),
        data_bytes=owned * PAGE,
        records=records,
        file_records=int(data.sum()),
        levels=max(header.rmap_level for header in headers),
        groups=len(headers),
    )


def lost_leaf(path: str) -> LostLeaf:
    """Poison one leaf of the reverse mapping, and ask about every block that it told of."""
    with XfsFilesystem(FileMedia(path)) as filesystem:
        leaves = {agno: _leaves(filesystem, agno) for agno in range(filesystem.volume.sb.agcount)}
        # Of the largest tree, the leaf in the middle.
        agno = max(leaves, key=lambda agno: len(leaves[agno]))
        leaf = leaves[agno][len(leaves[agno]) // 2]
        block = filesystem.volume.ag_to_byte(agno, leaf.agbno)
        first = filesystem.volume.ag_to_byte(agno, leaf.low)
        after = filesystem.volume.ag_to_byte(agno, leaf.high)
    starts = np.arange(first, after, PAGE)
    media = EmulatedPmem(FileMedia(path), poison=[ByteRange(block, PAGE)])
    lengths = np.full(starts.size, PAGE)
    with XfsFilesystem(FileMedia(path)) as whole, open_filesystem(media) as wounded:
        right, rows = whole.owners_of(starts, lengths), wounded.owners_of(starts, lengths)
    expected, told = _claims(right), _claims(rows)
    complete = set(np.flatnonzero(rows.complete).tolist())
    return LostLeaf(
        records=leaf.numrecs,
        pages=int(starts.size),
        complete=len(complete),
        # What is said must be so, and all of it where nothing is said to be missing.
        wrong=sum(
            not told[page] <= expected[page] or (page in complete and told[page] != expected[page])
            for page in range(starts.size)
        ),
    )


def _claims(rows: OwnerArrays) -> dict[int, set[tuple[int, ...]]]:
    """Give what is said of each question: kind, inode and place of all that is not unknown."""
    claims: dict[int, set[tuple[int, ...]]] = defaultdict(set)
    columns = (rows.question, rows.kind, rows.inode, rows.file_offset)
    for question, kind, *owner in zip(*(column.tolist() for column in columns), strict=True):
        if kind != _UNKNOWN:
            claims[question].add((kind, *owner))
    return claims


def _leaves(filesystem: XfsFilesystem, agno: int) -> list[Leaf]:
    faults: list[Fault] = []
    volume = filesystem.volume
    tree = AgTree(volume, agno, RMAPBT, volume.ag_blocks(agno))
    return list(tree.leaves(lambda node: list(range(len(node.starts))), faults))
