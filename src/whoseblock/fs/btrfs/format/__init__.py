"""The on-disk format of btrfs: bytes in, records out.

The source of all structures is include/uapi/linux/btrfs_tree.h and btrfs.h of Linux.  Everything is
little-endian and packed.
"""
