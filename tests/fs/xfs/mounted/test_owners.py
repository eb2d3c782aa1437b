"""Mounted XFS without a reverse map, compared with xfs_db, GETFSMAP and a walk."""

import fcntl
import os
import random
import signal
import stat
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from tests.support import kernel_oracle, questions, xfs_blocks
from tests.support.answers import answer_json, lookup_json, same
from tests.support.expected_rows import Expectation
from tests.support.failing_filesystem import PLAIN, serving
from tests.support.filled_images import with_nameless
from tests.support.mounts import frozen, loop_device, mounted
from tests.support.random_files import Filler
from tests.support.system_calls import KEEP_SIZE, clone_range, fallocate, sync_filesystem
from tests.support.tools import need_loop_mounts, run, xfsprogs
from tests.support.truth import Truth
from tests.support.xfs_images import Geometry, make_image, sparse_copy

import whoseblock
from whoseblock.fs.base import Answer, FileOwner, MetadataOwner
from whoseblock.fs.mounted.fiemap import file_extents
from whoseblock.fs.scan.engine import Extent
from whoseblock.fs.xfs.mounted.owners import contradict, single_sharers
from whoseblock.fs.xfs.mounted.scan import SHARED
from whoseblock.fs.xfs.mounted.volume import MountedXfs
from whoseblock.ranges import ByteRange

_REMARK = "there is no reverse map: the owners were found by a scan of "
FORMS = {
    geometry.name: geometry
    for geometry in (
        Geometry("4k", rmapbt=False, parent=False),
        Geometry("1k", block=1024, group_blocks=61_003, rmapbt=False, more=("-m", "finobt=0")),
        Geometry(
            "plain", rmapbt=False, parent=False, reflink=False, nrext64=False, sparse_inodes=False
        ),
        Geometry("64k", block=65536, size=1200 << 20, groups=2, rmapbt=False, parent=False),
    )
}


def live(place: bytes | Path) -> MountedXfs:
    opened = whoseblock.open(os.fsdecode(place))
    assert isinstance(opened, MountedXfs)
    return opened


def fill(root: bytes, geometry: Geometry) -> None:
    """Make files of all sorts, symbolic links and special files with attributes in blocks."""
    filler = Filler(root, geometry.name, block=geometry.block, reflink=geometry.reflink)
    filler.fill(steps=200, names=500)
    if geometry.sparse_inodes:
        filler.sparse_inodes(geometry.inode)
    filler.fragmented_attributes()
    for number, name in enumerate((b"/fifo", b"/node", b"/link")):
        if name == b"/link":
            os.symlink(b"x" * 1000, root + name)
        else:
            kind = stat.S_IFIFO if name == b"/fifo" else stat.S_IFCHR
            os.mknod(root + name, kind | 0o600, os.makedev(1, 3))
        value = b"v" * (3000 + number)
        os.setxattr(root + name, "trusted.large", value, follow_symlinks=False)


@contextmanager
def filled(tmp_path: Path, geometry: Geometry) -> Iterator[tuple[bytes, Truth]]:
    """Fill an image, and mount it for writing again; its truth is that of the unmounted image."""
    need_loop_mounts()
    xfsprogs("xfs_db")
    image = make_image(tmp_path / "live.img", geometry)
    with mounted(image) as root:
        fill(root, geometry)
    copy = sparse_copy(image, tmp_path / "unmounted.img")
    with mounted(image) as root:
        free = [row for row in kernel_oracle.getfsmap(root) if row.kind == "free"]
        truth = with_nameless(xfs_blocks.truth_of(copy, kernel_oracle.walk(root)))
        assert [row for row in truth.rows if row.kind == "free"] == free
        yield root, truth


@pytest.mark.parametrize("form", FORMS)
def test_every_row_is_that_of_the_disk(form: str, tmp_path: Path) -> None:
    geometry = FORMS[form]
    with filled(tmp_path, geometry) as (root, truth), live(root) as fs:
        assert fs.reverse_map == "scan"
        kinds = {(row.kind, row.attr, row.extent_map, row.unwritten) for row in truth.rows}
        assert {("file", False, True, False), ("file", True, False, False)} <= kinds
        expectation = Expectation(truth)
        rng = random.Random(form)
        some = questions.sample_rows(truth, rng, 60)
        edges = questions.around_edges(truth, some) + questions.everywhere(truth, rng, 200)
        for question, answer in zip(edges, fs.owners_many(edges, paths=False), strict=True):
            same(answer_json(answer), question, expectation, paths=False)
        rows = [(row.start, row.length) for row in truth.rows]
        for question, answer in zip(rows, fs.owners_many(rows), strict=True):
            same(answer_json(answer), question, expectation)
        whole = 0, fs.size
        same(answer_json(fs.owners(*whole)), whole, expectation)
        for question in rng.sample(edges, 20):
            answer = fs.owners(*question)
            same(answer_json(answer), question, expectation)
            took = any(row.kind in {"file", "staging"} for row in answer)
            assert not took or any(note.startswith(_REMARK) for note in answer.notes)


@contextmanager
def new(tmp_path: Path) -> Iterator[Path]:
    """Mount a new filesystem without a reverse map for writing."""
    need_loop_mounts()
    image = make_image(tmp_path / "new.img", Geometry("new", rmapbt=False, parent=False))
    with mounted(image) as root:
        yield Path(os.fsdecode(root))


def write(path: Path, length: int) -> int:
    """Write a file to the disk, and return where its first byte is on the device."""
    with path.open("wb") as file:
        file.write(os.urandom(length))
        file.flush()
        os.fsync(file.fileno())
    return next(file_extents(str(path), 0, length)).physical


def sync(folder: Path) -> None:
    """Write the log of a filesystem; metadata stays in memory."""
    descriptor = os.open(folder, os.O_RDONLY)
    sync_filesystem(descriptor)
    os.close(descriptor)


def by_block(answer: Answer, size: int) -> dict[int, set[tuple[object, ...]]]:
    """Return what an answer says of each block, without what belongs to a mount."""
    found: dict[int, set[tuple[object, ...]]] = {}
    for row in answer:
        for at in range(0, row.length, size):
            what: tuple[object, ...] = (row.kind, getattr(row, "what", ""))
            if isinstance(row, FileOwner):
                offset = None if row.file_offset is None else row.file_offset + at
                what = (*what, row.fork, row.inode, offset, row.unwritten, row.paths)
            found.setdefault(row.start + at, set()).add(what)
    return found


def test_new_files_are_those_of_the_frozen_disk(tmp_path: Path) -> None:
    geometry = Geometry("young", rmapbt=False, parent=False)
    need_loop_mounts()
    image = make_image(tmp_path / "live.img", geometry)
    with mounted(image) as root, live(root) as fs:
        fill(root, geometry)
        sync(Path(os.fsdecode(root)))
        young = fs.owners(0, fs.size)
        with frozen(root):
            copy = sparse_copy(image, tmp_path / "frozen.img")
        settled = fs.owners(0, fs.size)
        with whoseblock.open(copy) as offline:
            expected = by_block(offline.owners(0, offline.size), geometry.block)
    assert settled.complete, settled.notes
    assert by_block(settled, geometry.block) == expected
    # Before it was frozen, what the kernel does not report was known only as far as it was written.
    early = by_block(young, geometry.block)
    differences = {at for at, what in early.items() if what != expected[at]}
    assert all(early[at] == {("unknown", "")} for at in differences), differences
    assert not differences or not young.complete
    for at in differences:
        ((kind, what, *_),) = expected[at]
        assert kind in {"metadata", "staging"} or what in {"symlink", "xattr", "extent-map"}, (
            expected[at]
        )


def test_a_shared_block_has_all_owners_and_a_moved_one_its_last(tmp_path: Path) -> None:
    with new(tmp_path) as folder, live(folder) as fs:
        start = write(folder / "one", 65536)
        with (folder / "one").open("rb") as source:
            for name in ("two", "three"):
                with (folder / name).open("wb") as target:
                    clone_range(source.fileno(), 0, 65536, target.fileno(), 0)
        answer = fs.owners(start, 4096)
        assert answer.complete, answer.notes
        assert [row.paths for row in answer if isinstance(row, FileOwner)] == [
            ("/one",),
            ("/two",),
            ("/three",),
        ]
        assert all(row.shared for row in answer if isinstance(row, FileOwner))
        # A scan that is older than a change: the kernel tells who is missing.
        fs._prepare([(start, 4096)])
        (folder / "one").unlink()
        (folder / "two").unlink()
        with (folder / "three").open("rb") as source, (folder / "four").open("wb") as target:
            clone_range(source.fileno(), 0, 65536, target.fileno(), 0)
        notes: list[str] = []
        inodes = {piece.inode for piece in fs._ask(start, 4096, notes)}
        assert inodes == {(folder / name).stat().st_ino for name in ("three", "four")}
        assert notes == []


def test_blocks_before_a_copy_on_write_are_staging(tmp_path: Path) -> None:
    with new(tmp_path) as folder, live(folder) as fs:
        write(folder / "one", 1 << 20)
        with (folder / "one").open("rb") as source, (folder / "two").open("wb") as target:
            clone_range(source.fileno(), 0, 1 << 20, target.fileno(), 0)
        with (folder / "two").open("r+b") as file:
            # More blocks are reserved than are written.
            os.pwrite(file.fileno(), b"x" * 4096, 4096)
            os.fsync(file.fileno())
        with frozen(os.fsencode(folder)):
            pass
        answer = fs.owners(0, fs.size)
        with whoseblock.open(sparse_copy(tmp_path / "new.img", tmp_path / "c.img")) as offline:
            expected = [row for row in offline.owners(0, fs.size) if row.kind == "staging"]
        assert [row for row in answer if row.kind == "staging"] == expected
        assert expected


def test_deleted_files_that_are_open_have_no_paths(tmp_path: Path) -> None:
    with new(tmp_path) as folder, live(folder) as fs:
        nameless = os.open(folder, os.O_TMPFILE | os.O_RDWR)
        gone = os.open(folder / "gone", os.O_CREAT | os.O_RDWR)
        for descriptor in (nameless, gone):
            os.pwrite(descriptor, os.urandom(50_000), 0)
            os.fsync(descriptor)
        (folder / "gone").unlink()
        for descriptor in (nameless, gone):
            start = next(file_extents(f"/proc/self/fd/{descriptor}", 0, 4096)).physical
            answer = fs.owners(start, 4096)
            assert answer.complete, answer.notes
            (row,) = answer
            assert isinstance(row, FileOwner)
            assert (row.inode, row.unlinked) == (os.fstat(descriptor).st_ino, True)
            assert (row.paths, row.mounted_at) == ((), ())
            os.close(descriptor)


def test_delayed_blocks_and_dirty_files_are_left_alone(tmp_path: Path) -> None:
    with new(tmp_path) as folder, live(folder) as fs:
        path = folder / "late"
        with path.open("wb") as file:
            fallocate(file.fileno(), 0, 1 << 20, KEEP_SIZE)
            os.fsync(file.fileno())
            os.pwrite(file.fileno(), b"x" * 8192, 4 << 20)
            rows = [row for row in fs.owners(0, fs.size) if isinstance(row, FileOwner)]
            # A question about the map that wrote the file would have given it a place.
            first, *others = file_extents(str(path), 0, 8 << 20)
            assert [one.has_place for one in others] == [False]
            assert [
                (row.start, row.length, row.unwritten)
                for row in rows
                if row.inode == path.stat().st_ino
            ] == [(first.physical, first.length, True)]


def test_new_links_are_unknown_until_they_are_written(tmp_path: Path) -> None:
    with new(tmp_path) as folder, live(folder) as fs:
        (folder / "link").symlink_to("t" * 900)
        sync(folder)
        link = (folder / "link").lstat()
        before = fs.owners(0, fs.size)
        with frozen(os.fsencode(folder)):
            pass
        after = fs.owners(0, fs.size)
        assert after.complete, after.notes
        (row,) = (row for row in after if getattr(row, "what", "") == "symlink")
        assert isinstance(row, FileOwner)
        assert (row.inode, row.paths) == (link.st_ino, ("/link",))
        same_place = [one for one in before if one.start <= row.start < one.start + one.length]
        assert [one.kind for one in same_place] in (["unknown"], ["file"])
        assert before.complete is (same_place[0].kind == "file")


def test_a_file_that_cannot_be_asked_may_share(tmp_path: Path) -> None:
    with new(tmp_path) as folder, live(folder) as fs:
        start, alone = write(folder / "one", 65536), write(folder / "alone", 65536)
        for name in ("two", "leased"):
            with (folder / "one").open("rb") as source, (folder / name).open("wb") as target:
                clone_range(source.fileno(), 0, 65536, target.fileno(), 0)
        # A server has promised its client that no other process reads this file.
        signal.signal(signal.SIGIO, signal.SIG_IGN)
        holder = os.open(folder / "leased", os.O_RDWR)
        fcntl.fcntl(holder, fcntl.F_SETLEASE, fcntl.F_WRLCK)
        try:
            answer = fs.owners(start, 4096)
            assert not answer.complete
            assert any("1 inodes may own it too" in note for note in answer.notes)
            assert fs.owners(alone, 4096).complete
        finally:
            fcntl.fcntl(holder, fcntl.F_SETLEASE, fcntl.F_UNLCK)
            os.close(holder)
        assert len(fs.owners(start, 4096)) == 3


def test_files_below_other_mounts_have_paths(tmp_path: Path) -> None:
    with new(tmp_path) as folder:
        (folder / "below").mkdir()
        start = write(folder / "below" / "file", 5000)
        run(["mount", "-t", "tmpfs", "none", folder / "below"])
        try:
            with live(folder) as fs:
                (row,) = fs.owners(start, 4096)
                assert isinstance(row, FileOwner)
                assert (row.paths, row.mounted_at) == (("/below/file",), ())
        finally:
            run(["umount", folder / "below"])


def test_no_scan_names_no_file(tmp_path: Path) -> None:
    with new(tmp_path) as folder, live(folder) as fs:
        start = write(folder / "one", 4096)
        fs.scans = False
        answer = fs.owners(start, 4096)
        assert (answer.complete, [row.kind for row in answer]) == (False, ["unknown"])
        assert any("not permitted" in note for note in answer.notes)
        for known in kernel_oracle.getfsmap(os.fsencode(folder)):
            answer = fs.owners(known.start, known.length)
            assert answer.complete or known.kind == "unknown"
        (row,) = fs.owners(0, 512)
        assert isinstance(row, MetadataOwner)
        assert (row.what, row.detail) == ("static", "superblock of AG 0")


def test_columns_are_the_rows(tmp_path: Path) -> None:
    with new(tmp_path) as folder, live(folder) as fs:
        starts = [write(folder / f"file-{number}", 10_000) for number in range(20)]
        columns = fs.owners_of([*starts, fs.size - 4096], [4096] * 21)
        rows = [row for answer in fs.owners_many([(one, 4096) for one in starts]) for row in answer]
        assert columns.complete.all()
        assert columns.inode[:20].tolist() == [row.inode for row in rows]  # type: ignore[attr-defined] # all rows are of files


def test_the_command_line_and_processes(tmp_path: Path) -> None:
    need_loop_mounts()
    image = make_image(tmp_path / "new.img", Geometry("new", rmapbt=False, parent=False))
    with loop_device(image) as loop, mounted(Path(loop), loop=False) as root:
        path = Path(os.fsdecode(root)) / "one"
        start = write(path, 8192)
        with path.open("rb"):
            for target in (os.fsdecode(root), loop, str(image)):
                (answer,) = lookup_json(Path(target), [(start, 4096)], "--processes")
                assert answer["complete"], answer["notes"]
                (owner,) = answer["owners"]
                assert owner["paths"] == ["/one"]
                assert os.getpid() in [process["pid"] for process in owner["processes"]]
        shown = run([sys.executable, "-m", "whoseblock", "stack", loop]).decode()
        assert "xfs" in shown
        assert "by a scan" in shown
        with live(root) as fs:
            assert fs.capabilities == frozenset()


def test_a_frozen_filesystem_answers(tmp_path: Path) -> None:
    with new(tmp_path) as folder, live(folder) as fs:
        start = write(folder / "one", 65536)
        (folder / "link").symlink_to("t" * 900)
        with frozen(os.fsencode(folder)):
            answer = fs.owners(0, fs.size)
            (row,) = fs.owners(start, 4096)
        assert answer.complete, answer.notes
        assert isinstance(row, FileOwner)
        assert row.paths == ("/one",)
        assert any(getattr(one, "what", "") == "symlink" for one in answer)


def test_unreadable_inodes_make_only_other_blocks_doubtful(tmp_path: Path) -> None:
    with serving(tmp_path, replace(PLAIN, rmapbt=False)) as (served, _), served.loop() as loop:
        with mounted(loop, loop=False) as root:
            folder = Path(os.fsdecode(root))
            for number in range(200):
                (folder / f"file-{number}").write_bytes(b"x" * 8192)
            sync(folder)
            places = [
                next(file_extents(str(folder / f"file-{number}"), 0, 4096)).physical
                for number in (1, 190)
            ]
            with live(root) as fs:
                (row,) = fs.owners(places[1], 4096)
            assert isinstance(row, FileOwner)
            group, inode = divmod(row.inode, 1 << fs.geometry.agino_bits)
            bad = group * fs.geometry.ag_bytes + inode * fs.geometry.inodesize
        served.add(ByteRange(bad // 16384 * 16384, 16384))
        with mounted(loop, loop=False) as root, live(root) as fs:
            (found,) = good = fs.owners(places[0], 4096)
            assert isinstance(found, FileOwner)
            assert (good.complete, found.paths) == (True, ("/file-1",))
            lost = fs.owners(places[1], 4096)
            assert ([one.kind for one in lost], lost.complete) == (["unknown"], False)
            assert any("inodes may own it too" in note for note in lost.notes), lost.notes


claims = st.lists(
    st.tuples(st.integers(0, 40), st.integers(1, 12), st.integers(1, 4), st.booleans()), max_size=8
).map(
    lambda some: sorted(
        Extent(start, length, inode, 1, 0, SHARED if shared else 0)
        for start, length, inode, shared in some
    )
)


@given(claims)
def test_claims_of_several_files(extents: list[Extent]) -> None:
    by_block: dict[int, list[Extent]] = {}
    for one in extents:
        for block in range(one.start, one.end):
            by_block.setdefault(block, []).append(one)
    alone = {block for block, some in by_block.items() if any(not one.flags for one in some)}
    assert contradict(extents) == any(len(by_block[block]) > 1 for block in alone)
    shared = {at: [one for one in some if one.flags] for at, some in by_block.items()}
    wanted = single_sharers(extents)
    blocks = [block for run in wanted.within(0, 100) for block in range(*run)]
    assert blocks == sorted(at for at, some in shared.items() if len(some) == 1)
