"""The headers of an allocation group: AGF, AGI and AGFL, one sector each (xfs_format.h)."""

from typing import Annotated, Final, NamedTuple

from whoseblock.fs.layout import Be32, Be64, Bytes4, Layout, Uuid

__all__ = ["AGF", "AGFL", "AGI", "Agf", "Agi"]

XFS_AGF_MAGIC: Final = 0x58414746  # "XAGF"
XFS_AGI_MAGIC: Final = 0x58414749  # "XAGI"
XFS_AGFL_MAGIC: Final = 0x5841464C  # "XAFL"
XFS_AGF_CRC_OFF: Final = 216
XFS_AGI_CRC_OFF: Final = 312
XFS_AGFL_CRC_OFF: Final = 32
XFS_AGI_UNLINKED_BUCKETS: Final = 64
NULLAGINO: Final = 0xFFFFFFFF

#: The superblock and the three headers, in the order of their sectors.
AG_HEADERS: Final = ("superblock", "AGF", "AGI", "AGFL")


class Agf(NamedTuple):
    """``struct xfs_agf``: the roots of the free-space, rmap and refcount btrees."""

    magicnum: Be32
    versionnum: Be32
    seqno: Be32
    length: Be32
    bno_root: Be32
    cnt_root: Be32
    rmap_root: Be32
    bno_level: Be32
    cnt_level: Be32
    rmap_level: Be32
    flfirst: Be32
    fllast: Be32
    flcount: Be32
    freeblks: Be32
    longest: Be32
    btreeblks: Be32
    uuid: Uuid
    rmap_blocks: Be32
    refcount_blocks: Be32
    refcount_root: Be32
    refcount_level: Be32
    spare64: Annotated[bytes, "112s"]
    lsn: Be64
    crc: Bytes4
    spare2: Be32


class Agi(NamedTuple):
    """``struct xfs_agi``: the roots of the inode btrees, and the heads of the unlinked lists."""

    magicnum: Be32
    versionnum: Be32
    seqno: Be32
    length: Be32
    icount: Be32
    root: Be32
    level: Be32
    freecount: Be32
    newino: Be32
    dirino: Be32
    unlinked: Annotated[bytes, "256s"]
    uuid: Uuid
    crc: Bytes4
    pad32: Be32
    lsn: Be64
    free_root: Be32
    free_level: Be32
    iblocks: Be32
    fblocks: Be32

    def unlinked_heads(self) -> list[int]:
        """Return the first inode of each unlinked list, as its number within the group."""
        return [
            int.from_bytes(self.unlinked[at : at + 4], "big")
            for at in range(0, XFS_AGI_UNLINKED_BUCKETS * 4, 4)
        ]


class AgflHeader(NamedTuple):
    """``struct xfs_agfl``, up to the block numbers."""

    magicnum: Be32
    seqno: Be32
    uuid: Uuid
    lsn: Be64
    crc: Bytes4


AGF: Final = Layout(Agf)
AGI: Final = Layout(Agi)
AGFL: Final = Layout(AgflHeader)
