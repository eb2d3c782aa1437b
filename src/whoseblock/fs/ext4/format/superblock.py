"""The superblock (``struct ext4_super_block``)."""

from struct import Struct
from typing import Final, NamedTuple
from uuid import UUID

from whoseblock.fs.ext4.format.checksum import crc32c

__all__ = [
    "EXT4_SUPER_MAGIC",
    "INCOMPAT_UNSUPPORTED",
    "RO_COMPAT_UNSUPPORTED",
    "SUPERBLOCK_OFFSET",
    "SUPERBLOCK_SIZE",
    "Superblock",
    "geometry_fault",
    "parse_superblock",
]

EXT4_SUPER_MAGIC: Final = 0xEF53
SUPERBLOCK_OFFSET: Final = 1024
SUPERBLOCK_SIZE: Final = 1024

# EXT4_FEATURE_COMPAT_*
COMPAT_HAS_JOURNAL: Final = 0x4
COMPAT_RESIZE_INODE: Final = 0x10
COMPAT_DIR_INDEX: Final = 0x20
COMPAT_SPARSE_SUPER2: Final = 0x200
COMPAT_ORPHAN_FILE: Final = 0x1000
# EXT4_FEATURE_INCOMPAT_*
INCOMPAT_FILETYPE: Final = 0x2
INCOMPAT_RECOVER: Final = 0x4
INCOMPAT_JOURNAL_DEV: Final = 0x8
INCOMPAT_META_BG: Final = 0x10
INCOMPAT_EXTENTS: Final = 0x40
INCOMPAT_64BIT: Final = 0x80
INCOMPAT_MMP: Final = 0x100
INCOMPAT_FLEX_BG: Final = 0x200
INCOMPAT_EA_INODE: Final = 0x400
INCOMPAT_CSUM_SEED: Final = 0x2000
INCOMPAT_LARGEDIR: Final = 0x4000
INCOMPAT_INLINE_DATA: Final = 0x8000
INCOMPAT_ENCRYPT: Final = 0x10000
INCOMPAT_CASEFOLD: Final = 0x20000
_INCOMPAT_KNOWN: Final = (
    INCOMPAT_FILETYPE
    | INCOMPAT_RECOVER
    | INCOMPAT_META_BG
    | INCOMPAT_EXTENTS
    | INCOMPAT_64BIT
    | INCOMPAT_MMP
    | INCOMPAT_FLEX_BG
    | INCOMPAT_EA_INODE
    | INCOMPAT_CSUM_SEED
    | INCOMPAT_LARGEDIR
    | INCOMPAT_INLINE_DATA
    | INCOMPAT_ENCRYPT
    | INCOMPAT_CASEFOLD
)
_INCOMPAT_NAMES: Final = {
    0x1: "compression",
    INCOMPAT_JOURNAL_DEV: "journal_dev",
    0x1000: "dirdata",
}
# EXT4_FEATURE_RO_COMPAT_*
RO_COMPAT_SPARSE_SUPER: Final = 0x1
RO_COMPAT_GDT_CSUM: Final = 0x10
RO_COMPAT_QUOTA: Final = 0x100
RO_COMPAT_BIGALLOC: Final = 0x200
RO_COMPAT_METADATA_CSUM: Final = 0x400
RO_COMPAT_SHARED_BLOCKS: Final = 0x4000
#: sparse_super, large_file, btree_dir, huge_file, uninit_bg, dir_nlink, extra_isize, quota,
#: bigalloc, metadata_csum, read-only, project, shared_blocks, verity, orphan_present.
_RO_COMPAT_KNOWN: Final = 0x1F77F
_RO_COMPAT_NAMES: Final = {0x80: "has_snapshot", 0x800: "replica"}
INCOMPAT_UNSUPPORTED: Final = 0xFFFFFFFF & ~_INCOMPAT_KNOWN
RO_COMPAT_UNSUPPORTED: Final = 0xFFFFFFFF & ~_RO_COMPAT_KNOWN

EXT4_VALID_FS: Final = 1
EXT4_ERROR_FS: Final = 2
_GOOD_OLD_INODE_SIZE: Final = 128
_GOOD_OLD_FIRST_INO: Final = 11
_MAX_LOG_BLOCK: Final = 6
_MAX_LOG_CLUSTER: Final = 20
_CHECKSUM_OFFSET: Final = 0x3FC
_MIN_DESC: Final = 32
_MIN_DESC_64: Final = 64

#: Field: its offset, and the code of `struct`.
_FIELDS: Final = {
    "inodes_count": (0x00, "I"),
    "blocks_lo": (0x04, "I"),
    "free_blocks_lo": (0x0C, "I"),
    "free_inodes": (0x10, "I"),
    "first_data_block": (0x14, "I"),
    "log_block_size": (0x18, "I"),
    "log_cluster_size": (0x1C, "I"),
    "blocks_per_group": (0x20, "I"),
    "clusters_per_group": (0x24, "I"),
    "inodes_per_group": (0x28, "I"),
    "magic": (0x38, "H"),
    "state": (0x3A, "H"),
    "rev_level": (0x4C, "I"),
    "raw_first_ino": (0x54, "I"),
    "raw_inode_size": (0x58, "H"),
    "block_group_nr": (0x5A, "H"),
    "raw_compat": (0x5C, "I"),
    "raw_incompat": (0x60, "I"),
    "raw_ro_compat": (0x64, "I"),
    "uuid": (0x68, "16s"),
    "reserved_gdt_blocks": (0xCE, "H"),
    "journal_inum": (0xE0, "I"),
    "last_orphan": (0xE8, "I"),
    "hash_seed": (0xEC, "16s"),
    "def_hash_version": (0xFC, "B"),
    "raw_desc_size": (0xFE, "H"),
    "first_meta_bg": (0x104, "I"),
    "blocks_hi": (0x150, "I"),
    "free_blocks_hi": (0x158, "I"),
    "flags": (0x160, "I"),
    "mmp_block": (0x168, "Q"),
    "log_groups_per_flex": (0x174, "B"),
    "usr_quota_inum": (0x240, "I"),
    "grp_quota_inum": (0x244, "I"),
    "backup_bgs": (0x24C, "8s"),
    "prj_quota_inum": (0x26C, "I"),
    "checksum_seed": (0x270, "I"),
    "orphan_file_inum": (0x280, "I"),
    "checksum": (_CHECKSUM_OFFSET, "I"),
}


def _struct_of(fields: dict[str, tuple[int, str]]) -> Struct:
    code, at = "<", 0
    for offset, width in fields.values():
        code += f"{offset - at}x{width}"
        at = offset + Struct(f"<{width}").size
    return Struct(code)


_STRUCT: Final = _struct_of(_FIELDS)


class Superblock(NamedTuple):
    """``struct ext4_super_block``, the fields that are read."""

    inodes_count: int
    blocks_lo: int
    free_blocks_lo: int
    free_inodes: int
    first_data_block: int
    log_block_size: int
    log_cluster_size: int
    blocks_per_group: int
    clusters_per_group: int
    inodes_per_group: int
    magic: int
    state: int
    rev_level: int
    raw_first_ino: int
    raw_inode_size: int
    block_group_nr: int
    raw_compat: int
    raw_incompat: int
    raw_ro_compat: int
    uuid: bytes
    reserved_gdt_blocks: int
    journal_inum: int
    last_orphan: int
    hash_seed: bytes
    def_hash_version: int
    raw_desc_size: int
    first_meta_bg: int
    blocks_hi: int
    free_blocks_hi: int
    flags: int
    mmp_block: int
    log_groups_per_flex: int
    usr_quota_inum: int
    grp_quota_inum: int
    backup_bgs: bytes
    prj_quota_inum: int
    checksum_seed: int
    orphan_file_inum: int
    checksum: int

    @property
    def compat(self) -> int:
        """The compatible features; revision 0 has none."""
        return self.raw_compat if self.rev_level else 0

    @property
    def incompat(self) -> int:
        """The incompatible features."""
        return self.raw_incompat if self.rev_level else 0

    @property
    def ro_compat(self) -> int:
        """The features that a writer must know."""
        return self.raw_ro_compat if self.rev_level else 0

    @property
    def block_size(self) -> int:
        """Bytes of a block."""
        return 1024 << self.log_block_size

    @property
    def cluster_ratio(self) -> int:
        """Blocks of a cluster, the unit of allocation; 1 without bigalloc."""
        if not self.ro_compat & RO_COMPAT_BIGALLOC:
            return 1
        return 1 << (self.log_cluster_size - self.log_block_size)

    @property
    def blocks_count(self) -> int:
        """The number of blocks, those before the first data block included."""
        return self.blocks_lo | (self.blocks_hi << 32 if self.incompat & INCOMPAT_64BIT else 0)

    @property
    def free_blocks(self) -> int:
        """The number of free blocks, as of the last time the filesystem was unmounted."""
        wide = self.incompat & INCOMPAT_64BIT
        return self.free_blocks_lo | (self.free_blocks_hi << 32 if wide else 0)

    @property
    def groups_count(self) -> int:
        """The number of block groups."""
        return -(-(self.blocks_count - self.first_data_block) // self.blocks_per_group)

    @property
    def inode_size(self) -> int:
        """Bytes of an inode."""
        return self.raw_inode_size if self.rev_level else _GOOD_OLD_INODE_SIZE

    @property
    def first_ino(self) -> int:
        """The first inode that is not reserved."""
        return self.raw_first_ino if self.rev_level else _GOOD_OLD_FIRST_INO

    @property
    def desc_size(self) -> int:
        """Bytes of a group descriptor."""
        return self.raw_desc_size if self.incompat & INCOMPAT_64BIT else _MIN_DESC

    @property
    def has_checksums(self) -> bool:
        """Whether all metadata has checksums (metadata_csum)."""
        return bool(self.ro_compat & RO_COMPAT_METADATA_CSUM)

    @property
    def has_uninit(self) -> bool:
        """Whether the flags of descriptors count (uninit_bg or metadata_csum)."""
        return bool(self.ro_compat & (RO_COMPAT_METADATA_CSUM | RO_COMPAT_GDT_CSUM))

    @property
    def shares_data(self) -> bool:
        """Whether a block may belong to the data of several files."""
        return bool(self.ro_compat & RO_COMPAT_SHARED_BLOCKS)

    @property
    def seed(self) -> int:
        """The seed of the checksums of metadata."""
        if self.incompat & INCOMPAT_CSUM_SEED:
            return self.checksum_seed
        return crc32c(0xFFFFFFFF, self.uuid)

    @property
    def name(self) -> str:
        """The kind as in mount(8): ext2, ext3 or ext4, by its features."""
        beyond = INCOMPAT_FILETYPE | INCOMPAT_RECOVER | INCOMPAT_META_BG
        if self.incompat & ~beyond or self.ro_compat & ~0x7:
            return "ext4"
        return "ext3" if self.compat & COMPAT_HAS_JOURNAL else "ext2"

    @property
    def uuid_text(self) -> str:
        """The UUID as text."""
        return str(UUID(bytes=self.uuid))

    @property
    def unsupported(self) -> list[str]:
        """The names of incompatible features that cannot be read."""
        return _names(self.incompat & INCOMPAT_UNSUPPORTED, _INCOMPAT_NAMES, "I")

    @property
    def doubtful(self) -> list[str]:
        """The names of features that may give free space another meaning."""
        return _names(self.ro_compat & RO_COMPAT_UNSUPPORTED, _RO_COMPAT_NAMES, "R")

    def has_super(self, group: int) -> bool:
        """Return whether a group begins with a superblock (``ext4_bg_has_super``)."""
        if group == 0:
            return True
        if self.compat & COMPAT_SPARSE_SUPER2:
            named = (int.from_bytes(self.backup_bgs[at : at + 4], "little") for at in (0, 4))
            return group in named
        if group == 1 or not self.ro_compat & RO_COMPAT_SPARSE_SUPER:
            return True
        return group & 1 == 1 and any(_is_power(group, base) for base in (3, 5, 7))


def _is_power(number: int, base: int) -> bool:
    while number % base == 0:
        number //= base
    return number == 1


def _names(bits: int, names: dict[int, str], letter: str) -> list[str]:
    return [names.get(1 << bit, f"FEATURE_{letter}{bit}") for bit in range(32) if bits >> bit & 1]


def parse_superblock(raw: bytes) -> Superblock:
    """Decode a superblock of `SUPERBLOCK_SIZE` bytes, whatever it holds."""
    return Superblock._make(_STRUCT.unpack_from(raw))


def checksum_matches(sb: Superblock, raw: bytes) -> bool:
    """Return whether the checksum of a superblock is right, or it has none."""
    return not sb.has_checksums or crc32c(0xFFFFFFFF, raw[:_CHECKSUM_OFFSET]) == sb.checksum


def geometry_fault(sb: Superblock) -> str:
    """Return why the counts of a superblock cannot be true, "" if they can."""
    if sb.log_block_size > _MAX_LOG_BLOCK:
        return f"blocks of 2^{10 + sb.log_block_size} bytes"
    bits = 8 * sb.block_size
    bigalloc = bool(sb.ro_compat & RO_COMPAT_BIGALLOC)
    if bigalloc and not sb.log_block_size <= sb.log_cluster_size <= _MAX_LOG_CLUSTER:
        return f"clusters of 2^{10 + sb.log_cluster_size} bytes"
    size = sb.inode_size
    faults = {
        "inode size": not _GOOD_OLD_INODE_SIZE <= size <= sb.block_size or size & (size - 1) != 0,
        "first inode": not _GOOD_OLD_FIRST_INO <= sb.first_ino <= sb.inodes_count,
        "descriptor size": bool(sb.incompat & INCOMPAT_64BIT)
        and (
            not _MIN_DESC_64 <= sb.desc_size <= sb.block_size
            or sb.desc_size & (sb.desc_size - 1) != 0
        ),
        "blocks per group": sb.blocks_per_group == 0
        or sb.blocks_per_group % 8 != 0
        or sb.blocks_per_group > bits * sb.cluster_ratio
        or sb.blocks_per_group != sb.clusters_per_group * sb.cluster_ratio,
        "inodes per group": not 0 < sb.inodes_per_group <= bits,
        "first data block": sb.first_data_block
        != (1 if sb.log_block_size == 0 and not bigalloc else 0),
        "number of blocks": sb.blocks_count <= sb.first_data_block,
    }
    for what, wrong in faults.items():
        if wrong:
            return f"wrong {what}"
    if sb.inodes_count != sb.groups_count * sb.inodes_per_group:
        return "wrong number of inodes"
    return ""
