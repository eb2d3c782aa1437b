"""From a record of GETFSMAP to a row of an answer.

Owners that are no inodes: ``linux/fsmap.h`` for those of every filesystem, ``xfs_fs.h`` and ext4's
``fsmap.h`` for their own.
"""

from typing import Final

from whoseblock.fs.mounted.format import (
    FMR_OF_ATTR_FORK,
    FMR_OF_EXTENT_MAP,
    FMR_OF_PREALLOC,
    FMR_OF_SPECIAL_OWNER,
    Fsmap,
)
from whoseblock.fs.pieces import (
    AG,
    ATTR,
    BLOCK_BITMAP,
    DATA,
    EXTENT_MAP,
    FILE,
    FILE_DATA,
    FREE,
    GROUP_DESCRIPTORS,
    INODE_BITMAP,
    INODE_BTREE,
    INODES,
    LOG,
    METADATA,
    NOTHING,
    REFCOUNT_BTREE,
    RESERVED_GROUP_DESCRIPTORS,
    STAGING,
    STATIC,
    UNKNOWN,
    XATTR,
    Piece,
)

__all__ = ["piece_of"]

#: Filesystems number their owners within a letter, and use each other's.
_X: Final = ord("X") << 32
_F: Final = ord("f") << 32

#: Kind and what of each special owner; any other is unknown.  The kernel's "free" is what it would
#: hand out, its "unknown" whatever it has no record of.
_SPECIAL: Final = {
    1: (FREE, NOTHING),
    _X | 1: (METADATA, STATIC),
    _X | 2: (METADATA, LOG),
    _X | 3: (METADATA, AG),
    _X | 4: (METADATA, INODE_BTREE),
    _X | 5: (METADATA, INODES),
    _X | 6: (METADATA, REFCOUNT_BTREE),
    _X | 7: (STAGING, NOTHING),
    _F | 1: (METADATA, GROUP_DESCRIPTORS),
    _F | 2: (METADATA, RESERVED_GROUP_DESCRIPTORS),
    _F | 3: (METADATA, BLOCK_BITMAP),
    _F | 4: (METADATA, INODE_BITMAP),
}


def piece_of(record: Fsmap, low: int, high: int) -> Piece:
    """Return the piece of a record, clipped to the bytes from ``low`` to before ``high``."""
    if record.flags & FMR_OF_SPECIAL_OWNER:
        return Piece(low, high - low, *_SPECIAL.get(record.owner, (UNKNOWN, NOTHING)))
    fork = ATTR if record.flags & FMR_OF_ATTR_FORK else DATA
    if record.flags & FMR_OF_EXTENT_MAP:
        return Piece(low, high - low, FILE, EXTENT_MAP, fork, record.owner)
    what = XATTR if fork == ATTR else FILE_DATA
    place = record.offset + low - record.physical
    unwritten = bool(record.flags & FMR_OF_PREALLOC)
    return Piece(low, high - low, FILE, what, fork, record.owner, place, unwritten)
