"""Mounted filesystems: the kernel is asked, which knows what is not on the disk yet."""

from whoseblock.fs.live.filesystem import LiveFilesystem

__all__ = ["LiveFilesystem"]
