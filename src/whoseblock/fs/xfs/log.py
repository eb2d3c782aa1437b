"""Telling whether the log is clean, without replaying it.

A filesystem that was unmounted ends its log with an unmount record, and nothing after it.  If the
record before the head is not that, metadata on the disk is older than what the log holds: an answer
from it may be wrong.  Any doubt counts as dirty.

xfs_repair, xfs_admin, xfs_copy and xfs_metadump clear a log instead: they fill it with unmount
records that are as large as records can be, behind a small one with the number of the next pass.
"""

from typing import Final

from whoseblock.errors import BlockError
from whoseblock.fs.xfs.format.log import (
    BBSIZE,
    LOG_OP_HEADER,
    LOG_RECORD,
    XLOG_HEADER_MAGIC_NUM,
    XLOG_MAX_ICLOGS,
    XLOG_MAX_RECORD_BSIZE,
    XLOG_UNMOUNT_TRANS,
    LogRecord,
)
from whoseblock.fs.xfs.volume import Volume
from whoseblock.media.base import Media

__all__ = ["DIRTY", "log_note"]

_MAGIC: Final = XLOG_HEADER_MAGIC_NUM.to_bytes(4, "big")
#: The largest record in basic blocks, with room for its header.
_LOOK_BACK: Final = XLOG_MAX_RECORD_BSIZE // BBSIZE + 8
#: The kernel writes so many records at once, in any order: blocks of the pass before may lie
#: between them after a crash.
_IN_FLIGHT: Final = XLOG_MAX_ICLOGS * XLOG_MAX_RECORD_BSIZE // BBSIZE

DIRTY: Final = (
    "the log is dirty: the filesystem is mounted, or was not unmounted cleanly, and what the log"
    " holds is not in this answer; mount and unmount it, or look at it mounted"
)


def log_note(volume: Volume, log_media: Media | None = None) -> str:
    """Return a note about the state of the log; "" if it is clean."""
    sb = volume.sb
    if not sb.logblocks:
        return "the superblock knows of no log"
    if sb.logstart:
        media, start = volume.media, volume.fsb_to_byte(sb.logstart, sb.logblocks)
        if start is None:
            return "the superblock puts the log where it cannot be"
    elif log_media is None:
        return (
            "the log is on another device, so that its state is unknown; name the device with"
            " --log-device"
        )
    else:
        media, start = log_media, 0
    log = _Log(media, start, sb.logblocks * sb.blocksize // BBSIZE)
    try:
        return "" if log.is_clean(sb.uuid) else DIRTY
    except BlockError as error:
        return f"the log cannot be read, so that its state is unknown: {error}"


def _cycle_of(block: bytes) -> bytes:
    """Return the cycle number of a basic block: its first word, or the one after the magic."""
    return block[4:8] if block[:4] == _MAGIC else block[:4]


class _Log:
    """A log of ``blocks`` basic blocks at byte ``start`` of ``media``.

    Each pass over the log has a number, its *cycle*, stamped on every basic block.
    """

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
        """Return the cycle number of a block."""
        return int.from_bytes(_cycle_of(self.read(block)), "big")

    def head(self) -> int | None:
        """Find the block after the last one written; None if no pass over the log is recognised.

        Blocks before the head have the newer cycle, the rest the one of the last block: 0 where
        the log was never written.
        """
        first, last = self.cycle(0), self.cycle(self.blocks - 1)
        # Where the end was never written, this is the first pass (xlog_find_zeroed).
        if first == 0 or not (0 <= first - last <= 1 if last else first == 1):
            return None
        if first == last:
            return self._before_holes(self.blocks, last - 1, last)
        low, high = 0, self.blocks - 1
        while high - low > 1:
            middle = (low + high) // 2
            if self.cycle(middle) == last:
                high = middle
            else:
                low = middle
        return self._before_holes(high, last, last)

    def _before_holes(self, head: int, stale: int, last: int) -> int:
        """Move the head before the first block that was not written in this pass.

        ``stale`` is the cycle of such blocks before the head, one less on the far side of the end.
        """
        round_the_end = _IN_FLIGHT - head
        if round_the_end > 0 and last:
            begin = max(self.blocks - round_the_end, head)
            hole = self._find_cycle(stale - 1, begin, self.blocks)
            if hole is not None:
                return hole
        hole = self._find_cycle(stale, max(head - _IN_FLIGHT, 0), head)
        return head if hole is None else hole

    def _find_cycle(self, cycle: int, begin: int, end: int) -> int | None:
        """Find the first block from ``begin`` up to ``end`` that has a cycle."""
        wanted = cycle.to_bytes(4, "big", signed=cycle < 0)
        for base in range(begin, end, _LOOK_BACK):
            count = min(_LOOK_BACK, end - base)
            data = self.read(base, count)
            for at in range(0, count * BBSIZE, BBSIZE):
                if _cycle_of(data[at : at + 8]) == wanted:
                    return base + at // BBSIZE
        return None

    def record_before(self, block: int) -> tuple[LogRecord, int, int] | None:
        """Find the last record that begins before a block: with its first block, and its end.

        The end is the block after it, and not wrapped.  None if the largest record would have
        begun later.
        """
        back = min(_LOOK_BACK, self.blocks)
        before = self.read(block - back, back)
        at = len(before) - BBSIZE
        while at >= 0 and before[at : at + 4] != _MAGIC:
            at -= BBSIZE
        if at < 0:
            return None
        record: LogRecord = LOG_RECORD.unpack_from(before, at)
        begin = block - back + at // BBSIZE
        return record, begin, begin + record.header_blocks + -(-record.len // BBSIZE)

    def is_clean(self, uuid: bytes) -> bool:
        """Return whether an unmount record is the last thing in the log."""
        head = self.head()
        found = None if head is None else self.record_before(head)
        if head is None or found is None:
            return False
        record, begin, end = found
        if end < head and not any(self.read(end, head - end)):
            # A log that was cleared has zeros behind its newest record, which the kernel takes for
            # a record that was not finished: the one before counts, and is an unmount record too.
            if not self._is_unmount(record, begin, uuid):
                return False
            head = begin
            found = self.record_before(head)
            if found is None:
                return False
            record, begin, end = found
        return end == head and self._is_unmount(record, begin, uuid)

    def _is_unmount(self, record: LogRecord, begin: int, uuid: bytes) -> bool:
        if record.num_logops != 1 or record.len < LOG_OP_HEADER.size or record.fs_uuid != uuid:
            return False
        count = record.header_blocks + -(-record.len // BBSIZE)
        if count > _LOOK_BACK:
            return False
        blocks = self.read(begin, count)
        # A block of another pass was not written with the rest of the record.
        cycle = _cycle_of(blocks)
        if any(_cycle_of(blocks[at : at + 8]) != cycle for at in range(0, len(blocks), BBSIZE)):
            return False
        operation = LOG_OP_HEADER.unpack_from(blocks, record.header_blocks * BBSIZE)
        return bool(operation.flags & XLOG_UNMOUNT_TRANS)
