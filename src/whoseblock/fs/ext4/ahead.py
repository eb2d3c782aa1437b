"""Blocks of maps, read together in the order of the disk.

The nodes of extent trees and the indirect blocks of many files lie anywhere.  A disk reads them
several times as fast in order, and those near each other with one read.
"""

from collections.abc import Iterable, Iterator
from typing import Final

from whoseblock.errors import MediaError
from whoseblock.fs.ext4.volume import Volume

__all__ = ["MapBlocks"]

#: Bytes that are read and not used, rather than to begin another read.
_GAP: Final = 1 << 16
#: Bytes of one read, and of the blocks that are held at once.
_RUN: Final = 1 << 20
_HELD: Final = 4 << 20


class MapBlocks:
    """The blocks of maps of a volume; each that was fetched is used once."""

    def __init__(self, volume: Volume) -> None:
        self.volume = volume
        #: The most blocks to fetch at once.
        self.most = max(_HELD // volume.block_size, 1)
        self._held: dict[int, bytes] = {}

    def __contains__(self, block: int) -> bool:
        return block in self._held

    def fetch(self, blocks: Iterable[int]) -> None:
        """Read blocks in order; what was fetched before is dropped.

        Blocks that are not on the volume or cannot be read are left out: `read` reports them.
        """
        self._held.clear()
        wanted = sorted({block for block in blocks if self.volume.is_block(block)})
        if len(wanted) == 1:
            return
        size = self.volume.block_size
        for run in _runs(wanted, max(_GAP // size, 1), max(_RUN // size, 1)):
            first, count = run[0], run[-1] - run[0] + 1
            try:
                raw = self.volume.media.pread(first * size, count * size)
            except MediaError:
                continue
            self.volume.reads["map, in order"] += count
            for block in run:
                at = (block - first) * size
                self._held[block] = raw[at : at + size]

    def read(self, what: str, block: int) -> bytes:
        """Return a block that was fetched, or read it; raises `MediaError` that names ``what``."""
        held = self._held.pop(block, None)
        if held is not None:
            return held
        return self.volume.read_block("map", block, what=f"{what}, block")


def _runs(blocks: list[int], gap: int, most: int) -> Iterator[list[int]]:
    """Yield runs of sorted blocks with at most ``gap`` between, ``most`` in all if there is one."""
    run: list[int] = []
    for block in blocks:
        if run and (block - run[-1] > gap or block - run[0] >= most):
            yield run
            run = []
        run.append(block)
    if run:
        yield run
