"""What a study counts and times beside its workloads: what the reverse mapping takes, and how long
entries, writes and failures do."""

import os
import re
from pathlib import Path

import pytest
from demo.demo import unpack
from hypothesis import given
from hypothesis import strategies as st
from tests.support import system_calls, xfsdb
from tests.support.mounts import mounted
from tests.support.tools import need_loop_mounts, run, xfsprogs
from tests.support.xfs_images import MIB, Geometry, make_image

from whoseblock.fs.registry import open_volume
from whoseblock.fs.xfs import XfsFilesystem
from whoseblock.media.device import FileMedia
from whoseblock.media.pmem import EmulatedPmem
from whoseblock.ranges import ByteRange
from whoseblock.study.arithmetic import DEVICES, bytes_in_folios, kept_back, per_page_bytes
from whoseblock.study.base import key_of
from whoseblock.study.disk import leaves_of, lost_leaves, upkeep
from whoseblock.study.extents import Extent, Extents
from whoseblock.study.run import run_workload
from whoseblock.study.sizes import rmap_reserve
from whoseblock.study.sources import ImageSource, MadeUpSource, PiecesSource
from whoseblock.study.space import Segment, Space
from whoseblock.study.timing import entry_times, failure_times, sample, write_times
from whoseblock.study.workloads import WORKLOADS

PAGE = 4096
GIB = 1 << 30


@pytest.fixture(scope="module")
def demo(tmp_path_factory: pytest.TempPathFactory) -> Path:
    image = tmp_path_factory.mktemp("study") / "disk.img"
    unpack(image)
    return image


# ---------------------------------------------------------------------- the disk


def test_upkeep_is_what_xfs_db_prints(demo: Path) -> None:
    with ImageSource(str(demo)) as source:
        found = upkeep(source.filesystem)
        groups = source.filesystem.volume.sb.agcount
    printed = xfsdb.ask(
        demo, [f"agf {agno}\nprint rmapblocks rmaplevel" for agno in range(groups)]
    ).decode()
    blocks = [int(number) for number in re.findall(r"rmapblocks = (\d+)", printed)]
    levels = [int(number) for number in re.findall(r"rmaplevel = (\d+)", printed)]
    assert found.rmap_bytes == sum(blocks) * PAGE
    assert found.levels == max(levels)
    assert found.groups == groups


def test_lost_leaves_make_no_wrong_answers(demo: Path) -> None:
    lost = lost_leaves(str(demo))
    assert lost.leaves == 4
    for leaf in (lost.median, lost.worst):
        assert leaf.records > 0
        assert (leaf.complete, leaf.wrong) == (0, 0)
        assert 0 < leaf.asked <= leaf.pages
    assert lost.median.pages <= lost.worst.pages


def test_a_lost_leaf_leaves_open_what_it_told_of_and_nothing_else(tmp_path: Path) -> None:
    """What `lost_leaves` takes the keys' word for, read for every leaf and every page."""
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
        blocks, group = filesystem.size // PAGE, filesystem.volume.sb.agblocks
        spans = [
            (leaf.agbno + agno * group, leaf.low + agno * group, leaf.high + agno * group)
            for agno in range(filesystem.volume.sb.agcount)
            for leaf in leaves_of(filesystem, agno)
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
        # The poisoned block itself is somebody's, which nobody doubts.
        assert incomplete == list(range(start, end))


@pytest.mark.parametrize("gibibytes", [1, 128])
def test_what_is_kept_back_is_what_the_kernel_keeps(tmp_path: Path, gibibytes: int) -> None:
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


def test_what_is_kept_back_of_larger_devices() -> None:
    # 8,388,608 blocks a group: 99,865 leaves at most, then 2,220, 50, 2 and 1 blocks above.
    assert rmap_reserve(8 << 20) == 99_865 + 2_220 + 50 + 2 + 1
    assert kept_back(128 * GIB) == 4 * 102_138 * PAGE
    # Where the tree cannot have more blocks than a hundredth it is never less.
    assert all(0.01 < kept_back(size) / size < 0.0123 for size in DEVICES.values())


# ---------------------------------------------------------------------- extents


@given(
    st.lists(
        st.tuples(
            st.integers(1, 1500),
            st.integers(0, 600),
            st.lists(st.integers(0, 3), min_size=1, max_size=3),
        ),
        max_size=4,
    )
)
def test_one_tree_for_each_large_folio(runs: list[tuple[int, int, list[int]]]) -> None:
    segments, start = [], 0
    for number, (length, gap, shifts) in enumerate(runs):
        start += gap
        # Aligned in the file as on the device, or off by some pages.
        keys = tuple(
            key_of(100 * number + file, start % 512 + 512 * file + shift)
            for file, shift in enumerate(shifts)
        )
        segments.append(Segment(start, start + length, keys))
        start += length
    expected = 0
    for first, end, keys in segments:
        folios = [
            page
            for page in range(0, end, 512)
            if first <= page
            and page + 512 <= end
            and all((key + page - first) % 512 == 0 for key in keys)
        ]
        small = sum(page - page % 512 not in folios for page in range(first, end))
        expected += (len(folios) + small) * (16 + 40 * len(keys) if len(keys) > 1 else 0)
    assert bytes_in_folios(segments) == expected


@pytest.mark.parametrize("sharing", [2, 8])
@pytest.mark.parametrize("length", [1, 3, 64])
def test_extents_of_one_length(length: int, sharing: int) -> None:
    source = PiecesSource(192, sharing, length)
    assert {one.end - one.start for one in source.space().segments()} == {length}
    result = run_workload(source, WORKLOADS[0], seed=1)
    assert result.pages == 192
    assert result.disagreements == 0
    per_page, per_extent, _ = result.trackers
    assert per_page.memory == 192 * per_page_bytes(sharing)
    assert per_extent.memory == 192 // length * (192 + 40 * sharing)


# ---------------------------------------------------------------------- times


def test_times_are_there(demo: Path) -> None:
    with ImageSource(str(demo)) as source:
        entry = entry_times(source, seed=1, most=500)
        failures = {one.design: one for one in failure_times(source, seed=1)}
    assert 450 < entry.entries < 600
    assert entry.none > 0
    assert entry.out_none > 0
    assert set(entry.added) == set(entry.out_added) == {"per page", "per extent", "on demand"}
    assert failures["per page"].blocks_worst == 0
    # The header of the group, and the tree, which is its root alone; the inode.
    cold = failures["on demand, cold"]
    assert cold.blocks_median is not None
    assert cold.blocks_median >= 2
    assert cold.blocks_worst is not None
    assert cold.blocks_median <= cold.blocks_worst
    assert failures["on demand, warm"].blocks_worst == 0
    together = failures["on demand, 983 at once"]
    assert (together.median, together.worst, together.blocks_worst) == (None, None, None)
    assert 0 < together.blocks_mean < 1


def test_every_page_is_as_likely_to_be_timed() -> None:
    """Of a large extent and many small ones, as many pages as they have of all."""
    files = [Extent(1, 0, 0, 1000)]
    files += [Extent(2, number, 1001 + 2 * number, 1) for number in range(1000)]
    space = Space(Extents(files, [], 4000, []))
    chosen = [sum(entry.mapping == 1 for entry in sample(space, seed, 500)) for seed in range(100)]
    assert 200 < sum(chosen) / len(chosen) < 300


def test_only_writes_that_break_sharing_are_timed() -> None:
    write = write_times(MadeUpSource(256, 2, seed=1), seed=1, most=50)
    assert write.writes == 3 * 50
    assert set(write.seconds) == {"per page", "per extent", "on demand"}
    assert all(seconds > 0 for seconds in (write.clock, *write.seconds.values()))
    # Of two who share a page the one breaks it, and the other then has it for himself.
    assert write_times(MadeUpSource(64, 2, seed=1), seed=1).writes <= 3 * 64
    assert write_times(MadeUpSource(256, 1, seed=1), seed=1).writes == 0
