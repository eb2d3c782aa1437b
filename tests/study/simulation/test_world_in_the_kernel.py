"""The study's filesystem changes as the kernel's XFS does, page by page."""

import os
import random
from collections import defaultdict
from collections.abc import Iterator, Sequence
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from hypothesis import given, settings
from hypothesis import strategies as st
from tests.support import system_calls, xfsdb
from tests.support.mounts import mounted
from tests.support.study_worlds import owners_by_page
from tests.support.tools import need_loop_mounts
from tests.support.xfs_images import MIB, Geometry, make_image, sparse_copy

from whoseblock.study.base import PageOwner, Tracker, key_of
from whoseblock.study.measurements.run import Run
from whoseblock.study.measurements.sources import ImageSource
from whoseblock.study.simulation.entries import Entries
from whoseblock.study.simulation.extents import PageExtent
from whoseblock.study.simulation.workloads import LIFE, WorkloadStep, life
from whoseblock.study.simulation.world import World
from whoseblock.study.trackers.on_demand import OnDemand
from whoseblock.study.trackers.per_extent import PerExtent
from whoseblock.study.trackers.per_page import PerPage

PAGE = 4096
FILES = 5
FILE_PAGES = 32

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
                world.fault(PageExtent(mapping, at, page, 1))
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
                part = PageExtent(inodes[other], first, page, length)
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
    printed: dict[int, set[PageOwner]] = defaultdict(set)
    for row in xfsdb.rows(image, xfsdb.superblock(image)):
        if row.kind == "file" and row.inode in space.mappings():
            for at in range(0, row.length, PAGE):
                owner = PageOwner(row.inode, (row.offset + at) // PAGE)
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
def test_the_kernel_and_its_reverse_mapping_agree_with_the_study(some: list[Act]) -> None:
    # The same is done to files in the kernel and in the study; both give the same answers.
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


def test_a_life_ends_alike_in_the_kernel_and_in_the_study(tmp_path: Path) -> None:
    # A life of the study, lived by real files, too; in the end the real rmap is asked.
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

            def mirrored(steps: Iterator[WorkloadStep]) -> Iterator[WorkloadStep]:
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
