"""``whoseblock stack``: what it shows of a filesystem."""

import json
import os
from pathlib import Path

import pytest
from click.testing import CliRunner
from tests.support.commands import whoseblock
from tests.support.disk_images import copy_range, partition
from tests.support.tools import run
from tests.support.xfs_images import MIB, Geometry, make_image, sparse_file

from whoseblock.cli.group import cli
from whoseblock.media.device import FileMedia
from whoseblock.printable import rounded


@pytest.mark.parametrize(
    ("rmapbt", "shown", "found"),
    [(True, "xfs", "index"), (False, "xfs (owners by a scan of its inodes)", "scan")],
)
def test_how_owners_are_found_is_shown(
    tmp_path: Path, *, rmapbt: bool, shown: str, found: str
) -> None:
    geometry = Geometry("stack", size=300 * MIB, rmapbt=rmapbt, parent=False)
    image = make_image(tmp_path / "disk.img", geometry)
    done = whoseblock("stack", image)
    assert (done.returncode, done.stdout) == (0, f"disk.img  300M  image: {shown}\n")
    tree = json.loads(whoseblock("stack", image, "--json").stdout)
    assert (tree["filesystem"], tree["reverse_map"]) == ("xfs", found)


def test_names_and_sizes_fit_a_terminal(tmp_path: Path) -> None:
    disk = sparse_file(tmp_path / "a-disk-with-a-long-name.img", 96 * MIB)
    partition(
        disk,
        "label: gpt\nsize=40M, name=a-name-of-a-partition-with-36-letters\nsize=8M\n"
        "size=4M, name=x\n",
    )
    swap = sparse_file(tmp_path / "swap", 8 * MIB)
    run(["mkswap", "-q", swap])
    luks = sparse_file(tmp_path / "luks", 40 * MIB)
    options = ["--type=luks2", "--pbkdf=pbkdf2", "--pbkdf-force-iterations=1000"]
    run(["cryptsetup", "luksFormat", "-q", *options, "--disable-locks", luks, "-"], b"secret")
    copy_range(luks, 0, disk, MIB, 40 * MIB)
    copy_range(swap, 0, disk, 41 * MIB, 8 * MIB)
    done = whoseblock("stack", disk)
    assert done.returncode == 0, done.stderr
    lines = done.stdout.splitlines()
    assert max(map(len, lines)) <= 80, done.stdout
    assert "96M  image" in lines[0]
    text = " ".join(line.lstrip("│├└─ ") for line in lines)
    assert "16M +24M (LUKS2, closed, aes-xts-plain64)" in " ".join(text.split())
    assert "41M +8M a-disk-with-a-long-name.img2 partition: swap space" in " ".join(text.split())
    assert "partition: zeros at its beginning 'x'" in " ".join(text.split())
    exact = whoseblock("stack", disk, "--bytes").stdout
    assert f"{41 * MIB}+{8 * MIB}  a-disk-with-a-long-name.img2" in exact
    tree = json.loads(whoseblock("stack", disk, "--json").stdout)
    contents = [one["to"].get("content") for one in tree["segments"] if "to" in one]
    assert contents == [None, "swap space", "zeros at its beginning"]


@pytest.mark.parametrize(
    ("number", "shown"),
    [(0, "0"), (1023, "1023"), (1024, "1K"), (1050112, "1M"), (1536, "1.5K"), (1 << 63, "8E")],
)
def test_sizes_for_people(number: int, shown: str) -> None:
    assert rounded(number) == shown


# Three drivers read the place of their superblock, after one read for the magic numbers near the
# beginning.
@pytest.mark.parametrize(("filled", "most"), [(False, 8), (True, 40)])
def test_many_partitions_take_few_reads(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, *, filled: bool, most: int
) -> None:
    # A disk with 10,000 empty partitions took two minutes: here are fewer, and reads are counted.
    count = 100
    disk = sparse_file(tmp_path / "disk.img", (count + 2) * MIB)
    script = f"label: gpt\ntable-length: {count}\n"
    partition(disk, script + "".join(f"start={n + 1}MiB, size=1MiB\n" for n in range(count)))
    if filled:
        with disk.open("r+b") as file:
            for number in range(count):
                file.seek((number + 1) * MIB)
                file.write(b"\xe5" * 4096)
    reads = 0
    read = FileMedia.pread

    def counted(media: FileMedia, offset: int, length: int) -> bytes:
        nonlocal reads
        reads += 1
        return read(media, offset, length)

    monkeypatch.setattr(FileMedia, "pread", counted)
    done = CliRunner().invoke(cli, ["stack", str(disk), "--json"])
    assert done.exit_code == 0, done.output
    assert len(json.loads(done.output)["segments"]) == count + 5
    assert reads <= most * count


def test_remarks_are_not_reasons(tmp_path: Path) -> None:
    # While its external log is not named nothing is complete; that the backup of the table is lost
    # is a remark.
    journal = sparse_file(tmp_path / "journal.img", 80 * MIB)
    more = ("-l", f"logdev={journal},size=64m")
    geometry = Geometry("plain", size=300 * MIB, parent=False, more=more)
    image = make_image(tmp_path / "plain.img", geometry)
    disk = sparse_file(tmp_path / "disk.img", 303 * MIB)
    partition(disk, "label: gpt\nstart=2048, size=300MiB\n")
    copy_range(image, 0, disk, MIB, 300 * MIB)
    with disk.open("r+b") as file:
        file.seek(-512, os.SEEK_END)
        file.write(bytes(512))
    for options in ([], ["--summary"]):
        done = whoseblock("lookup", disk, f"{MIB + 4096}", *options)
        assert done.returncode == 0, done.stderr
        reasons = [line for line in done.stdout.splitlines() if "incomplete:" in line]
        assert len(reasons) == 1, done.stdout
        assert "the log is on another device" in reasons[0]
        assert "  note: disk.img: the backup GPT is invalid" in done.stdout
