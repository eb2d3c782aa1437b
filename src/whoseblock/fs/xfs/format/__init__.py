"""XFS on disk, version 5: bytes in, frozen records out, no I/O.

Written after the "XFS Algorithms & Data Structures" document; names and constants are those of the
kernel's fs/xfs/libxfs/xfs_format.h and xfs_da_format.h, with the prefix of the structure dropped
(``rm_startblock`` is `RmapRec.startblock`).  docs/internals/xfs.md draws them.
"""
