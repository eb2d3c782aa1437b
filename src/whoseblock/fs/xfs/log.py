"""Telling whether the log is clean, without replaying it.

A filesystem that was unmounted ends its log with an unmount record, and nothing after it.  If the
record before the head is not that, metadata on the disk is older than what the log holds: an answer
from it may be wrong.  Any doubt counts as dirty.
"""

from whoseblock.errors import BlockError
from whoseblock.fs.xfs.format.log import (
    BBSIZE,
    LOG_OP_HEADER,
    LOG_RECORD,
    XLOG_HEADER_MAGIC_NUM,
    XLOG_MAX_RECORD_BSIZE,
    XLOG_UNMOUNT_TRANS,
)
from whoseblock.fs.xfs.volume import Volume
from whoseblock.media.base import Media

__all__ = ["log_note"]

_MAGIC = XLOG_HEADER_MAGIC_NUM.to_bytes(4, "big")
#: An unmount record is small, but may be padded to the largest record with its header.
_LOOK_BACK = XLOG_MAX_RECORD_BSIZE // BBSIZE + 8

_DIRTY = (
    "the log is dirty: the filesystem is mounted, or was not unmounted cleanly, and what the log"
    " holds is not in this answer; mount and unmount it, or look at it mounted"
)


def log_note(volume: Volume, log_media: Media | None = None) -> str:
    """Give the note that the state of the log calls for; "" if it is clean."""
    sb = volume.sb
    if not sb.logblocks:
        return "the superblock knows of no log"
    if sb.logstart:
        media, start = volume.media, volume.fsb_to_byte(sb.logstart, sb.logblocks)
        if start is None:
            return "the superblock puts the log where it cannot be"
    elif log_media is None:
        return (
            "the log is on another device, so that nobody can tell from this one whether it is"
            " clean; name it with --log-device"
        )
    else:
        media, start = log_media, 0
    log = _Log(media, start, sb.logblocks * sb.blocksize // BBSIZE)
    try:
        return "" if log.is_clean(sb.uuid) else _DIRTY
    except BlockError as error:
        return f"the log cannot be read, so that nobody can tell whether it is clean: {error}"


class _Log:
    """A log of ``blocks`` basic blocks at byte ``start`` of ``media``."""

    def __init__(self, media: Media, start: int, blocks: int) -> None:
        self.media = media
        self.start = start
        self.blocks = blocks

    def read(self, block: int, count: int = 1) -> bytes:
        """Read basic blocks, going round at the end."""
        block %= self.blocks
        first = min(count, self.blocks - block)
        data = self.media.pread(self.start + block * BBSIZE, first * BBSIZE)
        return data if first == count else data + self.read(0, count - first)

    def cycle(self, block: int) -> int:
        """Each pass over the log has a number, stamped on every basic block."""
        raw = self.read(block)
        word = raw[4:8] if raw[:4] == _MAGIC else raw[:4]
        return int.from_bytes(word, "big")

    def head(self) -> int:
        """Find the block after the last one written: where the cycle changes."""
        last = self.cycle(self.blocks - 1)
        if self.cycle(0) == last:
            return 0
        # Blocks before the head have the newer cycle, the rest that of the last block.
        low, high = 0, self.blocks - 1
        while high - low > 1:
            middle = (low + high) // 2
            if self.cycle(middle) == last:
                high = middle
            else:
                low = middle
        return high

    def is_clean(self, uuid: bytes) -> bool:
        """Tell whether an unmount record is the last thing in the log."""
        head = self.head()
        back = min(_LOOK_BACK, self.blocks)
        before = self.read(head - back, back)
        at = len(before) - BBSIZE
        while at >= 0 and before[at : at + 4] != _MAGIC:
            at -= BBSIZE
        if at < 0:
            return False
        record = LOG_RECORD.unpack_from(before, at)
        data_at = at + record.header_blocks * BBSIZE
        end = data_at + -(-record.len // BBSIZE) * BBSIZE
        if end != len(before) or record.num_logops != 1 or data_at + BBSIZE > end:
            return False
        operation = LOG_OP_HEADER.unpack_from(before, data_at)
        return bool(operation.flags & XLOG_UNMOUNT_TRANS) and record.fs_uuid == uuid
