"""Messages that only have a meaning together: SCSI commands, machine checks, APEI."""

import pytest

from whoseblock.ranges import PHYSICAL_MEMORY
from whoseblock.sources.base import Reading
from whoseblock.sources.kernel_log.dmesg import read_dmesg

SIZE = "sd 2:0:0:0: [sdb] 244190646 4096-byte logical blocks: (1.00 TB/931 GiB)"
SENSE = "sd 2:0:0:0: [sdb] tag#12 Sense Key : Medium Error [current] "
READ10 = "sd 2:0:0:0: [sdb] tag#12 CDB: Read(10) 28 00 00 02 5a 00 00 00 08 00"
STATUS = "mce: [Hardware Error]: CPU 0: Machine Check Exception: 5 Bank 7: {:016x}"
ADDRESS = "mce: [Hardware Error]: TSC 0 ADDR 3710b3400 MISC {:x} "
#: Valid, uncorrected, MISC and ADDR valid.
LOST = 1 << 63 | 1 << 61 | 1 << 59 | 1 << 58


def read(*messages: str) -> tuple[list[tuple[str, int, int]], Reading]:
    reading = Reading("log")
    lines = [f"[    1.0] {message}\n" for message in messages]
    found = [(one.device, one.start, one.length) for one in read_dmesg(lines, "x", reading=reading)]
    return found, reading


def test_the_sector_of_the_block_layer_is_preferred() -> None:
    sector = 0x25A00 * 8 + 16
    found, reading = read(SIZE, SENSE, READ10, f"critical medium error, dev sdb, sector {sector}")
    assert found == [("sdb", sector * 512, 512)]
    assert reading.is_silent
    # A sector outside of the command is another failure.
    found, _ = read(SIZE, SENSE, READ10, "critical medium error, dev sdb, sector 8")
    assert found == [("sdb", 4096, 512), ("sdb", 0x25A00 * 4096, 8 * 4096)]


@pytest.mark.parametrize(
    ("command", "place"),
    [
        ("Read(16) 88 00 00 00 00 01 d0 e0 e8 b8 00 00 00 80 00 00", (0x1D0E0E8B8, 128)),
        ("Read(10): 28 00 00 00 00 10 00 00 02 00", (0x10, 2)),
        ("Write(12) aa 00 00 00 00 10 00 00 00 02 00 00", (0x10, 2)),
    ],
)
def test_every_length_of_a_command_is_parsed(command: str, place: tuple[int, int]) -> None:
    found, _ = read(SIZE, SENSE, f"sd 2:0:0:0: [sdb] tag#12 CDB: {command}")
    assert found == [("sdb", place[0] * 4096, place[1] * 4096)]


@pytest.mark.parametrize(
    "messages",
    [
        # The path failed, and not the medium.
        (SIZE, READ10),
        (SIZE, SENSE.replace("Medium Error", "Not Ready"), READ10),
        (SIZE, SENSE.replace("sdb", "sdc"), READ10),
        # Truncated.
        (SIZE, SENSE, READ10[:-9]),
    ],
)
def test_a_command_without_a_medium_error_has_no_place(messages: tuple[str, ...]) -> None:
    assert read(*messages)[0] == []


def test_a_command_in_blocks_of_unknown_size_is_counted() -> None:
    found, reading = read(SENSE, READ10)
    assert found == []
    assert "size of its logical blocks is unknown" in reading.summary()


@pytest.mark.parametrize(
    ("status", "misc", "places"),
    [
        (LOST, 0x86, [(PHYSICAL_MEMORY, 0x3710B3000, 4096)]),
        # 16 KiB, from the lowest valid bit.
        (LOST, 0x8E, [(PHYSICAL_MEMORY, 0x3710B0000, 1 << 14)]),
        # Corrected.
        (LOST & ~(1 << 61), 0x86, []),
        # A linear address; an invalid one; MISC that is not valid.
        (LOST, 0x46, []),
        (LOST & ~(1 << 58), 0x86, []),
        (LOST & ~(1 << 59), 0x86, []),
    ],
)
def test_an_address_of_a_machine_check_needs_its_status(
    status: int, misc: int, places: list[tuple[str, int, int]]
) -> None:
    found, reading = read(STATUS.format(status), ADDRESS.format(misc))
    assert found == places
    assert bool(places) or bool(reading.unplaced) == bool(status >> 61 & 1)


def test_two_processors_that_print_at_once_are_not_told_apart() -> None:
    lines = [STATUS.format(LOST), STATUS.format(LOST), ADDRESS.format(0x86), ADDRESS.format(0x86)]
    found, reading = read(*lines)
    assert found == []
    assert reading.unplaced


def record(severity: str, section: str, number: int = 1) -> list[str]:
    head = f"{{{number}}}[Hardware Error]:"
    return [
        f"{head} event severity: {severity}",
        f"{head}  Error 0, type: {severity}",
        f"{head}   section_type: {section}",
        f"{head}   physical_address: 0x0000000898b86020",
    ]


def test_a_record_of_the_firmware_needs_its_severity() -> None:
    page = [(PHYSICAL_MEMORY, 0x898B86000, 4096)]
    assert read(*record("recoverable", "memory error"))[0] == page
    assert read(*record("fatal", "memory error"))[0] == page
    for severity, section in (
        ("corrected", "memory error"),
        ("info", "memory error"),
        ("recoverable", "PCIe error"),
    ):
        found, reading = read(*record(severity, section))
        assert (found, reading.unplaced, reading.unrecognised) == ([], {}, 0)
    found, reading = read(record("recoverable", "memory error")[-1])
    assert found == []
    assert reading.unplaced
    # Two records at once.
    one, two = record("recoverable", "memory error"), record("corrected", "memory error", 2)
    assert read(*one[:3], *two, one[3])[0] == page


def test_the_mask_of_an_address_may_name_more_than_a_page() -> None:
    lines = record("recoverable", "memory error")
    mask = "{1}[Hardware Error]:   physical_address_mask: 0x"
    wide = [(PHYSICAL_MEMORY, 0x898B86000, 4096), (PHYSICAL_MEMORY, 0x898B80000, 1 << 16)]
    assert read(*lines, mask + "ffffffffffff0000")[0] == wide
    for narrow in ("fffffffffffff000", "ffffffffffffffff", "0000000000000000", "00ff00ff00ff00ff"):
        assert read(*lines, mask + narrow)[0] == wide[:1]
