"""Checks of answers about XFS filesystems without a reverse map, and of the oracles of them."""

import fcntl
import os
import stat
import struct
from collections import defaultdict
from collections.abc import Iterable, Iterator
from pathlib import Path

from tests.support.answers import answer_json, same
from tests.support.expected_rows import Expectation
from tests.support.truth import Row, Truth

import whoseblock
from whoseblock.fs.base import MetadataOwner, Owner

__all__ = ["SCANNED", "check_scanned", "fiemap", "of_regular_files"]

SCANNED = "there is no reverse map: the owners were found by a scan of "
# linux/fiemap.h
_FS_IOC_FIEMAP = 0xC020660B
_FIEMAP = struct.Struct("=QQIIII")
_FIEMAP_EXTENT = struct.Struct("=QQQ16xI12x")
_XATTR, _UNWRITTEN, _INLINE = 0x2, 0x800, 0x200


def check_scanned(
    truth: Truth,
    asked: list[tuple[int, int]],
    *,
    paths: bool,
    free_scans: bool = False,
    log: Path | None = None,
) -> None:
    """Compare answers with the truth; ``free_scans`` is whether free space takes a scan, too."""
    expectation = Expectation(truth)
    with whoseblock.open(truth.image, log_device=log) as fs:
        assert fs.reverse_map == "scan"
        answers = fs.owners_many(asked, paths=paths)
        for question, answer in zip(asked, answers, strict=True):
            same(answer_json(answer), question, expectation, paths=paths)
            owned = any(_takes_scan(row) or free_scans for row in answer)
            owned &= question[0] < truth.superblock.size
            assert owned == any(note.startswith(SCANNED) for note in answer.notes), question


def _takes_scan(row: Owner) -> bool:
    if isinstance(row, MetadataOwner):
        return row.what not in {"static", "log"}
    return row.kind in {"file", "staging"}


def fiemap(root: bytes) -> set[tuple[int, bool, int, int, int, bool]]:
    """Return the extents of all regular files, by the kernel's FIEMAP, which opens no others.

    They are inode, whether of the attribute fork, offset, start, length and whether unwritten.
    """
    found = set()
    for folder, _, files in os.walk(root):
        for path in (os.path.join(folder, name) for name in files):
            if not stat.S_ISREG(os.lstat(path).st_mode):
                continue
            file = os.open(path, os.O_RDONLY | os.O_NOFOLLOW)
            try:
                inode = os.fstat(file).st_ino
                for is_attr in (False, True):
                    extents = _joined(_extents(file, _XATTR if is_attr else 0))
                    found |= {(inode, is_attr, *extent) for extent in extents}
            finally:
                os.close(file)
    return found


def of_regular_files(truth: Truth) -> set[tuple[int, bool, int, int, int, bool]]:
    """Return the rows of the truth that `fiemap` must have."""
    by_fork: dict[tuple[int, bool], list[Row]] = defaultdict(list)
    for row in truth.rows:
        if row.kind == "file" and not row.extent_map:
            inode = truth.inodes[row.inode]
            if inode.paths and stat.S_ISREG(inode.mode):
                by_fork[row.inode, row.attr].append(row)
    found = set()
    for fork, rows in by_fork.items():
        extents = ((row.offset, row.start, row.length, row.unwritten) for row in rows)
        found |= {(*fork, *extent) for extent in _joined(sorted(extents))}
    return found


def _extents(file: int, flags: int) -> Iterator[tuple[int, int, int, bool]]:
    count = 0
    for _ in ("to count them", "to return them"):
        buffer = bytearray(_FIEMAP.pack(0, (1 << 64) - 1, flags, 0, count, 0))
        buffer += bytes(count * _FIEMAP_EXTENT.size)
        try:
            fcntl.ioctl(file, _FS_IOC_FIEMAP, buffer)
        except FileNotFoundError:
            # There is no attribute fork.
            return
        count = _FIEMAP.unpack_from(buffer)[3]
    body = buffer[_FIEMAP.size : _FIEMAP.size + count * _FIEMAP_EXTENT.size]
    for logical, physical, length, state in _FIEMAP_EXTENT.iter_unpack(body):
        if not state & _INLINE:
            yield logical, physical, length, bool(state & _UNWRITTEN)


def _joined(
    extents: Iterable[tuple[int, int, int, bool]],
) -> Iterator[tuple[int, int, int, bool]]:
    """Join extents that follow one another in file and device."""
    held: tuple[int, int, int, bool] | None = None
    for extent in extents:
        offset, start, length, unwritten = extent
        if held is not None:
            if (held[0] + held[2], held[1] + held[2], held[3]) == (offset, start, unwritten):
                held = held[0], held[1], held[2] + length, unwritten
                continue
            yield held
        held = extent
    if held is not None:
        yield held
