"""The images that the study is made on: files and their clones, by the real mkfs.xfs and kernel.

With the same kernel and mkfs.xfs, every run makes the same files in the same places.  Space is
reserved before it is written, and synced, so that the time of writeback does not matter.
"""

import os
import random
from pathlib import Path

from tests.support import system_calls
from tests.support.mounts import mounted
from tests.support.tools import run, xfsprogs

__all__ = ["FACTORS", "PAGES", "aged", "shared"]

#: By how many files the data is shared.
FACTORS = (1, 2, 4, 8, 16, 32, 64)
#: Pages of data in an image of one factor.
PAGES = 2048
#: Pages that the files of each factor have together, in the image of all of them: the more files
#: share a page, the fewer such pages there are.
MAPPED = {1: 150_000, 2: 220_000, 4: 240_000, 8: 190_000, 16: 120_000, 32: 64_000, 64: 48_000}

_PAGE = 4096
_MIB = 1 << 20
#: A quarter of the data is cut into extents of so many pages.
_PIECE = 16
_WRITES = 16
_UUID = "c0ffee00-0307-4000-8000-000000000307"


def shared(path: Path, factor: int) -> None:
    """Make an image whose data is shared by ``factor`` files, all of it alike."""
    _make(path, 320 * _MIB)
    with mounted(path) as root:
        _fill(root, factor, PAGES)


def aged(path: Path) -> None:
    """Make an image with data of every factor, and some writes to every clone afterwards.

    Every file is written through the kernel, which copies what is shared.
    """
    _make(path, 1792 * _MIB)
    rng = random.Random(307)  # noqa: S311 - repeatable
    with mounted(path) as root:
        for factor in FACTORS:
            folder = root + b"/%d" % factor
            os.mkdir(folder)  # noqa: PTH102 - bytes
            for name in _fill(folder, factor, MAPPED[factor] // factor):
                if factor > 1:
                    _write_some(name, rng)


def _make(path: Path, size: int) -> None:
    with path.open("wb") as file:
        file.truncate(size)
    metadata = f"rmapbt=1,reflink=1,uuid={_UUID}"
    options = ["-q", "-m", metadata, "-d", "agcount=4,su=2m,sw=1"]
    run([xfsprogs("mkfs.xfs", newest=False), *options, path])


def _fill(folder: bytes, factor: int, data: int) -> list[bytes]:
    """Write a large file and one in pieces, and clone both."""
    names = []
    large = data * 3 // 4
    for title, pages in ((b"large", large), (b"pieces", data - large)):
        files = [folder + b"/%s-%d" % (title, number) for number in range(factor)]
        first, *clones = (os.open(name, os.O_RDWR | os.O_CREAT, 0o644) for name in files)
        names += files
        try:
            os.posix_fallocate(first, 0, pages * _PAGE)
            for at in range(0, pages, 256):
                os.pwrite(first, bytes(min(256, pages - at) * _PAGE), at * _PAGE)
            os.fsync(first)
            if title == b"pieces":
                for at in range(_PIECE, pages, _PIECE + 1):
                    system_calls.punch_hole(first, at * _PAGE, _PAGE)
            for clone in clones:
                system_calls.clone_range(first, 0, 0, clone, 0)
        finally:
            for file in (first, *clones):
                os.close(file)
    return names


def _write_some(name: bytes, rng: random.Random) -> None:
    file = os.open(name, os.O_RDWR)
    try:
        pages = os.fstat(file).st_size // _PAGE
        for _ in range(_WRITES):
            os.pwrite(file, bytes(_PAGE), rng.randrange(pages) * _PAGE)
            os.fsync(file)
    finally:
        os.close(file)
