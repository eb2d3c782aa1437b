"""Interpret messages that only have a meaning together: SCSI commands, machine checks, APEI.

A command of SCSI counts in logical blocks. Their size is in the line with which the kernel reported
the disk, ``[sda] 1953506646 4096-byte logical blocks``, and the sense key before the command says
whether the medium failed. An address of a machine check needs the status before it, and an address
in a record of the firmware (APEI) needs the severity and the kind of its section.
"""

import re
from bisect import bisect_left
from typing import Final, NamedTuple

from msgspec import Struct

from whoseblock.ranges import PHYSICAL_MEMORY
from whoseblock.sources.kernel_log.patterns import Found, Harmless, Located, Units, Unplaced, locate
from whoseblock.sources.kernel_log.readers import NO_BLOCK_SIZE, WHOLE_REQUEST_REMARK

__all__ = ["SEQUENCES", "Command", "LogSequences", "Sequence"]

_MAX_KEPT: Final = 256
#: Limit on the commands that may yet be explained by a line of the block layer.
_MAX_COMMANDS: Final = 1 << 14

_BEGIN: Final = re.compile(r"(?:sd \d|\{\d|(?:mce: )?\[Hardware Error\]|CPU \d|TSC )", re.ASCII)
_DISK: Final = re.compile(
    r"sd \d{1,5}:\d{1,5}:\d{1,5}:\d{1,20}: \[(\w{1,32})\] (?:tag#\d{1,9} )?"
    r"(?:\d{1,20} (?P<size>\d{3,7})-byte (?:logical blocks|hardware sectors)"
    r"|Sense Key : (?P<sense>[\w ]{1,30}?) *(?:\[|$)"
    r"|CDB: (?:Read|Write|Verify|Write And Verify|Write and verify)\(\d{1,2}\):? "
    r"(?P<command>[0-9a-f]{2}(?: [0-9a-f]{2}){5,15}))",
    re.ASCII,
)
#: The sense keys that blame the medium; ``Hardware Error`` may be of the electronics.
_MEDIUM_SENSE: Final = "Medium Error"
#: READ, WRITE, WRITE AND VERIFY and VERIFY by the length of the command: the bytes of the address,
#: and those of the number of blocks (SBC-4).
_COMMANDS: Final = {
    **dict.fromkeys((0x28, 0x2A, 0x2E, 0x2F), (2, 6, 7, 9)),
    **dict.fromkeys((0xA8, 0xAA, 0xAE, 0xAF), (2, 6, 6, 10)),
    **dict.fromkeys((0x88, 0x8A, 0x8E, 0x8F), (2, 10, 10, 14)),
}

_RECORD: Final = re.compile(
    r"\{(\d{1,10})\}\[Hardware Error\]: +"
    r"(?:.{0,40}\b(?:severity|type): (?:\d, )?(?P<severity>corrected|recoverable|fatal|info)\b"
    r"|section_type: (?P<section>[\w ]{1,60})"
    r"|physical_address: 0x(?P<address>[0-9a-f]{1,16})"
    r"|physical_address_mask: 0x(?P<mask>[0-9a-f]{1,16}))",
    re.ASCII,
)

_CHECK: Final = re.compile(
    r"(?:mce: )?(?:\[Hardware Error\]: )?(?:CPU \d{1,5}: Machine Check(?: Exception| Event)?:"
    r" [0-9a-f]{1,16} Bank \d{1,3}: (?P<status>[0-9a-f]{16})"
    r"|TSC [0-9a-f]{1,16} (?:ADDR (?P<address>[0-9a-f]{1,16}) ?)?"
    r"(?:MISC (?P<misc>[0-9a-f]{1,16}))?)",
    re.ASCII,
)
#: Bits of a bank's status (Intel's manual, volume 3B, 17.3.2.2): uncorrected, MISC and ADDR valid.
_UNCORRECTED: Final = 1 << 61
_MISC_VALID: Final = 1 << 59
_ADDRESS_VALID: Final = 1 << 58
#: Bits 8 to 6 of MISC: the address mode; 2 is a physical address. Bits 5 to 0: its lowest bit.
_PHYSICAL: Final = 2

#: Limit on the range that the mask of an address may name.
_MAX_MASKED: Final = 1 << 40

_NO_STATUS: Final = "because the lines before it do not say whether memory was lost"


class Sequence(NamedTuple):
    """A kind of messages that belong together, for the table of forms; as `Pattern`."""

    name: str
    unit: str
    source: str
    versions: str
    sample: tuple[str, ...]
    seen: str


SEQUENCES: Final = (
    Sequence(
        "SCSI command",
        "logical blocks of the disk",
        "drivers/scsi/scsi_logging.c, scsi_print_command()",
        "since 3.19",
        (
            "sd 15:0:0:1: [sdn] 2097152 512-byte logical blocks: (1.07 GB/1.00 GiB)",
            "sd 15:0:0:1: [sdn] tag#4 Sense Key : Medium Error [current]    ",
            "sd 15:0:0:1: [sdn] tag#4 CDB: Write(10) 2a 00 00 00 84 88 00 00 30 00",
        ),
        "archiecobbs/s3backer#122",
    ),
    Sequence(
        "machine check",
        "bytes",
        "arch/x86/kernel/cpu/mce/core.c, print_mce()",
        "since 2.6.25",
        (
            "mce: [Hardware Error]: CPU 18: Machine Check Exception: 5 Bank 7: be00000001010091",
            "mce: [Hardware Error]: TSC ae4b410af0b8 ADDR 314d193000 MISC 200400c008002086 ",
        ),
        "the list linux-edac, November 2020",
    ),
    Sequence(
        "APEI",
        "bytes",
        "drivers/firmware/efi/cper.c, cper_print_mem()",
        "since 2.6.37",
        (
            "{1}[Hardware Error]: event severity: recoverable",
            "{1}[Hardware Error]: Error 0, type: recoverable",
            "{1}[Hardware Error]: section_type: memory error",
            "{1}[Hardware Error]: physical_address: 0x0000000e16677000",
        ),
        "andikleen/mcelog#74",
    ),
)


class Command(NamedTuple):
    """A failed command of SCSI, with the line and the text of its message."""

    place: Located
    number: int
    text: str


class _Record(Struct):
    """A record of the firmware, as far as it was logged."""

    severity: str = ""
    section: str = ""
    address: int | None = None


class LogSequences:
    """Interprets the messages of one log that belong together, in their order."""

    def __init__(self, units: Units) -> None:
        self._units = units
        #: The size of logical blocks by disk, and the sense key that was last logged.
        self._sizes: dict[str, int] = {}
        self._sense: dict[str, str] = {}
        self._commands: list[Command] = []
        #: The last records of the firmware by their number.
        self._records: dict[str, _Record] = {}
        self._status: int | None = None

    def interpret(self, number: int, text: str) -> Found | None:
        """Return what a message reports with those before it, None if it is of another kind."""
        if not _BEGIN.match(text):
            return None
        if text[0] == "s":
            return self._interpret_disk(number, text)
        if text[0] == "{":
            return self._interpret_record(text)
        return self._interpret_check(text)

    # ------------------------------------------------------------------ SCSI

    def _interpret_disk(self, number: int, text: str) -> Found | None:
        match = _DISK.match(text)
        if match is None:
            return None
        disk = match[1]
        if match["size"]:
            if len(self._sizes) < _MAX_KEPT:
                self._sizes[disk] = int(match["size"])
            return Harmless()
        if match["sense"]:
            if len(self._sense) < _MAX_KEPT or disk in self._sense:
                self._sense[disk] = match["sense"]
            # Whether it is explained by another line is for the caller to find out.
            return None
        if self._sense.pop(disk, "") != _MEDIUM_SENSE:
            return Harmless()
        return self._keep_command(disk, bytes.fromhex(match["command"]), number, text)

    def _keep_command(self, disk: str, command: bytes, number: int, text: str) -> Found:
        place = _COMMANDS.get(command[0])
        size = self._sizes.get(disk) or self._units.logical_block(disk)
        if place is None or len(command) < place[3] or not size:
            return Unplaced(disk, NO_BLOCK_SIZE, is_repeated=True)
        lba = int.from_bytes(command[place[0] : place[1]])
        count = int.from_bytes(command[place[2] : place[3]])
        found = locate(disk, lba * size, count * size, WHOLE_REQUEST_REMARK)
        if isinstance(found, Located):
            if len(self._commands) >= _MAX_COMMANDS:
                return Unplaced(disk, "because too many commands failed", is_repeated=True)
            self._commands.append(Command(found, number, text))
        return Harmless()

    def unexplained(self, starts: set[tuple[str, int]]) -> list[Command]:
        """Return the commands in which no failure of ``starts`` (device and byte) lies.

        For most commands, the block layer logs the sector too, which is the better place.
        """
        by_disk: dict[str, list[int]] = {}
        for device, start in starts:
            by_disk.setdefault(device, []).append(start)
        for one in by_disk.values():
            one.sort()
        return [one for one in self._commands if not _is_in(one.place, by_disk)]

    # ------------------------------------------------------------------ memory

    def _interpret_record(self, text: str) -> Found:
        match = _RECORD.match(text)
        if match is None:
            return Harmless()
        if match[1] not in self._records and len(self._records) >= _MAX_KEPT:
            self._records.pop(next(iter(self._records)))
        record = self._records.setdefault(match[1], _Record())
        if match["severity"]:
            record.severity = match["severity"]
        elif match["section"]:
            record.section = match["section"]
        elif match["address"]:
            record.address = int(match["address"], 16)
            return self._read_record(record, 0)
        elif match["mask"]:
            # The mask has the valid bits of the address; a smaller range than a page is a page.
            length = (~int(match["mask"], 16) & (1 << 64) - 1) + 1
            if not length & (length - 1) and self._units.page < length <= _MAX_MASKED:
                return self._read_record(record, length)
        return Harmless()

    def _read_record(self, record: "_Record", length: int) -> Found:
        if record.severity in ("corrected", "info"):
            return Harmless()
        if record.section and record.section != "memory error":
            return Harmless()
        if not record.severity or not record.section or record.address is None:
            return Unplaced(PHYSICAL_MEMORY, _NO_STATUS)
        return self._locate_memory(record.address, length)

    def _interpret_check(self, text: str) -> Found | None:
        match = _CHECK.match(text)
        if match is None:
            return None
        if match["status"]:
            # Two processors that print at once cannot be distinguished.
            self._status = None if self._status is not None else int(match["status"], 16)
            return Harmless() if self._status is not None else None
        status, self._status = self._status, None
        if match["address"] is None:
            return Harmless()
        if status is None:
            return Unplaced(PHYSICAL_MEMORY, _NO_STATUS)
        return self._read_check(status, int(match["address"], 16), int(match["misc"] or "0", 16))

    def _read_check(self, status: int, address: int, misc: int) -> Found:
        if not status & _UNCORRECTED:
            return Harmless()
        if not status & _ADDRESS_VALID or not status & _MISC_VALID or misc >> 6 & 7 != _PHYSICAL:
            return Unplaced(PHYSICAL_MEMORY, "because it is not a physical address")
        return self._locate_memory(address, 1 << (misc & 0x3F))

    def _locate_memory(self, address: int, length: int) -> Found:
        length = max(length, self._units.page)
        return locate(PHYSICAL_MEMORY, address - address % length, length)


def _is_in(place: Located, by_disk: dict[str, list[int]]) -> bool:
    starts = by_disk.get(place.device, [])
    at = bisect_left(starts, place.start)
    return at < len(starts) and starts[at] < place.start + place.length
