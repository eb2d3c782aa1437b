"""Reports of a device of another size than the target: said, and refused past its end."""

import json
from pathlib import Path

import pytest
from tests.support.commands import lookup, whoseblock
from tests.support.disk_images import copy_range, partition
from tests.support.xfs_images import MIB, Geometry, make_image, sparse_file

SIZE = 16 * MIB
#: Where the partition begins on the disk.
START = 3 * MIB
DISK = 48 * MIB
#: A block of the log of the filesystem, whose place mkfs.xfs prints; and one past the partition.
INSIDE = 4 * MIB


@pytest.fixture(scope="module")
def images(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Make a partition's image, and that of a disk with it."""
    folder = tmp_path_factory.mktemp("sizes")
    one = make_image(folder / "part.img", Geometry("part", size=SIZE, parent=False))
    disk = sparse_file(folder / "disk.img", DISK)
    partition(disk, f"label: dos\nstart={START // 512}, size={SIZE // 512}\n")
    copy_range(one, 0, disk, START, SIZE)
    return folder


def write_map(path: Path, size: int, *lost: int) -> Path:
    """Write a map as ddrescue does, with lost blocks of 4096 bytes."""
    lines = ["0x00000000     +               1"]
    at = 0
    for start in lost:
        lines += [f"0x{at:08X}  0x{start - at:08X}  +", f"0x{start:08X}  0x00001000  -"]
        at = start + 4096
    path.write_text("\n".join([*lines, f"0x{at:08X}  0x{size - at:08X}  +"]) + "\n")
    return path


def test_a_map_of_the_same_size_is_answered(images: Path, tmp_path: Path) -> None:
    lost = write_map(tmp_path / "map", SIZE, INSIDE)
    (answer,) = lookup(images / "part.img", "--mapfile", lost)
    assert answer["complete"], answer["notes"]


@pytest.mark.parametrize("size", [DISK, SIZE // 2])
@pytest.mark.parametrize("piped", [False, True])
def test_a_map_of_another_size_makes_answers_incomplete(
    images: Path, tmp_path: Path, size: int, *, piped: bool
) -> None:
    lost = write_map(tmp_path / "map", size, INSIDE)
    source, text = ("-", lost.read_text()) if piped else (str(lost), "")
    done = whoseblock("lookup", images / "part.img", "--mapfile", source, "--json", stdin=text)
    assert done.returncode == 0, done.stderr
    answer = json.loads(done.stdout)
    name = "standard input" if piped else str(lost)
    note = f"{name} covers {size} bytes, and part.img has {SIZE}"
    assert not answer["complete"]
    assert any(note in one for one in answer["notes"])


@pytest.mark.parametrize("form", ["map", "blocks", "log"])
def test_ranges_past_the_end_are_refused(images: Path, tmp_path: Path, form: str) -> None:
    report = tmp_path / form
    if form == "map":
        options = ["--mapfile", write_map(report, DISK, INSIDE, SIZE + 4096)]
    elif form == "blocks":
        report.write_text(f"{INSIDE // 1024}\n{SIZE // 1024}\n")
        options = ["--badblocks", report, "--block-size", "1024"]
    else:
        sector = SIZE // 512
        report.write_text(f"[    1.0] critical medium error, dev sdb, sector {sector} op 0x0\n")
        options = ["--dmesg", report]
    done = whoseblock("lookup", images / "part.img", *map(str, options), "--json")
    assert (done.returncode, done.stdout) == (5, "")
    assert "past the end of part.img" in done.stderr
    assert "--offset" in done.stderr
    assert "--device" in done.stderr
    if form == "log":
        # The image is a copy of sdb that was cut short.
        (answer,) = lookup(images / "part.img", *map(str, options), "--device", "sdb")
        assert (answer["complete"], answer["owners"][0]["kind"]) == (False, "unknown")


def test_an_offset_moves_the_failures_into_the_partition(images: Path, tmp_path: Path) -> None:
    lost = write_map(tmp_path / "map", DISK, MIB, START + INSIDE, START + SIZE - 4096)
    expected = lookup(images / "disk.img", "--mapfile", lost)[1:]
    done = whoseblock(
        "lookup", images / "part.img", "--mapfile", lost, "--offset", f"{START // 512}s", "--json"
    )
    found = [json.loads(line) for line in done.stdout.splitlines()]
    assert [answer["start"] for answer in found] == [INSIDE, SIZE - 4096]
    for one, other in zip(found, expected, strict=True):
        assert one["complete"] is other["complete"]
        assert [row["kind"] for row in one["owners"]] == [row["kind"] for row in other["owners"]]
    assert "1 failure outside of" in done.stderr
    text = f"{START + INSIDE}+4096"
    (typed,) = lookup(images / "part.img", text, "--offset", str(START))
    assert typed["start"] == INSIDE
    refused = whoseblock("lookup", images / "part.img", "1M", "--offset", str(START))
    assert refused.returncode == 5
    useless = whoseblock("lookup", "--pfn", "1", "--offset", "0")
    assert (useless.returncode, "no effect" in useless.stderr) == (2, True)
