"""The reverse-mapping btrees to be measured: their size and their leaves."""

from collections.abc import Iterator

from whoseblock.fs.driver import IndexLeaf, IndexSize
from whoseblock.fs.xfs.btree import RMAPBT, AgTree, Fault
from whoseblock.fs.xfs.volume import Volume

__all__ = ["index_leaves", "measure_index"]


def measure_index(volume: Volume) -> IndexSize:
    """Return the size of the btrees of all groups on the device; raises `BlockError`.

    Blocks of an internal log need no record of their own: one describes the whole log.
    """
    headers = [volume.agf(agno) for agno in range(volume.groups_on_device)]
    blocks = [volume.ag_blocks(agno) for agno in range(volume.sb.agcount)]
    if volume.sb.logstart:
        blocks[volume.sb.logstart >> volume.sb.agblklog] -= volume.sb.logblocks
    return IndexSize(
        size=sum(header.rmap_blocks for header in headers) * volume.sb.blocksize,
        levels=max(header.rmap_level for header in headers),
        groups=tuple(blocks),
    )


def index_leaves(volume: Volume) -> Iterator[IndexLeaf]:
    """Yield the leaves of all groups on the device that can be read, in the order of groups."""
    for agno in range(volume.groups_on_device):
        faults: list[Fault] = []
        tree = AgTree(volume, agno, RMAPBT, volume.ag_blocks(agno))
        for leaf in tree.leaves(lambda node: list(range(len(node.starts))), faults):
            start = volume.ag_to_byte(agno, leaf.low)
            length = volume.ag_to_byte(agno, leaf.high) - start
            yield IndexLeaf(volume.ag_to_byte(agno, leaf.agbno), start, length, leaf.numrecs)
