"""Whether files, metadata and free space have each block of a filesystem once.

A cluster of inodes that lost its last write may hold a file with the blocks that a directory has by
now, and that directory from before it had them.  Nothing about these blocks contradicts the file.
But other blocks of the directory then have no owner, or two.

The blocks are not held for that, only a sum over them.  A block counts the difference of two
hashes, those of the numbers of the next block and of its own.  So a run of blocks costs two hashes,
and the sum of all blocks of the device is known.  Other blocks have the same sum only by chance.
"""

from collections.abc import Sequence
from typing import TYPE_CHECKING, Final, TypeVar

from whoseblock.fs.scan.engine import Batch, UnreadInodes
from whoseblock.fs.xfs.btree import BNOBT, INOBT, REFCOUNTBT, AgTree, Fault
from whoseblock.fs.xfs.format.btree import XFS_REFC_COWFLAG
from whoseblock.fs.xfs.owners.crosscheck import inode_blocks
from whoseblock.fs.xfs.owners.group_btrees import Trees
from whoseblock.fs.xfs.owners.metadata import GroupMetadata
from whoseblock.fs.xfs.volume import Volume

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

    import numpy as np
    from numpy.typing import NDArray

    from whoseblock.fs.scan.bulk import ArrayBatch

    Ints = NDArray[np.int64]
    _Item = TypeVar("_Item", bound=Batch | ArrayBatch | UnreadInodes)

__all__ = ["NOT_COVERED", "BlockSum", "sum_of_files"]

NOT_COVERED: Final = (
    "files, metadata and free space do not have each block of the filesystem once: an inode or"
    " another block of metadata is old"
)
_MASK: Final = (1 << 64) - 1
#: Odd, with bits that look like drawn ones: 2**64 divided by the golden ratio.
_FACTOR: Final = 0x9E3779B97F4A7C15
_HALF: Final = 32
#: NumPy takes as long to import as so many runs to add without it.
_MANY: Final = 1 << 14


class BlockSum:
    """A sum over runs of blocks of the device."""

    def __init__(self) -> None:
        self.value = 0

    def add(self, start: int, count: int, times: int = 1) -> None:
        """Add ``count`` blocks from ``start``, each as often as ``times``."""
        self.value = self.value + times * (_hash(start + count) - _hash(start)) & _MASK

    def add_all(self, starts: "Sequence[int] | Ints", counts: "Sequence[int] | Ints") -> None:
        """Add many runs of blocks, by NumPy if they are arrays or very many."""
        if isinstance(starts, Sequence) and len(starts) < _MANY:
            for start, count in zip(starts, counts, strict=True):
                self.add(start, count)
            return
        import numpy as np

        low = np.asarray(starts, np.int64)
        first, after = _hashes(low), _hashes(low + np.asarray(counts, np.int64))
        self.value = self.value + int(after.sum()) - int(first.sum()) & _MASK

    def of_extents(self, items: "Iterable[_Item]") -> "Iterator[_Item]":
        """Pass on what a scan yields, and add the blocks of all extents."""
        for item in items:
            self._add_extents(item)
            yield item

    def _add_extents(self, item: "Batch | ArrayBatch | UnreadInodes") -> None:
        if not isinstance(item, UnreadInodes):
            extents = item if isinstance(item, Batch) else item.extents
            self.add_all(extents.starts, extents.lengths)


def sum_of_files(volume: Volume, trees: Trees, metadata: GroupMetadata) -> int | None:
    """Return the sum over the blocks that files should have; None if that is not known.

    They are the blocks of the device without free space and metadata.  Shared ones count once for
    each owner.  No leaf is kept, since this may read all of them.
    """
    blocks = BlockSum()
    blocks.add(0, volume.sb.dblocks)
    for agno in range(volume.sb.agcount):
        notes: list[str] = []
        faults: list[Fault] = []
        base = agno * volume.sb.agblocks
        for start, count, _ in metadata.named(agno, notes):
            blocks.add(base + start, count, -1)
        for start, count in _records(trees.tree(agno, BNOBT), faults):
            blocks.add(base + start, count, -1)
        end = 0
        for startino, holemask, *_ in _records(trees.tree(agno, INOBT), faults):
            for first, after in inode_blocks(startino, holemask, volume.sb.inopblog):
                # A large block holds several chunks.
                blocks.add(base + max(first, end), after - max(first, end), -1)
                end = after
        if volume.sb.has_reflink:
            for start, count, owners in _records(trees.tree(agno, REFCOUNTBT), faults):
                # Blocks staged for copy-on-write have no file.
                others = -1 if start & XFS_REFC_COWFLAG else owners - 1
                blocks.add(base + (start & ~XFS_REFC_COWFLAG), count, others)
        if notes or faults:
            return None
    return blocks.value


def _records(tree: AgTree, faults: list[Fault]) -> "Iterator[tuple[int, ...]]":
    """Yield all records of a tree."""
    record = tree.shape.record
    for leaf in tree.leaves(lambda node: list(range(len(node.starts))), faults):
        end = leaf.offset + leaf.numrecs * record.size
        yield from record.struct.iter_unpack(memoryview(leaf.block)[leaf.offset : end])


def _hash(block: int) -> int:
    mixed = block * _FACTOR & _MASK
    mixed ^= mixed >> _HALF
    return mixed * mixed & _MASK


def _hashes(blocks: "Ints") -> "NDArray[np.uint64]":
    """Return the same as `_hash` of each element."""
    import numpy as np

    mixed = blocks.astype(np.uint64) * np.uint64(_FACTOR)
    mixed ^= mixed >> np.uint64(_HALF)
    return mixed * mixed
