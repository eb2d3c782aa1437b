"""The cost of lookups on mounted filesystems, against xfs_io, find, and reading /proc."""

import ctypes
import os
import random
import signal
import sys
import time
from collections.abc import Iterator
from pathlib import Path

from tests.support.mounts import mounted
from tests.support.tools import xfsprogs

import whoseblock
from bench.images import BLOCK
from bench.measure import Command, Result, compare, measured
from bench.xfs import FILES, image
from whoseblock.fs.base import FileOwner
from whoseblock.processes import Wanted, find_processes

__all__ = ["measure_all"]

PROCESSES, MAPPINGS = 1000, 200

_libc = ctypes.CDLL(None)
_libc.mmap.argtypes = [ctypes.c_void_p, ctypes.c_size_t, *3 * [ctypes.c_int], ctypes.c_long]


def measure_all(folder: Path) -> Iterator[Result]:
    """Make the image that is not there yet, and measure."""
    yield from _questions(image(folder, f"files-{FILES}"))
    yield from _processes(folder)


def _questions(image_path: Path) -> Iterator[Result]:
    with mounted(image_path, "ro", "norecovery") as where:
        point = os.fsdecode(where)
        with whoseblock.open(point) as fs:
            rows = [
                row
                for row in fs.owners(0, fs.size, paths=False)
                if isinstance(row, FileOwner) and row.what == "data"
            ]
            row = random.Random(11).choice(rows)  # noqa: S311 - a sample, not a secret
            (name,) = fs.paths(row.inode)
            asked = dict(fs.reads)
        start = row.start
        ask: Command = [sys.executable, "-m", "whoseblock", "lookup", point, f"{start}+{BLOCK}"]
        sectors = f"{start // 512} {(start + BLOCK) // 512 - 1}"
        fsmap: Command = [xfsprogs("xfs_io"), "-r", "-c", f"fsmap -d {sectors}", point]
        find: Command = ["find", point, "-xdev", "-inum", str(row.inode)]
        if f"{row.inode}".encode() not in measured(fsmap).output:
            raise RuntimeError("xfs_io names another owner")
        if measured(find).output.decode().strip() != point + name:
            raise RuntimeError("find names another file")
        print(f"questions to the kernel for the whole image: {asked}", file=sys.stderr)

        bare = compare(
            lambda: measured([*ask, "--json", "--no-paths"]).seconds,
            lambda: measured(fsmap).seconds,
        )
        yield Result(
            "one live question, whole process (ours by xfs_io's)",
            bare.ours * 1e3, bare.theirs * 1e3, "ms", 1 / bare.ratio, 60, at_least=False,
        )  # fmt: skip
        whole = compare(
            lambda: measured([*ask, "--json"]).seconds,
            lambda: measured(fsmap).seconds + measured(find).seconds,
        )
        yield Result(
            f"the same with path on {FILES:,} files, against xfs_io and find -inum",
            whole.ours * 1e3, whole.theirs * 1e3, "ms", whole.ratio, 0.2, at_least=True,
        )  # fmt: skip
        with whoseblock.open(point) as fs:
            begun = time.perf_counter()
            for number in range(2000):
                fs.owners(rows[number % len(rows)].start, BLOCK, paths=False)
            each = (time.perf_counter() - begun) / 2000
        with whoseblock.open(point) as fs:

            def with_path() -> float:
                begun = time.perf_counter()
                (owner,) = fs.owners(start, BLOCK)
                if not isinstance(owner, FileOwner) or owner.paths != (name,):
                    raise RuntimeError("another file is named")
                return time.perf_counter() - begun

            path = compare(with_path, lambda: measured(find).seconds)
        yield Result(
            "its path through the API, against find -inum",
            path.ours * 1e3, path.theirs * 1e3, "ms", path.ratio, 10, at_least=True,
        )  # fmt: skip
        yield Result(
            "one warm live question through the API (by one run of xfs_io)",
            each * 1e6, bare.theirs * 1e6, "µs", bare.theirs / each, 10, at_least=True,
        )  # fmt: skip


def _processes(folder: Path) -> Iterator[Result]:
    """Look for the users of a page among many processes; each has it mapped many times."""
    path = folder / "mapped"
    path.write_bytes(bytes(MAPPINGS * 2 * BLOCK))
    children = [_child(path) for _ in range(PROCESSES)]
    try:
        status = path.stat()
        wanted = [Wanted(status.st_dev, status.st_ino, 0, BLOCK)]
        found = find_processes(wanted).processes[0]
        if {process.pid for process in found} < set(children):
            raise RuntimeError("not all who have it mapped were found")

        def scan() -> float:
            begun = time.perf_counter()
            find_processes(wanted)
            return time.perf_counter() - begun

        times = compare(scan, _merely_read, rounds=3)
        yield Result(
            f"{PROCESSES:,} processes of {MAPPINGS} mappings (ours by merely reading /proc)",
            times.ours * 1e3, times.theirs * 1e3, "ms", 1 / times.ratio, 2, at_least=False,
        )  # fmt: skip
    finally:
        for child in children:
            os.kill(child, signal.SIGKILL)
            os.waitpid(child, 0)


def _child(path: Path) -> int:
    """Start a process that has every second page of a file mapped, each by itself."""
    ready, written = os.pipe()
    child = os.fork()
    if child == 0:
        descriptor = os.open(path, os.O_RDONLY)
        # Python's own mmap would keep a descriptor for each.
        for number in range(MAPPINGS):
            _libc.mmap(None, BLOCK, 1, 1, descriptor, 2 * number * BLOCK)
        os.close(descriptor)
        os.write(written, b"!")
        while True:
            signal.pause()
    os.close(written)
    os.read(ready, 1)
    os.close(ready)
    return child


def _merely_read() -> float:
    """Read the mappings of every process and list its descriptors, and do nothing with them."""
    begun = time.perf_counter()
    for name in os.listdir("/proc"):  # noqa: PTH208 - as quick as it can be
        if name.isdecimal():
            try:
                with open(f"/proc/{name}/maps", "rb") as maps:  # noqa: PTH123 - as above
                    maps.read()
                os.listdir(f"/proc/{name}/fd")  # noqa: PTH208 - as above
            except OSError:
                continue
    return time.perf_counter() - begun
