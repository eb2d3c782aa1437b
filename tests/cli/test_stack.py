"""``whoseblock stack``: what it shows of a filesystem."""

import json
from pathlib import Path

import pytest
from tests.support.commands import whoseblock
from tests.support.xfs_images import MIB, Geometry, make_image


@pytest.mark.parametrize(
    ("rmapbt", "shown", "found"),
    [(True, "xfs", "index"), (False, "xfs (no reverse map: owners unknown)", "none")],
)
def test_how_owners_are_found_is_shown(
    tmp_path: Path, *, rmapbt: bool, shown: str, found: str
) -> None:
    geometry = Geometry("stack", size=300 * MIB, rmapbt=rmapbt, parent=False)
    image = make_image(tmp_path / "disk.img", geometry)
    done = whoseblock("stack", image)
    assert (done.returncode, done.stdout) == (0, f"disk.img  image: {shown}\n")
    tree = json.loads(whoseblock("stack", image, "--json").stdout)
    assert (tree["filesystem"], tree["reverse_map"]) == ("xfs", found)
