"""A damaged file and a copy of it, and what `verify_copy` makes of them."""

import contextlib
import os
import random
from collections.abc import Iterator, Sequence
from pathlib import Path

import pytest

from whoseblock.ranges import ByteRange
from whoseblock.respond.copies.locations import Candidate, Copies, CopyError
from whoseblock.respond.copies.verification import verify_copy

__all__ = [
    "ANY_TIME",
    "BLOCK",
    "LOST",
    "SIZE",
    "check",
    "damaged_pair",
    "flip",
    "opened",
    "refused",
    "same_time",
]

BLOCK = 4096
SIZE = 24 * BLOCK + 777
LOST = ByteRange(9 * BLOCK, BLOCK)

#: What is compared is of interest, and not when the copy was written.
ANY_TIME = Copies(window=2 * BLOCK, older=True, zeros=True)


@contextlib.contextmanager
def opened(path: Path) -> Iterator[int]:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        yield descriptor
    finally:
        os.close(descriptor)


def check(
    path: Path,
    candidate: Candidate | str | Path,
    lost: Sequence[ByteRange] = (LOST,),
    rules: Copies = ANY_TIME,
) -> int:
    """Verify a copy; return the number of bytes compared, or raise."""
    if not isinstance(candidate, Candidate):
        candidate = Candidate(str(candidate))
    before = len(os.listdir("/proc/self/fd"))
    try:
        with (
            opened(path) as descriptor,
            verify_copy(descriptor, candidate, lost, rules) as replacement,
        ):
            return replacement.compared
    finally:
        assert len(os.listdir("/proc/self/fd")) == before


def refused(
    path: Path, candidate: Candidate | str | Path, why: str, rules: Copies = ANY_TIME
) -> None:
    with pytest.raises(CopyError, match=why):
        check(path, candidate, rules=rules)


def damaged_pair(folder: Path) -> tuple[Path, Path]:
    """Make a damaged file, and a good copy of it with the same time."""
    good = random.Random(0).randbytes(SIZE)
    damaged, copy = folder / "damaged", folder / "copy"
    damaged.write_bytes(good[: LOST.start] + b"?" * LOST.length + good[LOST.end :])
    copy.write_bytes(good)
    same_time(damaged, copy)
    return damaged, copy


def same_time(path: Path, *copies: Path) -> None:
    """Set the modification time of copies to that of a file."""
    status = path.stat()
    for copy in copies:
        os.utime(copy, ns=(status.st_atime_ns, status.st_mtime_ns))


def flip(path: Path, at: int) -> None:
    with path.open("r+b") as file:
        file.seek(at)
        (byte,) = file.read(1)
        file.seek(at)
        file.write(bytes([byte ^ 1]))
