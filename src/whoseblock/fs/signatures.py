"""The content of a medium without a filesystem that a driver reads, for messages only.

Offsets and magic numbers as in libblkid (util-linux) and in file(1).
"""

from typing import Final, NamedTuple

from whoseblock.errors import BlockError
from whoseblock.media.base import Media

__all__ = ["Content", "find_content"]

_HEAD: Final = 68 * 1024

_UNPACK: Final = "unpack it first, and name the image"
#: Stands for the sentence that names the filesystems that have a driver.
_NOT_READ: Final = ""


class Content(NamedTuple):
    """A clause that says what a medium begins like, and what to do about it."""

    what: str
    hint: str


#: Offset, magic number, what it is, and what to do.
_SIGNATURES: Final = (
    (0, b"QFI\xfb", "a QEMU image (qcow2)", "convert it: qemu-img convert -O raw IMAGE RAW"),
    (0, b"KDMV", "a VMware disk (VMDK)", "convert it: qemu-img convert -O raw IMAGE RAW"),
    (0x40, b"\x7f\x10\xda\xbe", "a VirtualBox disk (VDI)", "convert it: qemu-img convert -O raw …"),
    (0, b"vhdxfile", "a Hyper-V disk (VHDX)", "convert it: qemu-img convert -O raw IMAGE RAW"),
    (0, b"\x1f\x8b", "a file packed by gzip", _UNPACK),
    (0, b"\xfd7zXZ\0", "a file packed by xz", _UNPACK),
    (0, b"\x28\xb5\x2f\xfd", "a file packed by zstd", _UNPACK),
    (0, b"XFSM", "an xfs_metadump", "restore it: xfs_mdrestore DUMP IMAGE; data is not in it"),
    (
        0,
        b"LUKS\xba\xbe",
        "an encrypted device (LUKS)",
        "open it with cryptsetup; name what it maps",
    ),
    (0x218, b"LVM2 001", "a physical volume of LVM", "leave --at-filesystem out"),
    (0x1000, b"\xfc\x4e\x2b\xa9", "a member of an md array", "leave --at-filesystem out"),
    (0x10040, b"_BHRfS_M", "btrfs", _NOT_READ),
    (0x400, b"\x10\x20\xf5\xf2", "F2FS", _NOT_READ),
    (3, b"NTFS    ", "NTFS", _NOT_READ),
    (3, b"EXFAT   ", "exFAT", _NOT_READ),
    (0x52, b"FAT32   ", "FAT", _NOT_READ),
    (0x36, b"FAT1", "FAT", _NOT_READ),
    (0, b"hsqs", "squashfs", _NOT_READ),
    (0x8001, b"CD001", "ISO 9660", _NOT_READ),
    (0xFF6, b"SWAPSPACE2", "swap space", "no files are on it"),
    (0x200, b"EFI PART", "a partition table (GPT)", "leave --at-filesystem out"),
    (0x1000, b"EFI PART", "a partition table (GPT)", "leave --at-filesystem out"),
)
_ZEROS: Final = Content(
    "it begins with zeros",
    "is it the right device? A rescued image has zeros where nothing could be read",
)


def find_content(media: Media) -> Content | None:
    """Return what a medium begins like; None if nothing is recognised or it cannot be read."""
    try:
        head = media.pread(0, min(_HEAD, media.size))
    except BlockError:
        return None
    for offset, magic, what, hint in _SIGNATURES:
        if head.startswith(magic, offset):
            return Content(f"it looks like {what}", hint or _supported())
    if not any(head):
        return _ZEROS if head else Content("it is empty", "name another device or image")
    if head[510:512] == b"\x55\xaa":
        return Content(
            "it looks like a partition table or a boot sector",
            "whoseblock stack shows what is on it",
        )
    return None


def _supported() -> str:
    # The registry loads drivers, whose messages come from here.
    from whoseblock.fs.registry import titles

    return f"whoseblock reads {titles()} only"
