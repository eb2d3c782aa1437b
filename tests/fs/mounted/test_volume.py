"""Mounted filesystems: what the kernel says, compared with what is on the disk afterwards."""

import os
import random
import shutil
import subprocess
import sys
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

import pytest
from tests.support import questions
from tests.support.answers import answer_json, lookup_json, same
from tests.support.expected_rows import Expectation, normal
from tests.support.filled_images import Zoo
from tests.support.mounts import frozen, loop_device, mounted
from tests.support.tools import need_loop_mounts, run, xfsprogs
from tests.support.truth import Truth
from tests.support.xfs_images import sparse_copy, sparse_file

import whoseblock
from whoseblock.errors import OutOfDeviceError, TargetError, UnsupportedError
from whoseblock.fs import opening, registry
from whoseblock.fs.base import Answer, FileOwner
from whoseblock.fs.mounted.volume import FsmapVolume
from whoseblock.target import Target, TargetOptions

IMAGES = ["4k", "4k-noparent", "1k", "1k-dir16k-noparent", "3ag-noparent", "64k"]


def live(place: str | bytes | Path) -> FsmapVolume:
    opened = whoseblock.open(os.fsdecode(place))
    assert isinstance(opened, FsmapVolume)
    return opened


def bare(answer: Answer) -> list[dict[str, object]]:
    return [normal(row) for row in answer_json(answer)["owners"]]


@pytest.fixture
def truth(zoo: Zoo, request: pytest.FixtureRequest) -> Truth:
    return zoo.to_mount(request.param)


every_image = pytest.mark.parametrize("truth", IMAGES, indirect=True)


@every_image
def test_mounted_answers_equal_those_of_the_disk(truth: Truth) -> None:
    # Every row with every path, and thousands of ranges around their edges.
    expectation = Expectation(truth)
    rng = random.Random(truth.image.name)
    rows = [(row.start, row.length) for row in truth.rows]
    edges = questions.around_edges(truth, questions.sample_rows(truth, rng, 200))
    edges = rng.sample(edges, min(len(edges), 3000)) + questions.everywhere(truth, rng, 500)
    with mounted(truth.image, "ro", "norecovery") as folder, live(folder) as fs:
        assert (fs.name, fs.size) == ("xfs", truth.superblock.size)
        for question, answer in zip(rows, fs.owners_many(rows), strict=True):
            same(answer_json(answer), question, expectation)
        for question, answer in zip(edges, fs.owners_many(edges, paths=False), strict=True):
            same(answer_json(answer), question, expectation, paths=False)
        # The loop device leaves out a last part that is no sector.
        on_device = [q for q in questions.large(truth) if sum(q) <= fs.device_size]
        for question in [*on_device, *rng.sample(edges, 50)]:
            same(answer_json(fs.owners(*question)), question, expectation)
        with pytest.raises(OutOfDeviceError):
            fs.owners(fs.device_size, 1)


@every_image
def test_single_questions_find_every_name(truth: Truth) -> None:
    # One question at a time looks near the file first; many at once read the whole tree.
    rng = random.Random(truth.image.name)
    some = rng.sample(sorted(truth.inodes), 200)
    with mounted(truth.image, "ro", "norecovery") as folder, live(folder) as fs:
        for inode in some:
            paths = fs.paths(inode)
            assert paths.complete, paths.notes
            assert sorted(paths) == sorted(truth.inodes[inode].paths)
            assert paths.unlinked is (truth.inodes[inode].links == 0)


def test_columns_are_the_rows(zoo: Zoo) -> None:
    truth = zoo.to_mount("4k")
    rows = [(row.start, row.length) for row in truth.rows]
    with mounted(truth.image, "ro", "norecovery") as folder, live(folder) as fs:
        columns = fs.owners_of(*zip(*rows, strict=True))
        with whoseblock.open(truth.image, offline=True) as offline:
            expected = offline.owners_of(*zip(*rows, strict=True))
    for name in ("question", "start", "length", "kind", "what", "inode", "file_offset", "shared"):
        assert (getattr(columns, name) == getattr(expected, name)).all(), name
    assert columns.complete.all()
    assert not expected.complete.any()


def test_every_name_of_the_target_queries_the_kernel(zoo: Zoo, tmp_path: Path) -> None:
    truth = zoo.to_mount("4k")
    expectation = Expectation(truth)
    row = next(row for row in truth.rows if row.kind == "file" and row.shared)
    question = (row.start, row.length)
    with loop_device(truth.image) as loop:
        place = tmp_path / "mnt"
        place.mkdir()
        run(["mount", "-t", "xfs", "-o", "ro,norecovery,nouuid", loop, place])
        try:
            for target in (place, Path(loop), truth.image):
                (answer,) = lookup_json(target, [question])
                same(answer, question, expectation)
                paths = [f"{place}{path}" for path in answer["owners"][0]["paths"]]
                assert answer["owners"][0]["mounted_at"] == paths
                assert "generation" in answer["owners"][0]
                (raw,) = lookup_json(target, [question], "--offline")
                same(raw, question, expectation, complete=False)
                assert any("it is mounted at" in note for note in raw["notes"])
                assert "mounted_at" not in raw["owners"][0]
            with pytest.raises(TargetError, match="nothing is mounted there"):
                whoseblock.open(tmp_path)
        finally:
            run(["umount", place])


@contextmanager
def scratch(zoo: Zoo, tmp_path: Path, name: str, *options: str) -> Iterator[tuple[Path, bytes]]:
    """Mount a copy of a filled image for writing."""
    image = sparse_copy(zoo.filled(name).image, tmp_path / "scratch.img")
    with mounted(image, *options) as folder:
        yield image, folder


@pytest.mark.parametrize("name", ["4k", "4k-noparent"])
def test_deleted_but_open_files(zoo: Zoo, tmp_path: Path, name: str) -> None:
    with scratch(zoo, tmp_path, name) as (image, folder), ExitStack() as stack:
        inodes = {}
        for number in range(5):
            path = folder + b"/gone-%d" % number
            file = stack.enter_context(open(path, "wb+", buffering=0))
            file.write(os.urandom(50_000))
            os.fsync(file)
            os.unlink(path)
            inodes[os.fstat(file.fileno()).st_ino] = file
        with live(folder) as fs:
            answer = fs.owners(0, fs.size)
            gone = {
                row.inode for row in answer if isinstance(row, FileOwner) and row.unlinked is True
            }
            assert gone >= inodes.keys()
            assert answer.complete, answer.notes
            for row in answer:
                if isinstance(row, FileOwner) and row.inode in inodes:
                    assert (row.paths, row.mounted_at) == ((), ())
                    facts = fs.inode(row.inode)
                    assert facts is not None
                    assert facts.generation == row.generation
            # Frozen, all is on the disk, where it is the same.
            with frozen(folder):
                copy = sparse_copy(image, tmp_path / "frozen.img")
        with whoseblock.open(copy) as offline:
            assert bare(offline.owners(0, offline.size)) == bare(answer)


@pytest.mark.parametrize("name", ["4k", "4k-noparent"])
def test_files_below_other_mounts_are_found(zoo: Zoo, name: str) -> None:
    # Folders under other mounts, and the whole mount under another.
    truth = zoo.to_mount(name)
    expectation = Expectation(truth)
    deep = max((path for inode in truth.inodes.values() for path in inode.paths), key=len)
    rows = [(row.start, row.length) for row in truth.rows if row.kind == "file"]
    with mounted(truth.image, "ro", "norecovery") as folder:
        tops = sorted(e.path for e in os.scandir(folder) if e.is_dir(follow_symlinks=False))
        covered = {os.stat(top).st_ino: top for top in tops[::2]}
        with ExitStack() as stack:
            for top in covered.values():
                run(["mount", "-t", "tmpfs", "none", os.fsdecode(top)])
                stack.callback(run, ["umount", os.fsdecode(top)])
            with live(folder) as fs:
                for question, answer in zip(rows, fs.owners_many(rows), strict=True):
                    same(answer_json(answer), question, expectation)
                    for row in answer:
                        assert isinstance(row, FileOwner)
                        assert_places(row, folder, covered)
        device = os.stat(folder).st_dev
        run(["mount", "-t", "tmpfs", "none", os.fsdecode(folder)])
        try:
            fs_or_none = opening.open_mounted(device, truth.image.stat().st_size)
            assert fs_or_none is not None
            with fs_or_none as fs:
                for question, answer in zip(rows[:500], fs.owners_many(rows[:500]), strict=True):
                    same(answer_json(answer), question, expectation)
                    assert all(row.mounted_at == () for row in answer)  # type: ignore[attr-defined] # all rows are of files
        finally:
            run(["umount", os.fsdecode(folder)])
    assert len(deep) > 100


def assert_places(row: FileOwner, folder: bytes, covered: dict[int, bytes]) -> None:
    """Check that a file below another mount has a path and cannot be opened; all others can."""
    assert isinstance(row.paths, tuple)
    hidden = tuple(os.fsdecode(top[len(folder) :]) for top in covered.values())
    open_to_all = [
        path for path in row.paths if not any(path == h or path.startswith(h + "/") for h in hidden)
    ]
    place = os.fsdecode(folder)
    assert row.mounted_at == tuple((place + path).rstrip("/") for path in open_to_all)


def test_bind_mounts_of_a_part(zoo: Zoo, tmp_path: Path) -> None:
    # Only a folder of the filesystem is mounted any more, at two places.
    truth = zoo.to_mount("4k-noparent")
    expectation = Expectation(truth)
    rows = [(row.start, row.length) for row in truth.rows if row.kind == "file"]
    with mounted(truth.image, "ro", "norecovery") as folder:
        part = max(
            (e for e in os.scandir(folder) if e.is_dir(follow_symlinks=False)),
            key=lambda entry: sum(len(files) for _, _, files in os.walk(entry.path)),
        ).name
        places = [tmp_path / "one", tmp_path / "two words"]
        for place in places:
            place.mkdir()
            run(["mount", "--bind", os.fsdecode(folder + b"/" + part), place])
        device = os.stat(folder).st_dev
        run(["umount", os.fsdecode(folder)])
        try:
            with live(places[1]) as fs:
                assert fs.view.device == device
                for question, answer in zip(rows, fs.owners_many(rows), strict=True):
                    same(answer_json(answer), question, expectation)
                    for row in answer:
                        assert isinstance(row, FileOwner)
                        assert isinstance(row.paths, tuple)
                        top = "/" + os.fsdecode(part)
                        inside = [p for p in row.paths if p == top or p.startswith(top + "/")]
                        expected = {f"{at}{p[len(top) :]}" for at in places for p in inside}
                        assert set(row.mounted_at) == expected  # type: ignore[arg-type] # as above
        finally:
            # mounted() unmounts the folder itself in the end.
            run(["mount", "--bind", places[0], os.fsdecode(folder)])
            for place in places:
                run(["umount", place])


def test_a_mount_in_another_namespace_only(zoo: Zoo, tmp_path: Path) -> None:
    need_loop_mounts()
    truth = zoo.to_mount("4k-noparent")
    expectation = Expectation(truth)
    rows = [(row.start, row.length) for row in truth.rows if row.kind == "file"][::50]
    place = tmp_path / "elsewhere"
    place.mkdir()
    with loop_device(truth.image) as loop:
        script = f"mount -t xfs -o ro,norecovery,nouuid {loop} {place} && echo ready && read line"
        other = subprocess.Popen(
            ["unshare", "--mount", "sh", "-c", script],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
        )
        try:
            assert other.stdout is not None
            assert other.stdout.readline() == b"ready\n"
            for target in (loop, truth.image):
                with live(target) as fs:
                    for question, answer in zip(rows, fs.owners_many(rows), strict=True):
                        same(answer_json(answer), question, expectation)
                        (note,) = answer.notes
                        assert "only in the mount namespace of process" in note
            (raw,) = lookup_json(Path(loop), rows[:1], "--offline")
            assert any("mount namespace of process" in note for note in raw["notes"])
        finally:
            other.communicate(b"\n")
    assert not any(place.iterdir())


@pytest.mark.parametrize("times", [1, 64, 65, 2047, 5000])
def test_a_block_mapped_many_times_by_one_file(tmp_path: Path, times: int) -> None:
    # The kernel gives a few records at a time, and has to be asked for the next ones.
    need_loop_mounts()
    image = tmp_path / "many.xfs"
    sparse_file(image, 320 << 20)
    run([xfsprogs("mkfs.xfs"), "-q", "-m", "rmapbt=1,reflink=1", image])
    with mounted(image) as folder:
        many, other = os.fsdecode(folder + b"/many"), os.fsdecode(folder + b"/other")
        shares = "".join(f"reflink {many} 0 {8192 * n} 4096\n" for n in range(1, times))
        run([xfsprogs("xfs_io"), "-f", "-c", "pwrite 0 4096", "-c", "fsync", many])
        run([xfsprogs("xfs_io"), many], shares.encode())
        run([xfsprogs("xfs_io"), "-f", "-c", f"reflink {many} 0 4096 4096", other])
        with live(folder) as fs:
            rows = [row for row in fs.owners(0, fs.size) if isinstance(row, FileOwner)]
            (start,) = {row.start for row in rows if row.paths == ("/other",)}
            answer = fs.owners(start, 4096)
            files = [row for row in answer if isinstance(row, FileOwner)]
            assert [row.file_offset for row in files if row.paths == ("/other",)] == [4096]
            offsets = [row.file_offset for row in files if row.paths == ("/many",)]
            if times < 2048:
                assert answer.complete is True, answer.notes
                assert offsets == [8192 * n for n in range(times)]
            else:
                # More than the kernel gives in one answer: that something is missing is said.
                assert answer.complete is False
                assert offsets == [8192 * n for n in range(len(offsets))]
                assert any("too often in one file" in note for note in answer.notes)


def test_a_filesystem_that_was_shut_down_is_read_from_the_disk(zoo: Zoo, tmp_path: Path) -> None:
    need_loop_mounts()
    truth = zoo.to_mount("4k")
    expectation = Expectation(truth)
    rows = [(row.start, row.length) for row in truth.rows if row.kind == "file"][::50]
    copy = sparse_copy(truth.image, tmp_path / "copy.img")
    with loop_device(copy) as loop, mounted(Path(loop), loop=False) as folder:
        run([xfsprogs("xfs_io"), "-x", "-c", "shutdown", os.fsdecode(folder)])
        # Its mount point does not even say that it is a folder; it is known by its name.
        with pytest.raises(OSError, match="Input/output error"):
            os.stat(folder)
        names = [Path(loop), Path(os.fsdecode(folder)), copy]
        for name in names:
            answers = lookup_json(name, rows)
            with whoseblock.open(name) as opened:
                asked = [answer_json(opened.owners(*row)) for row in rows]
            for given in (answers, asked):
                for question, answer in zip(rows, given, strict=True):
                    same(answer, question, expectation, complete=False)
                    assert any("the disk was read instead" in note for note in answer["notes"])
        # What is below it is no mount point.
        with pytest.raises(TargetError, match="Input/output error"):
            whoseblock.open(names[1] / "not there")


def test_an_empty_target_is_not_the_current_folder(
    zoo: Zoo, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # A script whose variable is empty asks about nothing, and not about where it is run.
    copy = sparse_copy(zoo.filled("4k").image, tmp_path / "copy.img")
    with mounted(copy) as folder, monkeypatch.context() as here:
        here.chdir(os.fsdecode(folder))
        with pytest.raises(TargetError):
            whoseblock.open("")
        with pytest.raises(TargetError):
            Target("", TargetOptions())
        with live(".") as fs:
            assert fs.owners(0, 512)


def test_a_mounted_partition_of_an_image_queries_the_kernel(zoo: Zoo, tmp_path: Path) -> None:
    truth = zoo.to_mount("4k")
    disk = tmp_path / "disk.img"
    sparse_file(disk, (400 << 20))
    with disk.open("r+b") as target, truth.image.open("rb") as source:
        target.seek(1 << 20)
        shutil.copyfileobj(source, target)
    run(["sfdisk", "-q", disk], b"label: gpt\nstart=2048, size=640000\n")
    with mounted(disk, f"offset={1 << 20}") as folder:
        path = folder + b"/just written"
        with open(path, "wb") as file:
            file.write(b"x" * 4096)
            file.flush()
            os.fsync(file.fileno())
        with live(folder) as fs:
            place = next(
                row.start
                for row in fs.owners(0, fs.size)
                if isinstance(row, FileOwner) and row.paths == ("/just written",)
            )
        (answer,) = lookup_json(disk, [((1 << 20) + place, 512)])
        assert answer["complete"] is True, answer["notes"]
        (owner,) = answer["owners"]
        assert owner["paths"] == ["/just written"]
        assert [step["layer"] for step in owner["via"]] == ["disk.img", "disk.img1"]
        (raw,) = lookup_json(disk, [((1 << 20) + place, 512)], "--offline")
        assert raw["complete"] is False


def test_other_filesystems_report_the_rows_of_the_kernel(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # What is free and metadata on ext4, as if it had no driver, and never whose a block is.
    need_loop_mounts()
    monkeypatch.setattr(registry, "DRIVERS", registry.DRIVERS[:1])
    image, place = sparse_file(tmp_path / "ext4.img", 200 << 20), tmp_path / "mnt"
    place.mkdir()
    run(["mkfs.ext4", "-q", "-b", "4096", image])
    run(["mount", "-o", "loop", image, place])
    try:
        with (place / "file").open("wb") as file:
            file.write(os.urandom(1 << 20))
            file.flush()
            os.fsync(file.fileno())
            listing = run(["filefrag", "-v", "-b4096", place / "file"]).decode()
        block = int(listing.splitlines()[3].split()[3].rstrip("."))
        with whoseblock.open(place) as fs:
            assert fs.name == "ext4"
            data = fs.owners(block * 4096, 4096)
            assert [row.kind for row in data] == ["unknown"]
            assert data.complete is False
            assert data.notes
            everything = fs.owners(0, fs.size)
            place_of = 0
            for row in everything:
                assert row.start == place_of
                place_of += row.length
            assert place_of == fs.device_size
            kinds = {(row.kind, getattr(row, "what", "")) for row in everything}
        free = int(
            next(
                line
                for line in run(["dumpe2fs", "-h", image]).decode().splitlines()
                if line.startswith("Block count")
            ).split()[-1]
        )
        assert free * 4096 == 200 << 20
        # Its journal is a file of its own, hence unknown.
        assert {("free", ""), ("unknown", "")} <= kinds
        words = ("static", "inodes", "group-descriptors", "block-bitmap", "inode-bitmap")
        assert {("metadata", what) for what in words} <= kinds
    finally:
        run(["umount", place])
    run(["mount", "-t", "tmpfs", "none", place])
    try:
        with pytest.raises(UnsupportedError, match="tmpfs"):
            whoseblock.open(place)
    finally:
        run(["umount", place])


def test_without_privilege_the_capability_is_named(zoo: Zoo) -> None:
    truth = zoo.to_mount("4k")
    with mounted(truth.image, "ro", "norecovery") as folder:
        code = f"import whoseblock; whoseblock.open({os.fsdecode(folder)!r})"
        for command in (
            [sys.executable, "-m", "whoseblock", "lookup", os.fsdecode(folder), "0"],
            [sys.executable, "-c", code],
        ):
            done = subprocess.run(
                ["setpriv", "--reuid", "65534", "--clear-groups", "--bounding-set=-all", *command],
                capture_output=True,
                text=True,
                check=False,
                cwd="/",
            )
            assert done.returncode != 0
            assert "CAP_SYS_ADMIN" in done.stderr, done.stderr
