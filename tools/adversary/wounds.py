"""Draw what is wrong with an image: a medium's damage, lost writes, and an adversary's lies."""

import random
from dataclasses import dataclass, field

from tools.adversary.bases import Base
from tools.adversary.forged import forge
from tools.adversary.units import Unit

from whoseblock.ranges import ByteRange

__all__ = ["WEIGHTS", "Wounds", "draw_wounds"]

#: How often each kind of damage is drawn.
WEIGHTS = {
    "stale, one": 30,
    "stale, two to five": 20,
    "stale, together": 12,
    "bits": 6,
    "zeroed": 4,
    "noise": 4,
    "unreadable": 8,
    "swapped": 6,
    "one lie": 7,
    "lies": 3,
    "claim": 6,
}

_NUMBERS = [0, 1, 2, 7, 0x7F, 0x80, 0xFF, 0x7FFF, 0xFFFF, 1 << 20, (1 << 31) - 1, 1 << 31]
_NUMBERS += [(1 << 32) - 1, 1 << 53, 1 << 54, 1 << 61, 1 << 62, (1 << 63) - 1, 1 << 63]

#: Units that describe the same blocks, so that old ones of the same time agree with each other.
_TOGETHER = ["rmapbt", "bnobt", "cntbt", "refcountbt", "agf", "inobt", "finobt", "agi"]
_TOGETHER += ["inode", "inode cluster"]


@dataclass
class Wounds:
    """The damage: replaced bytes by their first byte, and unreadable ranges.

    ``claimed`` are the ranges that a forged structure claims.
    """

    kind: str
    replaced: list[tuple[Unit, bytes, str]] = field(default_factory=list)
    unreadable: list[tuple[Unit, ByteRange]] = field(default_factory=list)
    claimed: list[tuple[int, int]] = field(default_factory=list)

    @property
    def patches(self) -> dict[int, bytes]:
        """The replaced bytes by where they begin."""
        return {unit.start: data for unit, data, _ in self.replaced}

    @property
    def units(self) -> list[Unit]:
        """The units that are wrong in any way."""
        return [unit for unit, *_ in self.replaced] + [unit for unit, _ in self.unreadable]

    def __str__(self) -> str:
        parts = [f"{unit.kind} at {unit.start}: {how}" for unit, _, how in self.replaced]
        parts += [f"{unit.kind} at {unit.start}: {bad} unreadable" for unit, bad in self.unreadable]
        return f"{self.kind}: {'; '.join(parts)}"


def draw_wounds(base: Base, rng: random.Random) -> Wounds:
    """Draw one kind of damage, and what it hits."""
    kind = rng.choices(list(WEIGHTS), list(WEIGHTS.values()))[0]
    wounds = Wounds(kind)
    if kind.startswith("stale"):
        _stale(base, rng, wounds)
    elif kind == "claim":
        forged = forge(base, rng)
        if forged is not None:
            wounds.replaced.append((forged.unit, forged.data, forged.how))
            wounds.claimed += forged.claimed
    elif kind == "unreadable":
        for _ in range(rng.choice((1, 1, 2, 6))):
            unit = _any_unit(base.by_kind, rng)
            at = unit.start + rng.randrange(max(unit.length // 512, 1)) * 512
            bad = ByteRange(at, rng.choice((1, 512, 4096, 1 << 16)))
            wounds.unreadable.append((unit, bad))
    else:
        many = {"one lie": 1, "lies": rng.randint(2, 8)}.get(kind, rng.choice((1, 1, 2, 4)))
        for _ in range(many):
            unit = _any_unit(base.by_kind, rng)
            if kind == "lies" and unit.kind == "superblock":
                continue
            wounds.replaced.append((unit, *_spoil(base, rng, unit, kind)))
    return wounds


def _any_unit(kinds: dict[str, list[Unit]], rng: random.Random) -> Unit:
    """Draw a unit, every kind of them as often."""
    return rng.choice(kinds[rng.choice(sorted(kinds))])


def _stale(base: Base, rng: random.Random, wounds: Wounds) -> None:
    kinds = base.stale_kinds()
    if wounds.kind == "stale, one":
        drawn = [_any_unit(kinds, rng)]
    elif wounds.kind == "stale, two to five":
        if rng.random() < 0.3:
            one = rng.choice(sorted(kinds))
            drawn = rng.sample(kinds[one], min(len(kinds[one]), rng.randint(2, 5)))
        else:
            drawn = [_any_unit(kinds, rng) for _ in range(rng.randint(2, 5))]
    else:
        # What one group lost at one time.
        size = base.truth.superblock.group_size
        group = rng.randrange(base.truth.superblock.groups)
        here = {
            kind: found
            for kind in _TOGETHER
            if (found := [unit for unit in kinds.get(kind, ()) if unit.start // size == group])
        }
        drawn = [_any_unit(here or kinds, rng) for _ in range(rng.randint(2, 5))]
    version = rng.randrange(4)
    taken: list[Unit] = []
    for unit in drawn:
        end = unit.start + unit.length
        if any(one.start < end and unit.start < one.start + one.length for one in taken):
            continue
        taken.append(unit)
        versions = base.older[unit]
        which = version if wounds.kind == "stale, together" else rng.randrange(4)
        which = min(which, len(versions) - 1)
        wounds.replaced.append((unit, versions[which], f"version {which + 1} before the newest"))


def _spoil(base: Base, rng: random.Random, unit: Unit, kind: str) -> tuple[bytes, str]:
    """Return what becomes of a unit, and how to call that."""
    data, how = base.read(unit), kind
    sealed = kind in {"one lie", "lies"}
    if sealed:
        how = rng.choice(["number", "number", "number", "bits", "noise", "zeroed"])
    size = unit.length
    if how == "bits":
        new = bytearray(data)
        for _ in range(rng.randint(1, 8)):
            bit = rng.randrange(size * 8)
            new[bit // 8] ^= 1 << bit % 8
        spoiled = bytes(new)
    elif how == "zeroed":
        first = rng.choice((512, size // 2, size))
        spoiled = bytes(min(first, size)) + data[first:]
    elif how == "noise":
        first = rng.choice((0, 56, 176, size // 2))
        spoiled = data[:first] + rng.randbytes(max(0, size - first))
    elif how == "swapped":
        twin = rng.choice([one for one in base.by_kind[unit.kind] if one.length == size])
        return base.read(twin), f"the one of {twin.start}"
    else:
        spoiled, how = _number(rng, data)
    if sealed:
        if rng.random() < 0.7:
            spoiled = data[:16] + spoiled[16:]
        spoiled = base.reseal(unit, spoiled)
    return spoiled[:size], how


def _number(rng: random.Random, data: bytes) -> tuple[bytes, str]:
    """Write one to three numbers into a unit, most of them near its beginning."""
    how = "number"
    for _ in range(rng.randint(1, 3)):
        width = rng.choice((1, 2, 4, 8))
        last = rng.choice((min(256, len(data)), len(data))) // width - 1
        at = rng.randint(0, last) * width
        number = rng.choice((rng.choice(_NUMBERS), rng.getrandbits(64))) % (1 << 8 * width)
        if rng.random() < 0.3:
            # A small change is the most plausible lie.
            number = (int.from_bytes(data[at : at + width], "big") + rng.choice((-1, 1, 2, 8))) % (
                1 << 8 * width
            )
        data = data[:at] + number.to_bytes(width, "big") + data[at + width :]
        how += f" {number:#x} of {width} bytes at {at}"
    return data, how
