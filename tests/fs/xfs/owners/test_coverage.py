"""Whether files, metadata and free space have each block once: what only a sum of all shows."""

import os
import random
from contextlib import closing
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from tests.support.filled_images import by_kernel
from tests.support.image_damage import Overlay
from tests.support.mounts import mounted
from tests.support.system_calls import fallocate
from tests.support.tools import need_loop_mounts
from tests.support.xfs_blocks import truth_of
from tests.support.xfs_images import MIB, Geometry, make_image, sparse_copy

import whoseblock
from whoseblock.fs.base import Answer, FileOwner
from whoseblock.fs.xfs.filesystem import XfsFilesystem
from whoseblock.fs.xfs.owners import scanned
from whoseblock.fs.xfs.owners.coverage import NOT_COVERED, BlockSum
from whoseblock.media import FileMedia

EDGES = st.lists(st.integers(0, (1 << 52) - 1), min_size=2, max_size=50, unique=True).map(sorted)
BLOCK = 4096
SIZE = 96 * MIB
#: 32 inodes of 512 bytes are written together.
CLUSTER = 32 * 512


def _runs(edges: list[int]) -> list[tuple[int, int]]:
    return [(low, high - low) for low, high in pairwise(edges)]


@given(EDGES, st.randoms(use_true_random=False))
def test_the_sum_of_all_parts_is_that_of_the_whole(edges: list[int], rng: random.Random) -> None:
    runs = _runs(edges)
    rng.shuffle(runs)
    whole, parts, arrays = BlockSum(), BlockSum(), BlockSum()
    whole.add(edges[0], edges[-1] - edges[0])
    parts.add_all(*zip(*runs, strict=True))
    starts, counts = np.array(runs, np.int64).T
    arrays.add_all(starts, counts)
    assert whole.value == parts.value == arrays.value


@given(EDGES, st.data())
def test_other_blocks_have_another_sum(edges: list[int], data: st.DataObject) -> None:
    runs = _runs(edges)
    index = data.draw(st.integers(0, len(runs) - 1))
    by = data.draw(st.integers(-100, 100).filter(bool))
    right, moved = BlockSum(), BlockSum()
    for number, (start, count) in enumerate(runs):
        right.add(start, count)
        moved.add(start + by if number == index else start, count)
    assert right.value != moved.value


class Aged:
    """A full filesystem where /later has blocks that /former had, and more than it had."""

    def __init__(self, folder: Path) -> None:
        geometry = Geometry("full", size=SIZE, rmapbt=False, reflink=False, parent=False)
        image = make_image(folder / "full.img", geometry)
        with mounted(image) as root:
            for name in (b"/former", b"/later"):
                with open(root + name, "wb"):
                    pass
            with open(root + b"/former", "r+b") as file:
                fallocate(file.fileno(), 0, SIZE // 2)
        before = sparse_copy(image, folder / "before.img")
        with mounted(image) as root:
            os.truncate(root + b"/former", 0)
            with open(root + b"/later", "r+b") as file:
                _fill(file.fileno())
        self.before, self.truth = (truth_of(one, by_kernel(one).inodes) for one in (before, image))
        places = {self.inode(name) * geometry.inode // CLUSTER for name in ("/former", "/later")}
        assert len(places) == 1
        #: Both inodes lie in the first group, and are written together.
        self.cluster = places.pop() * CLUSTER
        self.old = before.read_bytes()[self.cluster : self.cluster + CLUSTER]

    def inode(self, path: str) -> int:
        """Return the number of a file."""
        return next(number for number, one in self.truth.inodes.items() if one.paths == [path])

    def common(self) -> tuple[int, int]:
        """Return a range that both files had, each at its time."""
        (former, later) = (
            [row for row in truth.rows if row.inode == self.inode(path) and not row.extent_map]
            for truth, path in ((self.before, "/former"), (self.truth, "/later"))
        )
        return max(
            (max(one.start, other.start), min(one.end, other.end) - max(one.start, other.start))
            for one in former
            for other in later
            if one.start < other.end and other.start < one.end
        )

    def ask(self, *, old: bool) -> Answer:
        """Return the answer about the common range; the cluster of inodes may be old."""
        patches = {self.cluster: self.old} if old else {}
        with (
            closing(FileMedia(self.truth.image)) as media,
            whoseblock.open(Overlay(media, patches)) as fs,
        ):
            return fs.owners(*self.common())


def _fill(file: int) -> None:
    """Allocate all blocks that the kernel does not keep for itself, a twentieth."""
    at, length = 0, SIZE
    while length >= BLOCK:
        try:
            fallocate(file, at, length)
            at += length
        except OSError:
            length //= 2


@pytest.fixture(scope="module")
def aged(tmp_path_factory: pytest.TempPathFactory) -> Aged:
    need_loop_mounts()
    return Aged(tmp_path_factory.mktemp("coverage"))


@pytest.mark.parametrize("large", [1 << 14, 0], ids=["single", "columns"])
def test_an_old_cluster_with_the_former_and_the_later_owner(
    aged: Aged, large: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(scanned, "_LARGE", large)
    healthy = aged.ask(old=False)
    assert healthy.complete, healthy.notes
    assert _owners(healthy) == [aged.inode("/later")]
    answer = aged.ask(old=True)
    # Nothing contradicts this row by itself: no other inode has the blocks, and they are not free.
    assert _owners(answer) == [aged.inode("/former")]
    assert not answer.complete
    assert answer.notes[0] == NOT_COVERED


def _owners(answer: Answer) -> list[int]:
    return [row.inode for row in answer if isinstance(row, FileOwner)]


def test_nothing_is_compared_if_the_disk_is_not_at_rest(aged: Aged) -> None:
    with closing(FileMedia(aged.truth.image)) as media:
        overlay = Overlay(media, {aged.cluster: aged.old})
        with XfsFilesystem(overlay, doubts=["it is mounted"]) as fs:
            answer = fs.owners(*aged.common())
    assert not answer.complete
    assert NOT_COVERED not in answer.notes
