"""The rule of `tools.adversary` for an old leaf that only moves the blocks of a file."""

import os
from contextlib import closing

import pytest
from tests.support.filled_images import by_kernel
from tests.support.image_damage import Overlay, overwrite
from tests.support.mounts import mounted
from tests.support.system_calls import insert_range
from tests.support.tools import need_loop_mounts
from tests.support.xfs_blocks import truth_of
from tests.support.xfs_images import make_image, sparse_copy
from tools.adversary.bases import BASES, Base
from tools.adversary.damaged import Patient
from tools.adversary.policy import inherent_reason
from tools.adversary.units import Unit, find_units
from tools.adversary.wounds import Wounds

import whoseblock

BLOCK = 4096
#: So many extents of one block are a btree, whose root in the inode has one leaf.
EXTENTS = 40


@pytest.fixture(scope="module")
def old_leaf(tmp_path_factory: pytest.TempPathFactory) -> tuple[Patient, Unit, bytes]:
    """Move most extents of a file with one leaf of a map; return the leaf from before."""
    need_loop_mounts()
    folder = tmp_path_factory.mktemp("moved")
    image = make_image(folder / "scan-plain-0.img", BASES["scan-plain"].geometry)
    with mounted(image) as root, open(root + b"/file", "wb") as file:
        for number in range(EXTENTS):
            os.pwrite(file.fileno(), b"data" * 1024, 2 * number * BLOCK)
    before = sparse_copy(image, folder / "before.img").read_bytes()
    with mounted(image) as root, open(root + b"/file", "r+b") as file:
        insert_range(file.fileno(), 11 * BLOCK, 3 * BLOCK)
    truth = truth_of(image, by_kernel(image).inodes)
    patient = Patient(Base(truth, find_units(image), {}))
    leaf = next(unit for unit in patient.base.units if unit.kind == "bmbt")
    return patient, leaf, before[leaf.start : leaf.start + leaf.length]


def test_an_old_leaf_with_the_same_blocks_is_inherent(
    old_leaf: tuple[Patient, Unit, bytes],
) -> None:
    patient, leaf, old = old_leaf
    row = max(
        (row for row in patient.base.truth.rows if row.kind == "file" and not row.extent_map),
        key=lambda row: row.offset,
    )
    question = row.start, row.length
    with closing(whoseblock.open(Overlay(patient.media, {leaf.start: old}))) as fs:
        answer = fs.owners(*question, paths=False)
    verdict = patient.judge.judge(question, answer, strict=False)
    assert verdict is not None
    assert (answer.complete, verdict.fault) == (True, "wrong place")
    wounds = Wounds("stale, one", [(leaf, old, "old")])
    assert inherent_reason(patient.base, wounds, verdict)
    # The same fault is a defect if the leaf has one other block, or is another file's.
    others = overwrite(old, 72 + 16 * 20 + 8, bytes(8)), overwrite(old, 56, bytes(8))
    for other in others:
        wounds = Wounds("stale, one", [(leaf, other, "old")])
        assert not inherent_reason(patient.base, wounds, verdict)


def test_the_patient_is_healthy(old_leaf: tuple[Patient, Unit, bytes]) -> None:
    patient, _, _ = old_leaf
    with whoseblock.open(patient.base.truth.image) as fs:
        for row in patient.base.truth.rows:
            question = row.start, row.length
            answer = fs.owners(*question, paths=False)
            assert answer.complete
            assert patient.judge.judge(question, answer, strict=True) is None
