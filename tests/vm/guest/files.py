"""Files that scenarios damage."""

import os
from pathlib import Path
from typing import NamedTuple

from tests.support.truth import Row
from tests.vm.guest.asking import blocks_of
from tests.vm.guest.machine import run, xfsprogs

__all__ = ["Shared", "make_file", "make_reserved", "make_shared"]


class Shared(NamedTuple):
    """Two files that share all their blocks, the second with two names; where the blocks are."""

    first: Path
    second: Path
    start: int
    names: dict[int, list[str]]


def make_shared(folder: Path, mebibytes: int = 4) -> Shared:
    """Make them; the blocks are in one piece."""
    (folder / "dir").mkdir()
    first, second = folder / "dir" / "a", folder / "b"
    first.write_bytes(os.urandom(mebibytes << 20))
    run(["cp", "--reflink=always", first, second])
    os.link(second, folder / "dir" / "hard")
    run(["sync", "-f", folder])
    one, two = first.stat().st_ino, second.stat().st_ino
    (block,) = blocks_of(folder, one)
    return Shared(first, second, block.start, {one: ["/dir/a"], two: ["/b", "/dir/hard"]})


def make_file(folder: Path, mebibytes: int = 1) -> tuple[Path, int]:
    """Make a file in one piece; give it, and where its blocks are."""
    file = folder / "file"
    file.write_bytes(os.urandom(mebibytes << 20))
    run(["sync", "-f", folder])
    (block,) = blocks_of(folder, file.stat().st_ino)
    return file, block.start


def make_reserved(folder: Path) -> Row:
    """Make the file ``reserved``, which is never written to; give its first extent."""
    file = folder / "reserved"
    run([xfsprogs("xfs_io"), "-f", "-c", "falloc 0 4m", file])
    run(["sync", "-f", folder])
    extent = blocks_of(folder, file.stat().st_ino)[0]
    assert extent.unwritten
    return extent
