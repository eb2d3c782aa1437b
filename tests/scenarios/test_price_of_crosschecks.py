"""The cost of the cross-checks: at most one more descent, but where two notice different states."""

import lzma
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import pytest
from msgspec import UNSET

import whoseblock
from whoseblock.errors import CorruptError
from whoseblock.fs.base import FileOwner, Free, MetadataOwner, Owner
from whoseblock.fs.xfs import XfsFilesystem
from whoseblock.fs.xfs.format.btree import (
    XFS_RMAP_OFF_ATTR_FORK,
    XFS_RMAP_OFF_BMBT_BLOCK,
    XFS_RMAP_OWN_AG,
    XFS_RMAP_OWN_COW,
    XFS_RMAP_OWN_FS,
    XFS_RMAP_OWN_INOBT,
    XFS_RMAP_OWN_INODES,
    XFS_RMAP_OWN_REFC,
)
from whoseblock.fs.xfs.format.inode import XFS_DIFLAG2_REFLINK
from whoseblock.fs.xfs.owners.crosscheck import Claim, CrossCheck

DEMO = Path(__file__).resolve().parents[2] / "demo" / "image.xfs.xz"
BLOCK = 4096
#: Trees that a lookup without cross-checks descends: for the owner, and for free space.
UNCHECKED = {"file": {"rmapbt"}, "metadata": {"rmapbt"}, "free": {"rmapbt", "bnobt"}}
TREES = {"rmapbt", "bnobt", "cntbt", "refcountbt", "inobt", "bmbt"}

SMALL, LARGE, REFLINKED, LOST = 131, 132, 133, 134


@pytest.fixture(scope="module")
def demo(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("price") / "demo.img"
    path.write_bytes(lzma.decompress(DEMO.read_bytes()))
    return path


def _rows(path: Path) -> Iterator[Owner]:
    with whoseblock.open(path) as fs:
        yield from fs.owners(0, fs.size, paths=False)


def test_one_more_descent_for_each_row(demo: Path) -> None:
    seen = set()
    for row in _rows(demo):
        with whoseblock.open(demo) as fs:
            assert isinstance(fs, XfsFilesystem)
            (found, *_) = fs.owners(row.start, BLOCK, paths=False)
            extra = (fs.reads.keys() & TREES) - UNCHECKED[found.kind]
        what = found.what if isinstance(found, FileOwner | MetadataOwner) else found.kind
        assert len(extra) <= 1, (found, extra)
        seen.add(what)
    assert seen >= {"data", "free", "inodes", "ag", "static", "log"}


def test_free_space_does_not_need_the_refcounts(demo: Path) -> None:
    row = next(row for row in _rows(demo) if isinstance(row, Free))
    with whoseblock.open(demo) as fs:
        assert fs.owners(row.start, BLOCK)[0].kind == "free"
        assert fs.reads["cntbt"]
        assert not fs.reads["refcountbt"]


class _Maps:
    """Files with small and large extent maps, one of them with the flag of shared extents."""

    inodes = SimpleNamespace(
        get=lambda ino: SimpleNamespace(
            core=SimpleNamespace(flags2=XFS_DIFLAG2_REFLINK if ino == REFLINKED else 0)
        )
    )

    def is_btree(self, ino: int, _fork: str) -> bool:
        if ino == LOST:
            raise CorruptError("inode", 0, "lost")
        return ino != SMALL


@pytest.mark.parametrize(
    ("owner", "offset", "needed"),
    [
        (SMALL, 0, True),
        (LARGE, 0, False),
        (REFLINKED, 0, True),
        (REFLINKED, XFS_RMAP_OFF_ATTR_FORK, False),
        (REFLINKED, XFS_RMAP_OFF_BMBT_BLOCK, False),
        (LOST, 0, True),
        (XFS_RMAP_OWN_INODES, 0, False),
        (XFS_RMAP_OWN_COW, 0, False),
        (XFS_RMAP_OWN_AG, 0, False),
        (XFS_RMAP_OWN_INOBT, 0, False),
        (XFS_RMAP_OWN_REFC, 0, False),
        (XFS_RMAP_OWN_FS, 0, True),
    ],
)
def test_which_owners_need_the_refcounts(owner: int, offset: int, *, needed: bool) -> None:
    check = CrossCheck(cast("Any", UNSET), cast("Any", UNSET), cast("Any", _Maps()))
    assert check.needs_counts([Claim(5, 6, owner, offset)]) is needed


def test_overlapping_owners_need_the_refcounts() -> None:
    check = CrossCheck(cast("Any", UNSET), cast("Any", UNSET), cast("Any", _Maps()))
    apart = [Claim(5, 6, LARGE, 0), Claim(6, 7, LARGE, 1)]
    assert not check.needs_counts(apart)
    assert not check.needs_counts([])
    assert check.needs_counts([*apart, Claim(6, 7, 200, 0)])
