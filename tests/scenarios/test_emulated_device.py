"""The kernel's XFS on a loop device over an emulated failing device: a rehearsal as it is done."""

import contextlib
import errno
import mmap
import os
import random
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from tests.support.emulated_device import Emulated, emulated
from tests.support.kernel_oracle import getfsmap
from tests.support.mounts import frozen, mounted
from tests.support.tools import need_loop_mounts
from tests.support.truth import Row
from tests.support.xfs_images import MIB, Geometry, make_image

from whoseblock.errors import TargetError
from whoseblock.ranges import ByteRange, merge

BLOCK = 4096
FILE_BLOCKS = 64


@pytest.fixture
def image(tmp_path: Path) -> Path:
    need_loop_mounts()
    return make_image(tmp_path / "disk", Geometry("emulated", size=32 * MIB, parent=False))


@contextlib.contextmanager
def mounted_on_failing(
    image: Path, folder: Path, *, in_place: bool = True, direct_io: bool = True
) -> Iterator[tuple[Emulated, Path]]:
    with (
        emulated(image, folder, in_place=in_place) as served,
        served.loop(direct_io=direct_io) as loop,
        mounted(loop, loop=False) as root,
    ):
        yield served, Path(os.fsdecode(root))


def fill(path: Path, seed: str) -> bytes:
    """Make a file of random bytes that are on the device when this returns."""
    content = random.Random(seed).randbytes(FILE_BLOCKS * BLOCK)
    with path.open("wb") as file:
        file.write(content)
        file.flush()
        os.fsync(file.fileno())
    return content


def place_of(root: Path, path: Path, block: int) -> int:
    """Ask the kernel at which byte of the device a block of a file is."""
    inode, offset = path.stat().st_ino, block * BLOCK
    (row,) = (
        row
        for row in getfsmap(os.fsencode(root))
        if row.inode == inode and not row.attr and row.offset <= offset < row.offset + row.length
    )
    return row.start + offset - row.offset


def read_uncached(path: Path, block: int, count: int = 1) -> bytes:
    """Read blocks with O_DIRECT: what the device gives, not what the page cache remembers."""
    file = os.open(path, os.O_RDONLY | os.O_DIRECT)
    try:
        with mmap.mmap(-1, count * BLOCK) as buffer:
            done = os.preadv(file, [buffer], block * BLOCK)
            return buffer[:done]
    finally:
        os.close(file)


def forget(path: Path) -> None:
    """Drop a file from the page cache."""
    file = os.open(path, os.O_RDONLY)
    os.posix_fadvise(file, 0, 0, os.POSIX_FADV_DONTNEED)
    os.close(file)


def at_rest(image: Path, root: Path) -> tuple[bytes, list[Row]]:
    """Return the image's bytes before the failure, and their owners by the kernel."""
    rows = getfsmap(os.fsencode(root))
    with frozen(os.fsencode(root)):
        return image.read_bytes(), rows


def differing(before: bytes, after: bytes) -> list[ByteRange]:
    """Compare block by block."""
    places = range(0, len(before), BLOCK)
    return merge(
        ByteRange(at, BLOCK) for at in places if before[at : at + BLOCK] != after[at : at + BLOCK]
    )


@pytest.mark.parametrize("direct_io", [True, False])
@pytest.mark.parametrize("sectors", [8, 1])
def test_a_file_on_a_bad_block_fails_until_it_is_written(
    image: Path,
    tmp_path: Path,
    direct_io: bool,  # noqa: FBT001 - a parameter of the test
    sectors: int,
) -> None:
    with mounted_on_failing(image, tmp_path / "at", direct_io=direct_io) as (served, root):
        content, other = fill(root / "hit", "hit"), fill(root / "other", "other")
        os.sync()
        at = place_of(root, root / "hit", 20)
        before, rows = at_rest(image, root)
        assert before[at : at + BLOCK] == content[20 * BLOCK :][:BLOCK]
        served.add(ByteRange(at + BLOCK - sectors * 512, sectors * 512))
        forget(root / "hit")
        with (root / "hit").open("rb", 0) as file:
            with pytest.raises(OSError, match="Input/output error") as error:
                os.pread(file.fileno(), BLOCK, 20 * BLOCK)
            assert error.value.errno == errno.EIO
            for block in (19, 21):
                assert (
                    os.pread(file.fileno(), BLOCK, block * BLOCK)
                    == content[block * BLOCK : (block + 1) * BLOCK]
                )
        new = b"rescued " * (BLOCK // 8)
        with (root / "hit").open("r+b", 0) as file:
            assert os.pwrite(file.fileno(), new, 20 * BLOCK) == BLOCK
            os.fsync(file.fileno())
        assert served.bad() == []
        assert read_uncached(root / "hit", 20) == new
        forget(root / "hit")
        forget(root / "other")
        expected = content[: 20 * BLOCK] + new + content[21 * BLOCK :]
        assert (root / "hit").read_bytes() == expected
        assert (root / "other").read_bytes() == other
        assert served.statistics()["sectors_healed"] == sectors
        after, _ = at_rest(image, root)
        # No byte of any file's data has changed but those, and nothing that is free.
        metadata = [row for row in rows if row.kind not in ("file", "free")]
        assert after[at : at + BLOCK] == new
        for changed in differing(before, after):
            for start in range(changed.start, changed.end, BLOCK):
                inside = any(row.start <= start < row.end for row in metadata)
                assert start == at or inside, start


def test_a_permanent_block_fails_for_good(image: Path, tmp_path: Path) -> None:
    with mounted_on_failing(image, tmp_path / "at") as (served, root):
        content = fill(root / "hit", "hit")
        at = place_of(root, root / "hit", 7)
        served.add(ByteRange(at, 512), permanent=True)
        forget(root / "hit")
        with (root / "hit").open("r+b", 0) as file:
            os.pwrite(file.fileno(), bytes(BLOCK), 7 * BLOCK)
            with pytest.raises(OSError, match="Input/output error"):
                os.fsync(file.fileno())
        with pytest.raises(OSError, match="Input/output error"):
            read_uncached(root / "hit", 7)
        assert read_uncached(root / "hit", 8) == content[8 * BLOCK : 9 * BLOCK]
        assert served.permanent() == [ByteRange(at, 512)]


def test_a_rehearsal_leaves_the_image_as_it_was(image: Path, tmp_path: Path) -> None:
    before = image.read_bytes()
    with mounted_on_failing(image, tmp_path / "at", in_place=False) as (_, root):
        content = fill(root / "new", "new")
        forget(root / "new")
        assert (root / "new").read_bytes() == content
    assert image.read_bytes() == before


def test_a_filesystem_is_mounted_again_after_the_server_was_killed(
    image: Path, tmp_path: Path
) -> None:
    with mounted_on_failing(image, tmp_path / "at") as (served, root):
        content = fill(root / "kept", "kept")
        served.server.kill()
        served.server.wait()
        forget(root / "kept")
        with pytest.raises(OSError, match="Input/output error"):
            read_uncached(root / "kept", 0)
    with mounted_on_failing(image, tmp_path / "again") as (_, root):
        # The log is replayed: what was synced is there.
        assert (root / "kept").read_bytes() == content


def test_a_mounted_image_is_not_written_in_place(image: Path, tmp_path: Path) -> None:
    with mounted(image):
        done = subprocess.run(
            [sys.executable, "-m", "whoseblock", "emulate", image, tmp_path / "at", "--in-place"],
            capture_output=True,
            text=True,
            check=False,
        )
    assert done.returncode == TargetError.exit_code
    assert "is mounted and must not be written" in done.stderr
    assert not (tmp_path / "at").exists()
