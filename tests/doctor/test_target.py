"""The checks of the layers of a target, and of the filesystems on them."""

import os
from pathlib import Path

import pytest
from tests.support.disk_images import partition
from tests.support.mounts import mounted
from tests.support.tools import need_root, run
from tests.support.xfs_images import MIB, Geometry, make_image, sparse_file

from whoseblock.doctor.base import Check, State
from whoseblock.doctor.target import check_target
from whoseblock.lookup import Lookup
from whoseblock.target import Target, TargetOptions


def checks_of(path: Path) -> list[Check]:
    with Target(str(path), TargetOptions()) as target, Lookup(target.open_leaf) as finder:
        assert target.layer is not None
        return list(check_target(target.layer, finder))


def states(found: list[Check]) -> dict[str, State]:
    return {one.name: one.state for one in found}


@pytest.mark.parametrize(("rmapbt", "state"), [(True, State.WORKS), (False, State.LIMITED)])
def test_the_way_to_owners_is_told(tmp_path: Path, *, rmapbt: bool, state: State) -> None:
    geometry = Geometry("doctor", size=300 * MIB, rmapbt=rmapbt, parent=False)
    found = checks_of(make_image(tmp_path / "disk.img", geometry))
    assert states(found)["filesystem"] is State.WORKS
    assert states(found)["owners"] is state
    assert states(found)["repairs"] is State.LIMITED


def test_a_disk_is_followed_down_to_what_is_unknown(tmp_path: Path) -> None:
    disk = sparse_file(tmp_path / "disk.img", 96 * MIB)
    partition(disk, "label: gpt\nsize=40M\nsize=8M\n")
    swap = sparse_file(tmp_path / "swap", 8 * MIB)
    run(["mkswap", "-q", swap])
    with disk.open("r+b") as file:
        file.seek(41 * MIB)
        file.write(swap.read_bytes())
    found = checks_of(disk)
    contents = [one for one in found if one.name == "content"]
    assert [one.state for one in contents] == [State.MISSING] * 2
    assert "swap" in contents[1].detail


def test_a_mounted_filesystem_can_be_repaired(tmp_path: Path) -> None:
    need_root()
    image = make_image(tmp_path / "disk.img", Geometry("doctor", size=300 * MIB))
    with mounted(image) as root:
        found = checks_of(Path(os.fsdecode(root)))
    assert states(found)["repairs"] is State.WORKS
    assert any(os.fsdecode(root) in one.detail for one in found)
