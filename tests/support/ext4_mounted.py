"""A mounted ext4 by the kernel alone: GETFSMAP, FIEMAP of every file, and a walk of the tree."""

import os
import stat
from collections import defaultdict
from pathlib import Path

from tests.support.ext4_images import Claim, Truth
from tests.support.kernel_oracle import getfsmap, walk

from whoseblock.fs.mounted.fiemap import file_extents

__all__ = ["kernel_truth"]

_MOST = (1 << 63) - 1
_UNWRITTEN = 0x800  # linux/fiemap.h


def kernel_truth(folder: bytes) -> Truth:
    """Return what the kernel knows of the filesystem mounted on ``folder``, at rest.

    Blocks of which it knows no owner have no claim: maps, attributes, links and internal files.
    """
    size = os.statvfs(folder).f_bsize
    rows = getfsmap(folder)
    claims: list[set[Claim]] = [set() for _ in range(max(r.start + r.length for r in rows) // size)]
    for row in rows:
        if row.kind != "unknown":
            for block in range(row.start // size, (row.start + row.length) // size):
                claims[block].add(Claim(row.kind))
    tree = walk(folder)
    for inode, found in tree.items():
        if stat.S_ISREG(found.mode) or stat.S_ISDIR(found.mode):
            what = "directory" if stat.S_ISDIR(found.mode) else "data"
            place = Path(os.fsdecode(folder) + found.paths[0])
            for one in file_extents(str(place), 0, _MOST):
                if one.has_place:
                    for at in range(0, one.length, size):
                        claims[(one.physical + at) // size].add(
                            Claim(
                                what,
                                inode,
                                (one.logical + at) // size,
                                bool(one.flags & _UNWRITTEN),
                            )
                        )
    paths: dict[int, set[str]] = defaultdict(set)
    paths.update((inode, set(found.paths)) for inode, found in tree.items())
    return Truth(size, claims, paths)
