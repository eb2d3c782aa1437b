"""The kernel as an oracle: GETFSMAP, and a walk of the tree, of a mounted filesystem."""

import fcntl
import os
import stat
import struct

from tests.support.truth import Inode, Row

__all__ = ["getfsmap", "walk"]

# linux/fsmap.h
_FS_IOC_GETFSMAP = 0xC0C0583B
_HEAD = struct.Struct("=4I6Q")
_RECORD = struct.Struct("=2I4Q3Q")
_FMR_OF_PREALLOC = 0x1
_FMR_OF_ATTR_FORK = 0x2
_FMR_OF_EXTENT_MAP = 0x4
_FMR_OF_SHARED = 0x8
_FMR_OF_SPECIAL_OWNER = 0x10
_FMR_OF_LAST = 0x20
_MOST32, _MOST64 = 0xFFFFFFFF, 0xFFFFFFFFFFFFFFFF
#: XFS takes its records in batches of so many, also within one call.  After a batch it leaves out
#: the other places where the last file has the last block.
_BATCH = 2048

#: The number of a device, and a byte of it.
_Place = tuple[int, int]

_X = ord("X") << 32
_F = ord("f") << 32
_SPECIAL = {
    1: "free",
    2: "unknown",
    3: "unknown",
    _X | 1: "static",
    _X | 2: "log",
    _X | 3: "ag",
    _X | 4: "inode-btree",
    _X | 5: "inodes",
    _X | 6: "refcount-btree",
    _X | 7: "staging",
    _X | 8: "defective",
    # ext4, fs/ext4/fsmap.h: descriptors, those kept for growth, bitmaps of blocks and of inodes.
    _F | 1: "group-descriptors",
    _F | 2: "reserved-group-descriptors",
    _F | 3: "block-bitmap",
    _F | 4: "inode-bitmap",
}


def getfsmap(folder: bytes) -> list[Row]:
    """Ask for every row of the data device of the filesystem mounted on ``folder``.

    The filesystem must be at rest: all is taken in one call.
    """
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        # The device is in the kernel's own old encoding of small numbers.
        device = os.fstat(descriptor).st_dev
        encoded = os.major(device) << 8 | os.minor(device)
        records = _records(descriptor, (0, 0), (_MOST32, _MOST64))
        if not records or not records[-1][1] & _FMR_OF_LAST:
            raise RuntimeError("GETFSMAP did not give every row in one call")
        found = {one[2:5] for one in records}  # physical, owner, offset
        for last in records[_BATCH - 1 :: _BATCH]:
            again = _records(descriptor, (last[0], last[2]), (last[0], last[2]))
            at = records.index(last) + 1
            records[at:at] = [
                one for one in again if one[2:4] == last[2:4] and one[2:5] not in found
            ]
    finally:
        os.close(descriptor)
    return [
        _row(flags, physical, owner, offset, length)
        for on, flags, physical, owner, offset, length, *_ in records
        if on == encoded
    ]


def _records(descriptor: int, low: _Place, high: _Place) -> list[tuple[int, ...]]:
    """Return the records from one place to another, both included."""
    count = _ask(descriptor, 0, low, high)[0]
    entries, data = _ask(descriptor, count + 64, low, high)
    return list(_RECORD.iter_unpack(data[: entries * _RECORD.size]))


def _ask(descriptor: int, count: int, low: _Place, high: _Place) -> tuple[int, bytes]:
    head = _HEAD.pack(0, 0, count, 0, *[0] * 6)
    first = _RECORD.pack(low[0], 0, low[1], 0, 0, 0, 0, 0, 0)
    last = _RECORD.pack(high[0], _MOST32, high[1], _MOST64, _MOST64, 0, 0, 0, 0)
    buffer = bytearray(head + first + last + bytes(count * _RECORD.size))
    fcntl.ioctl(descriptor, _FS_IOC_GETFSMAP, buffer)
    entries = _HEAD.unpack_from(buffer)[3]
    return entries, bytes(buffer[_HEAD.size + 2 * _RECORD.size :])


def _row(flags: int, physical: int, owner: int, offset: int, length: int) -> Row:
    if flags & _FMR_OF_SPECIAL_OWNER:
        return Row(physical, length, _SPECIAL[owner])
    return Row(
        physical,
        length,
        "file",
        inode=owner,
        offset=offset,
        attr=bool(flags & _FMR_OF_ATTR_FORK),
        extent_map=bool(flags & _FMR_OF_EXTENT_MAP),
        unwritten=bool(flags & _FMR_OF_PREALLOC),
        shared=bool(flags & _FMR_OF_SHARED),
    )


def walk(folder: bytes) -> dict[int, Inode]:
    """Return every inode that has a name, with its mode, link count and all its paths."""
    top = os.lstat(folder)
    found = {top.st_ino: Inode(top.st_mode, top.st_nlink, ["/"])}
    todo = [(folder, b"")]
    while todo:
        place, prefix = todo.pop()
        with os.scandir(place) as entries:
            for entry in entries:
                status = entry.stat(follow_symlinks=False)
                path = prefix + b"/" + entry.name
                known = found.setdefault(status.st_ino, Inode(status.st_mode, status.st_nlink, []))
                known.paths.append(os.fsdecode(path))
                if stat.S_ISDIR(status.st_mode):
                    todo.append((entry.path, path))
    return found
