"""An image whose trees all have three levels and more."""

import os
import re
import stat
from pathlib import Path

from tests.support import kernel_oracle, system_calls, xfsdb
from tests.support.mounts import mounted
from tests.support.truth import Inode, Truth
from tests.support.xfs_images import MIB, Geometry, make_image

__all__ = ["ATTRIBUTES", "heights", "make_deep"]

#: Small blocks make high trees of few records.
GEOMETRY = Geometry(
    "deep", size=600 * MIB, block=1024, groups=1, parent=False, more=("-i", "maxpct=90")
)

#: Blocks of a file that are punched or shared, every other one.
_PIECES = 20_000
#: The kernel allocates inodes 64 at a time, and a leaf of the inode btree holds 60 such chunks.
_INODES = 64 * 60 * 122
#: Of the file "described".
ATTRIBUTES = {f"user.{index}".encode(): b"v" * 30 for index in range(12_000)}


def make_deep(image: Path) -> Truth:
    """Make and fill the image; returns what the kernel says of it, without the pipes."""
    make_image(image, GEOMETRY)
    with mounted(image) as root:
        _fragment(root)
        _share(root)
        _describe(root)
        _name(root)
    with mounted(image, "ro", "norecovery") as root:
        rows, inodes = kernel_oracle.getfsmap(root), _walk(root)
    return Truth(image, xfsdb.superblock(image), rows, inodes)


def _walk(root: bytes) -> dict[int, Inode]:
    """Return the inodes that are no pipes; reading those takes longer than making them."""
    found = {}
    todo = [(root, "/")]
    while todo:
        place, path = todo.pop()
        status = os.lstat(place)
        found[status.st_ino] = Inode(status.st_mode, status.st_nlink, [path])
        if not stat.S_ISDIR(status.st_mode):
            continue
        with os.scandir(place) as entries:
            todo += [
                (entry.path, path.rstrip("/") + "/" + os.fsdecode(entry.name))
                for entry in entries
                if entry.is_file() or entry.is_dir()
            ]
    return found


def _fragment(root: bytes) -> None:
    """Punch every other block out of a file: its map and the free-space btrees grow."""
    size = GEOMETRY.block
    with (Path(os.fsdecode(root)) / "punched").open("wb") as file:
        system_calls.fallocate(file.fileno(), 0, 2 * _PIECES * size)
        for index in range(_PIECES):
            system_calls.punch_hole(file.fileno(), (2 * index + 1) * size, size)


def _share(root: bytes) -> None:
    """Clone every other block of a file into another one."""
    size = GEOMETRY.block
    folder = Path(os.fsdecode(root))
    with (folder / "source").open("w+b") as source, (folder / "clone").open("wb") as clone:
        for _ in range(_PIECES // 100):
            source.write(b"s" * (200 * size))
        source.flush()
        for index in range(_PIECES):
            at = 2 * index * size
            system_calls.clone_range(source.fileno(), at, size, clone.fileno(), at)


def _describe(root: bytes) -> None:
    """Set enough attributes for an attribute tree of three levels."""
    path = root + b"/described"
    Path(os.fsdecode(path)).touch()
    for name, value in ATTRIBUTES.items():
        os.setxattr(path, name, value)


def _name(root: bytes) -> None:
    """Make enough inodes and names for an inode btree and a directory tree of three levels.

    The folder and the file that are made last have the last inodes.
    """
    for index in range(_INODES):
        os.mknod(root + b"/%d" % index, stat.S_IFIFO | 0o600)
    folder = Path(os.fsdecode(root)) / "last"
    folder.mkdir()
    (folder / "file").write_bytes(b"l" * 5000)


def heights(image: Path) -> dict[str, int]:
    """Ask xfs_db for the levels of the trees of the first group."""
    printed = xfsdb.ask(image, ["agf 0", "print", "agi 0", "print"]).decode()
    names = "bnolevel rmaplevel refcntlevel level free_level".split()
    return {
        name: int(found[1])
        for name in names
        if (found := re.search(rf"^{name} = (\d+)$", printed, re.MULTILINE))
    }
