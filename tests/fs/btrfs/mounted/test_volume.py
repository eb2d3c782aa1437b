"""A mounted btrfs: every row and path equals the truth, also while changes are not committed."""

import json
import os
import random
import shutil
import subprocess
from pathlib import Path

import pytest
from click.testing import CliRunner
from tests.support.btrfs_images import Truth, clone, differences, make_image, read_truth
from tests.support.btrfs_mounted import FilePlace, logical_owners, mapped_sectors
from tests.support.mapping_processes import running
from tests.support.mounts import loop_device, mounted
from tests.support.tools import need_loop_mounts, run

import whoseblock
from whoseblock.cli.group import cli
from whoseblock.errors import UnsupportedError
from whoseblock.fs.base import Answer, FileId, FileOwner, Free, Unknown
from whoseblock.fs.driver import AddressSpace, MountedVolume
from whoseblock.fs.mounted.fiemap import file_extents

SIZE = 256 << 20
SECTOR = 4096
NOT_COMMITTED = "the kernel has changes that are not committed"


@pytest.fixture(scope="module")
def image(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Provide an image with files of every kind."""
    need_loop_mounts()
    return make_image(tmp_path_factory.mktemp("btrfs") / "x.img", SIZE, "-n", "4096", seed=7)


@pytest.fixture(scope="module")
def truth(image: Path) -> Truth:
    """Provide the owners of every sector by dump-tree, and all paths."""
    return read_truth(image)


def opened(image: Path) -> MountedVolume:
    """Open what is mounted from an image."""
    volume = whoseblock.open(image)
    assert isinstance(volume, MountedVolume)
    return volume


@pytest.mark.parametrize("option", ["subvolid=5", "subvol=sub"])
def test_rows_and_paths_equal_the_truth(image: Path, truth: Truth, option: str) -> None:
    rnd = random.Random(4)
    with mounted(image, "ro", option, kind="btrfs") as folder, opened(image) as fs:
        answer = fs.owners(0, SIZE)
        assert answer.complete, answer.notes
        assert differences(truth, answer) == []
        asked = [(rnd.randrange(SIZE // SECTOR - 16) * SECTOR, 4 * SECTOR) for _ in range(500)]
        for one in fs.owners_many(asked):
            assert one.complete, one.notes
            assert differences(truth, one) == []
        check_places(answer, os.fsdecode(folder), "/sub" if option == "subvol=sub" else "")


def check_places(answer: Answer, folder: str, shown: str) -> None:
    """Check that each path below the subvolume that is mounted is said to be at its place."""
    count = 0
    for row in answer:
        if isinstance(row, FileOwner) and row.unlinked is not True:
            assert isinstance(row.paths, tuple)
            below = [one for one in row.paths if one.startswith(f"{shown}/")]
            places = tuple(folder + one.removeprefix(shown) for one in below)
            assert row.mounted_at == places
            assert all(os.lstat(place).st_ino == row.inode for place in places)
            count += len(places)
    assert count > 50


def places_in(answer: Answer) -> set[FilePlace]:
    """Return the files of an answer with their offsets."""
    return {
        FilePlace(row.file, row.file_offset or 0) for row in answer if isinstance(row, FileOwner)
    }


def test_owners_are_those_of_the_kernel_and_of_all_files(image: Path) -> None:
    with mounted(image, "ro", kind="btrfs") as folder, opened(image) as fs:
        expected, subvolumes = mapped_sectors(folder)
        assert len(expected) > 1000
        asked = sorted(expected)
        answers = fs.logical_addresses().owners_many((one, SECTOR) for one in asked)
        for answer in answers:
            assert answer.complete
            found = places_in(answer)
            assert found == logical_owners(folder, answer.start)
            visible = {one for one in found if one.file.subvolume in subvolumes}
            assert visible == expected[answer.start]


@pytest.fixture
def fresh(tmp_path: Path) -> Path:
    """Provide an image with one file in a subvolume, ``/sub/file``, and ``/other``."""
    need_loop_mounts()
    path = tmp_path / "fresh.img"
    with path.open("wb") as file:
        file.truncate(SIZE)
    run(["mkfs.btrfs", "-q", path])
    with mounted(path, kind="btrfs") as folder:
        root = Path(os.fsdecode(folder))
        run(["btrfs", "subvolume", "create", root / "sub"])
        (root / "sub/file").write_bytes(random.Random(1).randbytes(40 * SECTOR))
        (root / "other").write_bytes(random.Random(2).randbytes(40 * SECTOR))
    return path


def test_a_limit_of_owners_is_said(image: Path, truth: Truth, tmp_path: Path) -> None:
    sector = max(range(len(truth.claims)), key=lambda one: len(truth.claims[one])) * SECTOR
    image = Path(shutil.copyfile(image, tmp_path / "copy.img"))
    for option in ("ro", "commit=300"):
        with mounted(image, option, kind="btrfs") as folder, opened(image) as fs:
            if option != "ro":
                (Path(os.fsdecode(folder)) / "new").touch()
            fs.max_owners = 3
            answer = fs.owners(sector, SECTOR)
            assert not answer.complete
            assert len(answer) <= 3
            assert "has more than 3 owners, not all of which are listed" in str(answer.notes)


def place_of(path: Path) -> int:
    """Return the logical address of the first byte of a file."""
    return next(file_extents(str(path), 0, SECTOR)).physical


def ask(space: AddressSpace, start: int, length: int = SECTOR) -> Answer:
    """Ask one question."""
    (answer,) = space.owners_many([(start, length)])
    return answer


def test_changes_that_are_not_committed(fresh: Path) -> None:
    with mounted(fresh, "commit=300", kind="btrfs") as folder, opened(fresh) as fs:
        root = Path(os.fsdecode(folder))
        space = fs.logical_addresses()
        at = place_of(root / "sub/file")
        before = ask(space, at)
        assert before.complete
        (row,) = before
        assert isinstance(row, FileOwner)
        assert (row.paths, row.subvolume_path) == (("/sub/file",), "/sub")

        with (root / "clone").open("w+b") as target, (root / "sub/file").open("rb") as source:
            clone(target, source, 4 * SECTOR, 8 * SECTOR, 0)
        os.rename(root / "sub/file", root / "sub/moved")
        os.link(root / "sub/moved", root / "sub/hard")
        answer = ask(space, at + 4 * SECTOR)
        assert answer.complete, answer.notes
        rows = [row for row in answer if isinstance(row, FileOwner)]
        assert {(one.paths, one.file_offset) for one in rows} == {
            (("/sub/hard", "/sub/moved"), 4 * SECTOR),
            (("/clone",), 0),
        }
        assert all(one.shared for one in rows)

        run(["fallocate", "-p", "-o", "0", "-l", str(4 * SECTOR), root / "sub/moved"])
        answer = ask(space, at, 40 * SECTOR)
        assert answer.complete, answer.notes
        assert places_in(ask(space, at)) == set()
        assert [row.kind for row in ask(space, at)] == ["unreferenced"]

        (root / "sub/moved").unlink()
        (root / "sub/hard").unlink()
        answer = ask(space, at + 4 * SECTOR)
        assert {row.paths for row in answer if isinstance(row, FileOwner)} == {("/clone",)}

        assert not any(isinstance(row, Free) for row in fs.owners(0, SIZE, paths=False))
        unknown = fs.owners(0, SIZE, paths=False)
        assert not unknown.complete
        assert any(note.startswith(NOT_COMMITTED) for note in unknown.notes)
        assert any(isinstance(row, Unknown) for row in unknown)
        os.sync()
        settled = fs.owners(0, SIZE, paths=False)
        assert settled.complete, settled.notes
        assert any(isinstance(row, Free) for row in settled)
    check_disk(fresh)


def check_disk(image: Path) -> None:
    """Check that the image is still in order: nothing was written by asking."""
    run(["btrfs", "check", image])


def test_a_freed_extent_and_an_unlinked_file(fresh: Path) -> None:
    with mounted(fresh, "commit=300", kind="btrfs") as folder, opened(fresh) as fs:
        root = Path(os.fsdecode(folder))
        space = fs.logical_addresses()
        at = place_of(root / "other")
        with (root / "other").open("rb"):
            (root / "other").unlink()
            (row,) = ask(space, at)
            assert isinstance(row, FileOwner)
            assert (row.paths, row.unlinked) == ((), True)
        answer = ask(space, at)
        assert not answer.complete
        assert [row.kind for row in answer] == ["unknown"]
        assert "was freed, and the kernel keeps it until the next commit" in str(answer.notes)


def test_questions_while_the_filesystem_changes(fresh: Path) -> None:
    script = (
        'i=0; while [ ! -e "$0/stop" ]; do i=$((i + 1)); head -c 20000 /dev/urandom > "$0/w$i";'
        ' cp --reflink=always "$0/other" "$0/r$i"; sync -f "$0"; rm -f "$0/w$((i - 3))"; done'
    )
    with mounted(fresh, kind="btrfs") as folder, opened(fresh) as fs:
        root = Path(os.fsdecode(folder))
        space = fs.logical_addresses()
        at, inode = place_of(root / "sub/file"), (root / "sub/file").stat().st_ino
        with subprocess.Popen(["sh", "-c", script, root]) as writer:
            try:
                for number in range(100):
                    answer = ask(space, at + number % 40 * SECTOR)
                    file = FileId(256, inode)
                    assert places_in(answer) == {FilePlace(file, number % 40 * SECTOR)}
                    assert {row.paths for row in answer if isinstance(row, FileOwner)} == {
                        ("/sub/file",)
                    }
            finally:
                (root / "stop").touch()
                writer.wait()
        os.sync()
        answer = ask(space, place_of(root / "other"))
        assert answer.complete
        assert places_in(answer) == logical_owners(folder, answer.start)
    check_disk(fresh)


def test_a_log_tree_that_the_kernel_has_not_replayed(fresh: Path, tmp_path: Path) -> None:
    copy = tmp_path / "copy.img"
    with mounted(fresh, "commit=300", kind="btrfs") as folder:
        with (Path(os.fsdecode(folder)) / "new").open("wb") as file:
            file.write(b"new")
            os.fsync(file.fileno())
        shutil.copyfile(fresh, copy)
    with mounted(copy, "ro", "rescue=nologreplay", kind="btrfs"), opened(copy) as fs:
        assert "its log tree is not empty" in fs.unreplayed_log
        answer = fs.owners(0, SECTOR)
        assert not answer.complete
        assert "the log tree has changes that are not replayed" in str(answer.notes)


def test_a_mount_point_stands_for_its_device(fresh: Path) -> None:
    with mounted(fresh, "ro", "subvol=sub", kind="btrfs") as folder:
        done = CliRunner().invoke(cli, ["lookup", "--json", os.fsdecode(folder), "64K"])
        assert done.exit_code == 0, done.output
        assert json.loads(done.output)["owners"][0]["detail"] == "superblock"
        with whoseblock.open(os.fsdecode(folder)) as fs:
            assert [row.kind for row in fs.owners(64 << 10, SECTOR)] == ["metadata"]
            assert next(iter(fs.device_segments())).start >= 1 << 20


def test_a_mount_of_several_devices_takes_logical_addresses(tmp_path: Path) -> None:
    need_loop_mounts()
    images = [tmp_path / f"{number}.img" for number in range(2)]
    for one in images:
        with one.open("wb") as file:
            file.truncate(SIZE)
    with loop_device(images[0]) as first, loop_device(images[1]) as second:
        run(["mkfs.btrfs", "-q", "-d", "raid1", "-m", "raid1", first, second])
        run(["btrfs", "device", "scan", first, second])
        with mounted(Path(first), kind="btrfs", loop=False) as folder:
            place = Path(os.fsdecode(folder)) / "file"
            place.write_bytes(bytes(10 * SECTOR))
            os.sync()
            logical = place_of(place)
            arguments = ["lookup", "--json", "--address-space", "logical", os.fsdecode(folder)]
            done = CliRunner().invoke(cli, [*arguments, str(logical)])
            assert done.exit_code == 0, done.output
            (row,) = json.loads(done.output)["owners"]
            assert row["mounted_at"] == [str(place)]
            assert len(row["copies"]) == 2
            by_name = {copy["layer"]: copy["start"] for copy in row["copies"]}
            for device in (first, second):
                with whoseblock.open(device) as fs:
                    (found,) = fs.owners(by_name[Path(device).name], 1)
                    assert isinstance(found, FileOwner)
                    assert found.paths == ("/file",)
            with (
                whoseblock.open(os.fsdecode(folder)) as fs,
                pytest.raises(UnsupportedError, match="on several devices"),
            ):
                fs.owners(0, 1)


def test_processes_are_those_of_the_subvolume(fresh: Path) -> None:
    with mounted(fresh, kind="btrfs") as folder:
        root = Path(os.fsdecode(folder))
        run(["btrfs", "subvolume", "snapshot", root / "sub", root / "copy"])
        (root / "copy/new").write_bytes(b"new")
        os.sync()
        inode = (root / "sub/file").stat().st_ino
        assert inode == (root / "copy/file").stat().st_ino
        # The top-level subvolume has a file of the same number.
        assert inode == (root / "other").stat().st_ino
        device = (
            run(["findmnt", "-no", "SOURCE", os.fsdecode(folder)]).decode().split("[")[0].strip()
        )
        with opened(fresh) as fs:
            (place, *_) = (
                row.start
                for row in fs.owners(0, SIZE, paths=False)
                if isinstance(row, FileOwner) and row.subvolume == 256
            )
        program = "map_file(0, PAGE); descriptor = os.open(path, os.O_RDONLY); ready()"
        with (
            running(program, root / "sub/file") as (first,),
            running(program, root / "copy/file") as (second,),
            running(program, root / "other"),
        ):
            arguments = ["lookup", "--json", "--processes", device, f"{place}+1"]
            done = CliRunner().invoke(cli, arguments)
            assert done.exit_code == 0, done.output
            rows = json.loads(done.output)["owners"]
            found = {row["subvolume_path"]: row["processes"] for row in rows}
        assert {path: [one["pid"] for one in users] for path, users in found.items()} == {
            "/sub": [first],
            "/copy": [second],
        }
        for users in found.values():
            assert [len(one["mappings"]) for one in users] == [1]
            assert [len(one["open"]) for one in users] == [1]
