"""The space that the reverse mapping takes, and the answers without one of its leaves."""

import os
import re
from pathlib import Path

import pytest
from tests.support import system_calls, xfsdb
from tests.support.mounts import mounted
from tests.support.tools import need_loop_mounts, run, xfsprogs
from tests.support.xfs_images import MIB, Geometry, make_image

from whoseblock.fs.opening import open_volume
from whoseblock.fs.xfs import XfsFilesystem
from whoseblock.media.device import FileMedia
from whoseblock.media.pmem import EmulatedPmem
from whoseblock.ranges import ByteRange
from whoseblock.study.measurements.disk import lost_leaves, upkeep
from whoseblock.study.measurements.sources import ImageSource

PAGE = 4096
GIB = 1 << 30


def test_upkeep_agrees_with_xfs_db(demo_image: Path) -> None:
    with ImageSource(str(demo_image)) as source:
        found = upkeep(source.filesystem)
    groups = found.groups
    assert xfsdb.ask(demo_image, ["sb 0\nprint agcount"]).decode().split()[-1] == str(groups)
    printed = xfsdb.ask(
        demo_image, [f"agf {agno}\nprint rmapblocks rmaplevel" for agno in range(groups)]
    ).decode()
    blocks = [int(number) for number in re.findall(r"rmapblocks = (\d+)", printed)]
    levels = [int(number) for number in re.findall(r"rmaplevel = (\d+)", printed)]
    assert found.rmap_bytes == sum(blocks) * PAGE
    assert found.levels == max(levels)


def test_lost_leaves_make_no_wrong_answers(demo_image: Path) -> None:
    lost = lost_leaves(str(demo_image))
    assert lost.leaves == 4
    for leaf in (lost.median, lost.worst):
        assert leaf.records > 0
        assert (leaf.complete, leaf.wrong) == (0, 0)
        assert 0 < leaf.asked <= leaf.pages
    assert lost.median.pages <= lost.worst.pages


def test_a_lost_leaf_makes_exactly_its_own_pages_incomplete(tmp_path: Path) -> None:
    # What `lost_leaves` takes the keys' word for, read for every leaf and every page.
    need_loop_mounts()
    image = make_image(tmp_path / "disk", Geometry("leaves", size=64 * MIB, groups=2, parent=False))
    with mounted(image) as folder:
        file = os.open(folder + b"/pieces", os.O_RDWR | os.O_CREAT)
        os.pwrite(file, bytes(2000 * PAGE), 0)
        os.fsync(file)
        for at in range(1, 2000, 2):
            system_calls.punch_hole(file, at * PAGE, PAGE)
        os.close(file)
    with XfsFilesystem(FileMedia(image)) as filesystem:
        blocks = filesystem.size // PAGE
        spans = [
            (leaf.block // PAGE, leaf.start // PAGE, (leaf.start + leaf.length) // PAGE)
            for leaf in filesystem.index_leaves()
        ]
    assert len(spans) > 5
    found = lost_leaves(str(image))
    assert found.leaves == len(spans)
    assert found.mean == pytest.approx(sum(end - start for _, start, end in spans) / len(spans))
    assert found.worst.pages == max(end - start for _, start, end in spans)
    starts = [block * PAGE for block in range(blocks)]
    for block, start, end in spans:
        media = EmulatedPmem(FileMedia(image), poison=[ByteRange(block * PAGE, PAGE)])
        with open_volume([media]) as wounded:
            complete = wounded.owners_of(starts, [PAGE] * blocks).complete
        incomplete = [page for page in range(blocks) if not complete[page]]
        # The poisoned block itself has an owner, and is complete.
        assert incomplete == list(range(start, end))


@pytest.mark.parametrize("gibibytes", [1, 128])
def test_the_reserve_is_that_of_the_kernel(tmp_path: Path, gibibytes: int) -> None:
    need_loop_mounts()
    offered = []
    for rmap in (True, False):
        path = tmp_path / f"rmap-{rmap:d}"
        with path.open("wb") as file:
            file.truncate(gibibytes * GIB)
        run([xfsprogs("mkfs.xfs", newest=False), "-q", "-m", f"rmapbt={rmap:d},reflink=1", path])
        with mounted(path) as folder:
            status = os.statvfs(folder)
            offered.append(status.f_bavail * status.f_frsize)
    with XfsFilesystem(FileMedia(tmp_path / "rmap-1")) as filesystem:
        found = upkeep(filesystem)
    # The root of each tree is there from the beginning, and besides.
    assert offered[1] - offered[0] == found.kept_bytes + found.groups * PAGE
