"""The commands on a mounted ext4 whose device fails: losses, plans, refusals."""

import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from tests.support.emulated_device import emulated
from tests.support.ext4_images import make_image
from tests.support.failing_filesystem import Bench
from tests.support.mounts import mounted
from tests.support.tools import need_loop_mounts

from whoseblock.fs.mounted.fiemap import file_extents
from whoseblock.ranges import ByteRange

MIB = 1 << 20
BLOCK = 4096
#: The first block of the second group, which has a copy of the superblock.
GROUP = 8192


@pytest.fixture
def disk(tmp_path: Path) -> Iterator[Bench]:
    """Provide an ext4 on a failing device, with one file of two names."""
    need_loop_mounts()
    image = make_image(tmp_path / "disk.img", 64 * MIB, "-t", "ext4", "-b", "4096", "-g", "8192")
    with (
        emulated(image, tmp_path / "served") as served,
        served.loop() as loop,
        mounted(loop, kind="ext4", loop=False) as folder,
    ):
        root = Path(os.fsdecode(folder))
        (root / "d").mkdir()
        (root / "d/file").write_bytes(os.urandom(10 * BLOCK))
        os.link(root / "d/file", root / "hard")
        found = Bench(served, image, loop, root, tmp_path / "journal.sqlite")
        found.sync()
        yield found


def failures(disk: Bench) -> tuple[ByteRange, ByteRange, ByteRange]:
    """Make a block of the file, a free block and a copy of the superblock fail."""
    (extent,) = file_extents(str(disk.root / "d/file"), 0, 10 * BLOCK)
    data = ByteRange(extent.physical + 2 * BLOCK, BLOCK)
    free, copy = disk.free(1), ByteRange(GROUP * BLOCK, BLOCK)
    disk.fail(data, free, copy)
    return data, free, copy


def whoseblock(*words: object) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "whoseblock", *map(str, words)]
    return subprocess.run(command, capture_output=True, text=True, check=False)


def test_the_loss_of_each_file(disk: Bench) -> None:
    done = whoseblock("lookup", disk.device, *failures(disk), "--summary")
    assert done.returncode == 0, done.stderr
    rows = [line.split() for line in done.stdout.splitlines()]
    (inode,) = {(disk.root / name).stat().st_ino for name in ("hard", "d/file")}
    (file,) = (row for row in rows if "/d/file" in row)
    assert (file[0], file[3]) == ("4096", str(inode))
    assert "  (and 1 more)" in done.stdout
    assert ["4096", "free"] in rows
    assert "metadata: static 4096" in done.stdout


@pytest.mark.parametrize("option", [(), ("--punch",), ("--quarantine",), ("--restore-cached",)])
def test_no_repair_and_why(disk: Bench, option: tuple[str, ...]) -> None:
    data, free, copy = failures(disk)
    before = disk.bytes_at(ByteRange(0, 64 * MIB))
    for where, words in (
        (data, (f"{data.start}: whoseblock cannot", "on this ext4", "nothing is changed")),
        (free, ("cannot zero free blocks",) if not option else ("on this ext4",)),
        (copy, ("metadata (static): unmount, and e2fsck -f",)),
    ):
        plan = disk.respond(where, *option)
        assert plan.returncode == 0, plan.stderr
        said = disk.apply(where, *option, code=14)
        for word in words:
            assert word.replace(f"{data.start}:", f"{data}:") in said
    assert len(disk.served.bad()) == 3
    assert {tuple(states) for states in disk.states()} <= {("planned",), ("planned", "skipped")}
    # The journal of ext4 may have written meanwhile, but not to the failed blocks.
    for where in (data, free, copy):
        assert disk.bytes_at(where) == before[where.start : where.end]


def test_there_is_nothing_to_study(disk: Bench) -> None:
    done = whoseblock("study", disk.image)
    assert done.returncode == 7
    assert "no reverse map to measure" in done.stderr


def test_the_layers(disk: Bench) -> None:
    done = whoseblock("stack", disk.device)
    assert done.returncode == 0, done.stderr
    assert "ext4 (owners by a scan of its inodes)" in " ".join(done.stdout.split())
