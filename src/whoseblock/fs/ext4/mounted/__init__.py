"""The driver of ext2, ext3 and ext4 for mounted filesystems."""
