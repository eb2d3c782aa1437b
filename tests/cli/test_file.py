"""``whoseblock file``, compared with the programs of the filesystems, and with ``lookup``."""

import json
import os
import re
import time
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from tests.support import system_calls
from tests.support.commands import lookup, whoseblock
from tests.support.disk_images import copy_range, partition
from tests.support.mounts import loop_device, mounted
from tests.support.tools import need_loop_mounts, program, run
from tests.support.xfs_images import MIB, Geometry, make_image, sparse_file

PAGE = 4096
#: FILE OFFSET, first and last block, and flags of filefrag -v.
_EXTENT = re.compile(
    r"^ *\d+: +(\d+)\.\. +\d+: +(\d+)\.\. +\d+: +(\d+):(?: +\d+:)? *(\S*)$", re.MULTILINE
)

Row = dict[str, Any]


def ranges_of(*words: str | Path) -> tuple[list[Row], Row]:
    """Return the ranges of one file, and the file."""
    done = whoseblock("file", *words, "--json")
    assert done.returncode == 0, done.stderr
    *ranges, file = map(json.loads, done.stdout.splitlines())
    assert file.pop("kind") == "file"
    assert file["ranges"] == len(ranges)
    assert {row.pop("kind") for row in ranges} <= {"range"}
    return ranges, file


def fill(root: Path) -> None:
    """Make a file with holes, unwritten blocks, and blocks that another one shares."""
    with (root / "file").open("wb") as file:
        for number in range(0, 40, 2):
            os.pwrite(file.fileno(), bytes([number + 1]) * PAGE, number * PAGE)
            os.fsync(file.fileno())
        system_calls.fallocate(file.fileno(), 64 * PAGE, 16 * PAGE)
    with (root / "alone").open("wb") as file:
        file.write(b"a" * 3 * PAGE)
    os.sync()


@pytest.fixture(scope="module")
def xfs_image(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("file") / "xfs.img"
    make_image(path, Geometry("small", size=300 * MIB))
    with mounted(path) as folder:
        root = Path(os.fsdecode(folder))
        fill(root)
        with (root / "file").open("rb") as source, (root / "clone").open("wb") as target:
            system_calls.clone_range(source.fileno(), 0, 8 * PAGE, target.fileno(), 0)
        os.sync()
    return path


@pytest.fixture(scope="module")
def ext4_image(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = sparse_file(tmp_path_factory.mktemp("file") / "ext4.img", 64 * MIB)
    run(["mke2fs", "-q", "-F", "-t", "ext4", "-b", str(PAGE), path])
    with mounted(path, kind="ext4") as folder:
        fill(Path(os.fsdecode(folder)))
    return path


def listed(path: Path) -> Iterator[tuple[int, int, int, bool, bool]]:
    """Yield what filefrag reports: offset, length, start, and whether unwritten and shared."""
    text = run([program("filefrag"), "-v", f"-b{PAGE}", path]).decode()
    for offset, start, length, flags in _EXTENT.findall(text):
        numbers = (int(offset) * PAGE, int(length) * PAGE, int(start) * PAGE)
        yield (*numbers, "unwritten" in flags, "shared" in flags)


def shown(row: Row) -> tuple[int, int, int, bool, bool]:
    return (
        row["file_offset"],
        row["length"],
        row["start"],
        row["unwritten"],
        row["shared"],
    )


@pytest.mark.parametrize("kind", ["xfs", "ext4"])
def test_the_ranges_of_a_mounted_file(kind: str, request: pytest.FixtureRequest) -> None:
    image: Path = request.getfixturevalue(f"{kind}_image")
    with mounted(image, kind=kind) as folder:
        root = Path(os.fsdecode(folder))
        device = f"/dev/{_device_at(root)}"
        names = ("file", "alone", "clone") if kind == "xfs" else ("file", "alone")
        for name in names:
            path = root / name
            ranges, file = ranges_of(path)
            assert list(map(shown, ranges)) == list(listed(path))
            status = path.stat()
            assert file["complete"]
            assert (file["inode"], file["size"]) == (status.st_ino, status.st_size)
            for row in ranges:
                assert row["places"] == [[{"layer": file["device"], "start": row["start"]}]]
            check_round_trip(device, ranges, f"/{name}")


def check_round_trip(target: str | Path, ranges: list[Row], path: str) -> None:
    """Check that each range of a target leads back to its file, at its place in it."""
    asked = [f"{row['places'][0][0]['start']}+{row['length']}" for row in ranges]
    for row, answer in zip(ranges, lookup(target, *asked), strict=True):
        found = [
            (owner["file_offset"] - owner["start"] + answer["start"], owner["unwritten"])
            for owner in answer["owners"]
            if path in owner.get("paths", ())
        ]
        assert set(found) == {(row["file_offset"], row["unwritten"])}


@pytest.mark.parametrize("kind", ["xfs", "ext4"])
def test_an_image_has_the_ranges_that_the_kernel_reports(
    kind: str, request: pytest.FixtureRequest
) -> None:
    image: Path = request.getfixturevalue(f"{kind}_image")
    with mounted(image, kind=kind) as folder:
        expected = list(listed(Path(os.fsdecode(folder), "file")))
    rows, file = ranges_of("/file", "--target", image)
    ranges = [row for row in rows if row["what"] == "data"]
    assert {row["what"] for row in rows[len(ranges) :]} <= {"extent-map"}
    # What an image shares is known of each part; FIEMAP reports it of a whole extent.
    assert [part[:4] for part in joined(map(shown, ranges))] == [
        part[:4] for part in joined(expected)
    ]
    assert file["device"] == image.name
    for row in rows:
        assert row["places"] == [[{"layer": image.name, "start": row["start"]}]]
    check_round_trip(image, ranges, "/file")


def joined(
    rows: Iterable[tuple[int, int, int, bool, bool]],
) -> list[tuple[int, int, int, bool, bool]]:
    """Join ranges that continue, whether shared or not."""
    found: list[tuple[int, int, int, bool, bool]] = []
    for offset, length, start, unwritten, shared in rows:
        if found:
            before = found[-1]
            ends = before[0] + before[1], before[2] + before[1], before[3]
            if ends == (offset, start, unwritten):
                found[-1] = (before[0], before[1] + length, before[2], unwritten, shared)
                continue
        found.append((offset, length, start, unwritten, shared))
    return found


def test_the_places_on_a_disk(demo_image: Path, tmp_path: Path) -> None:
    disk = sparse_file(tmp_path / "disk.img", 400 * MIB)
    partition(disk, "label: gpt\nstart=2048, size=614400\n")
    copy_range(demo_image, 0, disk, MIB, 300 * MIB)
    ranges, file = ranges_of("/d/e/c", "--target", disk)
    assert file["device"] == "disk.img1"
    assert [row["places"] for row in ranges] == [
        [
            [
                {"layer": "disk.img", "start": row["start"] + MIB},
                {"layer": "disk.img1", "start": row["start"]},
            ]
        ]
        for row in ranges
    ]
    check_round_trip(disk, ranges, "/d/e/c")
    table = whoseblock("file", "/d/e/c", "--target", disk)
    first = ranges[0]["start"]
    assert f"disk.img {first + MIB} → disk.img1 {first}" in table.stdout
    assert "/d/e/c: inode 262273, 1048576 bytes, 3 ranges on disk.img1" in table.stdout


@contextmanager
def first_partition(disk: Path) -> Iterator[Path]:
    """Attach a disk to a loop device, and yield the device of its first partition."""
    with loop_device(disk) as loop:
        run(["partx", "--add", loop])
        try:
            part = Path(f"{loop}p1")
            for _ in range(50):
                if part.exists():
                    break
                time.sleep(0.1)
            yield part
        finally:
            run(["partx", "--delete", loop])


def test_the_places_on_a_disk_that_is_mounted(demo_image: Path, tmp_path: Path) -> None:
    need_loop_mounts()
    disk = sparse_file(tmp_path / "disk.img", 400 * MIB)
    partition(disk, "label: gpt\nstart=2048, size=614400\n")
    copy_range(demo_image, 0, disk, MIB, 300 * MIB)
    offline, _ = ranges_of("/a", "--target", disk)
    with first_partition(disk) as part, mounted(part, "ro", loop=False) as folder:
        live, file = ranges_of(Path(os.fsdecode(folder), "a"))
    loop = part.name.removesuffix("p1")
    assert file["device"] == part.name
    assert [one[:4] for one in joined(map(shown, live))] == [shown(row)[:4] for row in offline]
    for row in live:
        places = [[(step["layer"], step["start"]) for step in way] for way in row["places"]]
        assert places == [[(loop, row["start"] + MIB), (part.name, row["start"])]]


def test_what_is_not_there_is_an_error_after_what_is(demo_image: Path) -> None:
    done = whoseblock("file", "/nothing", "/a", "--target", demo_image)
    assert done.returncode == 3
    assert "/a: inode 131" in done.stdout
    assert "nothing there belongs to '/nothing'" in done.stderr


def test_a_device_is_no_file(tmp_path: Path) -> None:
    done = whoseblock("file", "/dev/null", tmp_path / "nothing")
    assert done.returncode == 3
    assert "'/dev/null' is neither a file nor a folder" in done.stderr
    assert "cannot be opened: No such file or directory" in done.stderr


def test_options_of_a_target_need_one(tmp_path: Path) -> None:
    done = whoseblock("file", tmp_path, "--offline")
    assert done.returncode == 2
    assert "--offline has no effect without --target" in done.stderr


def test_names_are_escaped_for_terminals(tmp_path: Path) -> None:
    path = tmp_path / "\x1b[31mred"
    path.write_bytes(b"r" * PAGE)
    with path.open("rb") as file:
        os.fsync(file.fileno())
    done = whoseblock("file", path)
    if done.returncode:
        pytest.skip(f"the filesystem of {tmp_path} does not report ranges")
    assert "\x1b" not in done.stdout
    assert "\\x1b[31mred" in done.stdout


def _device_at(folder: Path) -> str:
    number = folder.stat().st_dev
    return Path(f"/sys/dev/block/{os.major(number)}:{os.minor(number)}").resolve().name
