"""The images that are measured on, made by the real mkfs.xfs and filled by the real kernel."""

import ctypes
import os
from pathlib import Path

from tests.support.mounts import mounted
from tests.support.tools import run, xfsprogs

__all__ = ["BLOCK", "make_empty", "many_extents", "many_files"]

BLOCK = 4096

_FALLOC_FL_KEEP_SIZE, _FALLOC_FL_PUNCH_HOLE = 0x01, 0x02  # linux/falloc.h

_libc = ctypes.CDLL(None, use_errno=True)
_libc.fallocate.argtypes = (ctypes.c_int, ctypes.c_int, ctypes.c_long, ctypes.c_long)


def make_empty(path: Path, size: int, *options: str) -> None:
    """Make an image of ``size`` bytes with a reverse mapping and reflinks."""
    path.unlink(missing_ok=True)
    with path.open("wb") as file:
        file.truncate(size)
    run([xfsprogs("mkfs.xfs"), "-q", "-m", "rmapbt=1,reflink=1", *options, path])


def _punch(descriptor: int, block: int) -> None:
    mode = _FALLOC_FL_PUNCH_HOLE | _FALLOC_FL_KEEP_SIZE
    if _libc.fallocate(descriptor, mode, block * BLOCK, BLOCK):
        raise OSError(ctypes.get_errno(), "fallocate")


def _fragmented_file(name: bytes, extents: int) -> None:
    """Make a file of so many one-block extents: every second block is punched out of it."""
    descriptor = os.open(name, os.O_RDWR | os.O_CREAT, 0o644)
    try:
        os.posix_fallocate(descriptor, 0, 2 * extents * BLOCK)
        for index in range(extents):
            _punch(descriptor, 2 * index + 1)
    finally:
        os.close(descriptor)


def many_extents(path: Path, extents: int, files: int = 1) -> None:
    """Make an image with ``extents`` extents, spread over ``files`` fragmented files."""
    size = max(1 << 30, extents * BLOCK * 5 // 2 + (1 << 28))
    make_empty(path, size, "-d", "agcount=4")
    with mounted(path) as folder:
        for number in range(files):
            _fragmented_file(folder + b"/%d" % number, extents // files)


def many_files(path: Path, files: int, a_folder: int = 100) -> None:
    """Make an image with ``files`` small files, ``a_folder`` in each folder; no parent pointers."""
    make_empty(path, max(1 << 30, files * BLOCK * 2), "-n", "parent=0")
    with mounted(path) as folder:
        for number in range(files):
            if number % a_folder == 0:
                place = folder + b"/%d/%d" % (number // a_folder % 40, number // a_folder)
                Path(os.fsdecode(place)).mkdir(parents=True)
            descriptor = os.open(place + b"/file-%d" % number, os.O_WRONLY | os.O_CREAT, 0o644)
            os.write(descriptor, b"x")
            os.close(descriptor)
