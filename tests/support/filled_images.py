"""The images that the tests ask about: every geometry, filled, with what the oracles say of it.

Each is made once a session, by whichever test process needs it first.
"""

import contextlib
import fcntl
import os
import random
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

from tests.support import kernel_oracle, xfsdb
from tests.support.mounts import mounted
from tests.support.random_files import Filler, odd_names
from tests.support.tools import need_loop_mounts, xfsprogs
from tests.support.truth import Inode, Truth
from tests.support.xfs_images import MIB, Geometry, make_image, sparse_copy

__all__ = [
    "FILLED",
    "POPULATED",
    "Zoo",
    "add_attributes",
    "by_kernel",
    "make_content",
    "with_nameless",
]


def _both(geometry: Geometry) -> list[Geometry]:
    """Return the geometry with and without parent pointers."""
    return [geometry, replace(geometry, name=f"{geometry.name}-noparent", parent=False)]


#: Filled through the kernel.
FILLED = {
    geometry.name: geometry
    for base in (
        Geometry("4k"),
        Geometry("1k", block=1024, inode=256 * 2, group_blocks=61_003),
        Geometry("4k-dir16k", directory_block=16384, inode=1024),
        Geometry("1k-dir16k", block=1024, directory_block=16384, size=200 * MIB, beyond=77_777),
        Geometry("sector4k", sector=4096, group_blocks=17_001, beyond=3 * MIB),
        Geometry("16k", block=16384, size=400 * MIB, inode=2048, groups=3),
        Geometry("64k", block=65536, size=1200 * MIB, groups=2),
        # Three groups, none a power of two, the last one shorter.
        Geometry("3ag", size=300 * MIB, group_blocks=27_001, nrext64=False),
    )
    for geometry in _both(base)
} | {
    geometry.name: geometry
    for geometry in (
        Geometry("plain", parent=False, reflink=False, nrext64=False, sparse_inodes=False),
    )
}

#: Filled by mkfs.xfs from a folder, which any user may do.
POPULATED = {
    geometry.name: geometry
    for base in (
        Geometry("populated-4k", group_blocks=20_021),
        Geometry("populated-1k", block=1024, directory_block=16384),
        Geometry("populated-sector4k", sector=4096, directory_block=65536, beyond=4097),
        Geometry("populated-64k", block=65536, size=1200 * MIB, groups=2),
    )
    for geometry in _both(base)
}


class Zoo:
    """The images of one session, in one folder that all its processes share."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._known: dict[str, Truth] = {}
        self._copies: dict[str, Truth] = {}

    def any(self, name: str) -> Truth:
        """Return an image of either sort."""
        return self.filled(name) if name in FILLED else self.populated(name)

    def filled(self, name: str) -> Truth:
        """Return an image filled through the kernel, with GETFSMAP and a walk as its truth."""
        need_loop_mounts()
        return self._once(name, lambda image: _fill(image, FILLED[name]))

    def to_mount(self, name: str) -> Truth:
        """Return a filled image that only this process has, so that it may be mounted.

        Another process that opens the shared one at that moment would be led to the mount.
        """
        if name not in self._copies:
            shared = self.filled(name)
            folder = self._folder / str(os.getpid())
            folder.mkdir(exist_ok=True)
            copy = sparse_copy(shared.image, folder / shared.image.name)
            self._copies[name] = replace(shared, image=copy)
        return self._copies[name]

    def populated(self, name: str) -> Truth:
        """Return an image filled by mkfs.xfs, with xfs_db as its only truth."""
        return self._once(name, lambda image: _populate(image, POPULATED[name]))

    def _once(self, name: str, build: Callable[[Path], Truth]) -> Truth:
        if name not in self._known:
            saved = self._folder / f"{name}.json"
            with (self._folder / f"{name}.lock").open("w") as lock:
                fcntl.flock(lock, fcntl.LOCK_EX)
                if not saved.exists():
                    build(self._folder / f"{name}.img").save(saved)
            self._known[name] = Truth.load(saved)
        return self._known[name]


def by_kernel(image: Path, *options: str) -> Truth:
    """Ask the kernel about an image as it is on the disk.

    Without recovery, and read-only: a mount that may write would first clean up.
    """
    with mounted(image, "ro", "norecovery", *options) as root:
        rows, inodes = kernel_oracle.getfsmap(root), kernel_oracle.walk(root)
    return with_nameless(Truth(image, xfsdb.superblock(image), rows, inodes))


def with_nameless(truth: Truth) -> Truth:
    """Add the inodes that own something and have no name: unlinked but open, or quota's."""
    owners = {row.inode for row in truth.rows if row.kind == "file"}
    nameless = sorted(owners - truth.inodes.keys())
    cores = xfsdb.inode_cores(truth.image, nameless)
    more = {number: Inode(*core, []) for number, core in cores.items()}
    return replace(truth, inodes=truth.inodes | more)


def _fill(image: Path, geometry: Geometry) -> Truth:
    make_image(image, geometry)
    with mounted(image) as root:
        filler = Filler(root, geometry.name, block=geometry.block, reflink=geometry.reflink)
        # Small blocks make deep trees of cheap things.
        filler.fill(names=14_000 if geometry.block == 1024 else 3_000)
        if geometry.sparse_inodes:
            filler.sparse_inodes(geometry.inode)
        filler.fragmented_attributes()
    return by_kernel(image)


def _populate(image: Path, geometry: Geometry) -> Truth:
    xfsprogs("xfs_db")
    rng = random.Random(geometry.name)
    content = image.with_suffix(".content")
    # An earlier attempt may have found that this mkfs.xfs cannot fill an image.
    shutil.rmtree(content, ignore_errors=True)
    content.mkdir()
    make_content(os.fsencode(content), rng)
    make_image(image, geometry, content=content)
    block = xfsdb.superblock(image)
    truth = Truth(image, block, xfsdb.rows(image, block), xfsdb.walk(image))
    return with_nameless(truth)


def make_content(top: bytes, rng: random.Random, *, most: int = 4000) -> None:
    """Fill a folder of any filesystem with what mkfs.xfs can take over.

    ``most`` is the number of entries of the largest folder.
    """
    folders = [top]
    for number in range(40):
        folders.append(rng.choice(folders[-6:]) + b"/folder %d" % number)
        os.mkdir(folders[-1])
    for name in odd_names(rng):
        for folder in rng.sample(folders, 2):
            _write(folder + b"/" + name, rng.randbytes(rng.randrange(20_000)))
    for size in (30, 200, 1000, most):
        folder = rng.choice(folders)
        for number in range(size):
            _write(folder + b"/%d" % number + b"n" * rng.choice((1, 30, 200)), b"")
    for number in range(60):
        path = rng.choice(folders) + b"/file-%d" % number
        _write(path, rng.randbytes(rng.randrange(200_000)))
        for link in range(rng.choice((0, 0, 1, 5))):
            os.link(path, rng.choice(folders) + b"/link-%d-%d" % (number, link))
    with open(top + b"/holes", "wb", buffering=0) as file:
        for place in range(400):
            file.seek(place * 2 * 65536)
            file.write(b"h" * 65536)
    for length in (10, 300, 1000):
        os.symlink(b"t" * length, rng.choice(folders) + b"/symlink-%d" % length)
    os.mkfifo(top + b"/fifo")


def add_attributes(top: bytes, rng: random.Random) -> None:
    """Set attributes of some files below a folder: in the inode, in leaves, in nodes, outside."""
    paths = sorted(
        os.path.join(folder, name)
        for folder, _, names in os.walk(top)
        for name in names
        if not os.path.islink(os.path.join(folder, name))
    )
    for path in rng.sample(paths, min(len(paths), 40)):
        # Folders of some filesystems take no attributes, or few.
        with contextlib.suppress(OSError):
            for number in range(rng.choice((1, 3, 40))):
                value = rng.randbytes(rng.choice((5, 60, 60, 300, 1500)))
                os.setxattr(path, b"user.%d" % number, value)


def _write(path: bytes, data: bytes) -> None:
    file = os.open(path, os.O_CREAT | os.O_WRONLY, 0o644)
    try:
        os.write(file, data)
    finally:
        os.close(file)
