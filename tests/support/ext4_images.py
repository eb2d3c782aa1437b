"""Images of ext2, ext3 and ext4, and their truth by the programs of e2fsprogs.

The truth is that of dumpe2fs (free blocks, fixed metadata) and of debugfs (the map of every inode,
and all names), neither of which is ours.
"""

import re
import stat
import subprocess
from collections import defaultdict
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

from tests.support.tools import program, run

__all__ = ["Truth", "make_image", "names_of", "tell_truth"]

#: Kind of owner in a truth: an inode's data, a block of its map, its attributes.
Claim = tuple[int, str, int, bool]


class Truth(NamedTuple):
    """What owns each block: free blocks, the class of fixed ones, and claims of inodes.

    A claim is ``(inode, what, offset in blocks, unwritten)``.
    """

    block_size: int
    blocks: int
    free: set[int]
    fixed: dict[int, str]
    claims: dict[int, set[Claim]]
    modes: dict[int, int]
    names: dict[int, set[str]]


def make_image(
    path: Path, size: int, *options: str, folder: Path | None = None, block: int = 4096
) -> Path:
    """Make an image with mke2fs, filled from a folder if one is given."""
    with path.open("wb") as file:
        file.truncate(size)
    given = ["-d", str(folder)] if folder is not None else []
    run(["mke2fs", "-q", "-F", "-b", str(block), *options, *given, str(path)])
    return path


def _debugfs(path: Path, commands: Sequence[str]) -> str:
    done = subprocess.run(
        [program("debugfs"), "-f", "-", path],
        input="\n".join(commands).encode(),
        capture_output=True,
        check=True,
    )
    return done.stdout.decode(errors="surrogateescape")


def _ranges(text: str) -> Iterator[tuple[int, int]]:
    for part in text.replace(",", " ").split():
        low, _, high = part.partition("-")
        yield int(low), int(high or low)


#: A line of dumpe2fs about a group, and the class of what it says.
_FIXED = (
    (r"[Ss]uperblock at (\d+)", "static"),
    (r"Group descriptors at ([\d-]+)", "static"),
    (r"Group descriptor at ([\d-]+)", "static"),
    (r"Reserved GDT blocks at ([\d-]+)", "static"),
    (r"Block bitmap at (\d+)", "ag"),
    (r"Inode bitmap at (\d+)", "inode-btree"),
    (r"Inode table at ([\d-]+)", "inodes"),
)


def tell_truth(path: Path, *, names: bool = True) -> Truth:
    """Ask dumpe2fs and debugfs for all that an image holds."""
    text = run(["dumpe2fs", path]).decode()
    head, _, groups = text.partition("\n\nGroup 0:")
    fields = dict(
        (key.strip(), value.strip())
        for key, _, value in (line.partition(":") for line in head.splitlines())
    )
    size, blocks = int(fields["Block size"]), int(fields["Block count"])
    ratio = int(fields.get("Cluster size", size)) // size
    free: set[int] = set()
    free_inodes: set[int] = set()
    for line in groups.splitlines():
        if match := re.match(r"  Free blocks: (.*)", line):
            for low, high in _ranges(match[1]):
                # A range of clusters ends with the first block of its last one.
                free.update(range(low, min(high + ratio, blocks)))
        if match := re.match(r"  Free inodes: (.*)", line):
            for low, high in _ranges(match[1]):
                free_inodes.update(range(low, high + 1))
    fixed: dict[int, str] = {0: "static"} if size == 1024 else {}
    for pattern, what in _FIXED:
        for match in re.finditer(pattern, groups):
            for low, high in _ranges(match[1]):
                fixed.update(dict.fromkeys(range(low, high + 1), what))
    if "MMP block number" in fields:
        fixed[int(fields["MMP block number"])] = "static"
    count = int(fields["Inode count"])
    used = [number for number in range(1, count + 1) if number not in free_inodes]
    claims: dict[int, set[Claim]] = defaultdict(set)
    modes: dict[int, int] = {}
    out = _debugfs(path, [f"stat <{number}>" for number in used])
    for part in re.split(r"^debugfs: +stat <", out, flags=re.MULTILINE)[1:]:
        number = int(part.partition(">")[0])
        _claims_of(number, part, claims, modes)
    named: dict[int, set[str]] = defaultdict(set)
    if names:
        for at in range(0, len(used), 500):
            line = " ".join(map(str, used[at : at + 500]))
            for found in re.finditer(r"^(\d+)\t(/.*)$", _debugfs(path, [f"ncheck {line}"]), re.M):
                named[int(found[1])].add(re.sub("^//", "/", found[2]))
    return Truth(size, blocks, free, fixed, claims, modes, named)


_TYPES = {
    "regular": stat.S_IFREG,
    "directory": stat.S_IFDIR,
    "symlink": stat.S_IFLNK,
}


def _claims_of(
    number: int, text: str, claims: dict[int, set[Claim]], modes: dict[int, int]
) -> None:
    kind = re.search(r"Type: (.*?) +Mode:", text)
    modes[number] = _TYPES.get(kind[1], 0) if kind else 0
    if (acl := re.search(r"File ACL: (\d+)", text)) and int(acl[1]):
        claims[int(acl[1])].add((number, "xattr", 0, False))
    body = re.search(r"^(?:EXTENTS|BLOCKS):\n(.*)", text, re.MULTILINE | re.DOTALL)
    if body is None:
        return
    for where, low, high in re.findall(r"\(([^)]+)\):(\d+)(?:-(\d+))?", body[1]):
        first, last = int(low), int(high or low)
        if not where[0].isdigit():
            for block in range(first, last + 1):
                claims[block].add((number, "extent-map", -1, False))
            continue
        unwritten = "[u]" in where
        offset = int(where.replace("[u]", "").partition("-")[0])
        for block in range(first, last + 1):
            claims[block].add((number, "data", offset + block - first, unwritten))


def names_of(folder: Path, paths: dict[int, set[str]]) -> None:
    """Add the names below a folder to ``paths`` by inode."""
    for path in folder.rglob("*"):
        paths.setdefault(path.lstat().st_ino, set()).add(f"/{path.relative_to(folder)}")
