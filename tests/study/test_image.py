"""Studies of real images, against xfs_db and the kernel."""

import os
import random
from collections import Counter, defaultdict
from collections.abc import Iterator, Sequence
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import pytest
from demo.demo import unpack
from hypothesis import given, settings
from hypothesis import strategies as st
from tests.support import system_calls, xfsdb
from tests.support.mounts import mounted
from tests.support.tools import Missing, need_loop_mounts, sees
from tests.support.xfs_images import MIB, Geometry, make_image, sparse_copy

from whoseblock.errors import TargetError, UnsupportedError
from whoseblock.study.base import Owner, Tracker, key_of, owner_of
from whoseblock.study.entries import Entries
from whoseblock.study.extents import Extent, Extents
from whoseblock.study.on_demand import OnDemand
from whoseblock.study.per_extent import PerExtent
from whoseblock.study.per_page import PerPage
from whoseblock.study.run import Run, run_workload
from whoseblock.study.sources import ImageSource, MadeUpSource
from whoseblock.study.space import Space
from whoseblock.study.workloads import LIFE, WORKLOADS, Step, Workload, fault_in, life
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

places = st.integers(0, FILE_PAGES - 1)
acts = st.tuples(
    st.sampled_from(["reflink", "reflink", "write", "write", "punch", "truncate", "fault"]),
    st.integers(0, FILES - 1),
    places,
    st.integers(1, 8),
    st.integers(0, FILES - 1),
    places,
)


def in_the_kernel(act: Act, root: Path) -> None:
    what, one, index, count, other, to = act
    if what == "fault":
        return
    if what == "truncate":
        os.truncate(root / str(one), index * PAGE)
        return
    file = os.open(root / str(one), os.O_RDWR)
    try:
        if what == "punch":
            system_calls.punch_hole(file, index * PAGE, count * PAGE)
        elif what == "write":
            os.pwrite(file, b"w" * PAGE, index * PAGE)
        else:
            source = os.open(root / str(other), os.O_RDONLY)
            try:
                system_calls.clone_range(source, to * PAGE, count * PAGE, file, index * PAGE)
            finally:
                os.close(source)
        os.fsync(file)
    finally:
        os.close(file)


def in_the_study(act: Act, world: World[Tracker], inodes: list[int]) -> None:
    what, one, index, count, other, to = act
    mapping = inodes[one]
    if what == "fault":
        for at in range(index, index + count):
            page = world.space.page_of(key_of(mapping, at))
            if page is not None:
                world.fault(Extent(mapping, at, page, 1))
    elif what == "truncate":
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
        there = to + count <= sizes[other] and index + count <= sizes[one]
        return one != other and there
    return what in ("punch", "fault") or index < sizes[one]


def check_against_the_disk(world: World[Any], trackers: Sequence[Tracker], image: Path) -> None:
    """Compare the owners of every page with what xfs_db and the reverse mapping of an image say.

    The kernel has put a page elsewhere than the study, maybe: it is known by an owner.
    """
    space, entries = world.space, world.entries
    printed: dict[int, set[Owner]] = defaultdict(set)
    for row in xfsdb.rows(image, xfsdb.superblock(image)):
        if row.kind == "file" and row.inode in space.mappings():
            for at in range(0, row.length, PAGE):
                owner = Owner(row.inode, (row.offset + at) // PAGE)
                printed[(row.start + at) // PAGE].add(owner)
    page_of = {owner: page for page, owners in printed.items() for owner in owners}
    with ImageSource(str(image)) as source:
        on_disk = OnDemand(source.lookup(source.space()))
        found = owners_by_page(space)
        for page, owners in found.items():
            (there,) = {page_of.pop(owner) for owner in owners}
            assert printed[there] == owners == set(on_disk.owners(there))
            faulted = {one for one in owners if key_of(one.mapping, one.index) in entries}
            for tracker in trackers:
                assert set(tracker.owners(page)) == faulted
        # The kernel knows no owners but these.
        assert not page_of


@settings(max_examples=8)
@given(some=st.lists(acts, min_size=40, max_size=80))
def test_the_kernel_and_its_reverse_mapping_agree(some: list[Act]) -> None:
    """The same is done to files in the kernel and in the study; whoever is asked says the same."""
    need_loop_mounts()
    rng = random.Random(0)
    with TemporaryDirectory() as made:
        image = make_image(Path(made) / "disk", Geometry("study", size=64 * MIB, parent=False))
        with mounted(image) as folder:
            root = Path(os.fsdecode(folder))
            for number in range(FILES):
                (root / str(number)).write_bytes(rng.randbytes(FILE_PAGES * PAGE))
            # One whole clone, or little may be shared.
            in_the_kernel(("reflink", 1, 0, FILE_PAGES, 0, 0), root)
            inodes = [(root / str(number)).stat().st_ino for number in range(FILES)]
            os.sync()
        with ImageSource(str(image)) as source:
            space = source.space()
        entries = Entries()
        trackers = (PerPage(space.segment_at), PerExtent(space.segment_at, entries))
        world: World[Tracker] = World(space, entries, trackers)
        half = len(some) // 2
        for part in (some[:half], some[half:]):
            with mounted(image) as folder:
                root = Path(os.fsdecode(folder))
                for act in part:
                    sizes = [(root / str(one)).stat().st_size // PAGE for one in range(FILES)]
                    if can_be_done(act, world, sizes, inodes):
                        in_the_kernel(act, root)
                        in_the_study(act, world, inodes)
            check_against_the_disk(world, trackers, image)


def test_a_life_ends_in_the_kernel_as_in_the_study(tmp_path: Path) -> None:
    """A life of the study, lived by real files, too; in the end the real rmap is asked."""
    need_loop_mounts()
    rng = random.Random(1)
    image = make_image(tmp_path / "disk", Geometry("study", size=64 * MIB, parent=False))
    with mounted(image) as folder:
        root = Path(os.fsdecode(folder))
        for number in range(8):
            (root / str(number)).write_bytes(rng.randbytes(64 * PAGE))
        for number in range(1, 8):
            in_the_kernel(("reflink", number, 0, 64 - 8 * number, 0, 0), root)
        numbers = {(root / str(number)).stat().st_ino: number for number in range(8)}
    with ImageSource(str(image)) as source:
        run = Run(source)
        lived = sparse_copy(image, tmp_path / "lived")
        with mounted(lived) as folder:
            root = Path(os.fsdecode(folder))

            def mirrored(steps: Iterator[Step]) -> Iterator[Step]:
                for step in steps:
                    mapping, index, _, count = step.extent
                    if step.what in ("write", "punch", "truncate"):
                        in_the_kernel((step.what, numbers[mapping], index, count, 0, 0), root)
                    elif step.what == "reflink":
                        to, at = step.to
                        one, other = numbers[to], numbers[mapping]
                        in_the_kernel(("reflink", one, at, count, other, index), root)
                    yield step

            for phase in life(run.world, run.processes, 2, 1200, source.extents.others):
                run.go(mirrored(phase.steps), phase.about, phase.name)
        run.compare_all()
        assert run.disagreements == 0
        result = run.result(LIFE)
        assert result.life is not None
        assert result.life.broken > 100
        assert result.life.evicted > 0
        check_against_the_disk(run.world, (run.per_page, run.per_extent), lived)
        assert any(len(one.keys) > 1 for one in run.space.segments())


def test_a_life_is_lived(demo: Path) -> None:
    """Only who is mapped is written to, only who is not leaves memory, and the storm breaks."""
    with ImageSource(str(demo)) as source:
        run = Run(source)
        seen: Counter[str] = Counter()
        for phase in life(run.world, run.processes, 5, 3000, source.extents.others):
            writes, broken = seen["write"], run.result(LIFE).life
            assert broken is not None

            def watched(steps: Iterator[Step]) -> Iterator[Step]:
                for step in steps:
                    seen[step.what] += 1
                    mapped = run.processes.mapped(step.extent.mapping)
                    assert step.what not in ("write", "fault", "unmap") or mapped
                    assert step.what != "evict" or not mapped
                    yield step

            run.go(watched(phase.steps), phase.about, phase.name)
            after = run.result(LIFE).life
            assert after is not None
            if phase.name == "write storm":
                assert after.broken - broken.broken == seen["write"] - writes > 0
        assert seen.keys() == {
            "fault", "write", "map", "unmap", "evict", "reflink", "punch", "truncate", "fail",
        }  # fmt: skip
        result = run.result(LIFE)
        assert result.life is not None
        phases = result.life.phases
        assert [one.name for one in phases] == ["faults", "write storm", "everyday use"]
        assert sum(one.steps for one in phases) == run.steps == seen.total()
        samples = result.trackers[0].memory_over_time
        assert sum(one.samples for one in phases) == len(samples)


def test_linux_does_less_with_the_same_answer(demo: Path) -> None:
    with ImageSource(str(demo)) as source:
        result = run_workload(source, LIFE, seed=3, life_steps=3000)
    assert result.life is not None
    linux, on_demand = result.life.linux, result.trackers[2].failures
    assert linux.free == 0 < on_demand.free
    # Directories are metadata that does not stop it.
    assert 0 < linux.metadata <= on_demand.metadata
    assert on_demand.told == linux.told + linux.missed
    assert linux.missed > 0
    processes = [one.failures.processes for one in result.trackers]
    assert processes == [linux.processes] * 3
    assert linux.processes > 0


def test_a_tracker_that_keeps_what_is_gone_is_noticed(
    demo: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(PerExtent, "disassociate", lambda *_: None)
    with ImageSource(str(demo)) as source:
        assert run_workload(source, LIFE, seed=7, life_steps=3000).disagreements > 0
