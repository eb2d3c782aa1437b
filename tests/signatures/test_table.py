"""Signatures: disks made by the programs of each format, and headers crafted after the format.

What blkid(8) names, it names the same: it is the oracle for both.
"""

import bz2
import gzip
import io
import lzma
import os
import re
import struct
import subprocess
import tarfile
import zipfile
import zlib
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from fastcrc import crc32, crc64
from hypothesis import given
from hypothesis import strategies as st
from tests.support.disk_images import copy_range, partition
from tests.support.mounts import loop_device
from tests.support.tools import need_root, program, run
from tests.support.xfs_images import MIB, sparse_file

from whoseblock.byte_range import ByteRange
from whoseblock.errors import MediaError
from whoseblock.media.device import FileMedia
from whoseblock.signatures import SIGNATURES, Signature, find_signatures

SIZE = 64 * MIB


def names(path: Path) -> list[str]:
    return [one.name for one in found(path)]


def found(path: Path) -> tuple[Signature, ...]:
    media = FileMedia(path)
    try:
        signatures, readable = find_signatures(SIGNATURES, media.pread, media.size)
    finally:
        media.close()
    assert readable
    return signatures


def blkid(path: Path) -> set[str]:
    """Return the TYPE or PTTYPE that blkid prints, all of them if there are several."""
    done = subprocess.run(
        [program("blkid"), "-p", "-o", "export", path], capture_output=True, text=True, check=False
    )
    # With 8 it names several types and decides for none.
    assert done.returncode in (0, 2, 8), done.stderr
    return set(re.findall(r"^(?:PT)?TYPE=(\S+)$", done.stdout, re.MULTILINE))


def tool(*command: str, size: int = SIZE) -> Callable[[Path], None]:
    def make(path: Path) -> None:
        sparse_file(path, size)
        run([*command, path])

    return make


def qemu(form: str, *options: str) -> Callable[[Path], None]:
    def make(path: Path) -> None:
        run(["qemu-img", "create", "-q", "-f", form, *options, path, "8M"])

    return make


def luks(version: int) -> Callable[[Path], None]:
    def make(path: Path) -> None:
        sparse_file(path, 32 * MIB)
        options = ["--type", f"luks{version}", "--pbkdf-force-iterations=1000", "--disable-locks"]
        options += ["--pbkdf=pbkdf2"] if version == 2 else []
        run(["cryptsetup", "luksFormat", "--batch-mode", *options, path, "-"], b"secret")

    return make


def second_luks_header(path: Path) -> None:
    luks(2)(path)
    with path.open("r+b") as file:
        file.write(bytes(4096))


def packed(pack: Callable[[bytes], bytes]) -> Callable[[Path], None]:
    def make(path: Path) -> None:
        path.write_bytes(pack(b"whose block?" * 1000))

    return make


def verity(path: Path) -> None:
    data = path.with_suffix(".data")
    data.write_bytes(bytes(MIB))
    run(["veritysetup", "format", data, path])
    data.unlink()


def archive(name: str) -> Callable[[Path], None]:
    def make(path: Path) -> None:
        if name == "tar":
            with tarfile.open(path, "w") as tar:
                tar.addfile(tarfile.TarInfo("disk.img"), io.BytesIO())
        else:
            with zipfile.ZipFile(path, "w") as file:
                file.writestr("disk.img", b"x")

    return make


def physical_volume(path: Path) -> None:
    need_root()
    sparse_file(path, SIZE)
    with loop_device(path) as loop:
        run(["pvcreate", "-q", "-y", "--config", "devices{use_devicesfile=0}", loop])


def metadump(path: Path) -> None:
    image = sparse_file(path.with_suffix(".xfs"), 300 * MIB)
    run(["mkfs.xfs", "-q", image])
    # A script that calls xfs_db by its name.
    given = f"PATH={os.environ['PATH']}:/usr/sbin:/sbin"
    run(["env", given, program("xfs_metadump"), image, path])
    image.unlink()


def ntfs_clone(path: Path) -> None:
    image = sparse_file(path.with_suffix(".ntfs"), 16 * MIB)
    run(["mkntfs", "-q", "-F", "-Q", image])
    run(["ntfsclone", "--save-image", "--output", path, image])
    image.unlink()


def disklabel(letter: str) -> Callable[[Path], None]:
    def make(path: Path) -> None:
        run(["fdisk", sparse_file(path, SIZE)], f"{letter}\nw\n".encode())

    return make


def bsd_label(path: Path) -> None:
    disk = sparse_file(path.with_suffix(".disk"), SIZE)
    partition(disk, "label: dos\nstart=2048, type=a5\n")
    run(["fdisk", disk], b"b\ny\nw\nq\n")
    sparse_file(path, SIZE - MIB)
    copy_range(disk, MIB, path, 0, SIZE - MIB)
    disk.unlink()


#: For each name, the title, and what makes a sample.
SAMPLES: list[tuple[str, str, Callable[[Path], None]]] = [
    ("xfs", "XFS", tool("mkfs.xfs", "-q", size=300 * MIB)),
    ("ext2", "ext2", tool("mke2fs", "-qF", "-t", "ext2")),
    ("ext3", "ext3", tool("mke2fs", "-qF", "-t", "ext3")),
    ("ext4", "ext4", tool("mke2fs", "-qF", "-t", "ext4")),
    ("jbd", "an external journal of ext4", tool("mke2fs", "-qF", "-O", "journal_dev")),
    ("btrfs", "btrfs", tool("mkfs.btrfs", "-q", size=128 * MIB)),
    ("f2fs", "F2FS", tool("mkfs.f2fs", "-q")),
    ("ntfs", "NTFS", tool("mkntfs", "-qFQ")),
    ("exfat", "exFAT", tool("mkfs.exfat")),
    ("vfat", "FAT12", tool("mkfs.vfat", "-F12", size=2 * MIB)),
    ("vfat", "FAT16", tool("mkfs.vfat", "-F16", size=32 * MIB)),
    ("vfat", "FAT32", tool("mkfs.vfat", "-F32")),
    ("swap", "swap space", tool("mkswap", "-q")),
    ("swap", "swap space", tool("mkswap", "-q", "-p", "65536")),
    ("crypto_LUKS", "an encrypted device (LUKS1)", luks(1)),
    ("crypto_LUKS", "an encrypted device (LUKS2)", luks(2)),
    ("crypto_LUKS", "an encrypted device (LUKS2) without its first header", second_luks_header),
    ("DM_verity_hash", "a tree of checksums (dm-verity)", verity),
    ("LVM2_member", "a physical volume of LVM", physical_volume),
    (
        "gpt",
        "a partition table (GPT)",
        lambda path: partition(sparse_file(path, SIZE), "label: gpt\n"),
    ),
    ("bsd", "a BSD disklabel", bsd_label),
    ("sun", "a Sun disklabel", disklabel("s")),
    ("sgi", "an SGI disklabel", disklabel("G")),
    ("qcow2", "a QEMU image (qcow2)", qemu("qcow2")),
    ("qcow", "a QEMU image (qcow)", qemu("qcow")),
    ("qed", "a QEMU image (QED)", qemu("qed")),
    ("vmdk", "a VMware disk (VMDK)", qemu("vmdk")),
    ("vmdk", "a VMware disk (VMDK)", qemu("vmdk", "-o", "subformat=monolithicFlat")),
    ("vdi", "a VirtualBox disk (VDI)", qemu("vdi")),
    ("vhdx", "a Hyper-V disk (VHDX)", qemu("vhdx")),
    ("vhd", "a Hyper-V disk (VHD)", qemu("vpc")),
    ("vhd", "a Hyper-V disk (VHD)", qemu("vpc", "-o", "subformat=fixed")),
    ("parallels", "a Parallels disk", qemu("parallels")),
    ("xfs_metadump", "an xfs_metadump", metadump),
    ("ntfsclone", "an image of ntfsclone", ntfs_clone),
    ("gzip", "a file packed by gzip", packed(gzip.compress)),
    ("xz", "a file packed by xz", packed(lzma.compress)),
    ("bzip2", "a file packed by bzip2", packed(bz2.compress)),
    ("zip", "a zip archive", archive("zip")),
    ("tar", "a tar archive", archive("tar")),
]

#: blkid also reads structures of these that are not crafted here; BSD disklabels only in an MBR.
UNCOMPARED = {"udf", "drbd", "bsd"}
#: Names that blkid has no type for, as its list of types (``blkid -k``) shows.
BEYOND_BLKID = {
    *("qcow2", "qcow", "qed", "vmdk", "vdi", "vhdx", "vhd", "parallels", "xfs_metadump"),
    *("ntfsclone", "gzip", "xz", "bzip2", "zip", "tar", "ewf", "aff", "dmg", "simg", "partclone"),
    *("xfsdump", "btrfs-send", "zstd", "lz4", "lzip", "lzop", "lrzip", "compress", "7z"),
    # Newer versions of blkid know it.
    "bcachefs",
}


@pytest.mark.parametrize(
    ("name", "title", "make"), SAMPLES, ids=[f"{name}-{n}" for n, (name, *_) in enumerate(SAMPLES)]
)
def test_real_samples(tmp_path: Path, name: str, title: str, make: Callable[[Path], None]) -> None:
    path = tmp_path / "sample"
    make(path)
    assert [(one.name, one.title) for one in found(path)] == [(name, title)]
    if name not in BEYOND_BLKID | UNCOMPARED and "without" not in title:
        # exFAT ends its first sector like a partition table.
        assert blkid(path) - {"dos"} == {name}


def bcache_superblock() -> bytes:
    # drivers/md/bcache/bcache_ondisk.h: sector, version of a backing device, magic, no keys.
    magic = bytes.fromhex("c68573f64e1a45ca8265f57f48ba6d81")
    body = (struct.pack("<QQ", 8, 1) + magic).ljust(200, b"\0")
    return struct.pack("<Q", crc64.we(body)) + body


def stratis_header() -> bytes:
    body = (b"!Stra0tis\x86\xff\x02^\x41rh" + struct.pack("<Q", SIZE // 512)).ljust(508, b"\0")
    return struct.pack("<I", crc32.iscsi(body)) + body


def nilfs_superblock() -> bytes:
    # include/uapi/linux/nilfs2_ondisk.h: the checksum begins with a seed, and is not inverted.
    parts = struct.pack("<IHHHHI", 2, 0, 0x3434, 280, 0, 7), struct.pack("<IQQ", 2, 8, SIZE)
    body = (parts[0] + bytes(4) + parts[1]).ljust(280, b"\0")
    total = zlib.crc32(body, 7 ^ 0xFFFFFFFF) ^ 0xFFFFFFFF
    return body[:16] + struct.pack("<I", total) + body[20:]


#: What blkid wants to see besides the magic number, by name: offsets and bytes.
MORE: dict[str, tuple[tuple[int, bytes], ...]] = {
    # The superblock names its own sector.
    "linux_raid_member": ((4096 + 0x90, struct.pack("<Q", 8)),),
    "BitLocker": (
        (0, b"\xeb\x58\x90-FVE-FS-"),
        (176, struct.pack("<Q", MIB)),
        (MIB, struct.pack("<8sHH", b"-FVE-FS-", 64, 2)),
    ),
    "bcache": ((4096, bcache_superblock()),),
    "DM_integrity": ((8, b"\4"),),
    "stratis": ((512, stratis_header()),),
    "nilfs2": ((1024, nilfs_superblock()),),
    "zfs_member": (
        (0x4000, b"\1\1\0\0" + bytes(8) + b"\0\0\0\x24\0\0\0\x20\0\0\0\7version"),
        *((0x20000 + 1024 * number, struct.pack("<Q", 0x00BAB10C)) for number in range(8)),
    ),
    "reiserfs": (
        (0x10000, struct.pack("<IIII", 16384, 8000, 8211, 8211)),
        (0x10000 + 44, struct.pack("<H", 4096)),
    ),
    "hfs": ((0x414, struct.pack(">I", 512)),),
    "hfsplus": ((0x428, struct.pack(">I", 4096)),),
    "jfs": ((0x8010, struct.pack("<IHHIH", 4096, 12, 3, 512, 9)),),
    "apfs": ((24, struct.pack("<HH", 1, 0)), (36, struct.pack("<I", 4096))),
    "squashfs": ((28, struct.pack("<H", 4)),),
    "gfs2": ((0x10000 + 24, struct.pack(">II", 1801, 1900)),),
    "mac": (
        (2, struct.pack(">H", 512)),
        (512, b"PM" + struct.pack(">HIII", 0, 1, 1, 1).ljust(46, b"\0") + b"Apple_partition_map"),
    ),
    "iso9660": ((0x8000, b"\1CD001\1"), (0x8800, b"\xffCD001\1")),
    "udf": ((0x8800, b"\0NSR02"), (0x9000, b"\0TEA01")),
}


def crafted() -> Iterator[Signature]:
    made = {name for name, *_ in SAMPLES}
    yield from (one for one in SIGNATURES if one.name not in made)


@pytest.mark.parametrize("signature", list(crafted()), ids=lambda one: one.name)
def test_crafted_headers(tmp_path: Path, signature: Signature) -> None:
    path = sparse_file(tmp_path / "sample", SIZE)
    for offset, magic in (signature.places[0], *MORE.get(signature.name, ())):
        with path.open("r+b") as file:
            file.seek(offset + SIZE if offset < 0 else offset)
            file.write(magic)
    assert names(path) == [signature.name]
    if signature.name not in BEYOND_BLKID | UNCOMPARED:
        assert blkid(path) == {signature.name}


@given(
    st.binary(max_size=600),
    st.sampled_from(SIGNATURES),
    st.integers(-(1 << 16), 1 << 16),
)
def test_hostile_headers(noise: bytes, signature: Signature, shift: int) -> None:
    # A magic number in noise, on a device that may end within the header.
    offset, magic = signature.places[0]
    size = abs(offset) + len(magic) + max(shift, -abs(offset))
    device = bytearray((noise * (size // max(len(noise), 1) + 1))[: max(size, 0)])
    start = offset + len(device) if offset < 0 else offset
    if start >= 0:
        device[start : start + len(magic)] = magic
    data = bytes(device)
    find_signatures(SIGNATURES, lambda at, length: data[at : at + length], len(data))


def test_unreadable_places_are_reported(tmp_path: Path) -> None:
    path = tmp_path / "swap"
    tool("mkswap", "-q")(path)
    media = FileMedia(path)

    def pread(offset: int, length: int) -> bytes:
        if offset <= 8192 < offset + length:
            raise MediaError([ByteRange(8192, 512)])
        return media.pread(offset, length)

    signatures, readable = find_signatures(SIGNATURES, pread, media.size)
    media.close()
    assert ([one.name for one in signatures], readable) == (["swap"], False)
