"""The btrees: block headers, and the records of each tree (xfs_format.h).

Trees of an allocation group have short headers (32-bit block numbers within the group), the extent
maps of inodes long ones (64-bit block numbers).
"""

from typing import Final, NamedTuple

from whoseblock.fs.layout import U8, Be16, Be32, Be64, Bytes4, Layout, Uuid

__all__ = [
    "ALLOC_REC",
    "BMBT_REC",
    "INOBT_REC",
    "LONG_HEADER",
    "REFCOUNT_REC",
    "RMAP_KEY",
    "RMAP_REC",
    "SHORT_HEADER",
    "AllocRec",
    "BmbtRec",
    "InobtRec",
    "LongHeader",
    "RefcountRec",
    "RmapRec",
    "ShortHeader",
]

#: Version 4 has other magic numbers, and headers without what begins with ``blkno``.
XFS_ABTB_MAGIC: Final = 0x41425442  # "ABTB"
XFS_ABTC_MAGIC: Final = 0x41425443  # "ABTC"
XFS_IBT_MAGIC: Final = 0x49414254  # "IABT"
XFS_BMAP_MAGIC: Final = 0x424D4150  # "BMAP"
SHORT_HEADER_SIZE: Final = 16
LONG_HEADER_SIZE: Final = 24
XFS_ABTB_CRC_MAGIC: Final = 0x41423342  # "AB3B"
XFS_ABTC_CRC_MAGIC: Final = 0x41423343  # "AB3C"
XFS_IBT_CRC_MAGIC: Final = 0x49414233  # "IAB3"
XFS_FIBT_CRC_MAGIC: Final = 0x46494233  # "FIB3"
XFS_RMAP_CRC_MAGIC: Final = 0x524D4233  # "RMB3"
XFS_REFC_CRC_MAGIC: Final = 0x52334643  # "R3FC"
XFS_BMAP_CRC_MAGIC: Final = 0x424D4133  # "BMA3"
XFS_BTREE_SBLOCK_CRC_OFF: Final = 52
XFS_BTREE_LBLOCK_CRC_OFF: Final = 64
#: No tree is higher: the lowest fan-out (512-byte blocks) over the most blocks of a group.
XFS_BTREE_MAXLEVELS: Final = 32
#: No block: the sibling of an outermost block.
NULLAGBLOCK: Final = 0xFFFFFFFF
NULLFSBLOCK: Final = 2**64 - 1

#: Owners that are no inodes, as they stand in `RmapRec.owner`.
XFS_RMAP_OWN_FS: Final = 2**64 - 3
XFS_RMAP_OWN_LOG: Final = 2**64 - 4
XFS_RMAP_OWN_AG: Final = 2**64 - 5
XFS_RMAP_OWN_INOBT: Final = 2**64 - 6
XFS_RMAP_OWN_INODES: Final = 2**64 - 7
XFS_RMAP_OWN_REFC: Final = 2**64 - 8
XFS_RMAP_OWN_COW: Final = 2**64 - 9
XFS_RMAP_NON_INODE: Final = 1 << 63

XFS_RMAP_OFF_ATTR_FORK: Final = 1 << 63
XFS_RMAP_OFF_BMBT_BLOCK: Final = 1 << 62
XFS_RMAP_OFF_UNWRITTEN: Final = 1 << 61
XFS_RMAP_OFF_MASK: Final = (1 << 54) - 1

XFS_REFC_COWFLAG: Final = 1 << 31
XFS_INODES_PER_CHUNK: Final = 64
XFS_INODES_PER_HOLEMASK_BIT: Final = 4

_BMBT_STARTOFF_SHIFT, _BMBT_STARTOFF_MASK = 9, (1 << 54) - 1
_BMBT_STARTBLOCK_HIGH = (1 << 9) - 1
_BMBT_BLOCKCOUNT_BITS = 21


class ShortHeader(NamedTuple):
    """``struct xfs_btree_block`` with ``xfs_btree_block_shdr``."""

    magic: Be32
    level: Be16
    numrecs: Be16
    leftsib: Be32
    rightsib: Be32
    blkno: Be64
    lsn: Be64
    uuid: Uuid
    owner: Be32
    crc: Bytes4


class LongHeader(NamedTuple):
    """``struct xfs_btree_block`` with ``xfs_btree_block_lhdr``."""

    magic: Be32
    level: Be16
    numrecs: Be16
    leftsib: Be64
    rightsib: Be64
    blkno: Be64
    lsn: Be64
    uuid: Uuid
    owner: Be64
    crc: Bytes4
    pad: Be32


class RmapRec(NamedTuple):
    """``struct xfs_rmap_rec``: who owns ``blockcount`` blocks from ``startblock``."""

    startblock: Be32
    blockcount: Be32
    owner: Be64
    offset: Be64


class RmapKey(NamedTuple):
    """``struct xfs_rmap_key``; a node has a low and a high one for each child."""

    startblock: Be32
    owner: Be64
    offset: Be64


class AllocRec(NamedTuple):
    """``struct xfs_alloc_rec``: free blocks.  It is its own key."""

    startblock: Be32
    blockcount: Be32


class RefcountRec(NamedTuple):
    """``struct xfs_refcount_rec``: blocks that have ``refcount`` owners."""

    startblock: Be32
    blockcount: Be32
    refcount: Be32


class InobtRec(NamedTuple):
    """``struct xfs_inobt_rec`` in its sparse form: a chunk of 64 inodes.

    Filesystems without sparse chunks keep a 32-bit count of free inodes where ``holemask``,
    ``inode_count`` and ``freecount`` are; as it is at most 64, ``holemask`` reads as 0 there too.
    """

    startino: Be32
    holemask: Be16
    inode_count: U8
    freecount: U8
    free: Be64

    def is_allocated(self, index: int) -> bool:
        """Return whether inode ``index`` of the chunk exists and is in use."""
        return not (self.is_hole(index) or self.free >> index & 1)

    def is_hole(self, index: int) -> bool:
        """Return whether the chunk lacks inode ``index``."""
        return bool(self.holemask >> (index // XFS_INODES_PER_HOLEMASK_BIT) & 1)


class BmbtRec(NamedTuple):
    """``struct xfs_bmbt_rec``: one extent of a file, packed into 128 bits."""

    l0: Be64
    l1: Be64

    @property
    def startoff(self) -> int:
        """Its offset in the file, in blocks."""
        return self.l0 >> _BMBT_STARTOFF_SHIFT & _BMBT_STARTOFF_MASK

    @property
    def startblock(self) -> int:
        """Its first block, as a filesystem block number."""
        return (self.l0 & _BMBT_STARTBLOCK_HIGH) << 43 | self.l1 >> _BMBT_BLOCKCOUNT_BITS

    @property
    def blockcount(self) -> int:
        """Its length in blocks."""
        return self.l1 & ((1 << _BMBT_BLOCKCOUNT_BITS) - 1)


SHORT_HEADER: Final = Layout(ShortHeader)
LONG_HEADER: Final = Layout(LongHeader)
RMAP_REC: Final = Layout(RmapRec)
RMAP_KEY: Final = Layout(RmapKey)
ALLOC_REC: Final = Layout(AllocRec)
REFCOUNT_REC: Final = Layout(RefcountRec)
INOBT_REC: Final = Layout(InobtRec)
BMBT_REC: Final = Layout(BmbtRec)
