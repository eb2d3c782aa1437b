"""Damaged images of ext2, ext3 and ext4, and the judgement of what is said about them.

An answer that calls itself complete must be that of the healthy image.  Where damage has a right
checksum, or the format has none, no program can see every lie.  Then no block that has an owner may
be called free, and no block may have the owner of another.
"""

import random
import subprocess
from pathlib import Path
from typing import Final, NamedTuple

from tests.support.ext4_images import Truth, claims_in, fill, make_image, read_truth
from tests.support.ext4_wounds import Parts, Wounds, find_parts
from tests.support.image_damage import limited
from tests.support.tools import program, run

import whoseblock
from whoseblock.errors import MediaError, WhoseblockError
from whoseblock.fs.arrays import KINDS, OwnerArrays
from whoseblock.fs.base import Answer, FileOwner
from whoseblock.fs.ext4.format.superblock import parse_superblock
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
    "64k": (48 * MIB, "-t ext4 -b 65536 -N 1024 -O ^has_journal,^resize_inode"),
    "ext2": (12 * MIB, "-t ext2 -b 1024 -N 1024"),
    "ext3": (16 * MIB, "-t ext3 -b 1024 -N 1024 -J size=1"),
    "attributes": (12 * MIB, "-t ext4 -b 1024 -N 1024 -O ^has_journal"),
    "uninit": (24 * MIB, "-t ext4 -b 1024 -N 2048 -O ^metadata_csum,uninit_bg,^has_journal"),
}
#: Seconds in which a case must be answered, on a machine with much else to do.
_LIMIT: Final = 120


class Base(NamedTuple):
    """A healthy image, its truth, and where it has what."""

    name: str
    raw: bytes
    truth: Truth
    parts: Parts


def make_base(name: str, folder: Path) -> Base:
    """Make the image of a name below a folder."""
    size, options = BASES[name]
    files = folder / "files"
    if not files.exists():
        files.mkdir()
        fill(files)
    image = make_image(folder / f"{name}.img", size, *options.split(), folder=files)
    if name == "attributes":
        _share_attributes(image)
    truth = read_truth(image)
    raw = image.read_bytes()
    return Base(name, raw, truth, find_parts(raw, truth, parse_superblock(raw[1024:2048])))


def _share_attributes(image: Path) -> None:
    """Assign to six files one block of attributes, as the kernel does with equal ones."""
    block = int(
        run(["debugfs", "-R", "stat /attributes0", image]).split(b"File ACL: ")[1].split()[0]
    )
    commands = [f"set_inode_field /attributes{number} file_acl {block}" for number in range(1, 6)]
    run(["debugfs", "-w", "-f", "-", image], stdin="\n".join(commands).encode())
    # It corrects the counts; its exit code is then 1.
    subprocess.run([program("e2fsck"), "-fy", image], capture_output=True, check=False)
    run(["e2fsck", "-fn", image])


class _Damaged:
    """A medium with replaced ranges, some of which cannot be read."""

    def __init__(self, raw: bytearray, lost: set[int], block_size: int) -> None:
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
        return bytes(memoryview(self.raw)[offset : offset + length])

    def close(self) -> None:
        """Leave everything as it is: no file is open."""


def run_case(base: Base, seed: int, limit: float = _LIMIT, kind: str = "") -> list[str]:
    """Damage an image, ask about it, and return every wrong word of a complete answer.

    ``kind`` is the only kind of damage, "" for any.  Raises `TimeoutError` after ``limit`` seconds.
    """
    rnd = random.Random(f"{base.name} {seed}")
    wounds = Wounds(base.raw, base.truth, base.parts, rnd)
    wounds.inflict(kind)
    media = _Damaged(wounds.raw, wounds.lost, base.truth.block_size)
    sure = base.parts.sb.has_checksums and not wounds.sealed
    size, count = base.truth.block_size, len(base.truth.claims)
    wrong: list[str] = []
    with limited(limit):
        try:
            fs = whoseblock.open(media)
        except WhoseblockError:
            return []
        whole = fs.owners(0, count * size)
        blocks = [rnd.randrange(count) for _ in range(20)]
        few = list(fs.owners_many([(block * size, size) for block in blocks]))
        columns = fs.owners_of([block * size for block in blocks], [size] * len(blocks))
        alone = [fs.owners(block * size, size) for block in blocks[: 3 if sure else 1]]
        for answer in (whole, *few, *(alone if sure else ())):
            if answer.complete and not wounds.forged:
                wrong += _judge(base.truth, answer, sure=sure)
        for number, answer in enumerate(few):
            if (answer.complete or columns.complete[number]) and not wounds.forged:
                wrong += _compare(answer, columns, number)
    what = ", ".join(wounds.words)
    return [f"{base.name} case {seed} ({what}): {one}" for one in wrong[:5]]


def _compare(answer: Answer, columns: OwnerArrays, number: int) -> list[str]:
    """Return how the columns of a question differ from its answer."""
    here = columns.question == number
    found = {
        (KINDS[kind], int(start), int(length), int(inode), int(offset))
        for kind, start, length, inode, offset in zip(
            columns.kind[here],
            columns.start[here],
            columns.length[here],
            columns.inode[here],
            columns.file_offset[here],
            strict=True,
        )
    }
    right = set()
    for row in answer:
        inode, offset = 0, -1
        if isinstance(row, FileOwner):
            inode, offset = row.inode, -1 if row.file_offset is None else row.file_offset
        right.add((row.kind, row.start, row.length, inode, offset))
    return [] if found == right else [f"as columns {found}, and as an answer {right}"]


def _judge(truth: Truth, answer: Answer, *, sure: bool) -> list[str]:
    size = truth.block_size
    found = claims_in(answer, size)
    wrong = []
    for block in range(answer.start // size, (answer.start + answer.length) // size):
        said, right = found[block], truth.claims[block]
        if said == right:
            continue
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
