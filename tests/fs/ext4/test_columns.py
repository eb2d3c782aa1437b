"""Columns of inode tables name every inode that a full decode would."""

import struct

from hypothesis import given
from hypothesis import strategies as st

from whoseblock.fs.ext4.columns import Columns
from whoseblock.fs.ext4.format.extents import root_extents

_SIZE = 256
_HEADER = struct.Struct("<HHHH4x")
_LEAF = struct.Struct("<IHHI")

#: A start near the boundary of 32 bits, or low.
starts = st.one_of(st.integers(0, 70_000), st.integers((1 << 32) - 40_000, (1 << 32) + 40_000))
extents = st.lists(st.tuples(starts, st.integers(1, 0xFFFF)), max_size=4)
ranges = st.lists(
    st.tuples(starts, st.integers(1, 9000)).map(lambda one: (one[0], sum(one))),
    min_size=1,
    max_size=3,
)


def inode(mapped: list[tuple[int, int]]) -> bytes:
    """Return the bytes of an inode with extents, as starts and stored lengths."""
    root = _HEADER.pack(0xF30A, len(mapped), 4, 0)
    for number, (start, length) in enumerate(mapped):
        root += _LEAF.pack(number * 40_000, length, start >> 32, start & 0xFFFFFFFF)
    return (bytes(0x28) + root).ljust(_SIZE, b"\0")


@given(st.lists(extents, max_size=6), ranges)
def test_inodes_that_map_a_range(
    files: list[list[tuple[int, int]]], asked: list[tuple[int, int]]
) -> None:
    table = b"".join(map(inode, files))
    expected = [
        place
        for place in range(len(files))
        if any(
            start < high and start + length > low
            for start, length, _, _ in root_extents(table[place * _SIZE :][0x28:0x64]) or ()
            for low, high in asked
        )
    ]
    assert Columns(table, _SIZE).mapping(asked) == expected


def test_directories_and_trees() -> None:
    deep = bytes(0x28) + _HEADER.pack(0xF30A, 1, 4, 2)
    link = struct.pack("<H", 0o120777).ljust(0x28, b"\0") + b"/a/short/link"
    folder = struct.pack("<H", 0o40755)
    table = b"".join(one.ljust(_SIZE, b"\0") for one in (folder, deep, link, folder))
    columns = Columns(table, _SIZE)
    assert columns.directories() == [0, 3]
    assert columns.with_tree() == [1]
