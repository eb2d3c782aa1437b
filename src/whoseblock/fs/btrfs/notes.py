"""Why answers about a btrfs filesystem are incomplete, and what repairs its metadata."""

from whoseblock.fs.base import Owner
from whoseblock.fs.btrfs.volume import Volume

__all__ = ["filesystem_doubts", "repair_advice"]

_ERROR_FLAG = 1 << 2


def filesystem_doubts(volume: Volume) -> list[str]:
    """Return the reasons why every answer is incomplete."""
    sb, notes = volume.sb, []
    if sb.log_root:
        notes.append(
            "the log tree has changes that are not replayed: owners and free space may be older"
        )
    if sb.flags & _ERROR_FLAG:
        notes.append("the filesystem is marked as having errors: run btrfs check")
    if volume.size > volume.media.size:
        notes.append(
            f"the filesystem has {volume.size} bytes on this device, but the device only"
            f" {volume.media.size}"
        )
    notes += volume.chunks.faults
    return notes


def repair_advice(_row: Owner) -> str:
    """Return the command that repairs a row of metadata, or of a file's metadata."""
    return (
        "btrfs scrub start MOUNTPOINT, which restores it from another copy if there is one; else"
        " btrfs restore DEVICE FOLDER copies what is still readable"
    )
