"""The reverse-mapping btrees as objects of measurement: their size, their reserve, their leaves."""

from collections.abc import Iterator
from typing import Final

from whoseblock.fs.driver import IndexLeaf, IndexSize
from whoseblock.fs.xfs.btree import RMAPBT, AgTree, Fault
from whoseblock.fs.xfs.volume import Volume

__all__ = ["index_leaves", "measure_index", "rmap_reserve"]

#: Sizes in bytes (xfs_format.h): the header of a block, a record, and above the leaves two keys and
#: a pointer for each block below.
_BLOCK_HEADER: Final = 56
_RECORD: Final = 24
_CHILD: Final = 2 * 20 + 4


def measure_index(volume: Volume) -> IndexSize:
    """Return the size of the btrees of all groups on the device; raises `BlockError`."""
    headers = [volume.agf(agno) for agno in range(volume.groups_on_device)]
    blocks = [volume.ag_blocks(agno) for agno in range(volume.sb.agcount)]
    if volume.sb.logstart:
        blocks[volume.sb.logstart >> volume.sb.agblklog] -= volume.sb.logblocks
    block_size = volume.sb.blocksize
    return IndexSize(
        size=sum(header.rmap_blocks for header in headers) * block_size,
        reserve=sum(rmap_reserve(count, block_size) for count in blocks) * block_size,
        levels=max(header.rmap_level for header in headers),
        groups=len(headers),
    )


def rmap_reserve(blocks: int, block_size: int) -> int:
    """Return the blocks that the kernel reserves for the reverse-mapping btree of a group.

    ``blocks`` are those of the group without an internal log.  ``xfs_rmapbt_calc_reserves`` takes
    a hundredth of the group, or the tree with a record for each block and half-empty blocks if
    that is more.
    """
    room = block_size - _BLOCK_HEADER
    level = tree = -(-blocks // (room // _RECORD // 2))
    while level > 1:
        level = -(-level // (room // _CHILD // 2))
        tree += level
    return max(blocks // 100, tree)


def index_leaves(volume: Volume) -> Iterator[IndexLeaf]:
    """Yield the leaves of all groups on the device that can be read, in the order of groups."""
    for agno in range(volume.groups_on_device):
        faults: list[Fault] = []
        tree = AgTree(volume, agno, RMAPBT, volume.ag_blocks(agno))
        for leaf in tree.leaves(lambda node: list(range(len(node.starts))), faults):
            start = volume.ag_to_byte(agno, leaf.low)
            length = volume.ag_to_byte(agno, leaf.high) - start
            yield IndexLeaf(volume.ag_to_byte(agno, leaf.agbno), start, length, leaf.numrecs)
