"""Whether the log of an XFS that was mounted without recovery has changes to replay."""

from collections.abc import Iterable
from contextlib import ExitStack, closing

from whoseblock.errors import WhoseblockError
from whoseblock.fs.xfs.log import DIRTY, log_note
from whoseblock.fs.xfs.superblocks import open_superblock
from whoseblock.fs.xfs.volume import Volume
from whoseblock.media.device import FileMedia
from whoseblock.media.mounts import device_node

__all__ = ["doubt_of_log"]

_LOG_DEVICE = "logdev="


def doubt_of_log(device: int, options: Iterable[str]) -> str:
    """Return in what state a log is that may have changes to replay; "" if it is clean.

    ``device`` is the number of the data device, and ``options`` are the mount options, which name
    an external log.  The kernel writes nothing there meanwhile.
    """
    path = device_node(device)
    if path is None:
        return "its device has no node in /dev here, so that the state of the log is unknown"
    logs = [one.removeprefix(_LOG_DEVICE) for one in options if one.startswith(_LOG_DEVICE)]
    try:
        with ExitStack() as stack:
            media = stack.enter_context(closing(FileMedia(path)))
            log = stack.enter_context(closing(FileMedia(logs[0]))) if logs else None
            found = open_superblock(media)
            note = log_note(Volume(media, found.sb, found.disputed), log)
    except WhoseblockError as error:
        return f"the state of the log is unknown: {error}"
    return "the log is dirty" if note == DIRTY else note
