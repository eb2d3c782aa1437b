"""A filesystem on a failing device, and ``whoseblock respond`` run on it, for tests."""

import contextlib
import fcntl
import hashlib
import os
import random
import subprocess
import sys
import tempfile
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import groupby
from pathlib import Path
from typing import Any, NamedTuple

from tests.support import system_calls
from tests.support.emulated_device import Emulated, emulated
from tests.support.kernel_oracle import getfsmap
from tests.support.mounts import mounted
from tests.support.tools import CHECKOUT, Missing, need_loop_mounts, sees
from tests.support.truth import Row
from tests.support.xfs_images import MIB, Geometry, make_image
from tests.support.xfsdb import superblock

from whoseblock.journal import History, Step, open_journal
from whoseblock.ranges import ByteRange

__all__ = [
    "BLOCK",
    "EXCHANGE",
    "KINDS",
    "PLAIN",
    "Bench",
    "Facts",
    "back_up",
    "bench",
    "geometry",
    "make_disk",
    "pattern",
    "serving",
    "write_file",
]

BLOCK = 4096
_FITHAW = 0xC0045878  # linux/fs.h


def geometry(name: str, *, parent: bool, exchange: bool, **more: Any) -> Geometry:  # noqa: ANN401 - fields of Geometry
    """Make a small filesystem with or without what respond can make use of."""
    return Geometry(name, parent=parent, more=("-i", f"exchange={exchange:d}"), **more)


EXCHANGE = geometry("exchange", parent=True, exchange=True, size=48 * MIB)
PLAIN = geometry("plain", parent=False, exchange=False, size=48 * MIB)
KINDS = [
    EXCHANGE,
    PLAIN,
    geometry("exchange-no-parents", parent=False, exchange=True, size=48 * MIB),
    geometry("parents-no-exchange", parent=True, exchange=False, size=48 * MIB),
]


class Facts(NamedTuple):
    """All that is to stay of a file, but its place."""

    digest: str
    size: int
    mode: int
    uid: int
    gid: int
    links: int
    mtime: int
    atime: int
    attributes: tuple[tuple[str, bytes], ...]

    @classmethod
    def of(cls, path: Path) -> "Facts":
        """Look at a file, past the page cache, and without a trace."""
        status = path.stat()
        forget(path)
        file = os.open(path, os.O_RDONLY | os.O_NOATIME)
        with open(file, "rb") as stream:
            digest = hashlib.file_digest(stream, "sha256").hexdigest()
        names = sorted(os.listxattr(path))
        attributes = tuple((name, os.getxattr(path, name)) for name in names)
        return cls(
            digest,
            status.st_size,
            status.st_mode,
            status.st_uid,
            status.st_gid,
            status.st_nlink,
            status.st_mtime_ns,
            status.st_atime_ns,
            attributes,
        )


@dataclass(frozen=True)
class Bench:
    """A failing device, and what is mounted on it, if anything; the journal is elsewhere."""

    served: Emulated
    image: Path
    device: Path
    root: Path
    journal: Path
    block: int = BLOCK

    # ------------------------------------------------------------------ respond

    def respond(
        self, *words: object, target: Path | None = None, **environment: str
    ) -> subprocess.CompletedProcess[str]:
        """Run the command on the mounted filesystem, or on another target."""
        with self.responding(*words, target=target, **environment) as process:
            out, errors = process.communicate(timeout=120)
        return subprocess.CompletedProcess(process.args, process.returncode, out, errors)

    @contextlib.contextmanager
    def responding(
        self, *words: object, target: Path | None = None, **environment: str
    ) -> Iterator[subprocess.Popen[str]]:
        """Start the command, and end it in any case."""
        place = [] if "--resume" in words and target is None else [target or self.root]
        command = [sys.executable, "-m", "whoseblock", "respond", *map(str, [*place, *words])]
        given = {**os.environ, "WHOSEBLOCK_JOURNAL": str(self.journal), **environment}
        with subprocess.Popen(
            command,
            cwd=CHECKOUT,
            env=given,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        ) as process:
            try:
                yield process
            finally:
                process.kill()

    def apply(
        self, *words: object, code: int = 0, target: Path | None = None, **environment: str
    ) -> str:
        """Run the command, check its exit code, and return all of its output."""
        done = self.respond(*words, "--apply", "--yes", target=target, **environment)
        assert done.returncode == code, done.stdout + done.stderr
        return done.stdout + done.stderr

    def journaled(self) -> list[History]:
        """Return all failures with their history."""
        with open_journal(str(self.journal), write=False) as journal:
            return list(journal.histories())

    def steps(self) -> list[Step]:
        """Return all steps in the journal, in order."""
        plans = (plan for failure in self.journaled() for plan in failure.plans)
        steps = {step.id: step for plan in plans for step in plan.steps}
        return [steps[number] for number in sorted(steps)]

    def states(self) -> list[list[str]]:
        """Return the states of each step, in order; details within a state count once."""
        return [[state for state, _ in groupby(states)] for states in self._all_states()]

    def _all_states(self) -> list[list[str]]:
        return [[str(event.state) for event in step.events] for step in self.steps()]

    # ------------------------------------------------------------------ the filesystem

    def sync(self) -> None:
        """Sync this filesystem to the device, and no other."""
        descriptor = os.open(self.root, os.O_RDONLY | os.O_DIRECTORY)
        try:
            system_calls.sync_filesystem(descriptor)
        finally:
            os.close(descriptor)

    def rows(self) -> list[Row]:
        """Ask the kernel for every row."""
        self.sync()
        return getfsmap(os.fsencode(self.root))

    def rows_of(self, path: Path) -> list[Row]:
        """Return the rows of the data of a file, by their places in it."""
        inode = path.stat().st_ino
        rows = (row for row in self.rows() if row.inode == inode and row.kind == "file")
        return sorted((r for r in rows if not r.attr and not r.extent_map), key=lambda r: r.offset)

    def place(self, path: Path, block: int, count: int = 1) -> ByteRange:
        """Return the places of consecutive blocks of a file on the device."""
        offset = block * self.block
        (row,) = (r for r in self.rows_of(path) if r.offset <= offset < r.offset + r.length)
        assert row.offset + row.length >= offset + count * self.block
        return ByteRange(row.start + offset - row.offset, count * self.block)

    def owners(self, where: ByteRange) -> list[Row]:
        """Return the rows that share a byte with a range, free space included."""
        return [row for row in self.rows() if row.start < where.end and where.start < row.end]

    def free(self, blocks: int, *, last: bool = True, away_from: Sequence[Path] = ()) -> ByteRange:
        """Find free blocks, as far from where the next are given out as can be.

        What is made in some folders while a test runs is put into the allocation groups of these:
        no block is taken from there.
        """
        found = [row for row in self.rows() if row.kind == "free"]
        if away_from:
            told = superblock(self.image)
            taken = {told.group_of(folder.stat().st_ino) for folder in away_from}
            found = [row for row in found if row.start // told.group_size not in taken]
        row = next(r for r in (reversed(found) if last else found) if r.length > 2 * blocks * BLOCK)
        middle = row.start + row.length // 2 // self.block * self.block
        return ByteRange(middle, blocks * self.block)

    def everything(self, but: Iterable[Path] = ()) -> dict[str, tuple[Facts, list[Row]]]:
        """Return the content and the place of every file, except for some."""
        left_out = {path.stat().st_ino for path in but}
        paths = (p for p in sorted(self.root.rglob("*")) if p.is_file() and not p.is_symlink())
        self.sync()
        by_inode: dict[int, list[Row]] = {}
        for row in self.rows():
            if row.kind == "file" and not row.attr and not row.extent_map:
                # Whether others share it is no matter of this file.
                by_inode.setdefault(row.inode, []).append(row._replace(shared=None))
        found = {}
        for path in paths:
            inode = path.stat().st_ino
            if inode not in left_out:
                found[str(path)] = Facts.of(path), _merged(by_inode.get(inode, []))
        return found

    def bytes_at(self, where: ByteRange) -> bytes:
        """Return the content of the medium, including its failing parts."""
        with self.image.open("rb") as file:
            file.seek(where.start)
            return file.read(where.length)

    def fail(self, *ranges: ByteRange, permanent: bool = False) -> None:
        """Make ranges fail, and drop them from the page cache."""
        self.sync()
        for one in ranges:
            self.served.add(one, permanent=permanent)
        for path in self.root.rglob("*"):
            if path.is_file() and not path.is_symlink():
                forget(path)


def _merged(rows: Sequence[Row]) -> list[Row]:
    merged: list[Row] = []
    for row in sorted(rows, key=lambda row: row.offset):
        last = merged[-1] if merged else None
        if (
            last is not None
            and last.end == row.start
            and last.offset + last.length == row.offset
            and last.unwritten == row.unwritten
        ):
            merged[-1] = last._replace(length=last.length + row.length)
        else:
            merged.append(row)
    return merged


def forget(path: Path) -> None:
    """Drop a file from the page cache."""
    file = os.open(path, os.O_RDONLY | os.O_NOATIME)
    os.posix_fadvise(file, 0, 0, os.POSIX_FADV_DONTNEED)
    os.close(file)


def pattern(seed: str, length: int) -> bytes:
    """Return bytes that are the same for the same seed, and zero nowhere."""
    return random.Random(seed).randbytes(length).replace(b"\0", b"\1")


def write_file(path: Path, content: bytes, at: int = 0) -> Path:
    """Write a part of a file; queries for its place write it out."""
    path.parent.mkdir(parents=True, exist_ok=True)
    file = os.open(path, os.O_RDWR | os.O_CREAT, 0o644)
    with open(file, "r+b") as stream:
        stream.seek(at)
        stream.write(content)
    return path


def back_up(path: Path, copy: Path, content: bytes) -> Path:
    """Write a copy of a file with its modification time, as backups do."""
    write_file(copy, content)
    status = path.stat()
    os.utime(copy, ns=(status.st_atime_ns, status.st_mtime_ns))
    return copy


def make_disk(path: Path, kind: Geometry) -> Path:
    """Make an image of a kind, to be mounted."""
    need_loop_mounts()
    if not sees("-i", "exchange=1"):
        raise Missing("this mkfs.xfs does not know exchange: run tools/xfsprogs")
    return make_image(path, kind)


@contextlib.contextmanager
def serving(
    tmp_path: Path, kind: Geometry, *, sector: int = 512
) -> Iterator[tuple[Emulated, Path]]:
    """Serve a new image; nothing is mounted."""
    # In memory where that can be: each flush of the device would wait for the disk of all others.
    memory = "/dev/shm" if os.access("/dev/shm", os.W_OK) else tmp_path  # noqa: S108 - a folder of our own in it
    with tempfile.TemporaryDirectory(prefix="whoseblock-disk-", dir=memory) as folder:
        image = make_disk(Path(folder) / "disk.img", kind)
        with emulated(image, tmp_path / "served", sector=sector) as served:
            yield served, image


@contextlib.contextmanager
def bench(
    tmp_path: Path, kind: Geometry = EXCHANGE, *options: str, sector: int = 512
) -> Iterator[Bench]:
    """Mount a new filesystem on a failing device; whatever happens, it is thawed and unmounted."""
    with (
        serving(tmp_path, kind, sector=sector) as (served, image),
        served.loop() as loop,
        mounted(loop, *options, loop=False) as folder,
    ):
        root = Path(os.fsdecode(folder))
        try:
            yield Bench(served, image, loop, root, tmp_path / "journal.sqlite", kind.block)
        finally:
            _thaw(root)


def _thaw(root: Path) -> None:
    descriptor = os.open(root, os.O_RDONLY | os.O_DIRECTORY)
    try:
        with contextlib.suppress(OSError):
            fcntl.ioctl(descriptor, _FITHAW, 0)
    finally:
        os.close(descriptor)
