"""Why answers about a btrfs filesystem are incomplete, and what repairs its metadata."""

from whoseblock.fs.base import Owner
from whoseblock.fs.btrfs.volume import Volume

__all__ = ["filesystem_doubts", "log_doubts", "repair_advice"]

_ERROR_FLAG = 1 << 2


def log_doubts(volume: Volume) -> list[str]:
    """Return the reason why every answer is incomplete that is in the log tree, if any is."""
    if not volume.sb.log_root:
        return []
    return ["the log tree has changes that are not replayed: owners and free space may be older"]


def filesystem_doubts(volume: Volume) -> list[str]:
    """Return the other reasons why every answer is incomplete."""
    sb, notes = volume.sb, []
    if sb.flags & _ERROR_FLAG:
        notes.append("the filesystem is marked as having errors: run btrfs check")
    for number, item in volume.items.items():
        media = volume.devices[number]
        if item.size > media.size:
            notes.append(
                f"the filesystem has {item.size} bytes on {media.name}, but the device only"
                f" {media.size}"
            )
        if fault := volume.device_faults.get(number):
            notes.append(f"{media.name}: {fault}")
    notes += volume.chunks.faults
    if fault := volume.devices_fault:
        notes.append(fault)
    if volume.missing and _can_do_alone(volume):
        numbers = ", ".join(map(str, volume.missing))
        notes.append(
            f"without its devices {numbers} this may be out of date: name them with --member"
            if len(volume.missing) > 1
            else f"without its device {numbers} this may be out of date: name it with --member"
        )
    return notes


def _can_do_alone(volume: Volume) -> bool:
    """Return whether the missing devices may have been mounted and changed without the others.

    Only their superblocks would record that.
    """
    for chunk in volume.chunks:
        others = sum(place.device not in volume.missing for place in chunk.stripes)
        if others > chunk.tolerance:
            return False
    return True


def repair_advice(_row: Owner) -> str:
    """Return the command that repairs a row of metadata, or of a file's metadata."""
    return (
        "btrfs scrub start MOUNTPOINT, which restores it from another copy if there is one; else"
        " btrfs restore DEVICE FOLDER copies what is still readable"
    )
