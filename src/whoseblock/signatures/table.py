"""The table of signatures.

Offsets and magic numbers are those of the format that ``source`` names.  The names are those of
blkid(8), and the tests compare both; what blkid does not know has a name of this program.
"""

from functools import partial
from typing import Final

from whoseblock.signatures import checks
from whoseblock.signatures.base import Signature

__all__ = ["SIGNATURES"]

_KERNEL: Final = "Linux"
_CONVERT: Final = "convert it: qemu-img convert -O raw IMAGE RAW"
_QEMU: Final = "QEMU, docs/interop and block/"
_PARTITIONS: Final = "its partitions are not followed: name the device of one, or copy one out"
_EXT: Final = f"{_KERNEL}, filesystems/ext4/super.rst"
_DM: Final = f"{_KERNEL}, drivers/md/"


def _unpack(command: str) -> str:
    return f"unpack it: {command} IMAGE > RAW"


def _opened(command: str) -> str:
    return f"open it, and name what it maps: {command}"


_FILESYSTEMS: Final = (
    Signature("xfs", "XFS", "filesystem", ((0, b"XFSB"),), "", f"{_KERNEL}, fs/xfs/", "mkfs.xfs"),
    Signature(
        *("ext2", "ext2", "filesystem", ((0x438, b"\x53\xef"),), "", _EXT, "mke2fs"),
        confirm=checks.is_ext2,
    ),
    Signature(
        *("ext3", "ext3", "filesystem", ((0x438, b"\x53\xef"),), "", _EXT, "mke2fs"),
        confirm=checks.is_ext3,
    ),
    Signature(
        *("ext4", "ext4", "filesystem", ((0x438, b"\x53\xef"),), "", _EXT, "mke2fs"),
        confirm=checks.is_ext4,
    ),
    Signature(
        *("jbd", "an external journal of ext4", "other", ((0x438, b"\x53\xef"),)),
        *("no files are on it: name the device of the filesystem", _EXT, "mke2fs"),
        confirm=checks.is_ext_journal,
    ),
    Signature(
        *("btrfs", "btrfs", "filesystem", ((0x10040, b"_BHRfS_M"),), ""),
        *(f"{_KERNEL}, include/uapi/linux/btrfs_tree.h", "mkfs.btrfs"),
        confirm=checks.is_btrfs,
    ),
    Signature(
        *("f2fs", "F2FS", "filesystem", ((0x400, b"\x10\x20\xf5\xf2"),), ""),
        *(f"{_KERNEL}, include/linux/f2fs_fs.h", "mkfs.f2fs"),
    ),
    Signature(
        *("ntfs", "NTFS", "filesystem", ((3, b"NTFS    "),), "", f"{_KERNEL}, fs/ntfs3/"),
        "mkntfs",
        checks.is_ntfs,
    ),
    Signature(
        *("exfat", "exFAT", "filesystem", ((3, b"EXFAT   "),), ""),
        *("Microsoft, exFAT file system specification", "mkfs.exfat", checks.is_exfat),
    ),
    *(
        Signature(
            *("vfat", f"FAT{bits}", "filesystem", ((0x1FE, b"\x55\xaa"),), ""),
            *("Microsoft, FAT32 File System Specification", "mkfs.vfat"),
            confirm=partial(checks.is_fat, bits),
        )
        for bits in (12, 16, 32)
    ),
    Signature(
        *("zfs_member", "a member of a ZFS pool", "filesystem"),
        ((0x4000, b"\1\0\0\0"), (0x4000, b"\1\1\0\0"), (0x44000, b"\1\1\0\0")),
        *("whoseblock does not read ZFS; zdb -l DEVICE shows its pool", "OpenZFS, vdev_impl.h"),
        confirm=checks.is_zfs,
    ),
    Signature(
        *("bcachefs", "bcachefs", "filesystem"),
        ((0x1018, bytes.fromhex("c68573f666ce90a9d96a60cf803df7ef")),),
        *("", "bcachefs-tools, bcachefs_format.h"),
    ),
    Signature(
        *("reiserfs", "ReiserFS", "filesystem"),
        tuple(
            (at + 0x34, magic)
            for at in (0x10000, 0x2000)
            for magic in (b"ReIsErFs", b"ReIsEr2Fs", b"ReIsEr3Fs")
        ),
        *("", f"{_KERNEL} before 6.13, fs/reiserfs/"),
    ),
    Signature(
        *("reiser4", "Reiser4", "filesystem", ((0x10000, b"ReIsEr4"),), "", "reiser4progs"),
    ),
    Signature("jfs", "JFS", "filesystem", ((0x8000, b"JFS1"),), "", f"{_KERNEL}, fs/jfs/"),
    Signature(
        *("nilfs2", "NILFS2", "filesystem", ((0x406, b"\x34\x34"),), ""),
        f"{_KERNEL}, include/uapi/linux/nilfs2_ondisk.h",
        confirm=checks.is_nilfs,
    ),
    Signature(
        *("hfs", "HFS", "filesystem", ((0x400, b"BD"),), "", f"{_KERNEL}, fs/hfs/"),
        confirm=checks.is_hfs,
    ),
    Signature(
        *("hfsplus", "HFS+", "filesystem", ((0x400, b"H+\0\4"), (0x400, b"HX\0\5")), ""),
        "Apple, Technical Note TN1150",
    ),
    Signature(
        *("apfs", "APFS", "filesystem", ((0x20, b"NXSB"),), ""),
        "Apple, File System Reference",
    ),
    Signature(
        *("ReFS", "ReFS", "filesystem", ((0, b"\0\0\0ReFS\0"),), "", "libfsrefs"),
    ),
    Signature(
        *("ufs", "UFS", "filesystem"),
        tuple(
            (at + 0x55C, magic[::order])
            for at in (0x2000, 0x10000, 0, 0x40000)
            for magic in (b"\x19\x01\x54\x19", b"\0\1\x19\x54")
            for order in (1, -1)
        ),
        *("", f"{_KERNEL}, fs/ufs/ufs_fs.h"),
    ),
    Signature(
        *("gfs2", "GFS2", "filesystem", ((0x10000, b"\1\x16\x19\x70"),), ""),
        f"{_KERNEL}, include/uapi/linux/gfs2_ondisk.h",
        confirm=checks.is_gfs2,
    ),
    Signature(
        *("ocfs2", "OCFS2", "filesystem"),
        tuple((at, b"OCFSV2") for at in (0x400, 0x800, 0x1000, 0x2000)),
        *("", f"{_KERNEL}, fs/ocfs2/ocfs2_fs.h"),
    ),
    Signature(
        *("squashfs", "squashfs", "filesystem", ((0, b"hsqs"), (0, b"sqsh")), ""),
        f"{_KERNEL}, fs/squashfs/",
    ),
    Signature(
        *("erofs", "EROFS", "filesystem", ((0x400, b"\xe2\xe1\xf5\xe0"),), ""),
        f"{_KERNEL}, fs/erofs/erofs_fs.h",
    ),
    Signature(
        *("cramfs", "cramfs", "filesystem"),
        ((0, b"\x45\x3d\xcd\x28"), (0, b"\x28\xcd\x3d\x45")),
        *("", f"{_KERNEL}, include/uapi/linux/cramfs_fs.h"),
    ),
    Signature("romfs", "romfs", "filesystem", ((0, b"-rom1fs-"),), "", f"{_KERNEL}, fs/romfs/"),
    Signature(
        *("ubifs", "UBIFS", "filesystem", ((0, b"\x31\x18\x10\x06"),), ""),
        f"{_KERNEL}, fs/ubifs/ubifs-media.h",
    ),
    Signature("iso9660", "ISO 9660", "filesystem", ((0x8001, b"CD001"),), "", "ECMA-119"),
    Signature(
        *("udf", "UDF", "filesystem", ((0x8001, b"BEA01"),), "", "ECMA-167"),
        confirm=checks.is_udf,
    ),
    Signature(
        *("VMFS", "VMFS", "filesystem", ((0x200000, b"\x5e\xf1\xab\x2f"),), "", "vmfs-tools"),
    ),
    Signature("zonefs", "zonefs", "filesystem", ((0, b"SFOZ"),), "", f"{_KERNEL}, fs/zonefs/"),
)

_LUKS: Final = ((0, b"LUKS\xba\xbe"),)
_SWAP_PAGES: Final = (4096, 8192, 16384, 32768, 65536)

_CONTAINERS: Final = (
    *(
        Signature(
            *("crypto_LUKS", f"an encrypted device (LUKS{version})", "encrypted", _LUKS),
            _opened("cryptsetup open --readonly DEVICE NAME"),
            *("cryptsetup, docs/on-disk-format", "cryptsetup"),
            confirm=partial(checks.is_luks, version),
        )
        for version in (1, 2)
    ),
    Signature(
        *("crypto_LUKS", "an encrypted device (LUKS2) without its first header", "encrypted"),
        tuple((0x4000 << shift, b"SKUL\xba\xbe") for shift in range(9)),
        *("restore the header: cryptsetup repair DEVICE", "cryptsetup, docs/on-disk-format-luks2"),
        "cryptsetup",
        lambda read, _: read(0, 6) != b"LUKS\xba\xbe",
    ),
    Signature(
        *("BitLocker", "an encrypted device (BitLocker)", "encrypted"),
        ((3, b"-FVE-FS-"),),
        *(_opened("cryptsetup open --type bitlk --readonly DEVICE NAME"), "cryptsetup, lib/bitlk/"),
    ),
    Signature(
        *("bcache", "a device of bcache", "member"),
        ((0x1018, bytes.fromhex("c68573f64e1a45ca8265f57f48ba6d81")),),
        "register it (/sys/fs/bcache/register), and name /dev/bcache0",
        f"{_KERNEL}, drivers/md/bcache/bcache_ondisk.h",
    ),
    Signature(
        *("DM_integrity", "a device with checksums (dm-integrity)", "member"),
        ((0, b"integrt\0"),),
        *(_opened("integritysetup open DEVICE NAME"), f"{_DM}dm-integrity.c"),
    ),
    Signature(
        *("DM_verity_hash", "a tree of checksums (dm-verity)", "member", ((0, b"verity\0\0"),)),
        *("no files are on it: name the device of the data", "cryptsetup, lib/verity/"),
        "veritysetup",
    ),
    Signature(
        *("DM_snapshot_cow", "changes of a snapshot (dm-snapshot)", "member", ((0, b"SnAp"),)),
        *("name the snapshot itself", f"{_DM}dm-snap-persistent.c"),
    ),
    Signature(
        *("vdo", "a device of VDO", "member", ((0, b"dmvdo001"),)),
        *("activate it with LVM, and name the volume", f"{_DM}dm-vdo/encodings.c"),
    ),
    Signature(
        *("stratis", "a device of Stratis", "member"),
        tuple((at, b"!Stra0tis\x86\xff\x02^\x41rh") for at in (0x204, 0x1204)),
        *("start its pool, and name the filesystem's device", "stratisd"),
    ),
    Signature(
        *("LVM2_member", "a physical volume of LVM", "member"),
        tuple((sector * 512 + 24, b"LVM2 001") for sector in range(4)),
        *("leave --at-filesystem out", "lvm2, lib/format_text/", "pvcreate"),
    ),
    Signature(
        *("LVM1_member", "a physical volume of LVM1", "member"),
        ((0, b"HM\1\0"), (0, b"HM\2\0")),
        *("convert it with an LVM2 before 2.02.178", "lvm2 before 2.02.178, lib/format1/"),
    ),
    Signature(
        *("linux_raid_member", "a member of an md array", "member"),
        ((0x1000, b"\xfc\x4e\x2b\xa9\1\0\0\0"), (0, b"\xfc\x4e\x2b\xa9\1\0\0\0")),
        *("leave --at-filesystem out", f"{_KERNEL}, include/uapi/linux/raid/md_p.h", "mdadm"),
    ),
    Signature(
        *("drbd", "a device of DRBD", "member"),
        tuple((-4096 + 60, b"\x83\x74\x02" + last) for last in (b"\x67", b"\x6b", b"\x6d")),
        *("name its /dev/drbd0", f"{_KERNEL}, drivers/block/drbd/"),
    ),
    Signature(
        *("oracleasm", "a disk of Oracle ASM", "member", ((32, b"ORCLDISK"),)),
        *("no filesystem is on it", "oracleasm-support"),
    ),
    Signature(
        *("ceph_bluestore", "a device of Ceph", "member", ((0, b"bluestore block device"),)),
        *("no filesystem is on it", "Ceph, src/os/bluestore/"),
    ),
    Signature(
        *("VMFS_volume_member", "a member of a VMFS volume", "member"),
        ((0x100000, b"\x0d\xd0\x01\xc0"),),
        *("whoseblock does not read VMFS", "vmfs-tools"),
    ),
    Signature("ubi", "a device of UBI", "member", ((0, b"UBI#"),), "", f"{_KERNEL}, ubi-media.h"),
    Signature(
        *("swap", "swap space", "swap"),
        tuple(
            (page - 10, magic) for page in _SWAP_PAGES for magic in (b"SWAPSPACE2", b"SWAP-SPACE")
        ),
        *("no files are on it", f"{_KERNEL}, include/linux/swap.h", "mkswap"),
    ),
    Signature(
        *("swsuspend", "swap space with a suspended system", "swap"),
        tuple(
            (page - 10, magic)
            for page in _SWAP_PAGES
            for magic in (b"S1SUSPEND", b"S2SUSPEND", b"ULSUSPEND", b"LINHIB0001")
        ),
        *("no files are on it", f"{_KERNEL}, kernel/power/swap.c"),
    ),
)

_TABLES: Final = (
    Signature(
        *("gpt", "a partition table (GPT)", "table", ((0x200, b"EFI PART"), (0x1000, b"EFI PART"))),
        *("leave --at-filesystem out", "UEFI Specification", "sfdisk"),
    ),
    Signature(
        *("bsd", "a BSD disklabel", "table"),
        tuple((at, b"\x57\x45\x56\x82") for at in (0x200, 0x40, 0)),
        *(_PARTITIONS, f"{_KERNEL}, block/partitions/msdos.c", "fdisk"),
        confirm=checks.is_bsd_label,
    ),
    Signature(
        *("sun", "a Sun disklabel", "table", ((508, b"\xda\xbe"),), _PARTITIONS),
        *(f"{_KERNEL}, block/partitions/sun.c", "fdisk"),
        confirm=checks.is_sun_label,
    ),
    Signature(
        *("sgi", "an SGI disklabel", "table", ((0, b"\x0b\xe5\xa9\x41"),), _PARTITIONS),
        *(f"{_KERNEL}, block/partitions/sgi.c", "fdisk"),
    ),
    Signature(
        *("mac", "an Apple partition map", "table", ((0, b"ER"),), _PARTITIONS),
        f"{_KERNEL}, block/partitions/mac.h",
        confirm=checks.is_apple_map,
    ),
)

_IMAGES: Final = (
    Signature(
        *("qcow2", "a QEMU image (qcow2)", "image", ((0, b"QFI\xfb"),)),
        *(_CONVERT, _QEMU, "qemu-img"),
        confirm=checks.is_qcow2,
    ),
    Signature(
        *("qcow", "a QEMU image (qcow)", "image", ((0, b"QFI\xfb"),), _CONVERT, _QEMU, "qemu-img"),
        confirm=checks.is_qcow,
    ),
    Signature(
        *("qed", "a QEMU image (QED)", "image", ((0, b"QED\0"),), _CONVERT, _QEMU, "qemu-img")
    ),
    Signature(
        *("vmdk", "a VMware disk (VMDK)", "image"),
        ((0, b"KDMV"), (0, b"COWD"), (0, b"# Disk DescriptorFile")),
        *(_CONVERT, "VMware, Virtual Disk Format 5.0", "qemu-img"),
    ),
    Signature(
        *("vdi", "a VirtualBox disk (VDI)", "image", ((0x40, b"\x7f\x10\xda\xbe"),)),
        *(_CONVERT, _QEMU, "qemu-img"),
    ),
    Signature(
        *("vhdx", "a Hyper-V disk (VHDX)", "image", ((0, b"vhdxfile"),), _CONVERT),
        *("Microsoft, MS-VHDX", "qemu-img"),
    ),
    Signature(
        *("vhd", "a Hyper-V disk (VHD)", "image", ((0, b"conectix"), (-512, b"conectix"))),
        "convert it: qemu-img convert -f vpc -O raw IMAGE RAW",
        *("Microsoft, Virtual Hard Disk Image Format Specification", "qemu-img"),
    ),
    Signature(
        *("parallels", "a Parallels disk", "image"),
        ((0, b"WithoutFreeSpace"), (0, b"WithouFreSpacExt")),
        *(_CONVERT, _QEMU, "qemu-img"),
    ),
    Signature(
        *("ewf", "a forensic image (EWF)", "image"),
        ((0, b"EVF\t\r\n\xff\0"), (0, b"LVF\t\r\n\xff\0"), (0, b"EVF2\r\n\x81\0")),
        "convert it: ewfexport -t RAW -f raw IMAGE",
        "libewf, documentation",
    ),
    Signature(
        *("aff", "a forensic image (AFF)", "image", ((0, b"AFF10\r\n\0"),)),
        *("convert it: affconvert -r IMAGE", "AFFLIB"),
    ),
    Signature(
        *("dmg", "an Apple disk image (DMG)", "image", ((-512, b"koly\0\0\0\4"),)),
        *("convert it: dmg2img IMAGE RAW", "dmg2img"),
    ),
    Signature(
        *("simg", "an Android sparse image", "image", ((0, b"\x3a\xff\x26\xed\1\0"),)),
        *("convert it: simg2img IMAGE RAW", "Android, libsparse/sparse_format.h"),
    ),
    Signature(
        *("partclone", "an image of partclone", "image", ((0, b"partclone-image"),)),
        *("restore it: partclone.restore -s IMAGE -o RAW; free blocks are not in it", "partclone"),
    ),
    Signature(
        *("ntfsclone", "an image of ntfsclone", "image", ((0, b"\0ntfsclone-image"),)),
        *(
            "restore it: ntfsclone --restore-image IMAGE -O RAW",
            "ntfs-3g, ntfsclone.c",
            "ntfsclone",
        ),
    ),
    Signature(
        *("xfs_metadump", "an xfs_metadump", "image", ((0, b"XFSM"), (0, b"XMD2"))),
        "restore it: xfs_mdrestore DUMP IMAGE; data is not in it",
        *("xfsprogs, include/xfs_metadump.h", "xfs_metadump"),
    ),
    Signature(
        *("xfsdump", "a dump of xfsdump", "image", ((0, b"xFSdump0"),)),
        *("it has no place of any block: restore it with xfsrestore", "xfsdump"),
    ),
    Signature(
        *("btrfs-send", "a stream of btrfs send", "image", ((0, b"btrfs-stream\0"),)),
        *("it has no place of any block: use btrfs receive", f"{_KERNEL}, fs/btrfs/send.h"),
    ),
    Signature(
        *("tar", "a tar archive", "image", ((257, b"ustar"),), "unpack it: tar -xf ARCHIVE"),
        *("POSIX, pax", "tarfile"),
    ),
)

_COMPRESSED: Final = (
    Signature(
        *("gzip", "a file packed by gzip", "compressed", ((0, b"\x1f\x8b\x08"),)),
        *(_unpack("gzip -dc"), "RFC 1952", "gzip"),
    ),
    Signature(
        *("xz", "a file packed by xz", "compressed", ((0, b"\xfd7zXZ\0"),)),
        *(_unpack("xz -dc"), "XZ Utils, xz-file-format.txt", "xz"),
    ),
    Signature(
        *("zstd", "a file packed by zstd", "compressed", ((0, b"\x28\xb5\x2f\xfd"),)),
        *(_unpack("zstd -dc"), "RFC 8878"),
    ),
    Signature(
        *("bzip2", "a file packed by bzip2", "compressed", ((0, b"BZh"),)),
        *(_unpack("bzip2 -dc"), "bzip2", "bzip2", checks.is_bzip2),
    ),
    Signature(
        *("lz4", "a file packed by lz4", "compressed", ((0, b"\x04\x22\x4d\x18"),)),
        *(_unpack("lz4 -dc"), "lz4, doc/lz4_Frame_format.md"),
    ),
    Signature(
        *("lzip", "a file packed by lzip", "compressed", ((0, b"LZIP\1"),)),
        *(_unpack("lzip -dc"), "lzip"),
    ),
    Signature(
        *("lzop", "a file packed by lzop", "compressed", ((0, b"\x89LZO\0\r\n\x1a\n"),)),
        *(_unpack("lzop -dc"), "lzop"),
    ),
    Signature(
        *("lrzip", "a file packed by lrzip", "compressed", ((0, b"LRZI\0"),)),
        *("unpack it: lrzip -d -o RAW IMAGE", "lrzip"),
    ),
    Signature(
        *("compress", "a file packed by compress", "compressed", ((0, b"\x1f\x9d\x90"),)),
        *(_unpack("gzip -dc"), "ncompress"),
    ),
    Signature(
        *("zip", "a zip archive", "compressed", ((0, b"PK\3\4"),)),
        *(_unpack("unzip -p"), "PKWARE, APPNOTE", "zip"),
    ),
    Signature(
        *("7z", "a 7z archive", "compressed", ((0, b"7z\xbc\xaf\x27\x1c"),)),
        *(_unpack("7z x -so"), "7-Zip, 7zFormat.txt"),
    ),
)

#: What ends a search for its content comes first: a packed file has nothing else.
SIGNATURES: Final = (*_COMPRESSED, *_IMAGES, *_CONTAINERS, *_FILESYSTEMS, *_TABLES)
