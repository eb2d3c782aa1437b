"""Sentences about XFS that the mounted and the unmounted reader share."""

from typing import Final

from whoseblock.fs.base import MetadataOwner, Owner

__all__ = ["REALTIME_REMARK", "repair_advice"]

REALTIME_REMARK: Final = (
    "the filesystem has a realtime section, an address space of its own; this answer is about the"
    " data section"
)

#: What repairs metadata, by what it is.
_REPAIRS: Final = {
    "log": "unmount and mount it; if that fails, xfs_repair -L, which loses the newest changes",
}
_REPAIR: Final = (
    "xfs_scrub MOUNTPOINT where the kernel has online repair; otherwise unmount, and xfs_repair"
    " DEVICE, on a copy first if more may fail"
)


def repair_advice(row: Owner) -> str:
    """Return the command that repairs a row of metadata, or of a file's metadata."""
    what = row.what if isinstance(row, MetadataOwner) else ""
    return _REPAIRS.get(what, _REPAIR)
