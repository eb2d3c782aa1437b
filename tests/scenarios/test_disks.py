"""Whole disks: the answers are those of the bare filesystem images, by their own oracles."""

import json
import random
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
from tests.support.disk_images import Place, Volume, copy_range, make_group, partition, places_of
from tests.support.expected_rows import Expectation, normal
from tests.support.filled_images import Zoo
from tests.support.machine_snapshots import tags, unpacked
from tests.support.tools import need_loop_mounts, run
from tests.support.xfs_images import MIB, sparse_file

from whoseblock.stack.base import descend
from whoseblock.target import Target, TargetOptions

SECTOR = 512


class Disk:
    """A disk image, and which image's bytes lie where on it."""

    def __init__(self, path: Path, size: int) -> None:
        self.path = sparse_file(path, size)
        self.size = size
        self.places: list[Place] = []

    def put(self, place: Place) -> None:
        copy_range(place.image, place.at, self.path, place.start, place.length)
        self.places.append(place)

    def questions(self, rng: random.Random, count: int) -> list[tuple[int, int]]:
        """Ask at every edge, and anywhere."""
        edges = sorted(
            {edge for place in self.places for edge in (place.start, place.start + place.length)}
        )
        asked = [(edge - 3000, 6000) for edge in rng.sample(edges, min(len(edges), 200))]
        asked += [(edge, 1) for edge in edges[:50]] + [(edge - 1, 1) for edge in edges[:50]]
        for place in rng.choices(self.places, k=count):
            start = place.start + rng.randrange(place.length)
            asked.append((start, rng.randint(1, 1 << rng.randrange(1, 20))))
        asked += [(rng.randrange(self.size), 1 << rng.randrange(20)) for _ in range(count // 10)]
        return [
            (max(start, 0), min(length, self.size - max(start, 0)))
            for start, length in asked
            if max(start, 0) < self.size
        ]

    def expected(
        self, start: int, length: int, oracles: dict[Path, Expectation]
    ) -> list[dict[str, Any]]:
        """Return the rows of the bare images, moved to their places; other parts are outside."""
        rows: list[dict[str, Any]] = []
        end = covered = start
        end += length
        for place in sorted(self.places):
            low, high = max(start, place.start), min(end, place.start + place.length)
            if low >= high:
                continue
            if covered < low:
                rows.append({"kind": "outside", "start": covered, "length": low - covered})
            shift = place.start - place.at
            bare = oracles[place.image].rows(low - shift, high - low)
            rows += [row | {"start": row["start"] + shift} for row in bare]
            covered = high
        if covered < end:
            rows.append({"kind": "outside", "start": covered, "length": end - covered})
        return rows


def joined(rows: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    """Join rows outside of filesystems: between tables and gaps the truth here knows no edge."""
    found: list[dict[str, Any]] = []
    for row in rows:
        last = found[-1] if found else None
        if last and last["kind"] == row["kind"] == "outside":
            last["length"] += row["length"]
        else:
            found.append(dict(row))
    return found


def check(disk: Disk, oracles: dict[Path, Expectation], *options: str, count: int = 400) -> None:
    """Compare the answers of the command line with the bare images' oracles."""
    questions = disk.questions(random.Random(disk.path.name), count)
    done = subprocess.run(
        [
            sys.executable,
            "-m",
            "whoseblock",
            "lookup",
            disk.path,
            "--ranges",
            "-",
            "--json",
            *options,
        ],
        input="".join(f"{start}+{length}\n" for start, length in questions).encode(),
        capture_output=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr.decode()
    answers = [json.loads(line) for line in done.stdout.splitlines()]
    assert len(answers) == len(questions)
    for (start, length), answer in zip(questions, answers, strict=True):
        assert (answer["start"], answer["length"]) == (start, length)
        rows = joined([normal(row) for row in answer["owners"]])
        assert rows == joined(disk.expected(start, length, oracles)), (start, length)
        assert answer["complete"] is True, answer["notes"]
        assert answer["via"][0]["layer"] == disk.path.name
        assert answer["via"][0]["start"] == start
        for row in answer["owners"]:
            # The way of a row begins with the row, and ends where the bare image has it.
            assert row["via"][0] == {"layer": disk.path.name, "start": row["start"]}
            for place in disk.places:
                if place.start <= row["start"] < place.start + place.length:
                    assert row["via"][-1]["start"] == row["start"] - place.start + place.at


@pytest.fixture
def images(zoo: Zoo) -> dict[Path, Expectation]:
    truths = [zoo.filled("4k"), zoo.filled("1k-dir16k")]
    return {truth.image: Expectation(truth) for truth in truths}


def sectors(image: Path) -> int:
    return -(-image.stat().st_size // SECTOR)


def test_gpt_with_several_filesystems_at_odd_offsets(
    images: dict[Path, Expectation], tmp_path: Path
) -> None:
    first, second = images
    disk = Disk(tmp_path / "gpt.img", 900 * MIB)
    start = 2051
    other = start + sectors(first) + 777
    partition(
        disk.path,
        f"label: gpt\nstart={start}, size={sectors(first)}\n"
        f"start={other}, size={sectors(second)}, name=backups\n",
    )
    disk.put(Place(start * SECTOR, first.stat().st_size, first, 0))
    disk.put(Place(other * SECTOR, second.stat().st_size, second, 0))
    # The image need not fill its last sector.
    rest = sectors(second) * SECTOR - second.stat().st_size
    assert rest == 0 or rest < SECTOR
    check(disk, images)


def test_gpt_of_which_only_the_backup_is_left(
    images: dict[Path, Expectation], tmp_path: Path
) -> None:
    (image, *_) = images
    disk = Disk(tmp_path / "backup.img", 500 * MIB)
    partition(disk.path, f"label: gpt\nstart=4099, size={sectors(image)}\n")
    disk.put(Place(4099 * SECTOR, image.stat().st_size, image, 0))
    with disk.path.open("r+b") as file:
        file.seek(SECTOR)
        file.write(bytes(33 * SECTOR))
    check(disk, images, count=100)


def test_mbr_with_logical_partitions(images: dict[Path, Expectation], tmp_path: Path) -> None:
    first, second = images
    disk = Disk(tmp_path / "mbr.img", 800 * MIB)
    extended = 63 + sectors(first) + 11
    logical = extended + 201
    last = logical + 5000 + 333
    partition(
        disk.path,
        f"label: dos\nstart=63, size={sectors(first)}, type=83\n"
        f"start={extended}, size={sectors(second) + 20_000}, type=5\n"
        f"start={logical}, size=1000, type=83\nstart={last}, size={sectors(second)}, type=83\n",
    )
    disk.put(Place(63 * SECTOR, first.stat().st_size, first, 0))
    disk.put(Place(last * SECTOR, second.stat().st_size, second, 0))
    # In the small one is nothing, of which whoseblock says that it does not know.
    done = subprocess.run(
        [sys.executable, "-m", "whoseblock", "lookup", disk.path, f"{logical}s+2s", "--json"],
        capture_output=True,
        check=True,
    )
    (answer,) = map(json.loads, done.stdout.splitlines())
    assert [row["kind"] for row in answer["owners"]] == ["unknown"]
    assert answer["complete"] is False
    assert [step["layer"] for step in answer["via"]] == ["mbr.img", "mbr.img5"]
    disk.questions = _without(disk, logical * SECTOR, 1000 * SECTOR)  # type: ignore[method-assign]
    check(disk, images)


def _without(disk: Disk, start: int, length: int) -> Any:  # noqa: ANN401
    asked = disk.questions

    def questions(rng: random.Random, count: int) -> list[tuple[int, int]]:
        return [
            (at, size)
            for at, size in asked(rng, count)
            if at + size <= start or at >= start + length
        ]

    return questions


def test_lvm_linear_and_striped_over_two_disks(
    images: dict[Path, Expectation], tmp_path: Path
) -> None:
    need_loop_mounts()
    first, second = images
    one, two = -(-first.stat().st_size // MIB), -(-second.stat().st_size // MIB)
    two += two % 2
    parts = [sparse_file(tmp_path / f"pv{number}", 600 * MIB) for number in range(2)]
    linear = Volume("linear", ((((0, 7),), 100), (((1, 3),), 50), (((0, 120),), one - 150)))
    striped = Volume("striped", ((((0, 300), (1, 200)), two),))
    begin = make_group("vgtest", parts, [linear, striped])
    disk = Disk(tmp_path / "disk0.img", 700 * MIB)
    partition(disk.path, f"label: gpt\nstart=3001, size={sectors(parts[0])}, type=lvm\n")
    other = Disk(tmp_path / "disk1.img", 600 * MIB)
    copy_range(parts[0], 0, disk.path, 3001 * SECTOR, parts[0].stat().st_size)
    copy_range(parts[1], 0, other.path, 0, parts[1].stat().st_size)
    at = [(0, 3001 * SECTOR), (1, 0)]
    disks = (disk, other)
    for volume, image in ((linear, first), (striped, second)):
        for number, place in places_of(volume, begin, image, at):
            inside = min(place.length, max(image.stat().st_size - place.at, 0))
            if inside:
                disks[number].put(Place(place.start, inside, image, place.at))
    # What a volume has beyond its image is past the end of the filesystem: outside, too.
    check(disk, images, "--member", str(other.path), count=200)
    check(other, images, "--member", str(disk.path), count=200)


def test_a_backup_that_may_be_a_leftover_is_doubted(
    images: dict[Path, Expectation], tmp_path: Path
) -> None:
    (image, *_) = images
    disk = Disk(tmp_path / "leftover.img", 500 * MIB)
    partition(disk.path, f"label: gpt\nstart=4099, size={sectors(image)}\n")
    disk.put(Place(4099 * SECTOR, image.stat().st_size, image, 0))
    with disk.path.open("r+b") as file:
        file.write(bytes(34 * SECTOR))
    (answer,) = ask(disk.path, "4099s")
    assert answer["complete"] is False
    assert any("leftover" in note for note in answer["notes"])


def ask(disk: Path, *arguments: str) -> list[dict[str, Any]]:
    done = subprocess.run(
        [sys.executable, "-m", "whoseblock", "lookup", disk, *arguments, "--json"],
        capture_output=True,
        check=True,
    )
    return [json.loads(line) for line in done.stdout.splitlines()]


def test_a_table_over_an_old_physical_volume_counts(
    images: dict[Path, Expectation], tmp_path: Path
) -> None:
    need_loop_mounts()
    (image, *_) = images
    disk = Disk(tmp_path / "reused.img", 500 * MIB)
    make_group("old", [disk.path], [Volume("gone", ((((0, 0),), 100),))])
    run(["sfdisk", "--quiet", "--no-reread", "--wipe=never", disk.path],
        stdin=f"label: dos\nstart=4099, size={sectors(image)}, type=83\n".encode())  # fmt: skip
    disk.put(Place(4099 * SECTOR, image.stat().st_size, image, 0))
    assert b"LABELONE" in disk.path.read_bytes()[:2048]
    check(disk, images, count=30)


def test_a_member_of_the_oldest_kind_in_the_last_partition(
    session_folder: Path, tmp_path: Path
) -> None:
    # A superblock of version 0.90 does not say whether it is the partition's or the disk's.
    member = unpacked("md-images", session_folder) / "raid5old-0.img"
    size = member.stat().st_size
    start = 2048 * SECTOR
    disk = sparse_file(tmp_path / "old.img", start + size)
    partition(disk, f"label: dos\nstart=2048, size={size // SECTOR}, type=fd\n")
    copy_range(member, 0, disk, start, size)
    at, _, offset = next(tags(member))
    with Target(str(disk), TargetOptions()) as target:
        assert target.root is not None
        (landing,) = descend(target.root, start + at, 1)
    assert [step.layer for step in landing.via] == ["old.img", "old.img1", "md/12"]
    assert landing.offset == offset
