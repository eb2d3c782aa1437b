"""xfs_db as an oracle: it reads the image itself, and needs no root."""

import re
import stat
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path

from tests.support.tools import run, xfsprogs
from tests.support.truth import Inode, Row, Superblock

__all__ = ["ask", "inode_cores", "raw_rows", "rows", "sparse_chunks", "superblock", "walk"]

_FSMAP = re.compile(
    rb"^\d+: (\d+)/(\d+) len (\d+) owner (-?\d+) offset (\d+)"
    rb" bmbt (\d) attrfork (\d) extflag (\d)$",
    re.MULTILINE,
)

#: XFS_RMAP_OWN_* of the on-disk format, by the classes of the contract.
_SPECIAL = {
    -3: "static",
    -4: "log",
    -5: "ag",
    -6: "inode-btree",
    -7: "inodes",
    -8: "refcount-btree",
    -9: "staging",
}

_ENTRY = re.compile(rb"(\d+)\s+(\d+)\s+(\w+)\s+0x[0-9a-f]{8}\s+(\d+) ")


def ask(image: Path, commands: Iterable[str], *options: str) -> bytes:
    """Run xfs_db with any number of commands on its standard input."""
    text = "".join(f"{command}\n" for command in commands).encode()
    return run([xfsprogs("xfs_db"), "-r", *options, image], stdin=text)


def superblock(image: Path) -> Superblock:
    """Read the numbers of the first superblock."""
    names = "blocksize sectsize inodesize agblocks agcount dblocks agblklog inopblog".split()
    printed = ask(image, ["sb 0", f"print {' '.join(names)}"]).decode()
    values = dict(re.findall(r"^(\w+) = (\d+)$", printed, re.MULTILINE))
    return Superblock(*(int(values[name]) for name in names))


def raw_rows(image: Path, block: Superblock, *questions: str) -> list[Row]:
    """Return the rows of one or more `fsmap` commands, in the order printed, whole."""
    found = []
    for match in _FSMAP.finditer(ask(image, questions or ["fsmap"])):
        group, within, length, owner, offset, bmbt, attr, extflag = map(int, match.groups())
        start = (group * block.group_blocks + within) * block.block
        if owner < 0:
            found.append(Row(start, length * block.block, _SPECIAL[owner]))
        else:
            found.append(
                Row(
                    start,
                    length * block.block,
                    "file",
                    inode=owner,
                    offset=0 if bmbt else offset * block.block,
                    attr=bool(attr),
                    extent_map=bool(bmbt),
                    unwritten=bool(extflag),
                )
            )
    return found


def rows(image: Path, block: Superblock) -> list[Row]:
    """Return every row, with the gaps between them as free space, in the form of the kernel."""
    given = sorted(raw_rows(image, block))
    covered = 0
    gaps = []
    for row in given:
        gaps += list(_free(covered, row.start, block))
        covered = max(covered, row.end)
    gaps += list(_free(covered, block.size, block))
    return sorted(given + gaps)


def _free(start: int, end: int, block: Superblock) -> Iterator[Row]:
    """Yield the free rows of a gap; none crosses into another allocation group."""
    while start < end:
        stop = min(end, (start // block.group_size + 1) * block.group_size)
        yield Row(start, stop - start, "free")
        start = stop


def inode_cores(image: Path, inodes: Sequence[int]) -> dict[int, tuple[int, int]]:
    """Read the mode and the link count of inodes, those without a name among them."""
    asked = "print core.mode core.nlinkv2"
    commands = [line for number in inodes for line in (f"inode {number}", asked)]
    cores = re.findall(
        rb"^core.mode = 0([0-7]+)\ncore.nlinkv2 = (\d+)$", ask(image, commands), re.MULTILINE
    )
    if len(cores) != len(inodes):
        raise RuntimeError(f"xfs_db told of {len(cores)} inodes, not of {len(inodes)}")
    return {
        number: (int(mode, 8), int(links))
        for number, (mode, links) in zip(inodes, cores, strict=True)
    }


def _entries(printed: bytes) -> Iterator[tuple[int, bytes, bytes]]:
    """Split what `ls` printed: (inode, type, name).

    A name may hold newlines or the look of another line, so its length is what is believed.
    """
    place = 0
    while match := _ENTRY.match(printed, place):
        _, inode, kind, length = match.groups()
        name = printed[match.end() : match.end() + int(length)]
        tail = b" (good)\n"
        place = match.end() + int(length) + len(tail)
        if printed[place - len(tail) : place] != tail:
            raise RuntimeError(f"xfs_db says of {name!r}: {printed[place - len(tail) : place]!r}")
        yield int(inode), kind, name
    if place != len(printed):
        raise RuntimeError(f"cannot read what xfs_db printed at {printed[place : place + 80]!r}")


def _with_types(
    image: Path, entries: list[tuple[int, bytes, bytes]]
) -> list[tuple[int, bytes, bytes]]:
    """Look up which entries of a directory without types are directories."""
    cores = inode_cores(image, sorted({inode for inode, _, _ in entries}))
    return [
        (inode, b"directory" if stat.S_ISDIR(cores[inode][0]) else b"other", name)
        for inode, _, name in entries
    ]


def walk(image: Path) -> dict[int, Inode]:
    """Return every inode that has a name, with its mode, link count and all its paths."""
    printed = ask(image, ["sb 0", "print rootino"])
    root = int(printed.split()[-1])
    paths: dict[int, list[str]] = {root: ["/"]}
    todo = [(root, b"")]
    while todo:
        number, prefix = todo.pop()
        entries = list(_entries(ask(image, [f"inode {number}", "ls"])))
        if any(kind == b"unknown" for _, kind, _ in entries):
            entries = _with_types(image, entries)
        for inode, kind, name in entries:
            if name in (b".", b".."):
                continue
            path = prefix + b"/" + name
            paths.setdefault(inode, []).append(path.decode("utf-8", "surrogateescape"))
            if kind == b"directory":
                todo.append((inode, path))
    cores = inode_cores(image, sorted(paths))
    return {number: Inode(*core, paths[number]) for number, core in cores.items()}


def sparse_chunks(image: Path, groups: int) -> int:
    """Count the inode chunks of which parts are holes."""
    commands = [line for group in range(groups) for line in (f"agi {group}", "addr root", "btdump")]
    holes = re.findall(rb"^\d+:\[\d+,(0x[0-9a-f]+|0),", ask(image, commands), re.MULTILINE)
    return sum(int(mask, 16) != 0 for mask in holes)
