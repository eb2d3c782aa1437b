"""The fields beside short magic numbers: whether a header is one of its format.

Each function takes the offset at which the magic number was found.  The layouts are those of the
documents and header files that `whoseblock.signatures.table` names for each format.
"""

from functools import partial
from struct import unpack_from
from typing import Final

from whoseblock.signatures.base import Read

__all__ = [
    "is_apple_map",
    "is_bsd_label",
    "is_btrfs",
    "is_bzip2",
    "is_exfat",
    "is_ext2",
    "is_ext3",
    "is_ext4",
    "is_ext_journal",
    "is_fat",
    "is_gfs2",
    "is_hfs",
    "is_luks",
    "is_nilfs",
    "is_ntfs",
    "is_qcow",
    "is_qcow2",
    "is_sun_label",
    "is_udf",
    "is_zfs",
]

_SECTOR: Final = 512


def _read_whole(read: Read, offset: int, length: int) -> bytes:
    """Return a range, b"" if the device does not have all of it."""
    data = read(offset, length)
    return data if len(data) == length else b""


# Documentation/filesystems/ext4/super.rst; offsets from the magic number.
_EXT_MAGIC: Final = 0x38
_EXT_HEAD: Final = 0x68
_HAS_JOURNAL: Final = 0x4
_JOURNAL_DEVICE: Final = 0x8
_EXT_MAX_LOG_BLOCK: Final = 6
#: The incompatible and read-only features that ext2 and ext3 have; ext4 has any others.
_EXT3_INCOMPAT: Final = 0x2 | 0x4 | 0x10
_EXT2_INCOMPAT: Final = 0x2 | 0x10
_EXT3_RO_COMPAT: Final = 0x1 | 0x2 | 0x4


def _ext_features(read: Read, magic: int) -> tuple[int, int, int] | None:
    """Return the three sets of features of a superblock; None if it is none."""
    head = _read_whole(read, magic - _EXT_MAGIC, _EXT_HEAD)
    if not head:
        return None
    inodes, blocks = unpack_from("<II", head)
    (log_block,) = unpack_from("<I", head, 0x18)
    (revision,) = unpack_from("<I", head, 0x4C)
    compat, incompat, ro_compat = unpack_from("<III", head, 0x5C)
    if not blocks or log_block > _EXT_MAX_LOG_BLOCK or revision > 1:
        return None
    if not inodes and not incompat & _JOURNAL_DEVICE:
        return None
    # Revision 0 has no features.
    return (compat, incompat, ro_compat) if revision else (0, 0, 0)


def _ext_version(read: Read, magic: int) -> int:
    """Return 2, 3 or 4, the number of the first version that has all features; 0 without one."""
    features = _ext_features(read, magic)
    if features is None or features[1] & _JOURNAL_DEVICE:
        return 0
    compat, incompat, ro_compat = features
    if incompat & ~_EXT3_INCOMPAT or ro_compat & ~_EXT3_RO_COMPAT:
        return 4
    return 3 if compat & _HAS_JOURNAL or incompat & ~_EXT2_INCOMPAT else 2


def _is_ext_version(version: int, read: Read, magic: int) -> bool:
    return _ext_version(read, magic) == version


is_ext2 = partial(_is_ext_version, 2)
is_ext3 = partial(_is_ext_version, 3)
is_ext4 = partial(_is_ext_version, 4)


def is_ext_journal(read: Read, magic: int) -> bool:
    """Return whether it is the external journal of an ext3 or ext4."""
    features = _ext_features(read, magic)
    return features is not None and bool(features[1] & _JOURNAL_DEVICE)


def is_btrfs(read: Read, magic: int) -> bool:
    """Return whether the superblock has its own address, and a valid sector and node size."""
    head = _read_whole(read, magic - 0x40, 0xA0)
    if not head:
        return False
    (address,) = unpack_from("<Q", head, 0x30)
    sector, node = unpack_from("<II", head, 0x90)
    return address == magic - 0x40 and _is_power(sector, 512, 65536) and _is_power(node, 512, 65536)


def _is_power(number: int, least: int, most: int) -> bool:
    return least <= number <= most and not number & (number - 1)


_FAT12_CLUSTERS: Final = 4085
_FAT16_CLUSTERS: Final = 65525
_MEDIA: Final = (0xF0, *range(0xF8, 0x100))
#: Headers at the same place that are no FAT.
_OTHER_BOOT_SECTORS: Final = (b"NTFS    ", b"EXFAT   ", b"-FVE-FS-")


def _fat_bits(read: Read) -> int:
    """Return 12, 16 or 32 by the number of clusters; 0 if the boot sector is of no FAT."""
    head = _read_whole(read, 0, _SECTOR)
    if head[:1] not in (b"\xeb", b"\xe9") or head[3:11] in _OTHER_BOOT_SECTORS:
        return 0
    sector, per_cluster, reserved, fats, entries, small, media, fat16 = unpack_from(
        "<HBHBHHBH", head, 11
    )
    (large,) = unpack_from("<I", head, 32)
    (fat32,) = unpack_from("<I", head, 36)
    if not (
        _is_power(sector, 512, 4096)
        and _is_power(per_cluster, 1, 128)
        and reserved
        and fats in (1, 2)
        and media in _MEDIA
        and (fat16 or fat32)
    ):
        return 0
    root = -(-entries * 32 // sector)
    data = (small or large) - reserved - fats * (fat16 or fat32) - root
    if data < per_cluster:
        return 0
    if not fat16:
        return 32
    clusters = data // per_cluster
    return 12 if clusters < _FAT12_CLUSTERS else 16 if clusters < _FAT16_CLUSTERS else 0


def is_fat(bits: int, read: Read, _magic: int) -> bool:
    """Return whether the boot sector is of a FAT with entries of so many bits."""
    return _fat_bits(read) == bits


def is_ntfs(read: Read, _magic: int) -> bool:
    """Return whether sectors, clusters and the place of the MFT are valid."""
    head = _read_whole(read, 0, _SECTOR)
    if not head:
        return False
    sector, per_cluster = unpack_from("<HB", head, 11)
    sectors, table = unpack_from("<QQ", head, 40)
    return _is_power(sector, 256, 4096) and per_cluster > 0 and sectors > 0 and table > 0


#: The largest cluster, in bytes.
_EXFAT_CLUSTER: Final = 32 << 20


def is_exfat(read: Read, _magic: int) -> bool:
    """Return whether the bytes that FAT uses are zeros, and the clusters are valid."""
    head = _read_whole(read, 0, _SECTOR)
    if not head or any(head[11:64]):
        return False
    sector_bits, cluster_bits, fats = unpack_from("<BBB", head, 108)
    sector, cluster = 1 << sector_bits, 1 << cluster_bits + sector_bits
    return _is_power(sector, _SECTOR, 4096) and cluster <= _EXFAT_CLUSTER and fats in (1, 2)


def is_hfs(read: Read, magic: int) -> bool:
    """Return whether an allocation block is a multiple of a sector."""
    size = int.from_bytes(read(magic + 0x14, 4), "big")
    return size > 0 and size % _SECTOR == 0


_NILFS_REVISION: Final = 2
_NILFS_LENGTHS: Final = range(0x80, 1025)
_NILFS_MAX_LOG_BLOCK: Final = 6


def is_nilfs(read: Read, magic: int) -> bool:
    """Return whether revision, block size and length of the superblock are valid."""
    head = _read_whole(read, magic - 6, 0x18)
    if not head:
        return False
    (revision,) = unpack_from("<I", head, 0)
    (length,) = unpack_from("<H", head, 8)
    (log_block,) = unpack_from("<I", head, 0x14)
    return (
        revision == _NILFS_REVISION
        and length in _NILFS_LENGTHS
        and log_block <= _NILFS_MAX_LOG_BLOCK
    )


_GFS2_FORMATS: Final = range(1801, 1900)


def is_gfs2(read: Read, magic: int) -> bool:
    """Return whether the number of the format is in the range of GFS2."""
    return int.from_bytes(read(magic + 24, 4), "big") in _GFS2_FORMATS


def is_udf(read: Read, magic: int) -> bool:
    """Return whether one of the next descriptors names a volume of UDF."""
    sectors = [read(magic + number * 2048, 5) for number in range(1, 16)]
    return any(one in (b"NSR02", b"NSR03") for one in sectors)


def is_zfs(read: Read, magic: int) -> bool:
    """Return whether a list of names and values begins the label, and uberblocks follow."""
    label = magic - 0x4000
    if b"version" not in read(magic, 64) and b"name" not in read(magic, 64):
        return False
    blocks = read(label + (128 << 10), 128 << 10)
    magics = (b"\x0c\xb1\xba\x00", b"\x00\xba\xb1\x0c")
    return any(blocks.startswith(magics, at) for at in range(0, len(blocks), 1024))


def is_luks(version: int, read: Read, magic: int) -> bool:
    """Return whether a header of LUKS has this version."""
    return read(magic + 6, 2) == version.to_bytes(2, "big")


def is_qcow(read: Read, magic: int) -> bool:
    """Return whether it is version 1 of the format."""
    return read(magic + 4, 4) == b"\0\0\0\1"


def is_qcow2(read: Read, magic: int) -> bool:
    """Return whether it is version 2 or 3 of the format."""
    return read(magic + 4, 4) in (b"\0\0\0\2", b"\0\0\0\3")


_BSD_HEAD: Final = 148
_BSD_PARTITIONS: Final = range(1, 23)


def is_bsd_label(read: Read, magic: int) -> bool:
    """Return whether the second magic number and the checksum are right."""
    head = _read_whole(read, magic, _BSD_HEAD)
    if not head or head[132:136] != head[:4]:
        return False
    (partitions,) = unpack_from("<H", head, 138)
    if partitions not in _BSD_PARTITIONS:
        return False
    label = _read_whole(read, magic, _BSD_HEAD + 16 * partitions)
    if not label:
        return False
    total = 0
    for (word,) in (unpack_from("<H", label, at) for at in range(0, len(label), 2)):
        total ^= word
    return not total


def is_sun_label(read: Read, magic: int) -> bool:
    """Return whether the checksum of the first sector is right."""
    total = 0
    for word in unpack_from(">256H", read(magic - 508, 512).ljust(512, b"\xff")):
        total ^= word
    return not total


def is_apple_map(read: Read, magic: int) -> bool:
    """Return whether the map of partitions follows in the next block."""
    size = int.from_bytes(read(magic + 2, 2), "big")
    return _is_power(size, 512, 4096) and read(size, 2) == b"PM"


def is_bzip2(read: Read, magic: int) -> bool:
    """Return whether the size of blocks, and the first block or the end, follow."""
    head = read(magic + 3, 7)
    return b"1" <= head[:1] <= b"9" and head[1:] in (b"1AY&SY", b"\x17\x72\x45\x38\x50\x90")
