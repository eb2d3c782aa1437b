"""Comparison of the rmap btree with many inodes: `maps` in NumPy.

Inodes are read in runs, and what they hold is compared before the next are read, so that memory
does not grow with the number of files.
"""

from typing import TYPE_CHECKING, Final, NamedTuple

import numpy as np

from whoseblock.errors import BlockError
from whoseblock.fs.pieces import ATTR, EXTENT_MAP, FILE, FILE_DATA, data_what
from whoseblock.fs.xfs.format.inode import (
    ATTR_FORK,
    DATA_FORK,
    DINODE,
    XFS_DIFLAG2_NREXT64,
    XFS_DINODE_FMT_BTREE,
    XFS_DINODE_FMT_EXTENTS,
)

if TYPE_CHECKING:
    from collections.abc import Iterator

    from numpy.typing import NDArray

    from whoseblock.fs.xfs.owners.finder import OwnerFinder

    Ints = NDArray[np.int64]
    Words = NDArray[np.uint64]
    Bools = NDArray[np.bool_]

__all__ = ["confirm_files"]

#: Inodes taken together: with the fork, their number takes 11 bits of a key...
_TOGETHER: Final = 1024
#: ... and the block in a file the other 53: no file has more blocks of 1024 bytes.
_OFFSET_BITS: Final = 53
#: An rmap record of more extents than this is confirmed by `maps.ExtentMaps` alone.
_MOST_STEPS: Final = 16

#: Extents of large maps are held for so many at once, or for one map.
_HELD: Final = 1 << 18

_LOW_9: Final = np.uint64((1 << 9) - 1)
_LOW_21: Final = np.uint64((1 << 21) - 1)
_MASK_54: Final = np.uint64((1 << 54) - 1)


def confirm_files(finder: "OwnerFinder", rows: "NDArray[np.void]", odd: "Bools") -> None:
    """Set from the inodes what the rows of files hold, and mark questions that they contradict.

    The rows are in bytes.
    """
    files = np.flatnonzero(rows["kind"] == FILE)
    inode = rows["inode"][files]
    # The extents of one file often lie side by side: what is the same as before needs no sorting.
    heads = np.flatnonzero(np.concatenate(([True], inode[1:] != inode[:-1]))[: inode.size])
    inodes, which = np.unique(inode[heads], return_inverse=True)
    which = np.repeat(which, np.diff(heads, append=inode.size))
    if inodes.size > _TOGETHER:
        order = np.argsort(which, kind="stable")
        files, which = files[order], which[order]
    for first in range(0, inodes.size, _TOGETHER):
        some = inodes[first : first + _TOGETHER]
        begin, stop = 0, files.size
        if inodes.size > _TOGETHER:
            begin, stop = np.searchsorted(which, (first, first + some.size)).tolist()
        _confirm(finder, rows, files[begin:stop], which[begin:stop] - first, some.tolist(), odd)


def _confirm(  # noqa: PLR0913 - rows, and which inodes they are of
    finder: "OwnerFinder",
    rows: "NDArray[np.void]",
    index: "Ints",
    which: "Ints",
    inodes: list[int],
    odd: "Bools",
) -> None:
    """Confirm the rows at ``index``; the i-th of them is of inode ``inodes[which[i]]``."""
    size = finder.volume.inode_size
    found, _ = finder.inodes.read_many(inodes)
    nothing = bytes(size)
    table = np.frombuffer(b"".join([found.get(ino, nothing) for ino in inodes]), np.uint8)
    table = table.reshape(-1, size)
    known = np.array([ino in found for ino in inodes])
    modes = table[:, 2].astype(np.int64) << 8 | table[:, 3]
    values, mode = np.unique(modes, return_inverse=True)
    whats = np.array([data_what(value) for value in values.tolist()], dtype=np.uint8)[mode]
    what = rows["what"][index]
    data = what == FILE_DATA
    rows["what"][index[data]] = whats[which[data]]
    mapped = what != EXTENT_MAP
    confirmed = known[which]
    confirmed[mapped] &= _is_mapped(finder, rows, index[mapped], which[mapped], inodes, table)
    for at in np.flatnonzero(~mapped & confirmed).tolist():
        confirmed[at] = _is_map_block(finder, rows[index[at]])
    odd[rows["question"][index[~confirmed]]] = True


class _Extents(NamedTuple):
    """Extents in order of their ``key``: the group of a fork and the block in it."""

    key: "Words"
    start: "Ints"
    blocks: "Ints"
    unwritten: "Bools"


def _is_mapped(  # noqa: PLR0913 - as above
    finder: "OwnerFinder",
    rows: "NDArray[np.void]",
    index: "Ints",
    which: "Ints",
    inodes: list[int],
    table: "NDArray[np.uint8]",
) -> "Bools":
    """Return which rows the extent maps of their inodes confirm; ``table`` holds the inodes."""
    volume = finder.volume
    size = volume.block_size
    # Column by column: NumPy copies structures one by one.
    start = rows["start"][index]
    agno = start // volume.ag_bytes
    within = start - agno * volume.ag_bytes
    block = within // size
    left = (within + rows["length"][index] - 1) // size - block + 1
    block += agno << volume.sb.agblklog
    offset = rows["file_offset"][index] // size
    unwritten = rows["unwritten"][index]
    group = which * 2 + (rows["fork"][index] == ATTR)
    confirmed = np.zeros(index.size, dtype=np.bool_)
    for extents, asked in _extents(finder, group, offset, left, inodes, table):
        todo = asked if extents.key.size else asked[:0]
        for _ in range(_MOST_STEPS):
            if not todo.size:
                break
            # Nearly always all rows are asked about at once, and nothing need be picked.
            pick: slice | Ints = slice(None) if todo.size == index.size else todo
            key = group[pick].astype(np.uint64) << np.uint64(_OFFSET_BITS)
            key |= offset[pick].astype(np.uint64)
            at = np.maximum(np.searchsorted(extents.key, key, "right") - 1, 0)
            # Where the extent is of another fork, or begins later, this is no number of its blocks.
            skipped = (key - extents.key[at]).astype(np.int64)
            rest = extents.blocks[at] - skipped
            true = (skipped >= 0) & (rest > 0)
            true &= extents.start[at] + skipped == block[pick]
            true &= extents.unwritten[at] == unwritten[pick]
            done = true & (rest >= left[pick])
            confirmed[pick] |= done
            more = np.flatnonzero(true & ~done)
            todo = more if isinstance(pick, slice) else todo[more]
            step = rest[more]
            block[todo] += step
            offset[todo] += step
            left[todo] -= step
    return confirmed


def _extents(  # noqa: PLR0913 - which blocks of which forks, and where they are
    finder: "OwnerFinder",
    group: "Ints",
    offset: "Ints",
    count: "Ints",
    inodes: list[int],
    table: "NDArray[np.uint8]",
) -> "Iterator[tuple[_Extents, Ints]]":
    """Collect the extents of the forks that are asked about; of large maps those asked about.

    They come in parts that are not too large, each with the questions that it answers.
    """
    size = table.shape[1]
    data_size = table[:, 82].astype(np.int64) * 8
    has_attr = data_size > 0
    data_size[~has_attr] = size - DINODE.size
    wide = (table[:, 127] & XFS_DIFLAG2_NREXT64) != 0
    count_32, count_16 = _number(table, 76, ">u4"), _number(table, 80, ">u2")
    formats = np.stack((table[:, 5], np.where(has_attr, table[:, 83], 0)), axis=1).reshape(-1)
    counts = np.stack(
        (
            np.where(wide, _number(table, 24, ">u8"), count_32),
            np.where(wide, count_32, count_16),
        ),
        axis=1,
    ).reshape(-1)
    room = np.stack((data_size, size - DINODE.size - data_size), axis=1).reshape(-1)
    begin = np.stack((np.full_like(data_size, DINODE.size), DINODE.size + data_size), axis=1)
    begin = begin.reshape(-1)
    # What an inode claims may reach past its end.
    room = np.minimum(room, size - begin)

    asked = np.flatnonzero(np.bincount(group, minlength=formats.size))
    small = asked[(formats[asked] == XFS_DINODE_FMT_EXTENTS)]
    # A forged count can be so large that its size in bytes overflows.
    small = small[(counts[small] >= 0) & (counts[small] <= room[small] // 16)]
    owner = np.repeat(small, counts[small])
    before = np.cumsum(counts[small]) - counts[small]
    which = np.arange(owner.size) - np.repeat(before, counts[small])
    words = table.view(">u8")
    column = begin[owner] // 8 + 2 * which
    parts = [(owner, words[owner // 2, column], words[owner // 2, column + 1])]
    is_large = formats == XFS_DINODE_FMT_BTREE
    answered = [np.flatnonzero(~is_large[group])]
    large = asked[is_large[asked]]
    order = np.argsort(group, kind="stable") if large.size else large
    begins, stops = np.searchsorted(group[order], (large, large + 1))
    held = owner.size
    for number, begin_at, stop_at in zip(
        large.tolist(), begins.tolist(), stops.tolist(), strict=True
    ):
        of_it = order[begin_at:stop_at]
        wanted = offset[of_it]
        if (count[of_it] > 1).any():
            wanted = np.concatenate((wanted, wanted + count[of_it] - 1))
        wanted = np.sort(wanted).tolist()
        fork = ATTR_FORK if number % 2 else DATA_FORK
        try:
            leaves = list(finder.maps.leaves(inodes[number // 2], fork, wanted))
        except BlockError:
            continue
        pairs = np.frombuffer(b"".join(leaf.raw for leaf in leaves), ">u8").reshape(-1, 2)
        parts.append((np.full(len(pairs), number), pairs[:, 0], pairs[:, 1]))
        answered.append(of_it)
        held += len(pairs)
        if held > _HELD:
            yield _in_order(parts), np.concatenate(answered)
            parts, answered, held = [], [], 0
    if parts:
        yield _in_order(parts), np.concatenate(answered)


def _in_order(parts: "list[tuple[Ints, Words, Words]]") -> _Extents:
    """Decode extents: the groups that they are of, and their two words."""
    groups, high, low = (np.concatenate(column) for column in zip(*parts, strict=True))
    high, low = high.astype(np.uint64), low.astype(np.uint64)
    place = high >> np.uint64(9) & _MASK_54
    key = groups.astype(np.uint64) << np.uint64(_OFFSET_BITS) | place
    # The extents of a fork ascend; where they do not, none of them confirms anything.
    falls = (groups[1:] == groups[:-1]) & (place[1:] <= place[:-1])
    sane = place < np.uint64(1 << _OFFSET_BITS)
    if falls.any():
        sane &= ~np.isin(groups, groups[1:][falls])
    if not sane.all():
        key, high, low = key[sane], high[sane], low[sane]
    if (key[1:] < key[:-1]).any():
        order = np.argsort(key, kind="stable")
        key, high, low = key[order], high[order], low[order]
    start = (high & _LOW_9) << np.uint64(43) | low >> np.uint64(21)
    return _Extents(
        key,
        start.astype(np.int64),
        (low & _LOW_21).astype(np.int64),
        (high >> np.uint64(63)) != 0,
    )


def _number(table: "NDArray[np.uint8]", at: int, code: str) -> "Ints":
    """Return a field of every inode."""
    width = np.dtype(code).itemsize
    return np.ascontiguousarray(table[:, at : at + width]).view(code)[:, 0].astype(np.int64)


def _is_map_block(finder: "OwnerFinder", row: np.void) -> bool:
    """Return whether a row is of blocks of the extent map of its inode, or that is not known."""
    volume = finder.volume
    start, length = int(row["start"]), int(row["length"])
    agno, within = divmod(start, volume.ag_bytes)
    base = agno << volume.sb.agblklog
    first, last = within // volume.block_size, (within + length - 1) // volume.block_size
    fork = ATTR_FORK if row["fork"] == ATTR else DATA_FORK
    try:
        blocks = finder.maps.blocks(int(row["inode"]), fork)
    except BlockError:
        return False
    return blocks is None or blocks.issuperset(range(base + first, base + last + 1))
