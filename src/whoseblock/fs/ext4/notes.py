"""Why answers about an ext4 filesystem are incomplete, and what repairs its metadata."""

from typing import Final

from whoseblock.errors import BlockError
from whoseblock.fs.base import Owner
from whoseblock.fs.ext4.format.superblock import (
    COMPAT_HAS_JOURNAL,
    EXT4_ERROR_FS,
    EXT4_VALID_FS,
    INCOMPAT_MMP,
    INCOMPAT_RECOVER,
)
from whoseblock.fs.ext4.static import FixedMetadata
from whoseblock.fs.ext4.volume import Volume

__all__ = ["UNCLEAN_NOTE", "common_doubts", "filesystem_doubts", "repair_advice"]

UNCLEAN_NOTE: Final = "the filesystem was not unmounted cleanly, and has no journal"

EXT4_MMP_MAGIC: Final = 0x004D4D50
EXT4_MMP_SEQ_CLEAN: Final = 0xFF4D4D50


def filesystem_doubts(volume: Volume, fixed: FixedMetadata) -> list[str]:
    """Return the reasons why every answer is incomplete."""
    sb, notes = volume.sb, []
    if sb.incompat & INCOMPAT_RECOVER:
        notes.append(
            "the journal has changes that are not replayed: owners and free space may be older"
        )
    elif not sb.state & EXT4_VALID_FS and not sb.compat & COMPAT_HAS_JOURNAL:
        notes.append(UNCLEAN_NOTE)
    if sb.incompat & INCOMPAT_MMP and (note := _mmp_note(volume)):
        notes.append(note)
    return notes + common_doubts(volume, fixed)


def common_doubts(volume: Volume, fixed: FixedMetadata) -> list[str]:
    """Return the reasons for doubt that a mount does not take away."""
    sb, notes = volume.sb, []
    if sb.state & EXT4_ERROR_FS:
        notes.append("the filesystem is marked as having errors: run e2fsck")
    if sb.doubtful:
        names = ", ".join(sb.doubtful)
        notes.append(f"features that may give free space another meaning: {names}")
    if volume.size > volume.media.size:
        notes.append(
            f"the filesystem has {volume.size} bytes, but the device only {volume.media.size}"
        )
    return notes + fixed.faults


def _mmp_note(volume: Volume) -> str:
    """Return whether another host may have the filesystem mounted, "" if not."""
    try:
        raw = volume.read_block("MMP block", volume.sb.mmp_block)
    except BlockError as error:
        return str(error)
    if int.from_bytes(raw[:4], "little") != EXT4_MMP_MAGIC:
        return "the MMP block is damaged: another host may have the filesystem mounted"
    if int.from_bytes(raw[4:8], "little") != EXT4_MMP_SEQ_CLEAN:
        return "by its MMP block, the filesystem is mounted, perhaps by another host"
    return ""


def repair_advice(_row: Owner) -> str:
    """Return the command that repairs a row of metadata, or of a file's metadata."""
    return "unmount, and e2fsck -f DEVICE, on a copy first if more may fail"
