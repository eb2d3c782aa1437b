"""The bytes and inodes that a unit of metadata describes: the lookups to try once it lies."""

import random
import struct
from bisect import bisect_left, bisect_right
from collections import defaultdict
from functools import cached_property

from tests.support.questions import sample_rows
from tests.support.truth import Row
from tools.adversary.bases import Base
from tools.adversary.units import Unit

__all__ = ["Described"]

Question = tuple[int, int]

#: One record of a leaf: its first block or inode within the group, and how many.
_RECORDS = {
    "bnobt": struct.Struct(">II"),
    "cntbt": struct.Struct(">II"),
    "rmapbt": struct.Struct(">II16s"),
    "refcountbt": struct.Struct(">II4s"),
    "inobt": struct.Struct(">I12s"),
    "finobt": struct.Struct(">I12s"),
}
_HEADER = 56


class Described:
    """Draws questions about a base image."""

    def __init__(self, base: Base) -> None:
        self.base = base
        self.super = base.truth.superblock
        self.device = base.truth.image.stat().st_size
        self._starts = [row.start for row in base.truth.rows]
        self._longest = max(row.length for row in base.truth.rows)
        self.pool = [(row.start, row.length) for row in self._sample]

    @cached_property
    def _sample(self) -> list[Row]:
        rows = sample_rows(self.base.truth, random.Random(self.base.truth.image.name), 400)
        return [row for row in rows if row.length < 64 << 20]

    @cached_property
    def _by_inode(self) -> dict[int, list[Row]]:
        found: dict[int, list[Row]] = defaultdict(list)
        for row in self.base.truth.rows:
            if row.kind == "file":
                found[row.inode].append(row)
        return found

    @cached_property
    def _by_path(self) -> list[tuple[str, int]]:
        return sorted(
            (path, number)
            for number, inode in self.base.truth.inodes.items()
            for path in inode.paths
        )

    def at(self, byte: int) -> list[Row]:
        """Return the rows that cover a byte."""
        first = bisect_left(self._starts, byte - self._longest)
        last = bisect_right(self._starts, byte)
        return [row for row in self.base.truth.rows[first:last] if row.end > byte]

    def clip(self, start: int, length: int) -> Question:
        """Cut a question to the device."""
        start = max(0, min(start, self.device - 1))
        return start, max(1, min(length, self.device - start))

    def about(self, unit: Unit, new: bytes, old: bytes, rng: random.Random) -> list[Question]:
        """Draw questions about what a unit describes, now and in another version."""
        group = unit.start // self.super.group_size
        base = group * self.super.group_size
        if unit.kind in _RECORDS:
            one, other = self._records(unit.kind, new), self._records(unit.kind, old)
            differ = sorted(one ^ other) or sorted(one)
            drawn = rng.sample(differ, min(5, len(differ)))
            found = [self._of_record(unit.kind, base, record) for record in drawn]
        elif unit.kind in {"inode", "inode cluster"}:
            first = self.super.inode_at(unit.start)
            numbers = range(first, first + unit.length // self.super.inode)
            rows = [row for number in numbers for row in self._by_inode.get(number, ())]
            found = [(row.start, row.length) for row in rng.sample(rows, min(4, len(rows)))]
            found += self._below(rng.choice(numbers), rng)
        elif unit.kind in {"agf", "agi", "agfl", "superblock"}:
            found = []
            for _ in range(4):
                near = self.at(base + rng.randrange(self.super.group_size))
                found += [(row.start, row.length) for row in near[:1]]
        else:
            found = []
            for row in self.at(unit.start)[:1]:
                rows = self._by_inode.get(row.inode, [])
                found += [(row.start, row.length) for row in rng.sample(rows, min(3, len(rows)))]
                found += self._below(row.inode, rng)
        return [self._vary(*question, rng) for question in found]

    def anywhere(self, rng: random.Random) -> Question:
        """Draw a question that has nothing to do with the damage."""
        if rng.random() < 0.1:
            edge = rng.choice((self.super.size, self.device, self.super.group_size))
            return self.clip(edge - rng.randrange(1 << 16), 1 << rng.randrange(18))
        if rng.random() < 0.2:
            return self.clip(rng.randrange(self.device), 1 << rng.randrange(20))
        return self._vary(*rng.choice(self.pool), rng)

    def _vary(self, start: int, length: int, rng: random.Random) -> Question:
        length = min(length, 1 << 22)
        if rng.random() < 0.5:
            return self.clip(start, length)
        before = rng.choice((0, 1, 512, 5000, -length // 2))
        return self.clip(start - before, length + rng.choice((0, 1, 4096, 40_000)))

    def _records(self, kind: str, data: bytes) -> set[tuple[int, int, bytes]]:
        if len(data) < _HEADER or data[4:6] != b"\0\0":
            return set()
        record = _RECORDS[kind]
        count = min(int.from_bytes(data[6:8], "big"), (len(data) - _HEADER) // record.size)
        body = data[_HEADER : _HEADER + count * record.size]
        found = set()
        for fields in record.iter_unpack(body):
            if kind in {"inobt", "finobt"}:
                found.add((fields[0], 64, fields[1]))
            else:
                found.add((fields[0], fields[1], fields[2] if len(fields) > 2 else b""))
        return found

    def _of_record(self, kind: str, base: int, record: tuple[int, int, bytes]) -> Question:
        first, count, _ = record
        unit = self.super.inode if kind in {"inobt", "finobt"} else self.super.block
        return self.clip(base + first * unit, count * unit)

    def _below(self, inode: int, rng: random.Random) -> list[Question]:
        """Draw questions about files whose paths lead through an inode."""
        known = self.base.truth.inodes.get(inode)
        if known is None or not known.paths or known.mode >> 12 != 4:
            return []
        prefix = known.paths[0].rstrip("/") + "/"
        first = bisect_left(self._by_path, (prefix, 0))
        last = bisect_left(self._by_path, (prefix + "\U0010ffff", 0))
        numbers = [self._by_path[rng.randrange(first, last)][1] for _ in range(12 * (last > first))]
        rows = [row for number in numbers for row in self._by_inode.get(number, ())[:2]]
        return [(row.start, row.length) for row in rows[:4]]
