"""Studies of real images, against xfs_db and the kernel."""

import os
import random
from collections import defaultdict
from pathlib import Path

import pytest
from demo.demo import unpack
from tests.support import calls, xfsdb
from tests.support.images import MIB, Geometry, make_image
from tests.support.mounts import mounted
from tests.support.tools import Missing, need_loop_mounts, sees

from whoseblock.errors import TargetError, UnsupportedError
from whoseblock.study.base import Owner, Tracker, owner_of
from whoseblock.study.entries import Entries
from whoseblock.study.extents import Extent, Extents
from whoseblock.study.run import Run, run_workload
from whoseblock.study.sources import ImageSource, MadeUpSource
from whoseblock.study.space import Space
from whoseblock.study.workloads import LIFE, WORKLOADS, Step, Workload, fault_in
from whoseblock.study.world import World

PAGE = 4096
FILES = 5
FILE_PAGES = 32

every_workload = pytest.mark.parametrize(
    "workload", [*WORKLOADS, LIFE], ids=lambda workload: workload.name
)


@pytest.fixture(scope="module")
def demo(tmp_path_factory: pytest.TempPathFactory) -> Path:
    image = tmp_path_factory.mktemp("study") / "disk.img"
    unpack(image)
    return image


def owners_by_page(space: Space) -> dict[int, set[Owner]]:
    found: dict[int, set[Owner]] = defaultdict(set)
    for segment in space.segments():
        for at in range(segment.end - segment.start):
            found[segment.start + at] = {owner_of(key + at) for key in segment.keys}
    return found


def test_the_extents_are_those_of_xfs_db(demo: Path) -> None:
    if not sees("-n", "parent=1"):
        raise Missing("this xfs_db knows no parent pointers, the image has: run tools/xfsprogs")
    expected: dict[int, set[Owner]] = defaultdict(set)
    modes = xfsdb.inode_cores(demo, sorted(xfsdb.walk(demo)))
    for row in xfsdb.rows(demo, xfsdb.superblock(demo)):
        regular = row.kind == "file" and modes[row.inode][0] & 0o170000 == 0o100000
        if regular and not (row.attr or row.extent_map or row.unwritten):
            for at in range(0, row.length, PAGE):
                owner = Owner(row.inode, (row.offset + at) // PAGE)
                expected[(row.start + at) // PAGE].add(owner)
    with ImageSource(str(demo)) as source:
        assert owners_by_page(source.space()) == expected


@every_workload
def test_the_designs_agree_on_an_image(demo: Path, workload: Workload) -> None:
    with ImageSource(str(demo)) as source:
        result = run_workload(source, workload, seed=7, life_steps=1500)
        again = run_workload(source, workload, seed=7, life_steps=1500)
    assert result == again
    assert result.disagreements == 0
    assert result.checked > result.pages
    per_page, per_extent, on_demand = result.trackers
    assert on_demand.memory == on_demand.peak == on_demand.allocations == 0
    if workload is not LIFE:
        # 256 pages are shared by two files; all is faulted in.
        assert per_page.memory == 256 * 96
        assert per_extent.memory == 2 * (192 + 2 * 40)
        assert result.blindness.known == result.blindness.owners == result.associations


def test_who_tracks_is_blind_for_what_was_not_faulted(demo: Path) -> None:
    with ImageSource(str(demo)) as source:
        result = run_workload(source, LIFE, seed=3, life_steps=3000)
    per_page, per_extent, on_demand = (tracker.failures for tracker in result.trackers)
    assert per_page == per_extent
    assert per_page.missed > 0
    assert per_page.free == per_page.metadata == 0
    assert on_demand.missed == on_demand.unknown == 0
    assert on_demand.free > 0
    assert on_demand.metadata > 0
    # Of space never written, too, the disk knows whose it is.
    assert on_demand.told >= per_page.told + per_page.missed


def test_a_disagreement_is_counted(demo: Path) -> None:
    with ImageSource(str(demo)) as source:
        run = Run(source)
        entries = list(fault_in(run.space, WORKLOADS[0], seed=1))
        run.trackers[0].associate(entries[0].page, 999, 0)
        run.go([Step("fault", entry) for entry in entries], len(entries))
        assert run.disagreements == 1


def test_an_owner_that_on_demand_does_not_know_is_counted(
    demo: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with ImageSource(str(demo)) as source:
        answers = source.answers(source.space())
        lost = source.extents.files[0]
        forgetful = {lost.page: answers(lost.page)[1:]}
        monkeypatch.setattr(
            ImageSource, "answers", lambda *_: lambda page: forgetful.get(page, answers(page))
        )
        run = Run(source)
        entries = fault_in(run.space, WORKLOADS[0], seed=1)
        run.go((Step("fault", entry) for entry in entries), 1)
        assert run.disagreements >= 1


def test_many_questions_are_answered_like_single_ones(demo: Path) -> None:
    with ImageSource(str(demo)) as source:
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


def test_a_step_touches_all_pages_whose_owners_it_changes() -> None:
    files = [Extent(mapping, 0, 100, 10) for mapping in (1, 2)]
    space = Space(Extents(files, [(200, 10)], 300, []))
    world: World[Tracker] = World(space, Entries(), [])
    assert world.fault(Extent(1, 3, 103, 1)) == [(103, 1)]
    assert world.reflink(Extent(1, 0, 100, 2), 3, 5) == [(100, 2)]
    assert world.write(2, 4) == [(104, 1), (200, 1)]
    assert world.punch(1, 2, 2) == [(102, 2)]
    assert world.evict(1) == []
    assert world.evict(2) == [(200, 1)]
    assert world.truncate(2, 3) == [(103, 1), (200, 1), (105, 5)]


def test_large_entries_are_taken_where_they_fit() -> None:
    with MadeUpSource(20_000, 2, seed=5) as source:
        small = run_workload(source, WORKLOADS[0], seed=1)
        large = run_workload(source, WORKLOADS[2], seed=1)
    assert large.associations == small.associations
    saved = small.faults - large.faults
    assert saved > 0
    assert saved % 511 == 0
    assert [one.memory for one in large.trackers] == [one.memory for one in small.trackers]


def test_what_cannot_be_studied_is_said(tmp_path: Path) -> None:
    with pytest.raises(TargetError):
        ImageSource(str(tmp_path / "none"))
    plain = Geometry("plain", size=64 * MIB, rmapbt=False, parent=False)
    with pytest.raises(UnsupportedError, match="no reverse mapping"):
        ImageSource(str(make_image(tmp_path / "plain", plain)))
    small = Geometry("small", size=64 * MIB, block=1024, parent=False)
    with (
        ImageSource(str(make_image(tmp_path / "small", small))) as source,
        pytest.raises(UnsupportedError, match="blocks of 1024"),
    ):
        _ = source.extents


# ---------------------------------------------------------------------- the kernel

#: What is done, to which file, where, how many pages; for a reflink, from which file and where.
Act = tuple[str, int, int, int, int, int]


def random_acts(rng: random.Random) -> list[Act]:
    acts = []
    for _ in range(60):
        what = rng.choice(["reflink", "reflink", "write", "write", "punch", "truncate"])
        index, count = rng.randrange(FILE_PAGES), rng.randint(1, 8)
        one, other = rng.sample(range(FILES), 2)
        acts.append((what, one, index, count, other, rng.randrange(FILE_PAGES)))
    return acts


def in_the_kernel(act: Act, root: Path) -> None:
    what, one, index, count, other, to = act
    if what == "truncate":
        os.truncate(root / str(one), index * PAGE)
        return
    file = os.open(root / str(one), os.O_RDWR)
    try:
        if what == "punch":
            calls.punch_hole(file, index * PAGE, count * PAGE)
        elif what == "write":
            os.pwrite(file, b"w" * PAGE, index * PAGE)
        else:
            source = os.open(root / str(other), os.O_RDONLY)
            try:
                calls.clone_range(source, to * PAGE, count * PAGE, file, index * PAGE)
            finally:
                os.close(source)
        os.fsync(file)
    finally:
        os.close(file)


def in_the_study(act: Act, world: World[Tracker], inodes: list[int]) -> None:
    what, one, index, count, other, to = act
    mapping = inodes[one]
    if what == "truncate":
        world.truncate(mapping, index)
    elif what == "punch":
        world.punch(mapping, index, count)
    elif what == "write":
        world.write(mapping, index)
    else:
        world.punch(mapping, index, count)
        for extent in world.space.extents(inodes[other]):
            first = max(extent.first, to)
            length = min(extent.first + extent.length, to + count) - first
            if length > 0:
                page = extent.page + first - extent.first
                part = Extent(inodes[other], first, page, length)
                world.reflink(part, mapping, index + first - to)


def can_be_done(act: Act, world: World[Tracker], sizes: list[int], inodes: list[int]) -> bool:
    """Leave out what the kernel refuses, or what would fill a hole."""
    what, one, index, count, other, to = act
    if what == "write":
        return any(
            extent.first <= index < extent.first + extent.length
            for extent in world.space.extents(inodes[one])
        )
    if what == "reflink":
        return to + count <= sizes[other] and index + count <= sizes[one]
    return what == "punch" or index < sizes[one]


@pytest.mark.parametrize("seed", range(3))
def test_sharing_changes_as_in_the_kernel(tmp_path: Path, seed: int) -> None:
    """Which files share which pages is the same; where the pages are is each one's own matter."""
    need_loop_mounts()
    rng = random.Random(seed)
    image = make_image(tmp_path / "disk", Geometry("study", size=64 * MIB, parent=False))
    with mounted(image) as folder:
        root = Path(os.fsdecode(folder))
        for number in range(FILES):
            (root / str(number)).write_bytes(rng.randbytes(FILE_PAGES * PAGE))
        inodes = [(root / str(number)).stat().st_ino for number in range(FILES)]
        os.sync()
    with ImageSource(str(image)) as source:
        space = source.space()
    world: World[Tracker] = World(space, Entries(), [])
    with mounted(image) as folder:
        root = Path(os.fsdecode(folder))
        for act in random_acts(rng):
            sizes = [(root / str(one)).stat().st_size // PAGE for one in range(FILES)]
            if can_be_done(act, world, sizes, inodes):
                in_the_kernel(act, root)
                in_the_study(act, world, inodes)
    with ImageSource(str(image)) as source:
        expected = sorted(sorted(owners) for owners in owners_by_page(source.space()).values())
    found = sorted(sorted(owners) for owners in owners_by_page(space).values())
    assert found == expected
    assert any(len(owners) > 1 for owners in found)
