"""The table of the kernel's messages: every sample, with the unit of its numbers."""

import re

import pytest

from whoseblock.ranges import PHYSICAL_MEMORY
from whoseblock.sources.base import Reading
from whoseblock.sources.kernel_log.dmesg import read_dmesg, read_message
from whoseblock.sources.kernel_log.messages import PATTERNS, find_pattern
from whoseblock.sources.kernel_log.patterns import Pattern, Units
from whoseblock.sources.kernel_log.sequences import SEQUENCES

UNITS = Units(
    logical_block={"nvme0n1": 4096}.get,
    filesystem_block={"nbd0": 1024, "sdb1": 4096, "dm-4": 4096}.get,
    buffer_block=4096,
)
#: The place in each sample, computed by hand; None for an unknown place, False for no loss.
PLACES = {
    "memory failure": (PHYSICAL_MEMORY, 0xE16677 << 12, 4096),
    "memory failure, older words": (PHYSICAL_MEMORY, 0x318 << 12, 4096),
    "memory error in user space": (PHYSICAL_MEMORY, 0xEDBE201000, 4096),
    "EDAC, uncorrected error": (PHYSICAL_MEMORY, 0x1251D6000, 4096),
    "EDAC, corrected error": False,
    "block layer": ("loop1", 1314944 * 512, 512),
    "NVMe": ("nvme0n1", 0, 4096),
    "page cache": ("cas1-1", 8132691575 * 4096, 4096),
    "XFS, metadata I/O": ("vda4", 0x1478 * 512, 8 * 512),
    "XFS, metadata I/O, older words": ("dm-1", 0x4D7300 * 512, 32 * 512),
    "XFS, damaged metadata": ("sdb", 512, 512),
    "XFS, failed write of metadata": ("dm-4", 0x3C6478 * 512, 512),
    "XFS, log recovery": None,
    "writeback": None,
    "writeback, older words": None,
    "btrfs, on a device": ("mapper/AM-2", 1498415104, 512),
    "btrfs, corrected": False,
    "btrfs, in a file": ("sda1", 4096, 4096),
    "btrfs, logical address": ("sdc2", 249747406848, 512),
    "btrfs, counters": None,
    "ext4, metadata": ("sdb1", 81788961 * 4096, 4096),
    "ext4, damaged directory": ("dm-4", 6832992 * 4096, 4096),
    "ext4, writeback": None,
    "md, RAID 4, 5 and 6": ("sdh1", 2504656 * 512, 4096),
    "md, RAID 1 and 10": ("md0", 21319296 * 512, 512),
    "md, corrected or redirected": False,
    "md, check": None,
    "dm-integrity": ("dm-0", 0x6E70 * 512, 512),
    "dm-integrity, no device": None,
    "dm-verity": None,
    "dm-verity, corrected": False,
    "dm-crypt with integrity": None,
    "MMC and SD cards": ("mmcblk0", 3 * 512, 5 * 512),
    "swap": None,
    "IDE disks": ("hda", 100789723 * 512, 512),
    "loop device, backing file": None,
    "soft offline": False,
    "SCSI command": ("sdn", 0x8488 * 512, 0x30 * 512),
    "machine check": (PHYSICAL_MEMORY, 0x314D193000, 4096),
    "APEI": (PHYSICAL_MEMORY, 0xE16677000, 4096),
}
SAMPLES: list[tuple[str, tuple[str, ...]]] = [(one.name, (one.sample,)) for one in PATTERNS]
SAMPLES += [(one.name, one.sample) for one in SEQUENCES]


def read(
    *messages: str, units: Units = UNITS, prefix: str = "[    1.0] "
) -> tuple[list[tuple[str, int, int]], Reading]:
    reading = Reading("log")
    lines = [f"{prefix}{message}\n" for message in messages]
    found = [
        (one.device, one.start, one.length)
        for one in read_dmesg(lines, "log", reading=reading, units=units)
    ]
    return found, reading


@pytest.mark.parametrize(("name", "sample"), SAMPLES)
def test_every_sample_is_understood(name: str, sample: tuple[str, ...]) -> None:
    found, reading = read(*sample)
    expected = PLACES[name]
    assert found == ([expected] if expected else [])
    assert not reading.unrecognised
    assert not reading.broken
    assert bool(reading.unplaced) == (expected is None)


@pytest.mark.parametrize("pattern", PATTERNS, ids=lambda one: one.name)
def test_the_first_words_of_a_pattern_select_it(pattern: Pattern) -> None:
    assert find_pattern(pattern.sample) is pattern
    # Groups would shift those of the combined expression.
    assert re.compile(pattern.begin).groups == 0


@pytest.mark.parametrize("name", ["NVMe", "page cache", "ext4, metadata", "SCSI command"])
def test_a_sample_without_its_unit_has_no_assumed_place(name: str) -> None:
    # The log says the size of the blocks of a disk in a line of its own, the first of the sample.
    sample = dict(SAMPLES)[name][-2:]
    found, reading = read(*sample, units=Units())
    assert found == []
    assert sum(one.count for one in reading.unplaced.values()) == 1


@pytest.mark.parametrize(
    ("message", "place"),
    [
        # Kernels before 3.15 and 3.0.
        (
            'XFS (sda1): metadata I/O error: block 0x1 ("xfs_x") error 5 buf count 4096',
            ("sda1", 512, 4096),
        ),
        (
            ("XFS (sda1): Metadata CRC error detected at xfs_agf_read_verify+0x1/0x2 [xfs],"
            " block 0x8"),
            ("sda1", 4096, 512),
        ),
        ("XFS (sda1): Corruption Alert: Buffer at daddr 0x8 had permanent write failures!",
         ("sda1", 4096, 512)),
        # Before 5.0 the unit was the sector.
        (
            ("BTRFS warning (device sdb): checksum error at logical 13 on dev /dev/sdb, sector"
            " 75264, root 5, inode 257, offset 0, length 4096, links 1 (path: x)"),
            ("sdb", 75264 * 512, 4096),
        ),
        (
            ("BTRFS error (device sdb state M): scrub: unable to fixup (regular) error at logical 1"
            " on dev /dev/sdb physical 4096"),
            ("sdb", 4096, 512),
        ),
        (
            ("EXT4-fs error (device nbd0): ext4_wait_block_bitmap:527: comm x: Cannot read block"
            " bitmap - block_group = 1, block_bitmap = 1026"),
            ("nbd0", 1026 * 1024, 1024),
        ),
        (
            ("EXT3-fs error (device nbd0): ext3_get_inode_loc: unable to read inode block -"
            " inode=2, block=1059"),
            ("nbd0", 1059 * 1024, 1024),
        ),
        ("raid5:md0: read error NOT corrected!! (sector 8 on sdb1).", ("sdb1", 4096, 4096)),
        (
            'EDAC MC0: UE page 0x3710b3, offset 0x400, grain 32, row 0, labels "x": y',
            (PHYSICAL_MEMORY, 0x3710B3000, 4096),
        ),
        (
            ("BTRFS warning (device sda7): checksum/header error at logical 1064960 on dev"
            " /dev/sda7, physical 1064960: metadata leaf (level 0) in tree 3"),
            ("sda7", 1064960, 512),
        ),
        (
            "nvme0n1: Write(0x1) @ LBA 1, 2 blocks, Write Fault (sct 0x2 / sc 0x80) DNR ",
            ("nvme0n1", 4096, 8192),
        ),
    ],
)  # fmt: skip
def test_the_words_of_other_versions_are_understood(
    message: str, place: tuple[str, int, int]
) -> None:
    assert read(message)[0] == [place]


@pytest.mark.parametrize(
    ("message", "address"),
    [
        ("unable to fixup (regular) error at logical 81920 on dev /dev/sdb", 81920),
        ("unable to fixup (regular) error at logical 81920 on mirror 2", 81920),
        ("corrupt leaf: root=5 block=29442048 slot=1, x", 29442048),
        ("parent transid verify failed on 29442048 wanted 26779 found 25801", 29442048),
        ("bad tree block start, want 30474240 have 0", 30474240),
        ("bad tree block start, mirror 1 want 30474240 have 0", 30474240),
        ("scrub: tree block 30474240 mirror 1 has bad generation, has 10 want 99999", 30474240),
        ("level verify failed on logical 30474240 mirror 1 wanted 0 found 1", 30474240),
        ("bad tree block level, mirror 1 level 20000", None),
        (f"corrupt leaf: root=5 block={'9' * 20} slot=1, x", None),
    ],
)
def test_a_logical_address_is_of_the_filesystem(message: str, address: int | None) -> None:
    lines = [f"[    1.0] BTRFS error (device sdb): {message}\n"]
    found = list(read_dmesg(lines, "log", reading=Reading("log"), units=UNITS))
    expected = [("sdb", address, 512, True)] if address else []
    assert [(one.device, one.start, one.length, one.is_logical) for one in found] == expected


@pytest.mark.parametrize(
    "message",
    [
        # An address in another address space than the device's.
        'XFS (dm-7): metadata I/O error: block 0x20000b568 ("xlog_bwrite") error 5 numblks 8200',
        (
            "XFS (sda1): Metadata CRC error detected at xfs_rtsb_read_verify+0x1/0x2 [xfs],"
            " xfs_rtsb block 0x0 "
        ),
        "device-mapper: integrity: nvme0n1: Checksum failed at sector 0x8",
        # EDAC without an address.
        "EDAC MC0: 1 UE x on y (channel:0 page:0x0 offset:0x0 grain:32)",
        # The largest numbers.
        f"XFS (sda1): Failing async write on buffer block 0x{'f' * 16}. Retrying async write.",
        f"md/raid:md3: read error not correctable (sector {'9' * 20} on sde1).",
    ],
)
def test_an_address_of_another_space_is_unknown(message: str) -> None:
    found, reading = read(message)
    assert found == []
    assert sum(one.count for one in reading.unplaced.values()) == 1
    assert "at an unknown place, " in reading.summary()


@pytest.mark.parametrize(
    "message",
    [
        # A block of the file, or a number that the directory or the inode holds.
        (
            "EXT4-fs error (device nbd0): __ext4_read_dirblock:5: inode #2: block 0: comm ls:"
            " Directory block failed checksum"
        ),
        "EXT4-fs error (device nbd0): ext4_ext_map:5: inode #2: block 9: comm ls: invalid block",
        (
            "EXT4-fs warning (device nbd0): __ext4_read_dirblock:902: error reading directory block"
            " (ino 27787265, block 0)"
        ),
        (
            "EXT4-fs error (device nbd0): ext4_find_entry:1437: inode #12582913: comm bitcoind:"
            " reading directory lblock 0"
        ),
        # A path, which any user may choose.
        (
            "EXT4-fs error (device nbd0): x:5: inode #2: block 9: comm ls: path /bad entry in"
            " directory: : directory fails checksum at offset 0"
        ),
        "XFS (sda1): Metadata corruption detected at xfs_dinode_verify+0x1/0x2 [xfs], inode 0x85",
    ],
)
def test_a_number_of_another_kind_is_not_a_place(message: str) -> None:
    found, reading = read(message)
    assert (found, reading.unrecognised) == ([], 1)


@pytest.mark.parametrize(
    "message",
    [
        "nvme0n1: Read(0x2) @ LBA 8, 8 blocks, Command Interrupted (sct 0x0 / sc 0x21) ",
        "nvme0n1: Dataset Management(0x9) @ LBA 0, 1 blocks, Write Fault (sct 0x2 / sc 0x80) ",
        "BTRFS error (device dm-2): fixed up error at logical 1 on dev /dev/sdb physical 4096",
        "btrfs: fixed up error at logical 1 on dev /dev/sdb",
    ],
)
def test_an_error_without_loss_is_passed_over(message: str) -> None:
    found, reading = read(message)
    assert (found, reading.unrecognised, reading.unplaced) == ([], 0, {})


@pytest.mark.parametrize("pattern", PATTERNS, ids=lambda one: one.name)
def test_no_sample_begins_with_a_name_that_a_process_may_have(pattern: Pattern) -> None:
    """Begin messages with the name of a process, as the kernel does: 15 bytes, then "[" or " "."""
    name = pattern.sample[:15]
    for text in (f"{name}[4242]: segfault at 0", f"{name} invoked x", f"{name} (4242): x"):
        found, reading = read(text)
        assert (found, reading.unplaced, reading.broken) == ([], {}, 0)


@pytest.mark.parametrize("pattern", PATTERNS, ids=lambda one: one.name)
def test_the_daemon_takes_what_blames_a_medium_by_itself(pattern: Pattern) -> None:
    found = read_message(pattern.sample, "kmsg")
    assert (found is not None) == (pattern.name in ("memory failure", "block layer"))
