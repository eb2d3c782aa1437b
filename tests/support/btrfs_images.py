"""Images of btrfs, filled by the kernel, and their truth by btrfs-progs and the kernel.

The truth is a forward one: ``btrfs inspect-internal dump-tree`` prints every tree of a filesystem,
and what no file and no tree has is free.  Paths are those that a walk of the mounted filesystem
finds.  Neither reads a back reference.
"""

import contextlib
import fcntl
import os
import random
import re
import struct
from collections import defaultdict
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import NamedTuple

from tests.support.mounts import mounted
from tests.support.tools import btrfsprogs, run

from whoseblock.fs.base import (
    Answer,
    FileId,
    FileOwner,
    MetadataOwner,
    Outside,
    Owner,
    Unreferenced,
)

__all__ = [
    "SECTOR",
    "Claim",
    "Dump",
    "Truth",
    "claims_in",
    "differences",
    "fill",
    "make_image",
    "paths_below",
    "read_truth",
]

SECTOR = 4096
_SUPERBLOCKS = (64 << 10, 64 << 20)
_STRIPE = 64 << 10
_FIRST_MIB = 1 << 20
_FICLONERANGE = 0x4020940D  # linux/fs.h
_INO_LOOKUP = 0xD0009412  # linux/btrfs.h
_STUB = 2
_TREES = {
    "ROOT_TREE": 1,
    "EXTENT_TREE": 2,
    "CHUNK_TREE": 3,
    "DEV_TREE": 4,
    "FS_TREE": 5,
    "CSUM_TREE": 7,
    "QUOTA_TREE": 8,
    "UUID_TREE": 9,
    "FREE_SPACE_TREE": 10,
    "BLOCK_GROUP_TREE": 11,
    "DATA_RELOC_TREE": (1 << 64) - 9,
}
_BLOCK = re.compile(r"^(?:leaf|node) (\d+) .*\bowner\b")
_KEY = re.compile(r"^\titem \d+ key \((\S+) (\S+) (\S+)\)")


class Claim(NamedTuple):
    """The owner of a sector: a file, trees or holders; the offset is in bytes."""

    kind: str
    subvolume: int = 0
    inode: int = 0
    offset: int = -1
    length: int = -1
    unwritten: bool = False
    encoding: str = ""
    members: frozenset[int] | frozenset[FileId] = frozenset()


class Truth(NamedTuple):
    """The owners of each sector of the device, and the paths of each file."""

    claims: list[set[Claim]]
    paths: dict[FileId, set[str]]
    inline: dict[int, set[FileId]]


class _Part(NamedTuple):
    """A file extent item, as dump-tree prints it."""

    file: FileId
    offset: int
    disk: int
    disk_length: int
    inside: int
    length: int
    encoding: str
    unwritten: bool


def make_image(
    path: Path,
    size: int,
    *options: str,
    seed: int = 1,
    compress: str = "",
    newest: bool = False,
) -> Path:
    """Make an image with mkfs.btrfs, and fill it through the kernel."""
    with path.open("wb") as file:
        file.truncate(size)
    run([btrfsprogs("mkfs.btrfs", newest=newest), "-q", *options, path])
    given = [f"compress-force={compress}"] if compress else []
    with mounted(path, *given, kind="btrfs") as folder:
        fill(Path(os.fsdecode(folder)), seed)
    return path


def fill(root: Path, seed: int = 1) -> None:
    """Make files, subvolumes and snapshots of every kind."""
    rnd = random.Random(seed)
    (root / "d/e/f").mkdir(parents=True)
    for number in range(120):
        size = rnd.choice((rnd.randrange(1, 1500), rnd.randrange(3000, 40_000)))
        (root / f"d/f{number:04}").write_bytes(rnd.randbytes(size))
    os.sync()
    _fragment([root / f"d/e/fragment{number}" for number in range(3)], rnd)
    for name in ("zlib", "lzo", "zstd"):
        (root / name).mkdir()
        os.setxattr(root / name, "btrfs.compression", name.encode())
        for number in range(6):
            line = rnd.randbytes(30) * 7
            (root / name / f"c{number}").write_bytes(line * rnd.randrange(1, 2000))
    with (root / "sparse").open("wb") as file:
        for number in range(40):
            file.seek(number * 200_000)
            file.write(rnd.randbytes(5000))
    with (root / "reserved").open("wb") as file:
        os.posix_fallocate(file.fileno(), 0, 3_000_000)
        for number in range(12):
            os.pwrite(file.fileno(), rnd.randbytes(9000), number * 200_000 + 4096)
    (root / "links").mkdir()
    for number in range(160):
        os.link(root / "sparse", root / f"links/{number:03}{'n' * 120}")
    os.link(root / "sparse", root / "d/e/f/hard")
    os.symlink("/short", root / "symlink")
    (root / os.fsdecode(b"odd\n\xff name")).write_bytes(rnd.randbytes(6000))
    os.sync()
    _subvolumes(root, rnd)
    _change(root, rnd)
    _hold(root, rnd)
    os.sync()


def _subvolumes(root: Path, rnd: random.Random) -> None:
    run(["btrfs", "subvolume", "create", root / "sub"])
    run(["btrfs", "subvolume", "create", root / "sub/nested"])
    (root / "sub/dir").mkdir()
    for number in range(60):
        (root / f"sub/dir/s{number}").write_bytes(rnd.randbytes(rnd.randrange(1, 20_000)))
    (root / "sub/nested/deep").mkdir()
    for number in range(30):
        (root / f"sub/nested/deep/n{number}").write_bytes(rnd.randbytes(rnd.randrange(1, 9000)))
    (root / "snapshots").mkdir()
    for number in range(6):
        run(["btrfs", "subvolume", "snapshot", root / "sub", root / f"snapshots/of_sub{number}"])
        run(["btrfs", "subvolume", "snapshot", "-r", root, root / f"snapshots/of_top{number}"])
        _change(root, rnd)
        for name in rnd.sample(range(60), 5):
            (root / f"sub/dir/s{name}").write_bytes(rnd.randbytes(rnd.randrange(1, 12_000)))
        with (root / f"snapshots/of_sub{number}/dir/new").open("wb") as file:
            file.write(rnd.randbytes(30_000))
    run(["btrfs", "subvolume", "snapshot", root / "snapshots/of_sub3", root / "snapshots/twice"])
    (root / "snapshots/twice/dir/s1").write_bytes(rnd.randbytes(50_000))
    run(["btrfs", "subvolume", "delete", "-c", root / "snapshots/of_sub1"])


def _change(root: Path, rnd: random.Random) -> None:
    """Overwrite middles, clone parts, and punch holes."""
    for number in range(3):
        with (root / f"d/e/fragment{number}").open("r+b") as file:
            for _ in range(8):
                file.seek(rnd.randrange(80) * 4096)
                file.write(rnd.randbytes(rnd.randrange(1, 3) * 4096))
            os.fsync(file.fileno())
    with (root / f"clone{rnd.randrange(1000)}").open("w+b") as target:
        for number in range(10):
            with (root / f"d/e/fragment{number % 3}").open("rb") as source:
                clone(target, source, rnd.randrange(60) * 4096, 8 * 4096, number * 10 * 4096)
        with (root / "zstd/c1").open("rb") as source, contextlib.suppress(OSError):
            clone(target, source, 4096, 8192, 2 << 20)
        with (root / "reserved").open("rb") as source:
            clone(target, source, 8192, 400_000 // 4096 * 4096, 3 << 20)
    with (root / "zlib/c2").open("r+b") as file:
        file.seek(rnd.randrange(20) * 4096)
        file.write(bytes(rnd.randbytes(1)) * 10_000)
    run(["fallocate", "-p", "-o", str(rnd.randrange(40) * 4096), "-l", "20000", root / "d/f0100"])
    for _ in range(3):
        (root / f"d/f{rnd.randrange(100):04}").write_bytes(rnd.randbytes(rnd.randrange(1, 9000)))


def _hold(root: Path, rnd: random.Random) -> None:
    """Overwrite parts of an extent that no snapshot has, and share one extent many times."""
    (root / "held").write_bytes(rnd.randbytes(1 << 20))
    os.sync()
    with (root / "held").open("r+b") as file:
        for _ in range(12):
            file.seek(rnd.randrange(250) * 4096)
            file.write(rnd.randbytes(8192))
            os.fsync(file.fileno())
    (root / "one").write_bytes(rnd.randbytes(65536))
    os.sync()
    with (root / "many").open("w+b") as target, (root / "one").open("rb") as source:
        for number in range(150):
            part = rnd.randrange(8) * 4096, rnd.randrange(1, 8) * 4096
            clone(target, source, *part, number * 65536)


def clone(target: object, source: object, offset: int, length: int, at: int) -> None:
    """Share a part of a file with another."""
    descriptor = source.fileno()  # type: ignore[attr-defined]
    fcntl.ioctl(
        target.fileno(),  # type: ignore[attr-defined]
        _FICLONERANGE,
        struct.pack("=qQQQ", descriptor, offset, length, at),
    )


def _fragment(paths: Iterable[Path], rnd: random.Random) -> None:
    files = [path.open("wb") for path in paths]
    for _ in range(40):
        for file in files:
            file.write(rnd.randbytes(4096 * rnd.randrange(2, 4)))
            file.flush()
            os.fsync(file.fileno())
    for file in files:
        file.close()


# ---------------------------------------------------------------------- truth


def read_truth(image: Path, *, newest: bool = False) -> Truth:
    """Return the owners of every sector, and all paths; ``newest`` is as for `make_image`."""
    size = image.stat().st_size
    dump = Dump(image, newest=newest)
    claims: list[set[Claim]] = [
        {Claim("free" if at >= _FIRST_MIB else "static")} for at in range(0, size, SECTOR)
    ]
    for place, logical, length in dump.places():
        for at in range(0, length, SECTOR):
            found = dump.logical.get(logical + at)
            claims[(place + at) // SECTOR] = set(found) if found else {Claim("free")}
    for at in dump.around_superblocks():
        if claims[at // SECTOR] == {Claim("free")}:
            claims[at // SECTOR] = {Claim("static")}
    for offset in _SUPERBLOCKS:
        if offset < size:
            claims[offset // SECTOR] = {Claim("static")}
    return Truth(claims, _paths(image), dump.inline)


class Dump:
    """The chunks, and the owners of each logical address, as dump-tree prints them."""

    def __init__(self, image: Path, *, newest: bool = False) -> None:
        btrfs = btrfsprogs("btrfs", newest=newest)
        text = run([btrfs, "inspect-internal", "dump-tree", image]).decode(errors="replace")
        self.chunks: dict[int, tuple[int, list[int]]] = {}
        #: The length, the profile and the stripes of each chunk.
        self.profiles: dict[int, tuple[int, str, list[tuple[int, int]]]] = {}
        self.blocks: dict[int, set[int]] = defaultdict(set)
        self.inline: dict[int, set[FileId]] = defaultdict(set)
        self.extents: dict[int, int] = {}
        self.parts: list[_Part] = []
        head = run([btrfs, "inspect-internal", "dump-super", image]).decode()
        node = re.search(r"^nodesize\s+(\d+)", head, re.MULTILINE)
        assert node
        self.node_size = int(node[1])
        self._parse(text)
        self.logical = self._claims()

    def _parse(self, text: str) -> None:
        tree = block = 0
        key = ("", "", "")
        item: list[str] = []
        for line in [*text.splitlines(), "end"]:
            if line.startswith("\t\t"):
                item.append(line)
                continue
            if key[1]:
                self._item(tree, block, key, item)
            key, item = ("", "", ""), []
            if found := _KEY.match(line):
                key = (found[1], found[2], found[3])
            elif found := _BLOCK.match(line):
                block = int(found[1])
                self.blocks[block].add(tree)
            elif line.startswith("root tree"):
                tree = 1
            elif line.startswith("chunk tree"):
                tree = 3
            elif "tree key (" in line and not line.startswith("\t"):
                name = line.split("(")[1].split()[0]
                tree = _TREES.get(name) or int(name)

    def _item(self, tree: int, block: int, key: tuple[str, str, str], item: list[str]) -> None:
        text = "\n".join(item)
        if key[1] == "CHUNK_ITEM":
            length = int(re.search(r"length (\d+)", text)[1])  # type: ignore[index]
            stripes = re.findall(r"devid (\d+) offset (\d+)", text)
            places = [(int(device), int(offset)) for device, offset in stripes]
            kind = re.search(r"type (\S+)", text)
            assert kind
            profile = kind[1].split("|")[-1]
            self.profiles[int(key[2])] = length, profile, places
            self.chunks[int(key[2])] = length, [offset for _, offset in places]
        elif key[1] == "EXTENT_ITEM" and "flags DATA" in text:
            self.extents[int(key[0])] = int(key[2])
        elif key[1] == "EXTENT_DATA":
            file = FileId(tree, int(key[0]))
            if "inline" in text:
                self.inline[block].add(file)
                return
            disk = re.search(r"(?:data|prealloc data) disk byte (\d+) nr (\d+)", text)
            part = re.search(r"(?:data|prealloc data) offset (\d+) nr (\d+)", text)
            kind = re.search(r"type \d \((\w+)\)", text)
            encoding = re.search(r"compression \d \((\w+)\)", text)
            assert disk
            assert part
            assert kind
            if int(disk[1]):
                word = encoding[1] if encoding else "none"
                self.parts.append(
                    _Part(
                        *(file, int(key[2]), int(disk[1]), int(disk[2]), int(part[1])),
                        *(int(part[2]), "" if word == "none" else word, kind[1] == "prealloc"),
                    )
                )

    def _claims(self) -> dict[int, set[Claim]]:
        claims: dict[int, set[Claim]] = defaultdict(set)
        for block, trees in self.blocks.items():
            for at in range(block, block + self.node_size, SECTOR):
                claims[at].add(Claim("tree", members=frozenset(trees)))
        holders: dict[int, set[FileId]] = defaultdict(set)
        for part in self.parts:
            holders[part.disk].add(part.file)
            if part.encoding:
                claim = Claim(
                    "file", *part.file, part.offset, part.length, part.unwritten, part.encoding
                )
                for at in range(part.disk, part.disk + part.disk_length, SECTOR):
                    claims[at].add(claim)
                continue
            for at in range(0, part.length, SECTOR):
                claims[part.disk + part.inside + at].add(
                    Claim("file", *part.file, part.offset + at, -1, part.unwritten)
                )
        for start, length in self.extents.items():
            for at in range(start, start + length, SECTOR):
                if at not in claims:
                    claims[at].add(Claim("unreferenced", members=frozenset(holders[start])))
        return claims

    def places(self) -> Iterator[tuple[int, int, int]]:
        """Yield the place on the device, the logical address and the length of each stripe."""
        for logical, (length, places) in self.chunks.items():
            for place in places:
                yield place, logical, length

    def around_superblocks(self) -> Iterator[int]:
        """Yield the sectors around superblocks, and their copies: no extent is allocated there."""
        for length, places in self.chunks.values():
            for place in places:
                for offset in _SUPERBLOCKS:
                    if place <= offset < place + length:
                        around = range(offset - place, offset - place + _STRIPE, SECTOR)
                        yield from (other + at for other in places for at in around)

    def tree_blocks(self) -> Iterator[list[int]]:
        """Yield the places of each tree block on the device."""
        for block in self.blocks:
            for logical, (length, places) in self.chunks.items():
                if logical <= block < logical + length:
                    yield [place + block - logical for place in places]


@contextlib.contextmanager
def folder_descriptor(folder: bytes) -> Iterator[int]:
    """Open a folder for an ioctl."""
    descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    try:
        yield descriptor
    finally:
        os.close(descriptor)


def _paths(image: Path) -> dict[FileId, set[str]]:
    with mounted(image, "ro", "subvolid=5", kind="btrfs") as root:
        return paths_below(root)


def paths_below(root: bytes) -> dict[FileId, set[str]]:
    """Return all paths of each file of a mounted filesystem."""
    found: dict[FileId, set[str]] = defaultdict(set)
    for folder, names, files in os.walk(root):
        if os.lstat(folder).st_ino == _STUB:
            # What a snapshot has in the place of a nested subvolume.
            continue
        with folder_descriptor(folder) as descriptor:
            raw = bytearray(struct.pack("=QQ", 0, 256) + bytes(4080))
            fcntl.ioctl(descriptor, _INO_LOOKUP, raw)
        (subvolume,) = struct.unpack_from("=Q", raw)
        for name in (*names, *files):
            path = os.path.join(folder, name)
            inode = os.lstat(path).st_ino
            below = path[len(root) :].decode("utf-8", "surrogateescape")
            if inode > 256:
                found[FileId(subvolume, inode)].add(below)
    return found


# ---------------------------------------------------------------------- comparison


def claims_in(row: Owner) -> Iterator[tuple[int, Claim]]:
    """Yield the number and the claim of each sector of a row."""
    first, last = row.start // SECTOR, -(-(row.start + row.length) // SECTOR)
    for number in range(first, last):
        yield number, _claim(row, number)


def _claim(row: Owner, number: int) -> Claim:
    if isinstance(row, FileOwner):
        assert isinstance(row.subvolume, int)
        assert row.file_offset is not None
        if isinstance(row.encoding, str):
            assert isinstance(row.file_length, int)
            parts = row.file_offset, row.file_length, row.unwritten, row.encoding
            return Claim("file", row.subvolume, row.inode, *parts)
        offset = row.file_offset + max(number * SECTOR - row.start, 0)
        return Claim("file", row.subvolume, row.inode, offset // SECTOR * SECTOR, -1, row.unwritten)
    if isinstance(row, MetadataOwner):
        trees = row.trees if isinstance(row.trees, tuple) else ()
        return Claim(row.what, members=frozenset(trees))
    if isinstance(row, Unreferenced):
        return Claim("unreferenced", members=frozenset(row.holders))
    if isinstance(row, Outside):
        return Claim("parity" if row.what.startswith("parity") else "free")
    return Claim(row.kind)


def differences(truth: Truth, answer: Answer) -> list[str]:
    """Return where an answer differs from the truth: sectors and paths."""
    found: dict[int, set[Claim]] = defaultdict(set)
    wrong: list[str] = []
    for row in answer:
        for number, claim in claims_in(row):
            found[number].add(claim)
        if isinstance(row, FileOwner) and isinstance(row.paths, tuple):
            expected = truth.paths.get(row.file, set())
            if set(row.paths) != expected or len(row.paths) != len(expected):
                wrong.append(f"{row.file}: {row.paths} instead of {expected}")
            if bool(expected) is (row.unlinked is True):
                wrong.append(f"{row.file}: unlinked is {row.unlinked}")
    first, last = answer.start // SECTOR, -(-(answer.start + answer.length) // SECTOR)
    wrong += [
        f"sector {number}: {sorted(found[number], key=str)} instead of"
        f" {sorted(truth.claims[number], key=str)}"
        for number in range(first, min(last, len(truth.claims)))
        if found[number] != truth.claims[number]
    ]
    return wrong
