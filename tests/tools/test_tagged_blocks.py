"""A sample of the tagged blocks that `python -m tools.tagged_blocks` looks up at length."""

from pathlib import Path

import pytest
from tests.support.machine_snapshots import FIXTURES, unpacked
from tools.tagged_blocks import count, find_groups, judge_devices, judge_images, read_pairs

#: Disks, and how many blocks of theirs are followed to their volume.
FOLLOWED = {
    "early": 2816, "middle": 2816, "atomic": 2816, "mix": 2560, "kind": 512, "kicked": 1792,
    "kicked5": 2384, "replace": 4496, "rebuild": 3312, "imsm": 0, "ddf": 0,
}  # fmt: skip
#: Snapshots of the kernel, and the disks that were in use then.
SNAPSHOTS = {
    "imsm": ("early", "middle", "atomic", "mix", "kind", "imsm", "ddf"),
    "kicked": ("kicked", "kicked5"),
    "rebuild": ("replace", "rebuild"),
}


@pytest.fixture(scope="module")
def groups(session_folder: Path) -> dict[str, list[Path]]:
    return find_groups(unpacked("hard-images", session_folder))


@pytest.mark.parametrize("group", FOLLOWED)
def test_tagged_blocks_of_images(group: str, groups: dict[str, list[Path]]) -> None:
    tally = count(judge_images(groups[group]))
    assert not tally.wrong
    assert tally.counts["right"] == FOLLOWED[group]


@pytest.mark.parametrize("snapshot", SNAPSHOTS)
def test_tagged_blocks_of_devices(
    snapshot: str, groups: dict[str, list[Path]], session_folder: Path
) -> None:
    root = unpacked(f"hard-{snapshot}", session_folder)
    loops = read_pairs(FIXTURES / "hard-loops.txt")
    arrays = {one: md for md, one in read_pairs(FIXTURES / "hard-names.txt").items()}
    for group in SNAPSHOTS[snapshot]:
        tally = count(judge_devices(groups[group], root, loops, arrays))
        assert not tally.wrong
        # A snapshot lacks the states of mirrors: whether their other devices are copies is unknown.
        assert tally.counts["right"] + tally.counts["doubted"] * (group == "kind") > 1500
