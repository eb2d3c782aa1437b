"""Mount options with which the kernel does not replay the log of a filesystem.

After a crash, the metadata on the disk is then older than the log, and so is what the kernel knows.
Blocks that were allocated last are reported as free.
"""

import re
from collections.abc import Iterable
from typing import Final

__all__ = ["unrecovered_by", "unrecovered_note"]

#: Sources: the documents of ext4, f2fs and XFS in Documentation/filesystems, and btrfs(5).
_WITHOUT_RECOVERY: Final = {"norecovery", "noload", "nologreplay", "disable_roll_forward"}


def unrecovered_by(options: Iterable[str]) -> str:
    """Return the mount option that forbids to replay the log, "" if none does."""
    for option in options:
        # For example ``rescue=nologreplay:ibadroots``.
        if not _WITHOUT_RECOVERY.isdisjoint(re.split("[=:]", option)):
            return option
    return ""


def unrecovered_note(option: str, state: str = "the state of its log is unknown") -> str:
    """Return the note about a mount with an option of `unrecovered_by`, and the log's state."""
    return (
        f"it is mounted with {option}, and {state}: changes in the log are not in this answer;"
        f" unmount it, and mount it without {option}"
    )
