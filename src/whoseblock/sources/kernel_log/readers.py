"""Interpret the fields of the kernel's messages: which unit they have, and what is no place.

Three traps decide what has a place. A bio that failed points behind the request, and to the whole
disk: so the sectors of iomap, of swap and of ext4_end_bio() are none. A block number of ext4 may
count in the file, not on the device. A logical address of btrfs is in no device, but in the
filesystem on it.
"""

import re
from typing import Final

from whoseblock.ranges import PHYSICAL_MEMORY
from whoseblock.sources.base import MAX_OFFSET
from whoseblock.sources.kernel_log.patterns import (
    SECTOR,
    Found,
    Harmless,
    Located,
    Units,
    Unplaced,
    locate,
)

__all__ = [
    "BEHIND",
    "IN_FILE",
    "NO_BLOCK_SIZE",
    "REQUEST_REMARK",
    "WHOLE_REQUEST_REMARK",
    "harmless",
    "read_address",
    "read_array",
    "read_block",
    "read_btrfs",
    "read_btrfs_file",
    "read_btrfs_logical",
    "read_buffer",
    "read_edac",
    "read_ext",
    "read_ide",
    "read_integrity",
    "read_mmc",
    "read_nvme",
    "read_pfn",
    "read_stripe",
    "read_xfs_block",
    "read_xfs_buffer",
    "unplaced",
]

#: The uncertainty of a line of the block layer: blk_print_req_error() prints where the rest of the
#: request begins, and a driver that does not know the failed sector fails all of it.
REQUEST_REMARK: Final = (
    "the failed request, or the rest of it, begins at this sector; the bad sector may lie further"
    " on, and the log does not say how far"
)
WHOLE_REQUEST_REMARK: Final = (
    "this is the whole request that failed; the bad sector may lie anywhere in it"
)
_BUFFER_REMARK: Final = (
    "XFS could not read or write this buffer; the bad sector may lie anywhere in it, and a buffer"
    " in pieces continues elsewhere"
)
_XFS_BLOCK_REMARK: Final = "a metadata block of XFS begins here; the log does not print its length"
_BTRFS_REMARK: Final = (
    "a block of btrfs begins here; kernels 6.4 to 6.9 print the start of its 64 KiB stripe instead"
)
_RETRY_REMARK: Final = "the driver may have repeated this transfer with success"
_STRIPE_REMARK: Final = "md lost this part of a stripe; the bad sector may lie anywhere in it"

BEHIND: Final = (
    "because most kernels print the end of the request, and a sector of the whole disk; the block"
    " layer also logs it"
)
_BTRFS_LOGICAL_REMARK: Final = (
    "a block of btrfs begins at this logical address; the log does not print its length"
)
_BTRFS_FILE_REMARK: Final = (
    "the place of this part of a file is the present one: the file may have been changed since the"
    " message"
)
#: Data has a checksum for each sector of the filesystem, of at least so many bytes.
_CHECKED: Final = 4096
_NO_LOGICAL: Final = "because the message has no logical address, or no device"
IN_FILE: Final = "which is in a file and not on a device"
_IN_LOG: Final = "which is in the log of XFS, on a device that may be another"
NO_BLOCK_SIZE: Final = "because the size of its logical blocks is unknown"
_NO_ADDRESS: Final = "without an address"
_ONLY_SIGNAL: Final = "because only the message about the recovery action names the page"

#: The part of a stripe that raid5.c reads at once: a page in most kernels.
_STRIPE: Final = 4096
#: Operations with data; the others of blk_op_name, such as FLUSH and DISCARD, lose none.
_OPERATIONS: Final = frozenset({None, "READ", "WRITE", "WRITE_SAME", "WRITE_ZEROES", "ZONE_APPEND"})
#: NVMe commands with data: write, read, compare, write zeroes, verify, zone append.
_NVME_COMMANDS: Final = frozenset({0x01, 0x02, 0x05, 0x08, 0x0C, 0x7D})
#: The status code type of media errors, and its codes for lost data.
_NVME_MEDIA: Final = 2
_NVME_LOST: Final = range(0x80, 0x85)


def _page(address: int, units: Units, length: int = 0) -> Found:
    return locate(PHYSICAL_MEMORY, address - address % units.page, max(length, units.page))


def read_pfn(match: re.Match[str], units: Units) -> Found:
    """Interpret a page frame number."""
    return locate(PHYSICAL_MEMORY, int(match[1], 16) * units.page, units.page)


def read_failed_page(match: re.Match[str], units: Units) -> Found:
    """Interpret a page frame number of a memory failure, or of a signal that it caused.

    A signal names no place: with DAX its number is that of the first page of a huge one, since
    mf_dax_kill_procs() passes on the page of the entry. The recovery action names the page.
    """
    if match["signal"]:
        return Unplaced(PHYSICAL_MEMORY, _ONLY_SIGNAL, is_repeated=True)
    return read_pfn(match, units)


def read_address(match: re.Match[str], units: Units) -> Found:
    """Interpret an address of memory."""
    return _page(int(match[1], 16), units)


def read_edac(match: re.Match[str], units: Units) -> Found:
    """Interpret a page that EDAC prints."""
    page, offset = int(match[1], 16), int(match[2], 16)
    if not page and not offset:
        return Unplaced(PHYSICAL_MEMORY, _NO_ADDRESS)
    return read_pfn(match, units)


def read_block(match: re.Match[str], _: Units) -> Found:
    """Interpret a line of the block layer."""
    device, sector, operation = match[1], int(match[2]), match[3]
    # The kernel prints ? for a request without a disk, and (sector_t) -1 for an unknown sector.
    if operation not in _OPERATIONS or device == "?" or (sector + 1) * SECTOR > MAX_OFFSET:
        return Harmless()
    return Located(device, sector * SECTOR, SECTOR, REQUEST_REMARK)


def read_nvme(match: re.Match[str], units: Units) -> Found:
    """Interpret a command of NVMe."""
    device, command, lba, count, kind, code = match.groups()
    lost = int(kind, 16) == _NVME_MEDIA and int(code, 16) & 0xFF in _NVME_LOST
    if not lost or int(command, 16) not in _NVME_COMMANDS:
        return Harmless()
    size = units.logical_block(device)
    if size is None:
        return Unplaced(device, NO_BLOCK_SIZE, is_repeated=True)
    return locate(device, int(lba) * size, int(count) * size, WHOLE_REQUEST_REMARK)


def read_buffer(match: re.Match[str], units: Units) -> Found:
    """Interpret a block of the page cache."""
    size = units.buffer_block
    if size is None:
        reason = "because the size of its blocks is not logged (--block-size names it)"
        return Unplaced(match[1], reason, is_repeated=True)
    return locate(match[1], int(match[2]) * size, size)


def read_xfs_buffer(match: re.Match[str], _: Units) -> Found:
    """Interpret a buffer of XFS."""
    device, start, function = match.group("device", "start", "function")
    if function.startswith("xlog_") and not function.startswith("xlog_recov"):
        return Unplaced(device, _IN_LOG)
    found = match.groupdict()
    length = int(found["sectors"]) * SECTOR if found.get("sectors") else int(found["bytes"])
    return locate(device, int(start, 16) * SECTOR, length, _BUFFER_REMARK)


def read_xfs_block(match: re.Match[str], _: Units) -> Found:
    """Interpret the start of a block of XFS."""
    device, kind, start = match.group("device", "kind", "start")
    if kind == "xfs_rtsb":
        return Unplaced(device, "which is on the realtime device of XFS")
    return locate(device, int(start, 16) * SECTOR, SECTOR, _XFS_BLOCK_REMARK)


def read_btrfs(match: re.Match[str], _: Units) -> Found:
    """Interpret a place of btrfs on a device."""
    device, unit, place, length = match.groups()
    start = int(place) * (SECTOR if unit == "sector" else 1)
    return locate(device, start, int(length or SECTOR), _BTRFS_REMARK)


def read_btrfs_logical(match: re.Match[str], _: Units) -> Found:
    """Interpret a logical address of btrfs."""
    device, address = match["device"], match["address"]
    if not device or not address:
        return Unplaced(device or "", _NO_LOGICAL)
    found = locate(device, int(address), SECTOR, _BTRFS_LOGICAL_REMARK)
    return found._replace(is_logical=True) if isinstance(found, Located) else found


def read_btrfs_file(match: re.Match[str], _: Units) -> Found:
    """Interpret an offset in a file of btrfs."""
    device, root, inode, offset = match.groups()
    if not device or not root or int(root) < 0:
        return Unplaced(device or "", IN_FILE)
    found = locate(device, int(offset), _CHECKED, _BTRFS_FILE_REMARK)
    if not isinstance(found, Located):
        return found
    return found._replace(file=(int(root), int(inode)))


def read_ext(match: re.Match[str], units: Units) -> Found:
    """Interpret a block of ext2, ext3 or ext4."""
    size = units.filesystem_block(match[1])
    if size is None:
        return Unplaced(match[1], "because the block size of its filesystem is unknown")
    number = next(number for number in match.groups()[1:] if number is not None)
    return locate(match[1], int(number) * size, size)


def read_stripe(match: re.Match[str], _: Units) -> Found:
    """Interpret a part of a stripe, on a member."""
    return locate(match[2], int(match[1]) * SECTOR, _STRIPE, _STRIPE_REMARK)


def read_array(match: re.Match[str], _: Units) -> Found:
    """Interpret a sector of an array."""
    return locate(match[1], int(match[2]) * SECTOR, SECTOR, REQUEST_REMARK)


def read_integrity(match: re.Match[str], _: Units) -> Found:
    """Interpret a sector of an integrity device."""
    return locate(match[1], int(match[2], 16) * SECTOR, SECTOR)


def read_mmc(match: re.Match[str], _: Units) -> Found:
    """Interpret a transfer of a card."""
    device, sector, count = match.groups()
    return locate(device, int(sector) * SECTOR, int(count) * SECTOR, _RETRY_REMARK)


def read_ide(match: re.Match[str], _: Units) -> Found:
    """Interpret a sector of an IDE disk."""
    return locate(match[1], int(match[2]) * SECTOR, SECTOR)


def unplaced(reason: str, *, repeated: bool = False) -> "_Constant":
    """Return a reader for messages whose place is never known."""
    return _Constant(reason, repeated=repeated)


class _Constant:
    """Reads every match as an error at an unknown place, of the device in the first group."""

    def __init__(self, reason: str, *, repeated: bool) -> None:
        self._reason = reason
        self._repeated = repeated

    def __call__(self, match: re.Match[str], _: Units) -> Found:
        device = match[1] if match.re.groups else ""
        return Unplaced(device or "", self._reason, self._repeated)


def harmless(_match: re.Match[str], _units: Units) -> Found:
    """Interpret an error that lost no data."""
    return Harmless()
