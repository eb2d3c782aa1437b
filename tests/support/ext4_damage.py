"""Damaged images of ext2, ext3 and ext4, and the judgement of what is said about them.

An answer that calls itself complete must be that of the healthy image.  Where damage has a right
checksum, or the format has none, no program can see every lie.  Then no block that has an owner may
be called free, and no block may have the owner of another.
"""

import random
import struct
from pathlib import Path
from typing import Final, NamedTuple

from tests.support.ext4_images import Truth, claims_in, fill, make_image, read_truth
from tests.support.image_damage import limited, overwrite

import whoseblock
from whoseblock.errors import MediaError, WhoseblockError
from whoseblock.fs.base import Answer, FileOwner
from whoseblock.fs.ext4.format.checksum import crc32c
from whoseblock.ranges import ByteRange

__all__ = ["BASES", "Base", "make_base", "run_case"]

MIB: Final = 1 << 20
#: By name: size and options of mke2fs.
BASES: Final = {
    "ext4": (12 * MIB, "-t ext4 -b 1024 -N 1024 -J size=1"),
    "inline": (16 * MIB, "-t ext4 -b 4096 -N 1024 -O inline_data,^resize_inode,^has_journal"),
    "bigalloc": (
        32 * MIB,
        "-t ext4 -b 1024 -N 1024 -O bigalloc,^has_journal,^resize_inode -C 4096",
    ),
    "ext2": (12 * MIB, "-t ext2 -b 1024 -N 1024"),
}
#: Seconds in which a case must be answered, on a machine with much else to do.
_LIMIT: Final = 120
_INODE_SIZE: Final = 256


class Base(NamedTuple):
    """A healthy image, its truth, and its blocks of metadata."""

    name: str
    raw: bytes
    truth: Truth
    metadata: list[int]
    tables: list[tuple[int, int]]

    @property
    def has_checksums(self) -> bool:
        """Whether damage without a right checksum is visible."""
        return self.name != "ext2"


def make_base(name: str, folder: Path) -> Base:
    """Make the image of a name below a folder."""
    size, options = BASES[name]
    files = folder / "files"
    if not files.exists():
        files.mkdir()
        fill(files)
    image = make_image(folder / f"{name}.img", size, *options.split(), folder=files)
    truth = read_truth(image)
    inner = {"static", "ag", "inode-btree", "inodes", "directory", "extent-map", "xattr"}
    metadata = [
        block
        for block, claims in enumerate(truth.claims)
        if any(claim.what in inner for claim in claims)
    ]
    raw = image.read_bytes()
    first = next(
        block for block, claims in enumerate(truth.claims) for one in claims if one.what == "inodes"
    )
    used = sorted({claim.inode for claims in truth.claims for claim in claims} - {0})
    tables = [(number, first * truth.block_size + (number - 1) * _INODE_SIZE) for number in used]
    per_group = struct.unpack_from("<I", raw, 1024 + 0x28)[0]
    return Base(name, raw, truth, metadata, [one for one in tables if one[0] <= per_group])


class _Damaged:
    """A medium with replaced ranges, some of which cannot be read."""

    def __init__(self, raw: bytes, lost: set[int], block_size: int) -> None:
        self.raw = raw
        self.lost = lost
        self.block_size = block_size
        # No file has this name, hence none is mounted.
        self.name = "/nowhere/damaged.img"
        self.size = len(raw)

    def pread(self, offset: int, length: int) -> bytes:
        size = self.block_size
        blocks = range(offset // size, (offset + length - 1) // size + 1)
        bad = [ByteRange(block * size, size) for block in blocks if block in self.lost]
        if offset + length > self.size:
            bad.append(ByteRange(self.size, offset + length - self.size))
        if bad:
            raise MediaError(bad)
        return self.raw[offset : offset + length]

    def close(self) -> None:
        """Leave everything as it is: no file is open."""


def run_case(base: Base, seed: int) -> list[str]:
    """Damage an image, ask about it, and return every wrong word of a complete answer."""
    rnd = random.Random(f"{base.name} {seed}")
    raw, lost, sealed, what = _wound(base, rnd)
    media = _Damaged(raw, lost, base.truth.block_size)
    sure = base.has_checksums and not sealed
    size, count = base.truth.block_size, len(base.truth.claims)
    wrong: list[str] = []
    with limited(_LIMIT):
        try:
            fs = whoseblock.open(media)
        except WhoseblockError:
            return []
        whole = fs.owners(0, count * size)
        blocks = [rnd.randrange(count) for _ in range(20)]
        few = list(fs.owners_many([(block * size, size) for block in blocks]))
        alone = [fs.owners(block * size, size) for block in blocks[:3]] if sure else []
        for answer in (whole, *few, *alone):
            if answer.complete:
                wrong += _judge(base.truth, answer, sure=sure)
    return [f"{base.name} case {seed} ({what}): {one}" for one in wrong[:5]]


def _judge(truth: Truth, answer: Answer, *, sure: bool) -> list[str]:
    size = truth.block_size
    found = claims_in(answer, size)
    wrong = []
    for block in range(answer.start // size, (answer.start + answer.length) // size):
        said, right = found[block], truth.claims[block]
        if not sure:
            said = {claim._replace(offset=-1, unwritten=False) for claim in said}
            right = {claim._replace(offset=-1, unwritten=False) for claim in right}
        if said != right:
            wrong.append(f"block {block} is {right}, not {said}")
    if sure:
        for row in answer:
            if isinstance(row, FileOwner):
                paths = set(row.paths) if isinstance(row.paths, tuple) else set()
                if paths != truth.paths.get(row.inode, set()):
                    wrong.append(f"inode {row.inode} has other paths than {sorted(paths)[:3]}")
    return wrong


def _wound(base: Base, rnd: random.Random) -> tuple[bytes, set[int], bool, str]:
    """Return the damaged image, its unreadable blocks, whether checksums were made right."""
    raw, lost, sealed = base.raw, set[int](), False
    words = []
    for _ in range(rnd.choice((1, 1, 1, 2, 4))):
        kind = rnd.choice(("bit", "inode bit", "zero", "noise", "copy", "unreadable", "lie"))
        if kind == "lie" and not base.has_checksums:
            kind = "inode bit"
        block = rnd.choice(base.metadata)
        size = base.truth.block_size
        at = block * size
        if kind == "bit":
            place = at + rnd.randrange(size)
            raw = overwrite(raw, place, bytes([raw[place] ^ 1 << rnd.randrange(8)]))
        elif kind == "inode bit":
            place = rnd.choice(base.tables)[1] + rnd.randrange(_INODE_SIZE)
            raw = overwrite(raw, place, bytes([raw[place] ^ 1 << rnd.randrange(8)]))
            block = place // size
        elif kind == "zero":
            raw = overwrite(raw, at, bytes(size))
        elif kind == "noise":
            raw = overwrite(raw, at, rnd.randbytes(size))
        elif kind == "copy":
            other = rnd.choice(base.metadata) * size
            raw = overwrite(raw, at, raw[other : other + size])
        elif kind == "unreadable":
            lost.add(block)
        else:
            number, place = rnd.choice(base.tables)
            raw = _lie(base, raw, number, place, rnd)
            sealed = True
            block = place // size
        words.append(f"{kind} in block {block}")
    return raw, lost, sealed, ", ".join(words)


#: Offset and width of fields of an inode that lie: mode, links, flags, attribute block, and the
#: first extent's logical block, length and start.
_LIES: Final = ((0x34, 4), (0x38, 2), (0x3C, 4), (0x2A, 2), (0x2E, 2), (0x68, 4), (0x4, 4))


def _lie(base: Base, raw: bytes, number: int, place: int, rnd: random.Random) -> bytes:
    """Change a field of an inode, and make its checksum right."""
    at, width = rnd.choice(_LIES)
    values = [rnd.randrange(len(base.truth.claims)), rnd.randrange(40), 1 << 8 * width - 1]
    value = rnd.choice(values) & (1 << 8 * width) - 1
    inode = overwrite(raw[place : place + _INODE_SIZE], at, value.to_bytes(width, "little"))
    inode = overwrite(overwrite(inode, 0x7C, b"\0\0"), 0x82, b"\0\0")
    seed = crc32c(0xFFFFFFFF, raw[1024 + 0x68 : 1024 + 0x78])
    crc = crc32c(crc32c(seed, struct.pack("<I", number) + inode[0x64:0x68]), inode)
    inode = overwrite(inode, 0x7C, (crc & 0xFFFF).to_bytes(2, "little"))
    inode = overwrite(inode, 0x82, (crc >> 16).to_bytes(2, "little"))
    return overwrite(raw, place, inode)
