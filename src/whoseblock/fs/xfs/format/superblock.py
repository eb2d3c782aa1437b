"""The superblock (``struct xfs_dsb`` in xfs_format.h), and what follows from its numbers."""

from typing import Final, NamedTuple

from whoseblock.errors import CorruptError
from whoseblock.fs.layout import U8, Be16, Be32, Be64, Bytes4, Bytes7, Bytes12, Layout, Uuid
from whoseblock.fs.xfs.format.checksum import crc_matches

__all__ = ["SUPERBLOCK", "Superblock", "parse_superblock"]

XFS_SB_MAGIC: Final = 0x58465342  # "XFSB"
XFS_SB_CRC_OFF: Final = 224
NULLFSINO: Final = (1 << 64) - 1
XFS_SB_VERSION_NUMBITS: Final = 0x000F
XFS_SB_VERSION_4: Final = 4
XFS_SB_VERSION_5: Final = 5
XFS_SB_VERSION_ATTRBIT: Final = 0x0010
XFS_SB_VERSION_NLINKBIT: Final = 0x0020
XFS_SB_VERSION_SHAREDBIT: Final = 0x0200
XFS_SB_VERSION_EXTFLGBIT: Final = 0x1000
XFS_SB_VERSION_DIRV2BIT: Final = 0x2000
XFS_SB_VERSION_BORGBIT: Final = 0x4000
XFS_SB_VERSION_MOREBITSBIT: Final = 0x8000
XFS_SB_VERSION2_LAZYSBCOUNTBIT: Final = 0x02
XFS_SB_VERSION2_ATTR2BIT: Final = 0x08
XFS_SB_VERSION2_FTYPE: Final = 0x200
#: LAZYSBCOUNT, ATTR2, PROJID32 and FTYPE.
XFS_SB_VERSION2_OKBITS: Final = 0x28A

XFS_SB_FEAT_RO_COMPAT_FINOBT: Final = 1 << 0
XFS_SB_FEAT_RO_COMPAT_RMAPBT: Final = 1 << 1
XFS_SB_FEAT_RO_COMPAT_REFLINK: Final = 1 << 2

XFS_SB_FEAT_INCOMPAT_FTYPE: Final = 1 << 0
XFS_SB_FEAT_INCOMPAT_META_UUID: Final = 1 << 2
XFS_SB_FEAT_INCOMPAT_NEEDSREPAIR: Final = 1 << 4
XFS_SB_FEAT_INCOMPAT_PARENT: Final = 1 << 7
#: FTYPE, SPINODES, META_UUID, BIGTIME, NEEDSREPAIR, NREXT64, EXCHRANGE, PARENT, METADIR, ZONED,
#: ZONE_GAPS: every one that this code was written with in mind.
XFS_SB_FEAT_INCOMPAT_ALL: Final = (1 << 11) - 1

_MIN_BLOCKLOG, _MAX_BLOCKLOG = 9, 16
_MIN_SECTLOG, _MAX_SECTLOG = 9, 15
_MIN_INODELOG, _MAX_INODELOG = 8, 11
_MAX_DIRBLOCKLOG = 16
_MIN_AGBLOCKS, _MAX_AGBLKLOG = 64, 31


class Superblock(NamedTuple):
    """``struct xfs_dsb``; blocks are filesystem blocks, logarithms to base 2."""

    magicnum: Be32
    blocksize: Be32
    dblocks: Be64
    rblocks: Be64
    rextents: Be64
    uuid: Uuid
    logstart: Be64
    rootino: Be64
    rbmino: Be64
    rsumino: Be64
    rextsize: Be32
    agblocks: Be32
    agcount: Be32
    rbmblocks: Be32
    logblocks: Be32
    versionnum: Be16
    sectsize: Be16
    inodesize: Be16
    inopblock: Be16
    fname: Bytes12
    blocklog: U8
    sectlog: U8
    inodelog: U8
    inopblog: U8
    agblklog: U8
    rextslog: U8
    inprogress: U8
    imax_pct: U8
    icount: Be64
    ifree: Be64
    fdblocks: Be64
    frextents: Be64
    uquotino: Be64
    gquotino: Be64
    qflags: Be16
    flags: U8
    shared_vn: U8
    inoalignmt: Be32
    unit: Be32
    width: Be32
    dirblklog: U8
    logsectlog: U8
    logsectsize: Be16
    logsunit: Be32
    features2: Be32
    bad_features2: Be32
    features_compat: Be32
    features_ro_compat: Be32
    features_incompat: Be32
    features_log_incompat: Be32
    crc: Bytes4
    spino_align: Be32
    pquotino: Be64
    lsn: Be64
    meta_uuid: Uuid
    metadirino: Be64
    rgcount: Be32
    rgextents: Be32
    rgblklog: U8
    pad: Bytes7
    rtstart: Be64
    rtreserved: Be64

    @property
    def version(self) -> int:
        """The version of the format: 4 or 5."""
        return self.versionnum & XFS_SB_VERSION_NUMBITS

    @property
    def has_crc(self) -> bool:
        """Whether metadata has checksums, and says whose it is (version 5)."""
        return self.version == XFS_SB_VERSION_5

    @property
    def more_features(self) -> int:
        """The second feature bits of version 4; old kernels wrote them to another place."""
        if not self.versionnum & XFS_SB_VERSION_MOREBITSBIT:
            return 0
        return self.features2 | self.bad_features2

    @property
    def has_ftype(self) -> bool:
        """Whether directories have the types of files."""
        if self.has_crc:
            return bool(self.features_incompat & XFS_SB_FEAT_INCOMPAT_FTYPE)
        return bool(self.more_features & XFS_SB_VERSION2_FTYPE)

    @property
    def counts_lazily(self) -> bool:
        """Whether the kernel sums up the counters of groups when it unmounts."""
        return self.has_crc or bool(self.more_features & XFS_SB_VERSION2_LAZYSBCOUNTBIT)

    @property
    def unsupported(self) -> str:
        """The feature of version 4 or older that is not read, "" if all are."""
        bits, more = self.versionnum, self.more_features
        if self.has_crc:
            return ""
        if self.version != XFS_SB_VERSION_4:
            return f"version {self.version}"
        refused = {
            "directories of version 1": not bits & XFS_SB_VERSION_DIRV2BIT,
            "extents without a state": not bits & XFS_SB_VERSION_EXTFLGBIT,
            "inodes of version 1": not bits & XFS_SB_VERSION_NLINKBIT,
            "a shared superblock": bool(bits & XFS_SB_VERSION_SHAREDBIT),
            "attributes of version 1": bool(bits & XFS_SB_VERSION_ATTRBIT)
            and not more & XFS_SB_VERSION2_ATTR2BIT,
            f"features2 {more:#x}": bool(more & ~XFS_SB_VERSION2_OKBITS),
        }
        return next((name for name, true in refused.items() if true), "")

    @property
    def ignores_case(self) -> bool:
        """Whether directories hash names as if ASCII letters were small (``ascii-ci=1``)."""
        return bool(self.versionnum & XFS_SB_VERSION_BORGBIT)

    @property
    def has_rmapbt(self) -> bool:
        """Whether the filesystem keeps a reverse mapping."""
        return self.version == XFS_SB_VERSION_5 and bool(
            self.features_ro_compat & XFS_SB_FEAT_RO_COMPAT_RMAPBT
        )

    @property
    def has_finobt(self) -> bool:
        """Whether there is a btree of the chunks that have free inodes."""
        return self.version == XFS_SB_VERSION_5 and bool(
            self.features_ro_compat & XFS_SB_FEAT_RO_COMPAT_FINOBT
        )

    @property
    def has_reflink(self) -> bool:
        """Whether files may share blocks."""
        return self.has_crc and bool(self.features_ro_compat & XFS_SB_FEAT_RO_COMPAT_REFLINK)

    @property
    def has_parent(self) -> bool:
        """Whether every file knows its names (parent pointers)."""
        return self.has_crc and bool(self.features_incompat & XFS_SB_FEAT_INCOMPAT_PARENT)

    @property
    def needs_repair(self) -> bool:
        """Whether a repair or an upgrade was begun and not finished."""
        return self.has_crc and bool(self.features_incompat & XFS_SB_FEAT_INCOMPAT_NEEDSREPAIR)

    @property
    def unknown_incompat(self) -> int:
        """The feature bits that forbid reading to those who do not know them."""
        return self.features_incompat & ~XFS_SB_FEAT_INCOMPAT_ALL

    @property
    def metadata_uuid(self) -> bytes:
        """The UUID that metadata blocks carry, which changing the visible one leaves alone."""
        if self.has_crc and self.features_incompat & XFS_SB_FEAT_INCOMPAT_META_UUID:
            return self.meta_uuid
        return self.uuid


SUPERBLOCK: Final = Layout(Superblock)


def _geometry_fault(sb: Superblock) -> str:
    """Return the name of an invalid number (``xfs_validate_sb_common``); "" if there is none."""
    checks = {
        "block size": _MIN_BLOCKLOG <= sb.blocklog <= _MAX_BLOCKLOG
        and sb.blocksize == 1 << sb.blocklog,
        "sector size": _MIN_SECTLOG <= sb.sectlog <= _MAX_SECTLOG
        and sb.sectsize == 1 << sb.sectlog
        and sb.sectlog <= sb.blocklog,
        "inode size": _MIN_INODELOG <= sb.inodelog <= _MAX_INODELOG
        and sb.inodesize == 1 << sb.inodelog
        and sb.inopblog == sb.blocklog - sb.inodelog
        and sb.inopblock == 1 << sb.inopblog,
        "allocation group size": sb.agblocks >= _MIN_AGBLOCKS
        and sb.agblklog <= _MAX_AGBLKLOG
        and sb.agblklog == (sb.agblocks - 1).bit_length(),
        "number of blocks": sb.agcount > 0
        and (sb.agcount - 1) * sb.agblocks < sb.dblocks <= sb.agcount * sb.agblocks,
        "directory block size": sb.blocklog + sb.dirblklog <= _MAX_DIRBLOCKLOG,
    }
    return next((name for name, good in checks.items() if not good), "")


def parse_superblock(sector: bytes, start: int) -> Superblock:
    """Decode and verify the superblock that begins ``sector``, read from byte ``start``.

    Raises `CorruptError`.  A superblock of version 4 has no checksum: it is believed if its numbers
    agree.
    """
    if len(sector) < SUPERBLOCK.size:
        raise CorruptError("superblock", start, "the device ends within it")
    sb = SUPERBLOCK.unpack_from(sector)
    if sb.magicnum != XFS_SB_MAGIC:
        raise CorruptError("superblock", start, "no XFS magic number")
    if fault := _geometry_fault(sb):
        raise CorruptError("superblock", start, f"impossible {fault}")
    if sb.version == XFS_SB_VERSION_5 and not crc_matches(sector[: sb.sectsize], XFS_SB_CRC_OFF):
        raise CorruptError("superblock", start, "checksum mismatch")
    return sb
