"""The images that are measured on, made by the real mkfs and filled by the real kernel."""

import os
import sys
from collections.abc import Callable
from pathlib import Path

from tests.support import system_calls
from tests.support.mounts import mounted
from tests.support.tools import run, xfsprogs

__all__ = [
    "BLOCK",
    "btrfs_snapshots",
    "fragmented_file",
    "made",
    "make_empty",
    "many_btrfs_files",
    "many_ext4_files",
    "many_extents",
    "many_files",
    "unmapped_files",
]

BLOCK = 4096
_MIB = 1 << 20
_EXT4_BLOCKS = 2
#: More than a leaf keeps inside.
_BTRFS_BYTES = 5000


def made(folder: Path, name: str, make: Callable[[Path], None]) -> Path:
    """Return the image NAME, made unless an earlier run left it.

    The name contains everything that the image is made from.
    """
    path = folder / f"{name}.img"
    if not path.exists():
        print(f"making {path.name} …", file=sys.stderr)
        unfinished = path.with_suffix(".unfinished")
        make(unfinished)
        unfinished.rename(path)
    return path


def make_empty(path: Path, size: int, *options: str) -> None:
    """Make an image of ``size`` bytes with a reverse mapping and reflinks."""
    path.unlink(missing_ok=True)
    with path.open("wb") as file:
        file.truncate(size)
    run([xfsprogs("mkfs.xfs"), "-q", "-m", "rmapbt=1,reflink=1", *options, path])


def fragmented_file(name: bytes, extents: int, *, written: bool = False) -> None:
    """Make a file of so many one-block extents: punch every second block out of it.

    A clone shares only what is *written*, not what is merely allocated.
    """
    size = 2 * extents * BLOCK
    descriptor = os.open(name, os.O_RDWR | os.O_CREAT, 0o644)
    try:
        if written:
            for at in range(0, size, _MIB):
                os.pwrite(descriptor, b"w" * min(_MIB, size - at), at)
            os.fsync(descriptor)
        else:
            os.posix_fallocate(descriptor, 0, size)
        for index in range(extents):
            system_calls.punch_hole(descriptor, (2 * index + 1) * BLOCK, BLOCK)
    finally:
        os.close(descriptor)


def many_extents(path: Path, extents: int, files: int = 1) -> None:
    """Make an image with ``extents`` extents, spread over ``files`` fragmented files."""
    size = max(1 << 30, extents * BLOCK * 5 // 2 + (1 << 28))
    make_empty(path, size, "-d", "agcount=4")
    with mounted(path) as folder:
        for number in range(files):
            fragmented_file(folder + b"/%d" % number, extents // files)


def many_files(path: Path, files: int, a_folder: int = 100, *, written: bool = True) -> None:
    """Make an image with ``files`` small files, ``a_folder`` in each folder; no parent pointers.

    Their blocks are only reserved, and take no room, unless ``written``.
    """
    make_empty(path, max(1 << 30, files * BLOCK * 2), "-n", "parent=0")
    _small_files(path, files, a_folder, written=written)


def unmapped_files(path: Path, files: int, *, reflink: bool, written: bool = True) -> None:
    """Make the same without a reverse mapping; the blocks are only reserved unless ``written``."""
    path.unlink(missing_ok=True)
    with path.open("wb") as file:
        file.truncate(max(1 << 30, files * BLOCK * 2))
    options = f"rmapbt=0,reflink={int(reflink)}"
    run([xfsprogs("mkfs.xfs"), "-q", "-m", options, "-n", "parent=0", path])
    _small_files(path, files, written=written)


def _small_files(path: Path, files: int, a_folder: int = 100, *, written: bool = True) -> None:
    """Fill an image with files of one block."""
    with mounted(path) as folder:
        for number in range(files):
            if number % a_folder == 0:
                place = folder + b"/%d/%d" % (number // a_folder % 40, number // a_folder)
                Path(os.fsdecode(place)).mkdir(parents=True)
            descriptor = os.open(place + b"/file-%d" % number, os.O_WRONLY | os.O_CREAT, 0o644)
            if written:
                os.write(descriptor, b"x")
            else:
                os.posix_fallocate(descriptor, 0, BLOCK)
            os.close(descriptor)


def many_ext4_files(path: Path, files: int, a_folder: int = 200, *, written: bool = True) -> None:
    """Make an ext4 image with ``files`` files of two blocks, ``a_folder`` in each folder.

    Their blocks are only reserved, and take no room, unless ``written``.
    """
    path.unlink(missing_ok=True)
    size = _EXT4_BLOCKS * BLOCK
    with path.open("wb") as file:
        file.truncate(max(1 << 30, files * size * 5 // 4 + files * 512 + (1 << 28)))
    run(["mke2fs", "-q", "-F", "-t", "ext4", "-b", str(BLOCK), "-N", str(files * 5 // 4), path])
    with mounted(path, kind="ext4") as folder:
        for number in range(files):
            if number % a_folder == 0:
                place = folder + b"/%d/%d" % (number // a_folder % 40, number // a_folder)
                Path(os.fsdecode(place)).mkdir(parents=True)
            descriptor = os.open(place + b"/file-%d" % number, os.O_WRONLY | os.O_CREAT, 0o644)
            if written:
                os.write(descriptor, b"x" * size)
            else:
                os.posix_fallocate(descriptor, 0, size)
            os.close(descriptor)


def many_btrfs_files(path: Path, files: int, a_folder: int = 200) -> None:
    """Make a btrfs image with ``files`` files of two sectors, ``a_folder`` in each folder."""
    path.unlink(missing_ok=True)
    with path.open("wb") as file:
        file.truncate(max(1 << 30, files * 2 * BLOCK * 3 // 2 + (1 << 30)))
    run(["mkfs.btrfs", "-q", path])
    with mounted(path, kind="btrfs") as folder:
        for number in range(files):
            if number % a_folder == 0:
                place = folder + b"/%d/%d" % (number // a_folder % 40, number // a_folder)
                Path(os.fsdecode(place)).mkdir(parents=True)
            descriptor = os.open(place + b"/file-%d" % number, os.O_WRONLY | os.O_CREAT, 0o644)
            os.write(descriptor, b"x" * _BTRFS_BYTES)
            os.close(descriptor)


def btrfs_snapshots(path: Path, snapshots: int, files: int = 300) -> None:
    """Make a btrfs image with ``files`` files in a subvolume, and so many snapshots of it."""
    path.unlink(missing_ok=True)
    with path.open("wb") as file:
        file.truncate(1 << 30)
    run(["mkfs.btrfs", "-q", path])
    with mounted(path, kind="btrfs") as folder:
        root = Path(os.fsdecode(folder))
        run(["btrfs", "subvolume", "create", root / "sub"])
        for number in range(files):
            (root / f"sub/file-{number}").write_bytes(b"x" * _BTRFS_BYTES)
        os.sync()
        for number in range(snapshots):
            run(["btrfs", "subvolume", "snapshot", root / "sub", root / f"snapshot-{number}"])
