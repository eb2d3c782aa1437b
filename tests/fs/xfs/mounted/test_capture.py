"""Given free blocks are put into an unlinked file, wherever they are, and nothing else is left."""

import contextlib
import os
import random
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest
from tests.support.failing_filesystem import EXCHANGE, PLAIN, geometry, make_disk
from tests.support.kernel_oracle import getfsmap
from tests.support.mounts import mounted
from tests.support.system_calls import sync_filesystem
from tests.support.tools import run
from tests.support.truth import Row
from tests.support.xfs_images import MIB, Geometry

import whoseblock
from whoseblock.fs.base import FileOwner
from whoseblock.fs.driver import Capability, MountedVolume
from whoseblock.fs.mounted.fallocate import punch_hole
from whoseblock.fs.mounted.fiemap import extents_of
from whoseblock.fs.xfs.mounted import capture, kernel
from whoseblock.ranges import ByteRange

BLOCK = 4096


@pytest.fixture(autouse=True)
def patience(monkeypatch: pytest.MonkeyPatch) -> None:
    """Set more time, which a busy machine needs to lead the allocator."""
    monkeypatch.setattr(capture, "_PATIENCE_S", 10.0)


@contextlib.contextmanager
def opened(image: Path, *options: str) -> Iterator[tuple[MountedVolume, Path, int]]:
    """Mount an image; provide the filesystem, its root and a folder to work in."""
    with mounted(image, *options) as folder:
        root = Path(os.fsdecode(folder))
        (root / "work").mkdir(exist_ok=True)
        # The kernel takes the groups in turn: each has inodes.
        for number in range(16):
            (root / f"folder{number}").mkdir()
        work = os.open(root / "work", os.O_RDONLY)
        try:
            with whoseblock.open(str(root)) as fs:
                assert isinstance(fs, MountedVolume)
                assert Capability.CAPTURE in fs.capabilities
                yield fs, root, work
        finally:
            os.close(work)


def free_rows(root: Path) -> list[Row]:
    run(["sync", "--file-system", str(root)])
    return [row for row in getfsmap(os.fsencode(root)) if row.kind == "free"]


def rows_with_inodes(fs: MountedVolume, root: Path) -> list[Row]:
    """Return the free rows of allocation groups that have inodes, which is most of them."""
    geometry = kernel.geometry(fs.fileno())
    groups = range(geometry.agcount)
    having = {one for one in groups if kernel.free_inodes(fs.fileno(), one) >= 8}
    assert len(having) >= geometry.agcount - 1
    return [row for row in free_rows(root) if row.start // geometry.ag_bytes in having]


def check(fs: MountedVolume, work: int, wanted: ByteRange) -> bool:
    """Return whether a run can be captured, and see that exactly that is done."""
    sync_filesystem(fs.fileno())
    file = fs.capture(wanted, work)
    if file is None:
        return False
    (extent,) = extents_of(file, 0, 1 << 62)
    assert extent[:3] == (0, *wanted)
    (row,) = fs.owners(*wanted, paths=False)
    assert isinstance(row, FileOwner)
    assert row.file == fs.file_of(file)
    punch_hole(file, 0, wanted.length)
    os.close(file)
    return True


@pytest.mark.parametrize(
    "kind",
    [
        EXCHANGE,
        PLAIN,
        geometry("small", parent=True, exchange=True, block=1024, size=48 * MIB),
        geometry("large", parent=True, exchange=True, block=65536, size=640 * MIB),
        replace(
            geometry("stripes", parent=True, exchange=True, size=512 * MIB),
            more=("-i", "exchange=1", "-d", "su=64k,sw=4"),
        ),
        replace(
            geometry("hints", parent=True, exchange=True, size=64 * MIB),
            more=("-i", "exchange=1", "-d", "extszinherit=16,cowextsize=16"),
        ),
    ],
    ids=lambda kind: kind.name,
)
def test_every_part_of_an_empty_filesystem(tmp_path: Path, kind: Geometry) -> None:
    with opened(make_disk(tmp_path / "disk", kind)) as (fs, root, work):
        size, chance = fs.block_size, random.Random(kind.name)
        for row in rows_with_inodes(fs, root):
            blocks = row.length // size
            last = blocks - 1
            for at in {0, last, last // 2, chance.randrange(blocks), chance.randrange(blocks)}:
                wanted = ByteRange(row.start + at * size, min(3, blocks - at) * size)
                now = [one for one in free_rows(root) if one.start <= wanted.start < one.end]
                # An inode chunk may have got it.
                if now and now[0].end >= wanted.end:
                    assert check(fs, work, wanted), (row, wanted)
        assert not list((root / "work").iterdir())


def test_every_part_of_a_large_filesystem(tmp_path: Path) -> None:
    # Groups of 900 GiB: the way is long.
    kind = geometry("huge", parent=True, exchange=True, size=4 << 40, group_blocks=900 << 18)
    with opened(make_disk(tmp_path / "disk", kind)) as (fs, root, work):
        chance = random.Random(1)
        for row in rows_with_inodes(fs, root):
            length = min(row.length, 16 * MIB)
            wanted = ByteRange(row.start + chance.randrange(row.length // length) * length, length)
            assert check(fs, work, wanted)


def test_free_blocks_among_many_small_files(tmp_path: Path) -> None:
    kind = geometry("aged", parent=True, exchange=True, size=48 * MIB)
    with opened(make_disk(tmp_path / "disk", kind)) as (fs, root, work):
        chance = random.Random(3)
        paths = []
        with contextlib.suppress(OSError):
            for number in range(20_000):
                folder = root / f"{number % 8}"
                folder.mkdir(exist_ok=True)
                path = folder / str(number)
                paths.append(path)
                path.write_bytes(bytes(BLOCK * chance.choice([1, 1, 2, 5])))
        for path in paths:
            if chance.random() < 0.4:
                path.unlink(missing_ok=True)
        number, captured = 12, 0
        assert len(free_rows(root)) > 300
        for _ in range(number):
            row = chance.choice(free_rows(root))
            at = chance.randrange(row.length // BLOCK) * BLOCK
            captured += check(fs, work, ByteRange(row.start + at, BLOCK))
        # A freeze does the rest.
        assert captured > number * 0.6
        assert not list((root / "work").iterdir())


def test_blocks_that_are_not_free(tmp_path: Path) -> None:
    with opened(make_disk(tmp_path / "disk", EXCHANGE)) as (fs, root, work):
        (root / "file").write_bytes(bytes(8 * BLOCK))
        rows = free_rows(root)
        inode = (root / "file").stat().st_ino
        (place,) = (row for row in getfsmap(os.fsencode(root)) if row.inode == inode)
        assert fs.capture(ByteRange(place.start, BLOCK), work) is None
        # One of the two is not free.
        assert fs.capture(ByteRange(rows[-1].start - BLOCK, 2 * BLOCK), work) is None
        assert free_rows(root) == rows


def test_it_is_killed(tmp_path: Path) -> None:
    with opened(make_disk(tmp_path / "disk", EXCHANGE)) as (fs, root, work):
        before = os.statvfs(root).f_bfree
        row = free_rows(root)[-1]
        program = (
            "import os, sys, signal, whoseblock\n"
            "from whoseblock.ranges import ByteRange\n"
            "fs = whoseblock.open(sys.argv[1])\n"
            "work = os.open(sys.argv[1] + '/work', os.O_RDONLY)\n"
            "if sys.argv[4] == 'early':\n"
            "    os.rmdir = lambda *a, **b: os.kill(os.getpid(), signal.SIGKILL)\n"
            "assert fs.capture(ByteRange(int(sys.argv[2]), int(sys.argv[3])), work) is not None\n"
            "os.kill(os.getpid(), signal.SIGKILL)\n"
        )
        for when in "late", "early":
            arguments = [str(root), str(row.start), str(BLOCK), when]
            done = subprocess.run([sys.executable, "-c", program, *arguments], check=False)
            assert done.returncode == -9
        # The kernel frees in the background what no process has open.
        deadline = time.monotonic() + 10
        while os.statvfs(root).f_bfree < before:
            assert time.monotonic() < deadline
            time.sleep(0.01)
        assert check(fs, work, ByteRange(row.start, BLOCK))
        assert not list((root / "work").iterdir())
