"""Mounted XFS without a reverse map, compared with xfs_db, GETFSMAP and a walk."""

import os
import random
import stat
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from tests.support import kernel_oracle, questions, xfs_blocks
from tests.support.answers import answer_json, same
from tests.support.expected_rows import Expectation
from tests.support.filled_images import with_nameless
from tests.support.mounts import mounted
from tests.support.random_files import Filler
from tests.support.tools import need_loop_mounts, xfsprogs
from tests.support.truth import Truth
from tests.support.xfs_images import Geometry, make_image, sparse_copy

import whoseblock
from whoseblock.fs.xfs.mounted.volume import MountedXfs

_REMARK = "there is no reverse map: the owners were found by a scan of "
FORMS = {
    geometry.name: geometry
    for geometry in (
        Geometry("4k", rmapbt=False, parent=False),
        Geometry("1k", block=1024, group_blocks=61_003, rmapbt=False, more=("-m", "finobt=0")),
        Geometry(
            "plain", rmapbt=False, parent=False, reflink=False, nrext64=False, sparse_inodes=False
        ),
        Geometry("64k", block=65536, size=1200 << 20, groups=2, rmapbt=False, parent=False),
    )
}


def live(place: bytes | Path) -> MountedXfs:
    opened = whoseblock.open(os.fsdecode(place))
    assert isinstance(opened, MountedXfs)
    return opened


def fill(root: bytes, geometry: Geometry) -> None:
    """Make files of all sorts, symbolic links and special files with attributes in blocks."""
    filler = Filler(root, geometry.name, block=geometry.block, reflink=geometry.reflink)
    filler.fill(steps=200, names=500)
    if geometry.sparse_inodes:
        filler.sparse_inodes(geometry.inode)
    filler.fragmented_attributes()
    for number, name in enumerate((b"/fifo", b"/node", b"/link")):
        if name == b"/link":
            os.symlink(b"x" * 1000, root + name)
        else:
            kind = stat.S_IFIFO if name == b"/fifo" else stat.S_IFCHR
            os.mknod(root + name, kind | 0o600, os.makedev(1, 3))
        value = b"v" * (3000 + number)
        os.setxattr(root + name, "trusted.large", value, follow_symlinks=False)


@contextmanager
def filled(tmp_path: Path, geometry: Geometry) -> Iterator[tuple[bytes, Truth]]:
    """Fill an image, and mount it for writing again; its truth is that of the unmounted image."""
    need_loop_mounts()
    xfsprogs("xfs_db")
    image = make_image(tmp_path / "live.img", geometry)
    with mounted(image) as root:
        fill(root, geometry)
    copy = sparse_copy(image, tmp_path / "unmounted.img")
    with mounted(image) as root:
        free = [row for row in kernel_oracle.getfsmap(root) if row.kind == "free"]
        truth = with_nameless(xfs_blocks.truth_of(copy, kernel_oracle.walk(root)))
        assert [row for row in truth.rows if row.kind == "free"] == free
        yield root, truth


@pytest.mark.parametrize("form", FORMS)
def test_every_row_is_that_of_the_disk(form: str, tmp_path: Path) -> None:
    geometry = FORMS[form]
    with filled(tmp_path, geometry) as (root, truth), live(root) as fs:
        assert fs.reverse_map == "scan"
        kinds = {(row.kind, row.attr, row.extent_map, row.unwritten) for row in truth.rows}
        assert {("file", False, True, False), ("file", True, False, False)} <= kinds
        expectation = Expectation(truth)
        rng = random.Random(form)
        some = questions.sample_rows(truth, rng, 60)
        edges = questions.around_edges(truth, some) + questions.everywhere(truth, rng, 200)
        for question, answer in zip(edges, fs.owners_many(edges, paths=False), strict=True):
            same(answer_json(answer), question, expectation, paths=False)
        rows = [(row.start, row.length) for row in truth.rows]
        for question, answer in zip(rows, fs.owners_many(rows), strict=True):
            same(answer_json(answer), question, expectation)
        whole = 0, fs.size
        same(answer_json(fs.owners(*whole)), whole, expectation)
        for question in rng.sample(edges, 20):
            answer = fs.owners(*question)
            same(answer_json(answer), question, expectation)
            took = any(row.kind in {"file", "staging"} for row in answer)
            assert not took or any(note.startswith(_REMARK) for note in answer.notes)
