"""On-disk structures of ext2, ext3 and ext4: bytes in, frozen records out.

Names and values follow the kernel's fs/ext4/ext4.h and its documentation,
Documentation/filesystems/ext4.
"""
