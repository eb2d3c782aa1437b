"""The truth about XFS without a reverse map, by xfs_db: every block, and every extent map."""

import re
from collections.abc import Iterable, Iterator
from pathlib import Path

from tests.support import xfsdb
from tests.support.truth import Inode, Row, Superblock, Truth

__all__ = ["truth_of"]

_BLOCK = re.compile(rb"^block \d+ \((\d+)/(\d+)\) type (\w+)(?: inode (\d+))?", re.MULTILINE)
_EXTENT = re.compile(
    rb"^(data|attr) offset (\d+) startblock \d+ \((\d+)/(\d+)\) count (\d+) flag (\d)$",
    re.MULTILINE,
)
_KINDS = {
    b"sb": "static",
    b"agf": "static",
    b"agi": "static",
    b"agfl": "static",
    b"log": "log",
    b"btbno": "ag",
    b"btcnt": "ag",
    b"freelist": "ag",
    b"btino": "inode-btree",
    b"btfino": "inode-btree",
    b"btrefcnt": "refcount-btree",
    b"inode": "inodes",
    b"free1": "free",
    b"free2": "free",
    b"cowdata": "staging",
}


def truth_of(image: Path, inodes: dict[int, Inode], *options: str) -> Truth:
    """Return everything that xfs_db knows of an image, of which ``inodes`` are those with a name.

    ``options`` are those of xfs_db that an external log or a realtime section takes.
    """
    block = xfsdb.superblock(image)
    blocks = list(_blocks(image, block, *options))
    nameless = sorted({inode for _, _, inode in blocks} - inodes.keys() - {0})
    cores = xfsdb.inode_cores(image, nameless)
    inodes = inodes | {number: Inode(*core, []) for number, core in cores.items()}
    return Truth(image, block, _rows(image, block, blocks, inodes), inodes)


def _rows(
    image: Path, block: Superblock, blocks: Iterable[tuple[int, str, int]], inodes: Iterable[int]
) -> list[Row]:
    """Return every row: metadata by ``blockuse``, and the maps of ``inodes`` by ``bmap``."""
    found: list[Row] = []
    for number, printed in _maps(image, list(inodes)):
        found += _extents(printed, number, block)
    # To xfs_db, blocks of maps are content: of the file that does not map them.
    mapped = {
        (row.inode, number)
        for row in found
        for number in range(row.start // block.block, row.end // block.block)
    }
    others = (
        (number, kind, inode)
        for number, kind, inode in blocks
        if not inode or (inode, number) not in mapped
    )
    return sorted([*found, *_joined(others, block)])


def _maps(image: Path, inodes: list[int]) -> Iterator[tuple[int, bytes]]:
    """Print the extent maps of inodes, all of them by one process."""
    commands = [
        line
        for number in inodes
        for line in (f"inode {number}", "print core.magic", "bmap -d", "bmap -a")
    ]
    printed = xfsdb.ask(image, commands).split(b"core.magic = 0x494e\n")
    yield from zip(inodes, printed[1:], strict=True)


def _blocks(image: Path, block: Superblock, *options: str) -> Iterator[tuple[int, str, int]]:
    """Yield all blocks: address, kind and the inode of a file."""
    commands = ["blockget -n"]
    for number in range(block.groups):
        length = min(block.group_blocks, block.blocks - number * block.group_blocks)
        commands += [f"fsblock {number << block.block_log}", f"blockuse -n -c {length}"]
    count = 0
    for match in _BLOCK.finditer(xfsdb.ask(image, commands, *options)):
        group, within, kind, inode = match.groups()
        count += 1
        place = int(group) * block.group_blocks + int(within)
        if inode and kind not in _KINDS:
            yield place, "attr" if kind == b"attr" else "data", int(inode)
        else:
            yield place, _KINDS[kind], 0
    if count != block.blocks:
        raise RuntimeError(f"xfs_db told of {count} blocks, not of {block.blocks}")


def _joined(blocks: Iterable[tuple[int, str, int]], block: Superblock) -> Iterator[Row]:
    """Join blocks that follow one another in a group and are the same."""
    first = after = 0
    same: tuple[str, int] | None = None
    for number, kind, inode in blocks:
        new_group = number % block.group_blocks == 0
        if same == (kind, inode) and number == after and not new_group:
            after += 1
            continue
        if same:
            yield _row(first, after, same, block)
        first, after, same = number, number + 1, (kind, inode)
    if same:
        yield _row(first, after, same, block)


def _row(first: int, after: int, same: tuple[str, int], block: Superblock) -> Row:
    kind, inode = same
    start, length = first * block.block, (after - first) * block.block
    if inode:
        return Row(start, length, "file", inode, attr=kind == "attr", extent_map=True)
    return Row(start, length, kind)


def _extents(printed: bytes, inode: int, block: Superblock) -> Iterator[Row]:
    """Yield the content of a file; extents that go on in file and device are one row."""
    held: Row | None = None
    for match in _EXTENT.finditer(printed):
        fork, *numbers = match.groups()
        offset, group, within, count, flag = map(int, numbers)
        start = (group * block.group_blocks + within) * block.block
        row = Row(
            start,
            count * block.block,
            "file",
            inode,
            offset * block.block,
            attr=fork == b"attr",
            unwritten=bool(flag),
        )
        if (
            held is not None
            and (held.attr, held.unwritten) == (row.attr, row.unwritten)
            and (held.end, held.offset + held.length) == (row.start, row.offset)
        ):
            held = held._replace(length=held.length + row.length)
            continue
        if held is not None:
            yield held
        held = row
    if held is not None:
        yield held
