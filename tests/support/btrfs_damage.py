"""Damaged images of btrfs, and the judgement of what is said about them.

An answer that calls itself complete must be that of the healthy image.  In any other, each word but
``unknown`` must be true.
"""

import mmap
import random
from pathlib import Path
from typing import Final, NamedTuple

from tests.support.btrfs_images import (
    SECTOR,
    Claim,
    Dump,
    Truth,
    claims_in,
    differences,
    read_truth,
)
from tests.support.image_damage import limited

import whoseblock
from whoseblock.errors import MediaError, NotAFilesystemError, UnsupportedError
from whoseblock.fs.base import Answer, FileOwner
from whoseblock.ranges import ByteRange

__all__ = ["Base", "DamagedMedia", "lies", "make_base", "run_case"]

_SUPERBLOCKS: Final = (64 << 10, 64 << 20)
#: Seconds in which a case must be answered, on a machine with much else to do.
_LIMIT: Final = 120
_QUESTIONS: Final = 30


class Base(NamedTuple):
    """A healthy image, its truth, and the places of its tree blocks."""

    raw: bytes
    truth: Truth
    node_size: int
    blocks: list[list[int]]


def make_base(image: Path) -> Base:
    """Read a healthy image."""
    dump = Dump(image)
    return Base(image.read_bytes(), read_truth(image), dump.node_size, list(dump.tree_blocks()))


class DamagedMedia:
    """A medium with replaced ranges, some of which cannot be read."""

    def __init__(
        self,
        raw: bytes | mmap.mmap,
        edits: dict[int, bytes],
        lost: set[int],
        name: str = "/nowhere/damaged.img",
    ) -> None:
        self.raw = raw
        self.edits = edits
        self.lost = lost
        # No file has this name, hence none is mounted.
        self.name = name
        self.size = len(raw)

    def pread(self, offset: int, length: int) -> bytes:
        end = offset + length
        bad = [
            ByteRange(max(at, offset), min(at + SECTOR, end) - max(at, offset))
            for at in sorted(self.lost)
            if at < end and offset < at + SECTOR
        ]
        if end > self.size:
            bad.append(ByteRange(self.size, end - self.size))
        if bad:
            raise MediaError(bad)
        found = bytearray(self.raw[offset:end])
        for at, data in self.edits.items():
            low, high = max(at, offset), min(at + len(data), end)
            if low < high:
                found[low - offset : high - offset] = data[low - at : high - at]
        return bytes(found)

    def close(self) -> None:
        """Leave everything as it is: no file is open."""


def run_case(base: Base, seed: int) -> list[str]:
    """Damage an image, ask about it, and return every wrong word."""
    rnd = random.Random(f"btrfs {seed}")
    edits: dict[int, bytes] = {}
    lost: set[int] = set()
    for _ in range(rnd.choice((1, 1, 2, 5))):
        _wound(base, rnd, edits, lost)
    owned = [n for n, claims in enumerate(base.truth.claims) if claims != {Claim("free")}]
    sectors = rnd.choices(owned, k=_QUESTIONS - 5)
    sectors += [rnd.randrange(len(base.truth.claims)) for _ in range(5)]
    size = len(base.raw)
    asked = [(one * SECTOR, rnd.choice((SECTOR, SECTOR, 10 * SECTOR))) for one in sectors]
    wrong: list[str] = []
    with limited(_LIMIT):
        try:
            fs = whoseblock.open(DamagedMedia(base.raw, edits, lost))
        except (NotAFilesystemError, UnsupportedError):
            return []
        with fs:
            for answer in fs.owners_many((at, min(length, size - at)) for at, length in asked):
                if answer.complete:
                    wrong += differences(base.truth, answer)
                else:
                    wrong += lies(base.truth, answer)
    return [f"case {seed}: {one}" for one in wrong[:5]]


def _wound(base: Base, rnd: random.Random, edits: dict[int, bytes], lost: set[int]) -> None:
    """Damage a superblock, or all copies or the first of a tree block."""
    kind = rnd.choice(("bit", "zeros", "lost", "junk", "superblock", "another"))
    if kind == "superblock":
        at = rnd.choice(_SUPERBLOCKS) + rnd.randrange(4096)
        edits[at] = bytes([base.raw[at] ^ 1 << rnd.randrange(8)])
        return
    places = rnd.choice(base.blocks)
    size = base.node_size
    inside, bit, junk = rnd.randrange(size), 1 << rnd.randrange(8), rnd.randbytes(300)
    other = rnd.choice(base.blocks)[0]
    for at in places[: rnd.choice((1, len(places), len(places)))]:
        if kind == "bit":
            edits[at + inside] = bytes([base.raw[at + inside] ^ bit])
        elif kind == "zeros":
            edits[at] = bytes(size)
        elif kind == "junk":
            edits[at + inside % (size - len(junk))] = junk
        elif kind == "another":
            edits[at] = base.raw[other : other + size]
        else:
            lost.add(at + inside // SECTOR * SECTOR)


def lies(truth: Truth, answer: Answer) -> list[str]:
    """Return the words of an incomplete answer that are not true."""
    wrong: list[str] = []
    for row in answer:
        if row.kind == "unknown":
            continue
        for number, claim in claims_in(row):
            right = truth.claims[number]
            is_part = claim.kind == "tree" and any(
                one.kind == "tree" and claim.members <= one.members for one in right
            )
            if claim not in right and not is_part:
                wrong.append(f"sector {number}: {claim} is not in {right}")
        if isinstance(row, FileOwner) and isinstance(row.paths, tuple):
            more = set(row.paths) - truth.paths.get(row.file, set())
            wrong += [f"{row.file} does not have the path {path!r}" for path in more]
    return wrong
