"""Forms of ext2, ext3 and ext4 for tests: options of mke2fs for each feature."""

from typing import Final, NamedTuple

__all__ = ["BY_MKE2FS", "FORMS", "NOT_MOUNTED", "Form"]

MIB: Final = 1 << 20


class Form(NamedTuple):
    """The size of an image, and the options of mke2fs."""

    size: int
    options: str

    def words(self, *, newest: bool) -> list[str]:
        """Return the options for the newest mke2fs or the system's."""
        return self.options.replace("-r 0", "-E revision=0" if newest else "-r 0").split()


FORMS: Final = {
    "ext4": Form(40 * MIB, "-t ext4 -b 4096"),
    "ext4, 1 KiB": Form(24 * MIB, "-t ext4 -b 1024"),
    "ext4, 2 KiB": Form(32 * MIB, "-t ext4 -b 2048 -I 1024"),
    "ext4, 8 KiB": Form(64 * MIB, "-t ext4 -b 8192"),
    "ext4, 16 KiB": Form(64 * MIB, "-t ext4 -b 16384 -O ^has_journal"),
    "ext4, 32 KiB": Form(96 * MIB, "-t ext4 -b 32768 -O ^has_journal,inline_data"),
    "ext4, 64 KiB": Form(120 * MIB, "-t ext4 -b 65536 -O ^has_journal"),
    "ext2": Form(24 * MIB, "-t ext2 -b 1024"),
    "revision 0": Form(20 * MIB, "-r 0 -b 1024"),
    "ext3": Form(40 * MIB, "-t ext3 -b 2048"),
    "checksums of ext2": Form(24 * MIB, "-t ext2 -b 1024 -O metadata_csum"),
    "32 bits": Form(24 * MIB, "-t ext4 -b 1024 -O ^64bit"),
    "uninit_bg": Form(40 * MIB, "-t ext4 -b 1024 -O ^metadata_csum,uninit_bg"),
    "no sparse_super": Form(40 * MIB, "-t ext4 -b 1024 -O ^sparse_super,^resize_inode"),
    "small groups": Form(24 * MIB, "-t ext4 -b 1024 -g 256 -G 4 -N 6144"),
    "meta_bg": Form(40 * MIB, "-t ext4 -b 1024 -O meta_bg,^resize_inode"),
    "meta_bg, 32 bits": Form(24 * MIB, "-t ext4 -b 1024 -g 256 -O meta_bg,^resize_inode,^64bit"),
    "no flex_bg": Form(40 * MIB, "-t ext4 -b 1024 -O ^flex_bg"),
    "packed_meta_blocks": Form(40 * MIB, "-t ext4 -b 1024 -E packed_meta_blocks=1"),
    "sparse_super2": Form(40 * MIB, "-t ext4 -b 1024 -O sparse_super2,^resize_inode"),
    "sparse_super2, no copy": Form(
        40 * MIB, "-t ext4 -b 1024 -O sparse_super2,^resize_inode -E num_backup_sb=0"
    ),
    "bigalloc, 1 KiB": Form(96 * MIB, "-t ext4 -b 1024 -O bigalloc,^resize_inode -C 16384"),
    "bigalloc": Form(96 * MIB, "-t ext4 -b 4096 -O bigalloc -C 65536"),
    "inline_data": Form(40 * MIB, "-t ext4 -b 4096 -O inline_data"),
    "inodes of 128 bytes": Form(24 * MIB, "-t ext4 -b 1024 -I 128"),
    "quota": Form(40 * MIB, "-t ext4 -b 4096 -I 512 -O quota,project"),
    "mmp": Form(40 * MIB, "-t ext4 -b 4096 -O mmp"),
    "orphan_file": Form(40 * MIB, "-t ext4 -b 4096 -O orphan_file,metadata_csum_seed"),
    "no extents": Form(24 * MIB, "-t ext4 -b 1024 -O ^extent,^64bit"),
    "no dir_index": Form(24 * MIB, "-t ext4 -b 1024 -O ^dir_index,^filetype"),
    "large_dir": Form(24 * MIB, "-t ext4 -b 1024 -O large_dir,fast_commit"),
    "stable_inodes": Form(40 * MIB, "-t ext4 -b 4096 -O stable_inodes,encrypt"),
    "casefold": Form(40 * MIB, "-t ext4 -b 4096 -O casefold -E encoding=utf8"),
}
#: Those that mke2fs fills with all their features, without the kernel.
BY_MKE2FS: Final = (
    "ext4",
    "ext4, 8 KiB",
    "ext4, 16 KiB",
    "ext4, 32 KiB",
    "ext4, 64 KiB",
    "ext2",
    "uninit_bg",
    "small groups",
    "meta_bg",
    "bigalloc",
    "inline_data",
    "quota",
    "casefold",
)
#: Blocks larger than a page need the newest kernels; quota and casefold are often not built.
NOT_MOUNTED: Final = {
    "ext4, 8 KiB",
    "ext4, 16 KiB",
    "ext4, 32 KiB",
    "ext4, 64 KiB",
    "quota",
    "casefold",
}
