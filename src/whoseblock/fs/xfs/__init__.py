"""XFS, version 5, read from its blocks."""

from whoseblock.fs.xfs.filesystem import XfsFilesystem

__all__ = ["XfsFilesystem"]
