"""Counting owners, and finding inodes, against models that look at one block after another."""

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from whoseblock.fs.xfs.format.btree import (
    ALLOC_REC,
    INOBT_REC,
    REFCOUNT_REC,
    RMAP_REC,
    XFS_REFC_COWFLAG,
    XFS_RMAP_OFF_ATTR_FORK,
    XFS_RMAP_OWN_AG,
)
from whoseblock.fs.xfs.owners.agree import miscounted, size_keys, within_chunks
from whoseblock.fs.xfs.owners.crosscheck import Claim, Part, _segments, inode_blocks

BLOCKS = 60

#: Owner and offset: of data, of attributes, of metadata.
_owners = st.sampled_from([(131, 0), (132, 7), (133, XFS_RMAP_OFF_ATTR_FORK), (XFS_RMAP_OWN_AG, 0)])
_records = st.lists(st.tuples(st.integers(0, 49), st.integers(1, 10), _owners), max_size=12)
_counts = st.lists(
    st.tuples(st.integers(0, 3), st.integers(1, 8), st.sampled_from([1, 2, 2, 3])), max_size=8
)


def _disjoint(steps: list[tuple[int, int, int]]) -> list[tuple[int, int, int]]:
    """Turn gaps and lengths into records that follow one another."""
    at, found = 0, []
    for gap, length, count in steps:
        if at + gap + length > BLOCKS:
            break
        found.append((at + gap, length, count))
        at += gap + length
    return found


def _expected(records: list[tuple[int, int, tuple[int, int]]], counts: dict[int, int]) -> set[int]:
    """Look at each block alone."""
    wrong = set()
    for block in range(BLOCKS):
        here = [owner for start, length, owner in records if start <= block < start + length]
        data = [owner for owner in here if owner[0] in (131, 132)]
        count = counts.get(block)
        if count is not None:
            right = count > 1 and len(here) == len(data) == count
        else:
            right = len(here) <= 1
        if not right:
            wrong.add(block)
    return wrong


@given(_records, _counts)
def test_owners_are_as_many_as_counted(
    records: list[tuple[int, int, tuple[int, int]]], steps: list[tuple[int, int, int]]
) -> None:
    records.sort(key=lambda record: record[0])
    counted = _disjoint(steps)
    counts = {
        block: count for start, length, count in counted for block in range(start, start + length)
    }
    rmap = np.array([(start, n, *owner) for start, n, owner in records], RMAP_REC.dtype())
    # Blocks staged for copy-on-write are another matter.
    staged = [*counted, (5 | XFS_REFC_COWFLAG, 3, 1)]
    low, high = miscounted(rmap, np.array(staged, REFCOUNT_REC.dtype()))
    found = {
        block
        for first, after in zip(low.tolist(), high.tolist(), strict=True)
        for block in range(first, after)
    }
    assert found == _expected(records, counts)

    claims = [Claim(start, start + length, *owner) for start, length, owner in records]
    whole = Part(0, 0, BLOCKS)
    for first, after, sharers, others, count in _segments(
        whole, claims, [(start, start + length, count) for start, length, count in counted]
    ):
        for block in range(first, after):
            here = [claim for claim in claims if claim.low <= block < claim.high]
            assert sharers == sum(claim.owner in (131, 132) for claim in here)
            assert sharers + others == len(here)
            assert count == counts.get(block)


@given(
    st.lists(st.tuples(st.integers(0, 40), st.integers(0, (1 << 16) - 1)), max_size=5),
    st.integers(0, 7),
    st.tuples(st.integers(0, 600), st.integers(1, 40)),
)
def test_blocks_of_chunks_with_holes(
    made: list[tuple[int, int]], log: int, asked: tuple[int, int]
) -> None:
    chunks = sorted({start * 64: holes for start, holes in made}.items())
    there = {
        (start + index) >> log
        for start, holes in chunks
        for index in range(64)
        if not holes >> index // 4 & 1
    }
    rows = [(start, holes, 64, 0, 0) for start, holes in chunks]
    low, high = asked[0], asked[0] + asked[1]
    found = within_chunks(np.array(rows, INOBT_REC.dtype()), log, np.array([low]), np.array([high]))
    assert found.tolist() == [there.issuperset(range(low, high))]
    assert there == {
        block
        for start, holes in chunks
        for first, after in inode_blocks(start, holes, log)
        for block in range(first, after)
    }


def test_keys_by_size() -> None:
    extents = [(7, 1), (0, 2), (3, 2)]
    keys = size_keys(np.array(extents, ALLOC_REC.dtype()))
    assert keys.tolist() == sorted(keys.tolist())
