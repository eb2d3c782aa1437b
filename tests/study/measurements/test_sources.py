"""The sources of a study's extents: images, or generated."""

from collections import defaultdict
from pathlib import Path

import pytest
from tests.support import xfsdb
from tests.support.study_worlds import owners_by_page
from tests.support.tools import Missing, sees
from tests.support.xfs_images import MIB, Geometry, make_image

from whoseblock.errors import TargetError, UnsupportedError
from whoseblock.study.base import PageOwner, Tracker
from whoseblock.study.measurements.run import run_workload
from whoseblock.study.measurements.sources import ImageSource, PiecesSource
from whoseblock.study.report.arithmetic import per_page_bytes
from whoseblock.study.simulation.entries import Entries
from whoseblock.study.simulation.workloads import WORKLOADS
from whoseblock.study.simulation.world import World


@pytest.mark.parametrize("sharing", [2, 8])
@pytest.mark.parametrize("length", [1, 3, 64])
def test_generated_extents_have_one_length(length: int, sharing: int) -> None:
    source = PiecesSource(192, sharing, length)
    assert {one.end - one.start for one in source.space().segments()} == {length}
    result = run_workload(source, WORKLOADS[0], seed=1)
    assert result.pages == 192
    assert result.disagreements == 0
    per_page, per_extent, _ = result.trackers
    assert per_page.memory == 192 * per_page_bytes(sharing)
    assert per_extent.memory == 192 // length * (192 + 40 * sharing)


PAGE = 4096


def test_the_extents_are_those_of_xfs_db(demo_image: Path) -> None:
    if not sees("-n", "parent=1"):
        raise Missing("this xfs_db knows no parent pointers, the image has: run tools/xfsprogs")
    expected: dict[int, set[PageOwner]] = defaultdict(set)
    modes = xfsdb.inode_cores(demo_image, sorted(xfsdb.walk(demo_image)))
    for row in xfsdb.rows(demo_image, xfsdb.superblock(demo_image)):
        regular = row.kind == "file" and modes[row.inode][0] & 0o170000 == 0o100000
        if regular and not (row.attr or row.extent_map or row.unwritten):
            for at in range(0, row.length, PAGE):
                owner = PageOwner(row.inode, (row.offset + at) // PAGE)
                expected[(row.start + at) // PAGE].add(owner)
    with ImageSource(str(demo_image)) as source:
        assert owners_by_page(source.space()) == expected


def test_many_questions_are_answered_like_single_ones(demo_image: Path) -> None:
    with ImageSource(str(demo_image)) as source:
        world: World[Tracker] = World(source.space(), Entries(), [])
        answers, lookup = source.answers(world.space), source.lookup(world.space)
        first, *_, last = source.extents.files
        every_page = range(source.extents.pages)

        def compare() -> None:
            for page in filter(world.space.keys, every_page):
                assert answers(page) == lookup(page).keys == world.space.keys(page)

        compare()
        world.truncate(first.mapping, first.first)
        compare()
        world.reflink(last, first.mapping, first.first)
        world.write(first.mapping, first.first)
        compare()


def test_an_unsuitable_image_is_refused(tmp_path: Path) -> None:
    with pytest.raises(TargetError):
        ImageSource(str(tmp_path / "none"))
    plain = Geometry("plain", size=64 * MIB, rmapbt=False, parent=False)
    with pytest.raises(UnsupportedError, match="no reverse map to measure"):
        ImageSource(str(make_image(tmp_path / "plain", plain)))
    small = Geometry("small", size=64 * MIB, block=1024, parent=False)
    with (
        ImageSource(str(make_image(tmp_path / "small", small))) as source,
        pytest.raises(UnsupportedError, match="blocks of 1024"),
    ):
        _ = source.extents
