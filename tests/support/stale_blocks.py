"""An image in two states, so that blocks of the earlier one can be put into the later one.

That is what a medium does which acknowledges a write and loses it: the block is valid, and old.
"""

import os
import random
import stat
from dataclasses import dataclass, replace
from pathlib import Path

from tests.support import system_calls
from tests.support.filled_images import by_kernel
from tests.support.image_damage import Block, find_metadata
from tests.support.mounts import mounted
from tests.support.random_files import Filler
from tests.support.truth import Truth
from tests.support.xfs_images import MIB, Geometry, make_image, sparse_copy

__all__ = ["Aged", "make_aged"]

GEOMETRY = Geometry("aged", size=96 * MIB, block=1024, groups=2, more=("-l", "size=12m"))
#: Inodes are written in clusters of so many bytes.
_CLUSTER = 8192


@dataclass(frozen=True)
class Aged:
    """The later state by the kernel, and each block in the earlier state."""

    truth: Truth
    #: By kind, what may be put back.
    stale: dict[str, list[Block]]


def make_aged(image: Path, seed: str, geometry: Geometry = GEOMETRY, steps: int = 1500) -> Aged:
    """Make and fill an image, keep a copy, and let it age."""
    make_image(image, geometry)
    with mounted(image) as root:
        filler = Filler(root, seed, block=geometry.block, reflink=geometry.reflink)
        filler.fill(steps=steps // 2, names=2000)
    before = image.with_suffix(".before")
    sparse_copy(image, before)
    with mounted(image) as root:
        _age(root, seed, geometry, steps)
    truth = by_kernel(image)
    old = before.read_bytes()
    stale: dict[str, list[Block]] = {}
    for kind, blocks in find_metadata(image).items():
        units = {_unit(block, truth.superblock.block) for block in blocks}
        new = image.read_bytes()
        for start, size in sorted(units):
            if old[start : start + size] != new[start : start + size]:
                stale.setdefault(kind, []).append(Block(kind, start, old[start : start + size]))
    before.unlink()
    return Aged(truth, stale)


def _unit(block: Block, block_size: int) -> tuple[int, int]:
    """Return where what is written together with a unit of metadata is, and how large it is."""
    if block.kind != "inode":
        return block.start, len(block.data)
    size = max(_CLUSTER, block_size)
    return block.start // size * size, size


def _age(root: bytes, seed: str, geometry: Geometry, steps: int) -> None:
    """Change everything a little: owners, sharers, names, free space."""
    filler = Filler(root, f"{seed} later", block=geometry.block, reflink=geometry.reflink)
    # Names that the first filler has not given.
    filler._made = 1_000_000
    for place, _, names in os.walk(root):
        if place != root:
            filler.folders.append(place)
        paths = (os.path.join(place, name) for name in names)
        filler.files += [path for path in paths if stat.S_ISREG(os.lstat(path).st_mode)]
    rng = random.Random(seed)
    sized = sorted(filler.files, key=lambda path: os.lstat(path).st_blocks)
    if geometry.reflink:
        for path in rng.sample(sized[-40:], 12):
            _share(path, filler)
    # What others owned is owned by new files.
    for path in rng.sample(sized[-60:], 12):
        os.unlink(path)
        filler.files.remove(path)
    folder = filler.new_folder(root)
    for number in range(400):
        path = folder + b"/new-%d" % number
        with open(path, "wb") as file:
            file.write(rng.randbytes(geometry.block * rng.randrange(4)))
        filler.files.append(path)
    for _ in range(steps):
        with filler._tolerating():
            filler.random_step()


def _share(path: bytes, filler: Filler) -> None:
    """Clone a part of a file into a new one: blocks of one owner have two, of two three."""
    size = filler.block
    with open(path, "rb") as source, open(filler.new_file(), "r+b") as target:
        length = min(os.fstat(source.fileno()).st_size // size, 40) * size
        if length:
            system_calls.clone_range(source.fileno(), 0, length, target.fileno(), 0)


def without_reflink(geometry: Geometry = GEOMETRY) -> Geometry:
    """Return the same geometry, with no block that has two owners."""
    return replace(geometry, name="aged-plain", reflink=False)
