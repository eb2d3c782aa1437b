"""Inodes of version 3 (``struct xfs_dinode`` in xfs_format.h)."""

import stat
from typing import Final, NamedTuple

from whoseblock.fs.layout import S8, U8, Be16, Be32, Be64, Bytes4, Bytes12, Layout, Uuid

__all__ = ["ATTR_FORK", "DATA_FORK", "DINODE", "Dinode", "Fork", "parse_inode"]

XFS_DINODE_MAGIC: Final = 0x494E  # "IN"
XFS_DINODE_CRC_OFF: Final = 100
XFS_DINODE_FMT_DEV: Final = 0
XFS_DINODE_FMT_LOCAL: Final = 1
XFS_DINODE_FMT_EXTENTS: Final = 2
XFS_DINODE_FMT_BTREE: Final = 3
XFS_DINODE_FMT_META_BTREE: Final = 5
XFS_DIFLAG_REALTIME: Final = 1 << 0
XFS_DIFLAG_IMMUTABLE: Final = 1 << 3
XFS_DIFLAG_APPEND: Final = 1 << 4
XFS_DIFLAG2_REFLINK: Final = 1 << 1
XFS_DIFLAG2_BIGTIME: Final = 1 << 3
XFS_DIFLAG2_NREXT64: Final = 1 << 4
XFS_DIFLAG2_METADATA: Final = 1 << 5
#: The big timestamps count from the earliest second of the small ones.
XFS_BIGTIME_EPOCH_OFFSET: Final = 1 << 31
_NSEC_PER_SEC = 1_000_000_000

DATA_FORK: Final = "data"
ATTR_FORK: Final = "attr"


#: Before version 3, what begins with ``crc`` is not there...
XFS_DINODE_SIZE_2: Final = 100
XFS_DINODE_VERSION_3: Final = 3
#: ... and version 1 has the number of links where later ones have ``metatype``.
_VERSION_1: Final = 1


class Fork(NamedTuple):
    """One fork of an inode as it lies in the inode: where, how large, in which form."""

    offset: int
    size: int
    format: int
    nextents: int


class Dinode(NamedTuple):
    """``struct xfs_dinode``."""

    magic: Be16
    mode: Be16
    version: U8
    format: U8
    metatype: Be16
    uid: Be32
    gid: Be32
    nlink: Be32
    projid_lo: Be16
    projid_hi: Be16
    big_nextents: Be64
    raw_atime: Be64
    raw_mtime: Be64
    raw_ctime: Be64
    size: Be64
    nblocks: Be64
    extsize: Be32
    nextents: Be32
    anextents: Be16
    forkoff: U8
    aformat: S8
    dmevmask: Be32
    dmstate: Be16
    flags: Be16
    gen: Be32
    next_unlinked: Be32
    crc: Bytes4
    changecount: Be64
    lsn: Be64
    flags2: Be64
    cowextsize: Be32
    pad2: Bytes12
    raw_crtime: Be64
    ino: Be64
    uuid: Uuid

    @property
    def is_dir(self) -> bool:
        """Whether it is a directory."""
        return stat.S_ISDIR(self.mode)

    @property
    def is_symlink(self) -> bool:
        """Whether it is a symbolic link."""
        return stat.S_ISLNK(self.mode)

    @property
    def is_metadata(self) -> bool:
        """Whether it is a file of the metadata directory tree, which no path reaches."""
        return bool(self.flags2 & XFS_DIFLAG2_METADATA)

    @property
    def length(self) -> int:
        """The number of bytes before the forks."""
        return DINODE.size if self.version >= XFS_DINODE_VERSION_3 else XFS_DINODE_SIZE_2

    def time_ns(self, raw: int) -> int:
        """Convert one of the ``raw_…time`` fields to nanoseconds since 1970."""
        if self.flags2 & XFS_DIFLAG2_BIGTIME:
            return raw - XFS_BIGTIME_EPOCH_OFFSET * _NSEC_PER_SEC
        seconds, nanoseconds = raw >> 32, raw & 0xFFFFFFFF
        if seconds & 1 << 31:
            seconds -= 1 << 32
        return seconds * _NSEC_PER_SEC + nanoseconds

    def fork(self, which: str, inode_size: int) -> Fork | None:
        """Find a fork: "data" or "attr"; None if there is no such fork."""
        wide = self.flags2 & XFS_DIFLAG2_NREXT64
        data_size = self.forkoff * 8 or inode_size - self.length
        if which == DATA_FORK:
            nextents = self.big_nextents if wide else self.nextents
            return Fork(self.length, data_size, self.format, nextents)
        if self.forkoff == 0:
            return None
        start = self.length + data_size
        # With large extent counts the 32 bits that held the data fork's count hold this one.
        nextents = self.nextents if wide else self.anextents
        return Fork(start, inode_size - start, self.aformat, nextents)


DINODE: Final = Layout(Dinode)


def parse_inode(raw: bytes | memoryview) -> Dinode:
    """Decode an inode of any version; what its version has not is 0."""
    core: Dinode = DINODE.unpack_from(raw)
    if core.version >= XFS_DINODE_VERSION_3:
        return core
    return core._replace(
        nlink=core.metatype if core.version == _VERSION_1 else core.nlink,
        metatype=0,
        big_nextents=0,
        changecount=0,
        lsn=0,
        flags2=0,
        cowextsize=0,
        raw_crtime=0,
        ino=0,
    )
