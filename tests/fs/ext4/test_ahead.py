"""Blocks of maps, read in the order of the disk."""

from collections import Counter
from collections.abc import Callable
from typing import TYPE_CHECKING, cast

import pytest
from hypothesis import given
from hypothesis import strategies as st

from whoseblock.errors import MediaError
from whoseblock.fs.ext4.ahead import MapBlocks
from whoseblock.ranges import ByteRange

if TYPE_CHECKING:
    from whoseblock.fs.ext4.volume import Volume

SIZE = 4096
BLOCKS = 5000


class _Disk:
    """A volume of blocks that contain their numbers; `lost` cannot be read."""

    block_size = SIZE

    def __init__(self, lost: frozenset[int]) -> None:
        self.lost = lost
        self.reads: Counter[str] = Counter()
        self.begun: list[int] = []
        self.media = self

    def is_block(self, block: int) -> bool:
        return 0 < block < BLOCKS

    def pread(self, offset: int, length: int) -> bytes:
        blocks = range(offset // SIZE, (offset + length) // SIZE)
        self.begun.append(blocks[0])
        if bad := [block for block in blocks if block in self.lost]:
            raise MediaError([ByteRange(bad[0] * SIZE, SIZE)], "lost")
        return b"".join(block.to_bytes(8, "big") * (SIZE // 8) for block in blocks)

    def read_block(self, kind: str, block: int, count: int = 1, *, what: str = "") -> bytes:
        del kind, what
        return self.pread(block * SIZE, count * SIZE)


_Blocks = st.lists(st.integers(-2, BLOCKS + 2), max_size=200)


@given(wanted=_Blocks, lost=st.frozensets(st.integers(1, BLOCKS), max_size=20))
def test_each_block_is_read_whatever_is_lost(wanted: list[int], lost: frozenset[int]) -> None:
    disk = _Disk(lost)
    blocks = MapBlocks(cast("Volume", disk))
    blocks.fetch(wanted)
    # In order, and never more than a run at once.
    assert disk.begun == sorted(disk.begun)
    held = {block for block in wanted if block in blocks}
    assert not held & lost
    assert all(0 < block < BLOCKS for block in held)
    for block in {one for one in wanted if disk.is_block(one)}:
        if block in lost:
            with pytest.raises(MediaError):
                blocks.read("map", block)
        else:
            assert blocks.read("map", block)[:8] == block.to_bytes(8, "big")
        # Used once: what changes later is read again.
        assert block not in blocks


@pytest.mark.parametrize(
    ("wanted", "reads"),
    [(lambda n: n + 1, 1), (lambda n: 10 * n + 1, 1), (lambda n: 40 * n + 1, 100)],
    ids=["together", "near", "far"],
)
def test_near_blocks_take_one_read(wanted: Callable[[int], int], reads: int) -> None:
    disk = _Disk(frozenset())
    blocks = MapBlocks(cast("Volume", disk))
    blocks.fetch(wanted(number) for number in reversed(range(100 if reads > 1 else 20)))
    assert len(disk.begun) == reads
