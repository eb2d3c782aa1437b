"""The log, as far as it takes to tell whether it is clean (xfs_log_format.h)."""

from typing import Annotated, Final, NamedTuple

from whoseblock.fs.layout import U8, Be16, Be32, Be64, Bytes4, Layout, Uuid

__all__ = ["LOG_OP_HEADER", "LOG_RECORD", "LogOpHeader", "LogRecord"]

XLOG_HEADER_MAGIC_NUM: Final = 0xFEEDBABE
XLOG_UNMOUNT_TRANS: Final = 0x20
#: Each of this many bytes of a record's data costs its header one cycle word...
XLOG_HEADER_CYCLE_SIZE: Final = 32 * 1024
#: ... and no record has more data than this.
XLOG_MAX_RECORD_BSIZE: Final = 256 * 1024
#: So many records at most are being written at once.
XLOG_MAX_ICLOGS: Final = 8
#: The log counts in basic blocks.
BBSIZE: Final = 512


class LogRecord(NamedTuple):
    """``struct xlog_rec_header``, up to ``h_size``."""

    magicno: Be32
    cycle: Be32
    version: Be32
    len: Be32
    lsn: Be64
    tail_lsn: Be64
    crc: Bytes4
    prev_block: Be32
    num_logops: Be32
    cycle_data: Annotated[bytes, "256s"]
    fmt: Be32
    fs_uuid: Uuid
    size: Be32

    @property
    def header_blocks(self) -> int:
        """The number of basic blocks of the header."""
        if self.version & 2 and self.size > XLOG_HEADER_CYCLE_SIZE:
            return -(-self.size // XLOG_HEADER_CYCLE_SIZE)
        return 1


class LogOpHeader(NamedTuple):
    """``struct xlog_op_header``."""

    tid: Be32
    len: Be32
    clientid: U8
    flags: U8
    res2: Be16


LOG_RECORD: Final = Layout(LogRecord)
LOG_OP_HEADER: Final = Layout(LogOpHeader)
