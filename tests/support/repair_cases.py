"""Failures of every kind on a `Ground`, each with its own files, and what must become of them."""

import os
import random
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

from tests.support.file_attributes import Attributes, adorn
from tests.support.killed_repairs import BLOCK, SECTOR, Ground, read_direct
from tests.support.system_calls import clone_range, fallocate

from whoseblock.ranges import ByteRange, merge, subtract

__all__ = ["FAILURES", "Failure"]

_BLOCKS = 6


@dataclass
class Failure:
    """One failure: ``bad`` ranges of the device, and the files that have something there.

    ``contents`` are the files as they were, ``lost`` what of each cannot be read any more.
    """

    bad: list[ByteRange]
    arguments: tuple[str, ...]
    contents: dict[str, bytes] = field(default_factory=dict)
    lost: dict[str, list[ByteRange]] = field(default_factory=dict)
    permanent: bool = False
    #: What was lost is zeros in the end.
    zeros: bool = False
    #: Where each file has the block that they share.
    shared: dict[str, int] = field(default_factory=dict)
    unwritten: str = ""
    attributes: dict[str, Attributes] = field(default_factory=dict)

    def finally_(self, name: str) -> bytes:
        """Return the content that a file must have at the end."""
        data = bytearray(self.contents[name])
        for start, length in self.lost.get(name, []) if self.zeros else ():
            data[start : start + length] = bytes(length)
        return bytes(data)

    def check_readable(self, ground: Ground) -> None:
        """See that no file lost a byte that was readable; what was lost may have come back."""
        for name, before in self.contents.items():
            now, failing = read_direct(ground.root / name)
            assert len(now) == len(before), name
            lost = self.lost.get(name, [])
            for bad in lost:
                failing = subtract(failing, bad)
            assert not failing, f"{name} lost {failing}"
            kept = [ByteRange(0, len(before))]
            for bad in lost:
                kept = subtract(kept, bad)
            for start, length in kept:
                assert now[start : start + length] == before[start : start + length], name
            for start, length in lost:
                # Never anything else: neither other files' data nor half of the good copy.
                for at in range(start, start + length, SECTOR):
                    part = slice(at, min(at + SECTOR, start + length))
                    allowed = {before[part], bytes(len(before[part]))}
                    assert now[part] in allowed, (name, at)
            found, kept_ones = Attributes.of(ground.root / name), self.attributes[name]
            # The kernel takes a capability from a changed file, and only that; a resume puts it
            # back.
            assert found._replace(capability=None) == kept_ones._replace(capability=None), name
            assert found.capability in (None, kept_ones.capability)

    def untouched(self, ground: Ground) -> bool:
        """Return whether everything is as it was after the failure."""
        if subtract_all(self.bad, ground.served.bad()):
            return False
        return all(read_direct(ground.root / name)[1] == lost for name, lost in self.lost.items())

    def check_finished(self, ground: Ground) -> None:
        """See that it was dealt with: the device is well, and the files hold what they must."""
        bad = ground.served.bad()
        if self.permanent:
            assert not subtract_all(self.bad, ground.served.permanent())
            self._check_quarantine(ground)
        else:
            assert bad == [one for one in bad if subtract_all([one], self.bad) == [one]]
        for name in self.contents:
            data, failing = read_direct(ground.root / name)
            assert (failing, data == self.finally_(name)) == ([], True), name
            assert read_cached(ground.root / name) == data
            assert Attributes.of(ground.root / name) == self.attributes[name], name
        if self.shared:
            places = {ground.place_of(name, at) for name, at in self.shared.items()}
            assert len(places) == 1, f"no longer shared: {places}"
            (place,) = places
            assert not any(place < one.end and one.start < place + BLOCK for one in self.bad)
        if self.unwritten:
            inode = (ground.root / self.unwritten).stat().st_ino
            rows = (row for row in ground.rows() if row.inode == inode and not row.attr)
            assert all(row.unwritten for row in rows)

    def _check_quarantine(self, ground: Ground) -> None:
        folder = ground.root / ".whoseblock-quarantine"
        inodes = {(folder / name).stat().st_ino for name in os.listdir(folder)}
        for one in self.bad:
            rows = [row for row in ground.rows() if row.start < one.end and one.start < row.end]
            assert {row.inode for row in rows} <= inodes
            assert rows


def read_cached(path: Path) -> bytes:
    """Read a file through the page cache, and leave its times."""
    with open(os.open(path, os.O_RDONLY | os.O_NOATIME), "rb") as file:
        return file.read()


def subtract_all(ranges: list[ByteRange], cuts: list[ByteRange]) -> list[ByteRange]:
    """Return the parts of ``ranges`` that are in none of ``cuts``."""
    left = merge(ranges)
    for cut in cuts:
        left = subtract(left, cut)
    return left


def _mark(ground: Ground, failure: Failure, chance: random.Random) -> Failure:
    for number, name in enumerate(failure.contents):
        capable = number == 0 or chance.random() < ground.capable
        path, copy = ground.root / name, ground.copies / name
        failure.attributes[name] = adorn(path, copy, chance, capable=capable)
    ground.sync()
    for name in failure.contents:
        file = os.open(ground.root / name, os.O_RDONLY)
        os.posix_fadvise(file, 0, 0, os.POSIX_FADV_DONTNEED)
        os.close(file)
    for one in failure.bad:
        ground.served.add(one, permanent=failure.permanent)
    return failure


def free_space(ground: Ground, number: int, chance: random.Random) -> Failure:
    """Fail some sectors of two free blocks."""
    del number
    place = ground.free_place(8) + chance.randrange(6) * BLOCK
    bad = [ByteRange(place + SECTOR, 3 * SECTOR), ByteRange(place + BLOCK, 2 * SECTOR)]
    return _mark(ground, Failure(bad, (f"{place}+{2 * BLOCK}",)), chance)


def free_in_quarantine(ground: Ground, number: int, chance: random.Random) -> Failure:
    """Fail sectors of two free blocks for good: they are kept out of use."""
    del number
    for group in range(8):
        # The kernel takes the allocation groups in turn: each has inodes.
        (ground.root / f"group{group}").mkdir(exist_ok=True)
    place = ground.free_place(8) + chance.randrange(6) * BLOCK
    bad = [ByteRange(place + SECTOR, 3 * SECTOR), ByteRange(place + BLOCK, 2 * SECTOR)]
    words = (f"{place}+{2 * BLOCK}", "--quarantine")
    return _mark(ground, Failure(bad, words, permanent=True), chance)


def never_written(ground: Ground, number: int, chance: random.Random) -> Failure:
    """Fail a sector of an unwritten block of a file."""
    name = f"{number}/unwritten"
    ground.fill(name, b"")
    file = os.open(ground.root / name, os.O_WRONLY)
    fallocate(file, 0, _BLOCKS * BLOCK)
    os.fsync(file)
    os.close(file)
    place = ground.place_of(name, chance.randrange(_BLOCKS) * BLOCK)
    failure = Failure([ByteRange(place, SECTOR)], (f"{place}+{BLOCK}",), unwritten=name)
    failure.contents[name] = bytes(_BLOCKS * BLOCK)
    return _mark(ground, failure, chance)


def _sharing(ground: Ground, number: int, chance: random.Random, files: int) -> dict[str, int]:
    """Make files that share a block at different places; give where."""
    first = f"{number}/0"
    ground.fill(first, chance.randbytes(_BLOCKS * BLOCK))
    shared = {first: 2 * BLOCK}
    for other in range(1, files):
        name, at = f"{number}/{other}", chance.randrange(_BLOCKS) * BLOCK
        ground.fill(name, chance.randbytes(_BLOCKS * BLOCK - 100))
        at = min(at, (_BLOCKS - 2) * BLOCK)
        for folder in (ground.root, ground.copies):
            with (folder / first).open("rb") as source, (folder / name).open("r+b") as file:
                if folder == ground.root:
                    clone_range(source.fileno(), 2 * BLOCK, BLOCK, file.fileno(), at)
                else:
                    os.pwrite(file.fileno(), os.pread(source.fileno(), BLOCK, 2 * BLOCK), at)
                os.fsync(file.fileno())
        ground.keep_times(name)
        shared[name] = at
    return shared


def _lose_shared(
    ground: Ground, shared: dict[str, int], where: ByteRange, *arguments: str
) -> Failure:
    """Fail a part of a shared block."""
    name, at = next(iter(shared.items()))
    place = ground.place_of(name, at)
    bad = ByteRange(place + where.start, where.length)
    failure = Failure([bad], (f"{place}+{BLOCK}", *arguments), shared=shared)
    for owner, offset in shared.items():
        failure.contents[owner] = (ground.copies / owner).read_bytes()
        failure.lost[owner] = [ByteRange(offset + where.start, where.length)]
    return failure


def _restoring(ground: Ground) -> tuple[str, ...]:
    return ("--restore-from", str(ground.copies))


def shared_by_five(ground: Ground, number: int, chance: random.Random) -> Failure:
    """Fail some sectors of a block that five files share, with copies."""
    shared = _sharing(ground, number, chance, 5)
    where = ByteRange(SECTOR * chance.randrange(4), SECTOR * chance.randrange(1, 5))
    return _mark(ground, _lose_shared(ground, shared, where, *_restoring(ground)), chance)


def unshared(ground: Ground, number: int, chance: random.Random) -> Failure:
    """Fail three unshared blocks of a file, with a copy."""
    name = f"{number}/alone"
    ground.fill(name, chance.randbytes(_BLOCKS * BLOCK - 1))
    place = ground.place_of(name, BLOCK)
    lost = [ByteRange(BLOCK, SECTOR), ByteRange(3 * BLOCK - SECTOR, 3 * SECTOR)]
    bad = [ByteRange(place + one.start - BLOCK, one.length) for one in lost]
    failure = Failure(bad, (f"{place}+{3 * BLOCK}", *_restoring(ground)))
    failure.contents[name] = (ground.copies / name).read_bytes()
    failure.lost[name] = lost
    return _mark(ground, failure, chance)


def given_up(ground: Ground, number: int, chance: random.Random) -> Failure:
    """Fail some sectors of a block that three files share, without a copy: they become zeros."""
    shared = _sharing(ground, number, chance, 3)
    failure = _lose_shared(ground, shared, ByteRange(SECTOR, 2 * SECTOR), "--punch")
    failure.zeros = True
    return _mark(ground, failure, chance)


def given_up_whole(ground: Ground, number: int, chance: random.Random) -> Failure:
    """Fail a whole block that three files share, without a copy: it becomes a hole."""
    failure = _lose_shared(
        ground, _sharing(ground, number, chance, 3), ByteRange(0, BLOCK), "--punch"
    )
    failure.zeros, failure.shared = True, {}
    return _mark(ground, failure, chance)


def quarantined(ground: Ground, number: int, chance: random.Random) -> Failure:
    """Fail sectors of a shared block for good, with copies: they are kept out of use."""
    shared = _sharing(ground, number, chance, 3)
    failure = _lose_shared(
        ground, shared, ByteRange(SECTOR, SECTOR), "--quarantine", *_restoring(ground)
    )
    failure.permanent = True
    return _mark(ground, failure, chance)


def last_block(ground: Ground, number: int, chance: random.Random) -> Failure:
    """Fail the last block, which is not full, of two files that are clones of each other."""
    names = [f"{number}/one", f"{number}/two"]
    content = chance.randbytes(2 * BLOCK + 1000)
    ground.fill(names[0], content)
    ground.fill(names[1], b"")
    (ground.copies / names[1]).write_bytes(content)
    with (ground.root / names[0]).open("rb") as source, (ground.root / names[1]).open("r+b") as to:
        clone_range(source.fileno(), 0, 0, to.fileno(), 0)
        os.fsync(to.fileno())
    ground.keep_times(names[1])
    shared = dict.fromkeys(names, 2 * BLOCK)
    return _mark(
        ground, _lose_shared(ground, shared, ByteRange(0, SECTOR), *_restoring(ground)), chance
    )


Maker = Callable[[Ground, int, random.Random], Failure]

FAILURES: dict[str, Maker] = {
    one.__name__: one
    for one in (
        free_space,
        free_in_quarantine,
        never_written,
        shared_by_five,
        unshared,
        given_up,
        given_up_whole,
        quarantined,
        last_block,
    )
}
