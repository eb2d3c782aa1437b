"""Changes of a mounted filesystem at full speed, and a history of the owners of bytes.

``python -m tests.support.concurrent_changes FOLDER SEED SECONDS HISTORY [clone]`` changes its own
files in FOLDER; with ``clone``, files also share blocks.  After every step it syncs the file, and
records its place by the kernel.  So the history has every place that any of its files ever had at
rest.  The places during a write are unknown, because not all of them stay.  A write to a hole of an
XFS was seen to allocate an unwritten block, and then to use a block instead that was reserved for
copy-on-write next to it.  So the history also has the times at which bytes of a file were being
written.
"""

import contextlib
import fcntl
import json
import os
import random
import struct
import sys
import time
from collections import defaultdict
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

from tests.support import system_calls

__all__ = ["History", "Key", "Place", "Write"]

_FS_IOC_GETVERSION = 0x80087601  # linux/fs.h
_FS_IOC_FIEMAP = 0xC020660B  # linux/fs.h
_FIEMAP = struct.Struct("=QQIII4x")
_EXTENT = struct.Struct("=QQQ16xI12x")
_FIEMAP_FLAG_SYNC = 1
_NO_PLACE = 0x2 | 0x4 | 0x200
_BLOCK = 4096
_ROOM = 400

#: Inode and generation.
Key = tuple[int, int]


class Place(NamedTuple):
    """Bytes of a file that lay somewhere."""

    offset: int
    start: int
    length: int


class Write(NamedTuple):
    """Bytes of a file, and when they were written: on the clock of `time.monotonic`."""

    offset: int
    length: int
    begun: float
    ended: float


class History(NamedTuple):
    """Every place that each file had at rest, every name, and every write to it."""

    places: dict[Key, set[Place]]
    names: dict[Key, set[str]]
    writes: dict[Key, list[Write]]

    @classmethod
    def load(cls, paths: list[Path]) -> "History":
        """Put together what several processes wrote."""
        places: dict[Key, set[Place]] = defaultdict(set)
        names: dict[Key, set[str]] = defaultdict(set)
        writes: dict[Key, list[Write]] = defaultdict(list)
        for path in paths:
            for inode, generation, where, called, written in json.loads(path.read_text()):
                places[inode, generation].update(Place(*place) for place in where)
                names[inode, generation].update(called)
                writes[inode, generation] += (Write(*write) for write in written)
        return cls(places, names, writes)

    def had(self, key: Key, wanted: Place) -> bool:
        """Return whether a file had all of these bytes there, perhaps as several extents."""
        left = {wanted.offset}
        end = wanted.offset + wanted.length
        shift = wanted.start - wanted.offset
        pieces = sorted(
            (place.offset, place.offset + place.length)
            for place in self.places.get(key, ())
            if place.start - place.offset == shift
        )
        at = left.pop()
        for first, last in pieces:
            if first <= at < last:
                at = last
        return at >= end

    def may_have_had(self, key: Key, wanted: Place, begun: float, ended: float) -> bool:
        """Return whether a file had each of these blocks there, or was being written in that block.

        ``begun`` and ``ended`` are the times of the query.
        """
        then = [one for one in self.writes.get(key, ()) if one.begun < ended and begun < one.ended]
        return all(
            self.had(key, Place(wanted.offset + at, wanted.start + at, _BLOCK))
            or any(0 <= wanted.offset + at - one.offset < one.length for one in then)
            for at in range(0, wanted.length, _BLOCK)
        )


class _Churn:
    def __init__(self, folder: Path, seed: str, *, clones: bool) -> None:
        self.clones = clones
        self.rng = random.Random(seed)
        self.folder = folder / seed
        self.folder.mkdir()
        self.places: dict[Key, set[Place]] = defaultdict(set)
        self.names: dict[Key, set[str]] = defaultdict(set)
        self.writes: dict[Key, list[Write]] = defaultdict(list)
        self.top = folder
        self.files: list[Path] = []
        self.made = 0

    def run(self, seconds: float) -> int:
        end = time.monotonic() + seconds
        steps = 0
        while time.monotonic() < end:
            some = (self.clone, self.clone) if self.clones else (self.truncate, self.allocate)
            step = self.rng.choice(
                (self.create, self.create, self.write, self.punch, *some,
                 self.delete, self.rename, self.link)
            )  # fmt: skip
            step()
            steps += 1
        return steps

    @contextlib.contextmanager
    def changed(self, path: Path) -> Iterator[int]:
        """Open a file for a change, and note its places when that is on the disk."""
        file = os.open(path, os.O_RDWR | os.O_CREAT, 0o644)
        try:
            self.called(file, path)
            yield file
            os.fsync(file)
            self.note(file)
        finally:
            os.close(file)

    def called(self, file: int, path: Path) -> None:
        self.names[self.key(file)].add("/" + str(path.relative_to(self.top)))

    def key(self, file: int) -> Key:
        generation = struct.unpack("=I", fcntl.ioctl(file, _FS_IOC_GETVERSION, bytes(8))[:4])[0]
        return os.fstat(file).st_ino, generation

    def note(self, file: int) -> None:
        places = self.places[self.key(file)]
        start, most = 0, (1 << 63) - 1
        while start < most:
            buffer = bytearray(_FIEMAP.size + _ROOM * _EXTENT.size)
            _FIEMAP.pack_into(buffer, 0, start, most - start, _FIEMAP_FLAG_SYNC, 0, _ROOM)
            fcntl.ioctl(file, _FS_IOC_FIEMAP, buffer)
            count = _FIEMAP.unpack_from(buffer)[3]
            for number in range(count):
                logical, physical, length, flags = _EXTENT.unpack_from(
                    buffer, _FIEMAP.size + number * _EXTENT.size
                )
                if not flags & _NO_PLACE:
                    places.add(Place(logical, physical, length))
                start = logical + length
            if count < _ROOM:
                return

    def create(self) -> None:
        if len(self.files) > 60:
            self.delete()
        self.made += 1
        path = self.folder / f"file-{self.made}"
        with self.changed(path) as file:
            self.put(file, os.urandom(_BLOCK) * self.rng.randrange(1, 40), 0)
        self.files.append(path)

    def put(self, file: int, data: bytes, at: int) -> None:
        begun = time.monotonic()
        os.pwrite(file, data, at)
        os.fsync(file)
        self.writes[self.key(file)].append(Write(at, len(data), begun, time.monotonic()))

    def write(self) -> None:
        for path in self.some(1):
            with self.changed(path) as file:
                at = self.rng.randrange(60) * _BLOCK
                self.put(file, os.urandom(_BLOCK) * self.rng.randrange(1, 8), at)

    def punch(self) -> None:
        for path in self.some(1):
            with self.changed(path) as file:
                at = self.rng.randrange(40) * _BLOCK
                system_calls.punch_hole(file, at, self.rng.randrange(1, 6) * _BLOCK)

    def truncate(self) -> None:
        for path in self.some(1):
            with self.changed(path) as file:
                os.ftruncate(file, self.rng.randrange(60 * _BLOCK))

    def allocate(self) -> None:
        for path in self.some(1):
            with self.changed(path) as file:
                at = self.rng.randrange(60) * _BLOCK
                os.posix_fallocate(file, at, self.rng.randrange(1, 20) * _BLOCK)

    def clone(self) -> None:
        if len(self.files) < 2:
            return
        source, target = self.some(2)
        if source.samefile(target):
            return
        with self.changed(source) as one, self.changed(target) as other:
            blocks = os.fstat(one).st_size // _BLOCK
            first = self.rng.randrange(blocks)
            count = self.rng.randrange(1, blocks - first + 1)
            to = self.rng.randrange(50) * _BLOCK
            system_calls.clone_range(one, first * _BLOCK, count * _BLOCK, other, to)

    def rename(self) -> None:
        for path in self.some(1):
            self.made += 1
            new = self.folder / f"renamed-{self.made}"
            with self.changed(path) as file:
                # Known before it is so: an answer may come at once.
                self.called(file, new)
                path.rename(new)
            self.files[self.files.index(path)] = new

    def link(self) -> None:
        for path in self.some(1):
            self.made += 1
            new = self.folder / f"linked-{self.made}"
            with self.changed(path) as file:
                self.called(file, new)
                os.link(path, new)
            self.files.append(new)

    def delete(self) -> None:
        for path in self.some(1):
            path.unlink()
            self.files.remove(path)

    def some(self, count: int) -> list[Path]:
        return self.rng.sample(self.files, min(count, len(self.files)))


def _main(folder: str, seed: str, seconds: str, history: str, clone: str = "") -> None:
    churn = _Churn(Path(folder), seed, clones=clone == "clone")
    steps = churn.run(float(seconds))
    told = [
        (*key, sorted(places), sorted(churn.names[key]), churn.writes[key])
        for key, places in churn.places.items()
    ]
    Path(history).write_text(json.dumps(told))
    sys.stdout.write(f"{steps}\n")


if __name__ == "__main__":
    _main(*sys.argv[1:])
