"""Make the healthy images that are damaged, each with older versions of its metadata.

An image lives through several generations: it is filled, unmounted, copied, mounted again and
changed a lot.  The newest generation is the truth, by the kernel's GETFSMAP and a walk.  Of the
older ones only those bytes are kept that lie where the newest one has metadata: what a lost
write would have left there.
"""

import contextlib
import os
import pickle
import random
import stat
import tempfile
from collections import defaultdict
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path
from uuid import UUID

from tests.support import xfs_blocks, xfsdb
from tests.support.filled_images import add_attributes, by_kernel, make_content
from tests.support.mounts import mounted
from tests.support.random_files import Filler
from tests.support.tools import run, xfsprogs
from tests.support.truth import Row, Truth
from tests.support.xfs_images import MIB, Geometry, make_image, sparse_copy, sparse_file
from tools.adversary.units import CRC_AT, Unit, find_units, reseal

__all__ = ["BASES", "Base", "Recipe", "make_base", "moved"]


@dataclass(frozen=True)
class Recipe:
    """The geometry of a base image, and its changes between generations."""

    geometry: Geometry
    names: int = 500
    steps: int = 500
    #: Grow to the whole device before the last generation.
    grow: bool = False
    #: An older filesystem, with its own allocation groups, was on the device before.
    former: bool = False

    @property
    def populated(self) -> bool:
        """Whether mkfs.xfs fills it from a folder, because few kernels mount it."""
        return self.geometry.version4


def _recipes() -> Iterator[Recipe]:
    for parent in (True, False):
        tail = "parent" if parent else "noparent"
        yield Recipe(Geometry(f"1k-{tail}", block=1024, size=160 * MIB, groups=3, parent=parent))
        yield Recipe(Geometry(f"4k-{tail}", size=256 * MIB, group_blocks=20_011, parent=parent))
        yield Recipe(
            Geometry(
                f"grown-{tail}",
                size=200 * MIB,
                group_blocks=16_001,
                beyond=120 * MIB,
                parent=parent,
            ),
            grow=True,
        )
        yield Recipe(
            Geometry(
                f"former-{tail}",
                block=1024,
                directory_block=4096,
                size=200 * MIB,
                group_blocks=51_003,
                parent=parent,
            ),
            former=True,
        )
    yield Recipe(
        Geometry("1k-many", block=1024, size=200 * MIB, groups=2, inode=256 * 2),
        names=6_000,
        steps=1500,
    )
    yield Recipe(
        Geometry("plain", parent=False, reflink=False, nrext64=False, sparse_inodes=False),
        names=1_500,
    )
    for geometry in _scanned():
        yield Recipe(geometry, names=200, steps=250)


def _scanned() -> Iterator[Geometry]:
    """Yield geometries without a reverse map; each lookup reads all inodes, so they are small."""
    yield Geometry("scan-4k", group_blocks=20_011, parent=False, rmapbt=False)
    small = Geometry("scan-1k", block=1024, size=160 * MIB, groups=3, rmapbt=False, parent=False)
    yield replace(small, reflink=False)
    yield replace(small, name="scan-parent", parent=True, directory_block=16384)
    yield replace(
        small,
        name="scan-plain",
        block=4096,
        reflink=False,
        sparse_inodes=False,
        nrext64=False,
        more=("-m", "finobt=0,inobtcount=0,bigtime=0"),
    )
    old = replace(small, version4=True, reflink=False, inode=256)
    yield replace(old, name="scan-v4-512", block=512, directory_block=4096)
    yield replace(old, name="scan-v4-4k", block=4096, ftype=False)


BASES = {recipe.geometry.name: recipe for recipe in _recipes()}

#: How much changes between generations: the last steps are small, so that what one lost write
#: leaves is still plausible.
_CHANGES = (None, 1.0, 1.0, 0.1, 0.02)


@dataclass
class Base:
    """A healthy image, the truth about it, its metadata, and what older generations had there."""

    truth: Truth
    units: list[Unit]
    #: Older bytes of each unit, none the same as those of now; the newest first.
    older: dict[Unit, list[bytes]]
    by_kind: dict[str, list[Unit]] = field(default_factory=dict)

    def __post_init__(self) -> None:
        kinds: dict[str, list[Unit]] = defaultdict(list)
        for unit in self.units:
            kinds[unit.kind].append(unit)
        self.by_kind = dict(kinds)

    @property
    def geometry(self) -> Geometry:
        """The options that the image was made with."""
        return BASES[self.truth.image.stem.rpartition("-")[0]].geometry

    def read(self, unit: Unit) -> bytes:
        """Return the newest bytes of a unit."""
        with self.truth.image.open("rb") as file:
            file.seek(unit.start)
            return file.read(unit.length)

    def reseal(self, unit: Unit, data: bytes) -> bytes:
        """Make the checksums of a unit right; version 4 has none."""
        if self.geometry.version4:
            return data
        if unit.kind in CRC_AT:
            return reseal(unit.kind, data)
        size = self.truth.superblock.inode
        return b"".join(reseal("inode", data[at : at + size]) for at in range(0, len(data), size))

    def stale_kinds(self) -> dict[str, list[Unit]]:
        """Return the units that have older versions, by kind."""
        kinds: dict[str, list[Unit]] = defaultdict(list)
        for unit in self.older:
            kinds[unit.kind].append(unit)
        return dict(kinds)


def make_base(folder: Path, name: str, seed: int) -> Base:
    """Make an image in *folder*, or load the one that was made there with this seed."""
    saved = folder / f"{name}-{seed}.pickle"
    if saved.exists():
        # Only this program writes there.
        loaded = pickle.loads(saved.read_bytes())  # noqa: S301
        if not isinstance(loaded, Base):
            raise TypeError(f"{saved} holds no base image")
        return loaded
    image = folder / f"{name}-{seed}.img"
    recipe = BASES[name]
    copies = (_populate if recipe.populated else _live)(image, recipe, seed)
    if recipe.populated:
        truth = xfs_blocks.truth_of(image, xfsdb.walk(image))
    elif recipe.geometry.rmapbt:
        truth = by_kernel(image)
    else:
        truth = xfs_blocks.truth_of(image, by_kernel(image).inodes)
    units = _in_use(truth, find_units(image))
    units += _clusters(truth, units)
    base = Base(truth, units, _older(image, units, copies))
    for copy in copies:
        copy.unlink()
    saved.write_bytes(pickle.dumps(base))
    return base


def _live(image: Path, recipe: Recipe, seed: int) -> list[Path]:
    """Make an image and let it live; return copies of its older generations, oldest first."""
    geometry = recipe.geometry
    if recipe.former:
        _make_former(image, geometry, seed)
        _make_over(image, geometry)
    else:
        make_image(image, geometry)
    filler: Filler | None = None
    copies: list[Path] = []
    for generation, change in enumerate(_CHANGES):
        with mounted(image) as root:
            if filler is None or change is None:
                text = f"{geometry.name} {seed}"
                filler = Filler(root, text, block=geometry.block, reflink=geometry.reflink)
                filler.fill(steps=recipe.steps, names=recipe.names)
                with contextlib.suppress(OSError):
                    filler.fragmented_attributes()
            else:
                if recipe.grow and generation == 2:
                    run([xfsprogs("xfs_growfs"), "-d", os.fsdecode(root)])
                moved(filler, root)
                _change(filler, recipe, change)
        if generation < len(_CHANGES) - 1:
            copies.append(sparse_copy(image, image.with_suffix(f".{generation}")))
    return copies


def _populate(image: Path, recipe: Recipe, seed: int) -> list[Path]:
    """Make the generations of an image by mkfs.xfs from a folder that changes; return the older.

    All have one UUID.
    """
    geometry = recipe.geometry
    geometry = replace(geometry, more=(*geometry.more, "-m", f"uuid={UUID(int=seed)}"))
    rng = random.Random(f"{geometry.name} {seed}")
    copies: list[Path] = []
    with tempfile.TemporaryDirectory(dir=image.parent) as content:
        top = os.fsencode(content)
        make_content(top, rng)
        add_attributes(top, rng)
        for generation, change in enumerate(_CHANGES):
            if change:
                _change_content(top, rng, change)
            make_image(image, geometry, content=Path(content))
            if generation < len(_CHANGES) - 1:
                copies.append(sparse_copy(image, image.with_suffix(f".{generation}")))
    return copies


def _change_content(top: bytes, rng: random.Random, share: float) -> None:
    """Remove, grow and add files below a folder."""
    paths = sorted(
        os.path.join(folder, name)
        for folder, _, names in os.walk(top)
        for name in names
        if os.path.isfile(os.path.join(folder, name))
    )
    for path in rng.sample(paths, int(len(paths) * share / 4)):
        if rng.random() < 0.5:
            os.unlink(path)
        elif not os.path.islink(path):
            with open(path, "ab") as file:
                file.write(rng.randbytes(rng.randrange(30_000)))
    for number in range(int(100 * share)):
        path = rng.choice(paths) + b"-%d" % number
        with contextlib.suppress(OSError), open(path, "wb") as file:
            file.write(rng.randbytes(rng.randrange(60_000)))


def _make_former(image: Path, geometry: Geometry, seed: int) -> None:
    """Leave an older filesystem of other groups on the device."""
    sparse_file(image, geometry.size)
    options = ["-q", "-f", "--unsupported", "-d", "agcount=7", "-m", "rmapbt=1"]
    run([xfsprogs("mkfs.xfs"), *options, image])
    with mounted(image) as root:
        filler = Filler(root, f"former {seed}", block=4096)
        filler.folder_tree()
        filler.links()


def _make_over(image: Path, geometry: Geometry) -> None:
    """Make the filesystem over the former one, discarding nothing."""
    options = ["-q", "-f", "-K", "--unsupported", *geometry.options()]
    run([xfsprogs("mkfs.xfs"), *options, image])


def moved(filler: Filler, root: bytes) -> None:
    """Update the paths of a filler after its filesystem was mounted elsewhere."""
    length = len(filler.root)
    filler.folders = [root + path[length:] for path in filler.folders]
    filler.files = [root + path[length:] for path in filler.files]
    filler.root = root


def _change(filler: Filler, recipe: Recipe, share: float) -> None:
    """Change a lot, or a *share* of it: what a few weeks do to a busy filesystem."""
    rng = filler.rng
    for path in rng.sample(filler.files, int(len(filler.files) * share / 3)):
        with contextlib.suppress(OSError):
            os.unlink(path)
            filler.files.remove(path)
    for folder in rng.sample(filler.folders, int(min(12, len(filler.folders)) * share)):
        with contextlib.suppress(OSError):
            for number in range(rng.choice((3, 40, 300))):
                name = b"/new-%d-%d" % (rng.getrandbits(30), number)
                os.close(os.open(folder + name, os.O_CREAT))
    if share == 1:
        with contextlib.suppress(OSError):
            filler.fragmented_files()
    if filler.reflink and share >= 0.1:
        with contextlib.suppress(OSError):
            filler.shared_files()
    for _ in range(int(3 * recipe.steps * share)):
        with contextlib.suppress(OSError):
            filler.random_step()


def _in_use(truth: Truth, units: list[Unit]) -> list[Unit]:
    """Leave out what lies in free space or in the data of files: nothing reads it."""
    plain = sorted(
        (row.start, row.end)
        for row in truth.rows
        if row.kind in {"free", "staging", "log"} or _is_data(truth, row)
    )
    kept, at = [], 0
    reach = 0
    for unit in sorted(units, key=lambda unit: unit.start):
        while at < len(plain) and plain[at][0] <= unit.start:
            reach = max(reach, plain[at][1])
            at += 1
        if unit.start >= reach and unit.start < truth.superblock.size:
            kept.append(unit)
    return kept


def _is_data(truth: Truth, row: Row) -> bool:
    if row.kind != "file" or row.attr or row.extent_map:
        return False
    return stat.S_ISREG(truth.inodes[row.inode].mode)


def _clusters(truth: Truth, units: list[Unit]) -> list[Unit]:
    """Return the clusters that inodes are written in, as the kernel does: 32 of any size."""
    block = truth.superblock
    size = 32 * block.inode
    starts = set()
    for unit in units:
        if unit.kind == "inode":
            group = unit.start // block.group_size * block.group_size
            starts.add(group + (unit.start - group) // size * size)
    return [Unit("inode cluster", start, size) for start in sorted(starts)]


def _older(image: Path, units: list[Unit], copies: list[Path]) -> dict[Unit, list[bytes]]:
    """Read what each unit was in the older generations."""
    older: dict[Unit, list[bytes]] = {}
    with contextlib.ExitStack() as stack:
        newest, *files = [
            stack.enter_context(path.open("rb")).fileno() for path in (image, *reversed(copies))
        ]
        for unit in units:
            seen = {os.pread(newest, unit.length, unit.start)}
            versions = []
            for file in files:
                data = os.pread(file, unit.length, unit.start)
                if len(data) == unit.length and data not in seen:
                    seen.add(data)
                    versions.append(data)
            if versions:
                older[unit] = versions
    return older
