"""The blocks that the cross-checks of an answer read, for each class of owner."""

import os
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Final, NamedTuple

import numpy as np
from tests.support import system_calls
from tests.support.mounts import mounted

import whoseblock
from bench.images import BLOCK, fragmented_file, made, make_empty
from bench.measure import Result, Table
from whoseblock.fs.arrays import OwnerArrays
from whoseblock.fs.pieces import (
    ATTR,
    DATA,
    EXTENT_MAP,
    FILE,
    FREE,
    INODES,
    LOG,
    METADATA,
    STATIC,
)
from whoseblock.fs.xfs import XfsFilesystem
from whoseblock.fs.xfs.format.inode import ATTR_FORK, DATA_FORK, XFS_DIFLAG2_REFLINK
from whoseblock.fs.xfs.inodes import InodeTable
from whoseblock.fs.xfs.owners.crosscheck import CrossCheck
from whoseblock.fs.xfs.owners.finder import OwnerFinder
from whoseblock.fs.xfs.owners.group_btrees import GROUP_BTREES

__all__ = ["measure_all"]

#: Extents of each fragmented file, and the number of small files.
EXTENTS: Final = 60_000
FILES: Final = 40_000
#: Questions about each class.
QUESTIONS: Final = 100

#: The classes, and the descents that each may take beside those of an answer without checks.
CLASSES: Final = {
    "file, extents in the inode": 1,
    "shared file, extents in the inode": 1,
    "file, btree map, never shared": 1,
    "file, btree map, reflinked": 2,
    "extended attributes": 1,
    "extent map": 1,
    "free": 1,
    "inodes": 1,
    "AG headers, log": 1,
    "AG btrees": 1,
}


class _Unchecked(CrossCheck):
    """Compares nothing, as lookups did before the cross-checks."""

    def needs_counts(self, *_: object) -> bool:
        return False

    def counts(self, *_: object, **__: object) -> list[tuple[int, int, int]]:
        return []

    def check(self, *_: object) -> None:
        return None

    def is_free(self, *_: object) -> bool:
        return True


def measure_all(folder: Path) -> Iterator[Result | Table]:
    """Count the blocks that cold questions read, with and without the cross-checks."""
    path = made(folder, f"price-{EXTENTS}-{FILES}", _make)
    rows = []
    with whoseblock.open(path) as filesystem:
        assert isinstance(filesystem, XfsFilesystem)  # noqa: S101 - its finder is replaced below
        questions = _by_class(filesystem)
        for name, descents in CLASSES.items():
            cost = _cost(filesystem, questions[name])
            extra = ", ".join(f"{kind} {blocks:.3g}" for kind, blocks in cost.extra.items())
            before, after = cost.before, cost.before + sum(cost.extra.values())
            rows.append((name, len(questions[name]), before, after, cost.most, extra or "none"))
            yield Result(
                f"descents of cross-checks: {name}",
                cost.most, descents, "", cost.most / descents, 1, at_least=False,
            )  # fmt: skip
    heads = ("class", "questions", "blocks without", "blocks with", "descents, at most", "of them")
    yield Table("blocks read by a cold question", heads, rows)


class _Cost(NamedTuple):
    """Mean blocks without checks, and more by kind with them; the most kinds of one question."""

    before: float
    extra: dict[str, float]
    most: int


def _cost(filesystem: XfsFilesystem, places: list[int]) -> _Cost:
    before: Counter[str] = Counter()
    extra: Counter[str] = Counter()
    most = 0
    for start in places:
        without, checked = (_reads(filesystem, start, checked=checked) for checked in (False, True))
        more = checked - without
        before += without
        extra += more
        # An inode's place follows from its number, and the lookup of its paths reads it anyway.
        # The AGFL and the head of the block that is asked about are one sector each.
        most = max(most, len(more.keys() - {"inode", "agfl", "btree"}))
    count = len(places)
    return _Cost(
        before.total() / count, {kind: extra[kind] / count for kind in sorted(extra)}, most
    )


def _reads(filesystem: XfsFilesystem, start: int, *, checked: bool) -> Counter[str]:
    """Return the blocks by kind that one cold question reads."""
    volume = filesystem.volume
    finder = OwnerFinder(volume, InodeTable(volume))
    if not checked:
        finder.check = _Unchecked(volume, finder, finder.maps)
    before = volume.reads.copy()
    notes: list[str] = []
    finder.find(start, BLOCK, notes)
    if notes:
        raise RuntimeError(f"a note about a healthy filesystem: {notes}")
    return volume.reads - before


def _by_class(filesystem: XfsFilesystem) -> dict[str, list[int]]:
    """Return places to ask about for each class, at random."""
    volume = filesystem.volume
    groups = range(0, filesystem.size, volume.ag_bytes)
    lengths = [min(volume.ag_bytes, filesystem.size - start) for start in groups]
    rows = filesystem.owners_of(list(groups), lengths)
    file = rows.kind == FILE
    maps = OwnerFinder(volume, filesystem.inodes).maps
    large, reflinked = (np.zeros(rows.inode.size, dtype=np.bool_) for _ in range(2))
    for inode in np.unique(rows.inode[file]).tolist():
        here = file & (rows.inode == inode)
        for number, fork in ((DATA, DATA_FORK), (ATTR, ATTR_FORK)):
            if maps.is_btree(inode, fork):
                large |= here & (rows.fork == number)
        if filesystem.inodes.get(inode).core.flags2 & XFS_DIFLAG2_REFLINK:
            reflinked |= here
    data = file & (rows.fork == DATA) & (rows.what != EXTENT_MAP)
    metadata = rows.kind == METADATA
    chosen = {
        "file, extents in the inode": data & ~large & ~rows.shared,
        "shared file, extents in the inode": data & ~large & rows.shared,
        "file, btree map, never shared": data & large & ~reflinked,
        "file, btree map, reflinked": data & large & reflinked,
        "extended attributes": file & (rows.fork == ATTR) & (rows.what != EXTENT_MAP),
        "extent map": file & (rows.what == EXTENT_MAP),
        "free": rows.kind == FREE,
        "inodes": metadata & (rows.what == INODES),
        "AG headers, log": metadata & np.isin(rows.what, (STATIC, LOG)),
        "AG btrees": metadata & np.isin(rows.what, list(GROUP_BTREES)),
    }
    return {name: _some(rows, which) for name, which in chosen.items()}


def _some(rows: OwnerArrays, which: "np.ndarray[tuple[int], np.dtype[np.bool_]]") -> list[int]:
    """Return the places of some rows, each a block; raises `RuntimeError` if there are none."""
    places = np.unique(rows.start[which])
    if not places.size:
        raise RuntimeError("the image lacks a class of owner")
    generator = np.random.default_rng(20201)
    found: list[int] = generator.permutation(places)[:QUESTIONS].tolist()
    return found


def _make(path: Path) -> None:
    """Make an image whose trees have two levels and more."""
    make_empty(path, 4 << 30, "-d", "agcount=4")
    with mounted(path) as root:
        fragmented_file(root + b"/alone", EXTENTS)
        fragmented_file(root + b"/cloned", EXTENTS, written=True)
        _clone(root + b"/cloned", root + b"/clone")
        for number in range(FILES):
            if number % 500 == 0:
                folder = root + b"/folder-%d" % (number // 500)
                Path(folder.decode()).mkdir()
            name = folder + b"/%d" % number
            with Path(name.decode()).open("wb") as file:
                file.write(b"x" if number % 4 else b"")
            if number % 100 == 1:
                _clone(name, name + b"-clone")
            if number % 400 == 3:
                os.setxattr(name, "user.large", bytes(3000))


def _clone(name: bytes, other: bytes) -> None:
    with Path(name.decode()).open("rb") as source, Path(other.decode()).open("wb") as target:
        system_calls.clone_range(source.fileno(), 0, 0, target.fileno(), 0)
