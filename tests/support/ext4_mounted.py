"""A mounted ext4 by the kernel alone: GETFSMAP, FIEMAP of every file, and a walk of the tree."""

import os
import stat
from collections import defaultdict
from pathlib import Path

from msgspec import UNSET
from tests.support.ext4_images import Claim, Truth, claims_in
from tests.support.kernel_oracle import getfsmap, walk

from whoseblock.fs.base import Answer, FileOwner
from whoseblock.fs.mounted.fiemap import file_extents

__all__ = ["HELD", "check_with_kernel", "kernel_truth"]

_MOST = (1 << 63) - 1
_UNWRITTEN = 0x800  # linux/fiemap.h
#: The note about blocks that are in no file and not free, in the row of which nothing is known.
HELD = "kernel holds them"
_UNKNOWN_TO_KERNEL = {"static", "log", "mmp", "extent-map", "xattr", "symlink"}


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


def check_with_kernel(
    answer: Answer, truth: Truth, mount: str | None = None, *, clusters: bool = False
) -> None:
    """Compare each row and path of an answer with what the kernel knows: `kernel_truth`.

    ``mount`` is where the filesystem is mounted, if the answer is about a mounted one.  With
    ``clusters`` (bigalloc), files have the rest of their clusters, which FIEMAP leaves out.
    """
    for block, claims in claims_in(answer, truth.block_size).items():
        whats = {claim.what for claim in claims}
        expected = truth.claims[block]
        if whats == {"unknown"}:
            assert not expected
            assert any(HELD in note for note in answer.notes)
        elif not expected:
            # Neither a file's data nor free: maps, attributes, links and internal files.
            is_rest = clusters and all(claim.unwritten for claim in claims)
            is_other = whats <= _UNKNOWN_TO_KERNEL or _is_internal(claims, truth)
            assert is_rest or is_other, (block, claims)
        elif claims != expected:
            assert whats in ({"static"}, {"log"}), (block, claims, expected)
    for row in answer:
        if isinstance(row, FileOwner) and row.detail is UNSET:
            assert isinstance(row.paths, tuple)
            assert set(row.paths) == truth.paths[row.inode], row
            if mount is not None:
                assert row.mounted_at == tuple((mount + path).rstrip("/") for path in row.paths)
                assert isinstance(row.generation, int)


def _is_internal(claims: set[Claim], truth: Truth) -> bool:
    """Return whether only inodes claim a block that no directory names."""
    return all(claim.inode and claim.inode not in truth.paths for claim in claims)
