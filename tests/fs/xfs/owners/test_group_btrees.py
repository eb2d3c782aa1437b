"""The blocks of btrees, as the btrees themselves name them: those that the kernel reports."""

import pytest
from tests.support.filled_images import Zoo
from tests.support.image_damage import Overlay
from tests.support.truth import Truth

import whoseblock
from whoseblock.fs.base import Answer, MetadataOwner
from whoseblock.fs.pieces import AG, INODE_BTREE, REFCOUNT_BTREE
from whoseblock.fs.xfs import XfsFilesystem
from whoseblock.fs.xfs.owners.finder import OwnerFinder
from whoseblock.fs.xfs.owners.group_btrees import GroupBtrees
from whoseblock.media import EmulatedPmem, FileMedia
from whoseblock.media.base import Media
from whoseblock.ranges import ByteRange

WHATS = {"ag": AG, "inode-btree": INODE_BTREE, "refcount-btree": REFCOUNT_BTREE}


@pytest.fixture(params=["4k", "1k", "sector4k", "plain"])
def truth(zoo: Zoo, request: pytest.FixtureRequest) -> Truth:
    return zoo.filled(request.param)


def _btrees(fs: XfsFilesystem) -> GroupBtrees:
    return GroupBtrees(fs.volume, OwnerFinder(fs.volume, fs.inodes))


def test_they_name_what_the_kernel_reports(truth: Truth) -> None:
    size = truth.superblock.block
    with XfsFilesystem(FileMedia(truth.image)) as fs:
        btrees = _btrees(fs)
        for kind, what in WHATS.items():
            reported = {
                start
                for row in truth.rows
                if row.kind == kind
                for start in range(row.start, row.end, size)
            }
            found = [
                (fs.volume.ag_to_byte(agno, block), why)
                for agno in range(fs.volume.sb.agcount)
                for blocks, why in btrees.named(agno, what)
                for block in blocks
            ]
            assert {start for start, _ in found} == reported
            # No block has two structures.
            assert len(found) == len(reported)
            assert not any(why for _, why in found)


def test_all_blocks_of_a_range_must_be_named(truth: Truth) -> None:
    row = max((row for row in truth.rows if row.kind == "ag"), key=lambda row: row.length)
    agno, within = divmod(row.start, truth.superblock.group_size)
    low = within // truth.superblock.block
    high = low + row.length // truth.superblock.block
    with XfsFilesystem(FileMedia(truth.image)) as fs:
        btrees = _btrees(fs)
        notes: list[str] = []
        assert btrees.has(agno, AG, low, high, notes)
        assert btrees.has(agno, AG, high - 1, high, notes)
        assert not btrees.has(agno, AG, low, high + 1, notes)
        assert not btrees.has(agno, AG, low, 1 << 31, notes)
        assert not btrees.has(agno, REFCOUNT_BTREE, low, high, notes)
        assert notes == []


def test_one_block_is_found_without_reading_all_nodes(truth: Truth) -> None:
    size = truth.superblock.block
    for row in (row for row in truth.rows if row.kind in WHATS):
        agno, within = divmod(row.start, truth.superblock.group_size)
        with XfsFilesystem(FileMedia(truth.image)) as fs:
            block = within // size
            assert _btrees(fs).has(agno, WHATS[row.kind], block, block + 1, [])
            # The headers of the group and the head of the block, and one node for each level.
            assert fs.reads.total() <= 4 + fs.volume.agf(agno).rmap_level


def _answers(media: Media, starts: list[int], size: int) -> list[Answer]:
    """Return the answers about blocks, the same singly and together."""
    with whoseblock.open(media) as fs:
        singly = [fs.owners(start, size, paths=False) for start in starts]
        together = list(fs.owners_many([(start, size) for start in starts] * 48, paths=False))
        assert together == singly * 48
        return singly


def _places(truth: Truth) -> tuple[list[int], list[int]]:
    """Return the blocks of the free list of the first group, and those of its btrees."""
    with XfsFilesystem(FileMedia(truth.image)) as fs:
        waiting, *trees = (named.blocks for named in _btrees(fs).named(0, AG))
    size = truth.superblock.block
    in_trees = [block * size for blocks in trees for block in blocks]
    return [block * size for block in waiting], in_trees


def test_an_unreadable_block_of_a_btree_is_still_one(truth: Truth) -> None:
    size = truth.superblock.block
    _, in_trees = _places(truth)
    complete = 0
    for start in in_trees:
        media = EmulatedPmem(FileMedia(truth.image), poison=[ByteRange(start, size)])
        (answer,) = _answers(media, [start], size)
        rows = [row for row in answer if isinstance(row, MetadataOwner)]
        # Without its own block, the rmap btree may not know.
        assert [row.what for row in rows] == ["ag"] * answer.complete
        complete += answer.complete
    # The roots of both free-space btrees.
    assert complete >= 2


def test_without_its_free_list_a_group_says_what_is_not_certain(truth: Truth) -> None:
    size = truth.superblock.block
    waiting, in_trees = _places(truth)
    assert waiting
    assert in_trees
    damaged = Overlay(FileMedia(truth.image), {3 * truth.superblock.sector: b"damage"})
    for answer in _answers(damaged, waiting, size):
        assert any(note.startswith("AGFL of AG 0") for note in answer.notes)
        assert not answer.complete
    assert all(answer.complete for answer in _answers(damaged, in_trees, size))
