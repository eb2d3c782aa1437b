"""The table of the kernel's messages about lost data and memory.

A message must begin with the words of a pattern. The kernel also logs names that any user may
choose, as in ``x[1]: segfault … in NAME[…]``, and NAME may be ``Memory failure: 0x10140a: ``. A
process may be named ``I/O error, dev ``, and begin a message; but no name is long enough for a
device and a comma.
"""

import re
from typing import Final

from whoseblock.sources.kernel_log import readers as read
from whoseblock.sources.kernel_log.patterns import Pattern

__all__ = ["PATTERNS", "find_pattern"]

_DEVICE: Final = r"(?:/dev/)?([^\s,()]{1,64})"
_BTRFS: Final = r"(?:BTRFS(?: \w{1,10})? \(device [^)]{1,64}\): (?:scrub: )?|BTRFS: |btrfs: )"
_EXT: Final = r"EXT[234]-fs error \(device ([^)\s]{1,64})\): "
_XFS: Final = r"XFS \((?P<device>[^)\s]{1,64})\): "
_XFS_BEGIN: Final = r"XFS \([^)\s]{1,64}\): "


_BLOCK_BEGIN: Final = (
    r"(?:(?:end_request|blk_update_request|print_req_error): )?"
    r"(?:I/O|critical medium|protection) error, dev "
)

#: Every message, in the order of the documentation.
PATTERNS: Final = (
    Pattern(
        "memory failure",
        r"Memory failure: 0x",
        # kill_procs() prints which processes were killed.
        (
            r"Memory failure: 0x([0-9a-f]{1,16}):(?P<signal> (?:Sending SIGBUS to|Killing|forcibly"
            r" killing|Cannot send advisory machine check signal to) )?"
        ),
        read.read_failed_page,
        "pages",
        "mm/memory-failure.c",
        "since 4.6",
        "Memory failure: 0xe16677: already hardware poisoned",
        seen="andikleen/mcelog#74",
        is_live=True,
        expected="a page frame number after 'Memory failure:'",
    ),
    Pattern(
        "memory failure, older words",
        r"MCE 0x",
        (
            r"MCE 0x([0-9a-f]{1,16}): (?:recovery action for |Killing |already hardware poisoned"
            r"|[A-Za-z][A-Za-z ]{2,40} page recovery: )"
        ),
        read.read_pfn,
        "pages",
        "mm/memory-failure.c",
        "2.6.32 to 4.5",
        "MCE 0x318: recovery action for dirty LRU page: Recovered",
        seen="nccgroup/TriforceLinuxSyscallFuzzer#2",
    ),
    Pattern(
        "memory error in user space",
        r"(?:mce: |MCE: )?Uncorrected hardware memory error in user-access at ",
        r"(?:mce: |MCE: )?Uncorrected [a-z -]{1,60} at ([0-9a-f]{1,16})\b",
        read.read_address,
        "bytes",
        "arch/x86/kernel/cpu/mce/core.c, kill_me_maybe()",
        "since 3.4",
        "mce: Uncorrected hardware memory error in user-access at edbe201400",
        seen="a mail archive",
    ),
    Pattern(
        "EDAC, uncorrected error",
        r"EDAC MC\d{1,3}: (?:\d{1,10} )?UE ",
        (
            r"EDAC MC\d{1,3}: (?:\d{1,10} )?UE (?:[^:]{0,400}\(.{0,400}?)?"
            r"page[: ]0x([0-9a-f]{1,16}),? offset[: ]0x([0-9a-f]{1,16})"
        ),
        read.read_edac,
        "pages",
        "drivers/edac/edac_mc.c, edac_ue_error()",
        "all",
        "EDAC MC0: 1 UE unknown on unknown memory ( page:0x1251d6 offset:0x0 grain:1 - APEI"
        " location: )",
        seen="the list qemu-devel, of an injected error",
    ),
    Pattern(
        "EDAC, corrected error",
        r"EDAC MC\d{1,3}: (?:\d{1,10} )?CE ",
        r"EDAC MC",
        read.harmless,
        "",
        "drivers/edac/edac_mc.c, edac_ce_error()",
        "all",
        "EDAC MC1: 1 CE memory scrubbing error on CPU_SrcID#1_Ha#0_Chan#0_DIMM#0 "
        "(channel:0 slot:0 page:0xee30a0 offset:0x0 grain:32 syndrome:0x0 -  area:DRAM "
        "err_code:0008:00c2 socket:1 ha:0 channel_mask:1 rank:0)",
        seen="radiasoft/devops#134",
    ),
    Pattern(
        "block layer",
        _BLOCK_BEGIN,
        # Kernels before 5.2 do not print the operation.
        (
            _BLOCK_BEGIN + r"([^\s,]{1,64}), sector (\d{1,20})\b"
            r"(?: op 0x[0-9a-f]{1,8}:\((\w{1,32})\))?"
        ),
        read.read_block,
        "512-byte sectors",
        "block/blk-mq.c, blk_print_req_error()",
        "all; other functions before 5.16",
        "I/O error, dev loop1, sector 1314944 op 0x1:(WRITE) flags 0x0 phys_seg 2 prio class 2",
        seen="sonic-net/sonic-buildimage#23146",
        is_live=True,
        expected="DEVICE, sector NUMBER after 'error, dev'",
        # A message of the block layer, or a truncated one, has a comma behind the device.
        foreign=_BLOCK_BEGIN + r"(?![^\s,]*(?:,|\s*\Z))",
    ),
    Pattern(
        "NVMe",
        r"nvme\w{1,40}: [\w /-]{1,60}\(0x[0-9a-f]{1,4}\) @ LBA ",
        (
            r"(nvme\w{1,40}): [\w /-]{1,60}\(0x([0-9a-f]{1,4})\) @ LBA (\d{1,20}), (\d{1,10})"
            r" blocks, .{1,100} \(sct 0x([0-9a-f]{1,4}) / sc 0x([0-9a-f]{1,4})\)"
        ),
        read.read_nvme,
        "logical blocks of the namespace",
        "drivers/nvme/host/core.c, nvme_log_error()",
        "since 5.18",
        "nvme0n1: I/O Cmd(0x2) @ LBA 0, 1 blocks, I/O Error (sct 0x2 / sc 0x81) DNR",
        seen="the list linux-block, April 2023",
    ),
    Pattern(
        "page cache",
        r"Buffer I/O error on dev(?:ice)? ",
        rf"Buffer I/O error on dev(?:ice)? {_DEVICE}, logical block (\d{{1,20}})\b",
        read.read_buffer,
        "--block-size",
        "fs/buffer.c, buffer_io_error()",
        "all",
        "Buffer I/O error on dev cas1-1, logical block 8132691575, lost async page write",
        seen="Open-CAS/open-cas-linux#396",
        is_above=True,
    ),
    Pattern(
        "XFS, metadata I/O",
        _XFS_BEGIN + r"metadata I/O error in ",
        (
            _XFS + r'metadata I/O error in "(?P<function>[^"\s]{1,80})[^"]{0,80}" at daddr'
            r" 0x(?P<start>[0-9a-f]{1,16}) len (?P<sectors>\d{1,8}) error "
        ),
        read.read_xfs_buffer,
        "512-byte sectors of the data device",
        "fs/xfs/xfs_buf.c, xfs_buf_ioerror_alert()",
        "since 4.18",
        'XFS (vda4): metadata I/O error in "xfs_dquot_disk_read+0x14a/0x220 [xfs]" at '
        "daddr 0x1478 len 8 error 74",
        seen="coreos/fedora-coreos-tracker#784",
        is_above=True,
    ),
    Pattern(
        "XFS, metadata I/O, older words",
        _XFS_BEGIN + r"metadata I/O error: block ",
        (
            _XFS + r"metadata I/O error: block 0x(?P<start>[0-9a-f]{1,16})"
            r' \("(?P<function>[^"]{1,80})"\) error -?\d{1,5}'
            r" (?:numblks (?P<sectors>\d{1,8})|buf count (?P<bytes>\d{1,10}))"
        ),
        read.read_xfs_buffer,
        "512-byte sectors of the data device",
        "fs/xfs/xfs_buf.c, xfs_buf_ioerror_alert()",
        "3.0 to 4.17",
        'XFS (dm-1): metadata I/O error: block 0x4d7300 ("xfs_trans_read_buf_map") error '
        "117 numblks 32",
        seen="lago-project/lago#680",
        is_above=True,
    ),
    Pattern(
        "XFS, damaged metadata",
        _XFS_BEGIN + r"Metadata (?:CRC error|corruption) detected at ",
        (
            _XFS + r"Metadata (?:CRC error|corruption) detected at [^,]{1,120},"
            r" (?:(?P<kind>\w{1,40}) )?block 0x(?P<start>[0-9a-f]{1,16})"
        ),
        read.read_xfs_block,
        "512-byte sectors of the data device",
        "fs/xfs/xfs_error.c, xfs_buf_verifier_error()",
        "since 3.15",
        "XFS (sdb): Metadata CRC error detected at xfs_agf_read_verify+0x70/0x120 [xfs], "
        "xfs_agf block 0x1",
        seen="open-iscsi/tcmu-runner#394",
        is_above=True,
    ),
    Pattern(
        "XFS, failed write of metadata",
        _XFS_BEGIN + r"(?:Failing async write on buffer|Corruption Alert: Buffer at)",
        (
            _XFS + r"(?P<kind>Failing async write on buffer|Corruption Alert: Buffer at)"
            r" (?:block|daddr) 0x(?P<start>[0-9a-f]{1,16})"
        ),
        read.read_xfs_block,
        "512-byte sectors of the data device",
        "fs/xfs/xfs_buf.c, xfs_buf_ioend_handle_error()",
        "since 3.14",
        "XFS (dm-4): Failing async write on buffer block 0x3c6478. Retrying async write.",
        seen="a mail archive",
        is_above=True,
    ),
    Pattern(
        "XFS, log recovery",
        _XFS_BEGIN + r"log recovery (?:read|write) I/O error",
        _XFS + r"log recovery",
        read.unplaced("which counts from the start of the log of XFS"),
        "",
        "fs/xfs/xfs_log_recover.c, xlog_do_io()",
        "since 5.3",
        "XFS (dm-3): log recovery read I/O error at daddr 0x3972 len 1 error -5",
        seen="the list linux-xfs, January 2024",
    ),
    Pattern(
        "writeback",
        r"[^\s:]{1,64}: writeback error on inode ",
        r"([^\s:]{1,64}): writeback error on inode \d{1,20}, offset",
        read.unplaced(read.BEHIND, repeated=True),
        "",
        "fs/iomap/buffered-io.c, iomap_finish_ioend()",
        "since 5.5",
        "sdd: writeback error on inode 10741741427, offset 54525952, sector 11086521712",
        seen="a mail archive, June 2025",
    ),
    Pattern(
        "writeback, older words",
        _XFS_BEGIN + r"writeback error on sector ",
        _XFS + r"writeback error on sector \d",
        read.unplaced(read.BEHIND, repeated=True),
        "",
        "fs/xfs/xfs_aops.c, xfs_destroy_ioend()",
        "before 5.5",
        "XFS (dm-17): writeback error on sector 1841944",
        seen="stratis-storage/stratisd#1310",
    ),
    Pattern(
        "btrfs, on a device",
        _BTRFS + r"(?:checksum(?:/header)? error|i/o error|super block error"
        r"|unable to fixup \(\w{1,20}\) error)"
        r"(?: at logical \d{1,20})? on dev [^\s,]{1,255},? (?:physical|sector) ",
        (
            _BTRFS + r"[a-z/ ]{1,24}(?:\(\w{1,20}\) error)?(?: at logical \d{1,20})?"
            r" on dev (?:/dev/)?([^\s,]{1,255}),? (physical|sector) (\d{1,20})"
            r"(?:,? root .{1,80} length (\d{1,8})\b)?"
        ),
        read.read_btrfs,
        "bytes; 512-byte sectors in older kernels",
        "fs/btrfs/scrub.c, scrub_print_warning_inode(), scrub_stripe_report_errors()",
        "since 3.0",
        "BTRFS warning (device dm-1): checksum error at logical 5962932944896 on dev "
        "/dev/mapper/AM-2, physical 1498415104: metadata leaf (level 0) in tree 7",
        seen="maharmstone/btrfs#524",
        is_above=True,
    ),
    Pattern(
        "btrfs, corrected",
        _BTRFS + r"(?:fixed up error|read error corrected|checksum/header error fixed)",
        r"(?:BTRFS|btrfs)",
        read.harmless,
        "",
        "fs/btrfs/bio.c, btrfs_repair_io_failure()",
        "all",
        "BTRFS info (device vdb): read error corrected: ino 411 off 135168 (dev /dev/vdb sector"
        " 3128840)",
        seen="the list linux-btrfs, of Linux 5.19",
    ),
    Pattern(
        "btrfs, in a file",
        _BTRFS + r"csum failed ",
        (
            r"(?:BTRFS(?: \w{1,10})? \(device ([^)]{1,64})\): |BTRFS: |btrfs: )csum failed "
            r"(?:root (-?\d{1,20}) )?ino (\d{1,20}) off (\d{1,20})\b"
        ),
        read.read_btrfs_file,
        "bytes in a file",
        "fs/btrfs/bio.c, btrfs_print_data_csum_error()",
        "all",
        "BTRFS warning (device sda1): csum failed root 5 ino 831 off 4096 csum 0xca6697a5 "
        "expected csum 0x7a9c7f00 mirror 1",
        seen="borgbackup/borg#8189",
        is_above=True,
    ),
    Pattern(
        "btrfs, logical address",
        _BTRFS + r"(?:(?:unable to fixup|checksum error|i/o error|tree block)\b"
        r"|bad tree block|corrupt (?:leaf|node)|parent transid verify failed|level verify failed"
        r"|checksum verify failed|tree first key mismatch|failed to read (?:tree|block))",
        (
            r"(?:BTRFS(?: \w{1,10})? \(device (?P<device>[^)]{1,64})\): (?:scrub: )?"
            r"|BTRFS: |btrfs: )"
            r"(?:.{0,80}?\b(?:logical |bytenr=|block=|failed on |tree block |start, (?:mirror \d )?"
            r"want )(?P<address>\d{1,20})\b)?"
        ),
        read.read_btrfs_logical,
        "bytes of logical addresses",
        "fs/btrfs/disk-io.c, fs/btrfs/tree-checker.c, fs/btrfs/scrub.c",
        "all",
        "BTRFS error (device sdc2): parent transid verify failed on logical 249747406848 "
        "mirror 1 wanted 26779 found 25801",
        seen="kdave/btrfs-progs#1027",
        is_above=True,
    ),
    Pattern(
        "btrfs, counters",
        _BTRFS + r"bdev \S{1,255} errs: ",
        _BTRFS,
        read.unplaced("because btrfs only counts it"),
        "",
        "fs/btrfs/volumes.c, btrfs_dev_stat_inc_and_print()",
        "all",
        "BTRFS error (device sda1): bdev /dev/sda1 errs: wr 0, rd 0, flush 0, corrupt 865, gen 0",
        seen="borgbackup/borg#8189",
    ),
    Pattern(
        "ext4, metadata",
        r"EXT[234]-fs error \(device [^)\s]{1,64}\): \w{1,60}(?::\d{1,6})?: "
        r"(?:inode #\d{1,20}: block \d{1,20}: comm .{0,15}: unable to read itable block"
        r"|(?:comm .{0,15}: )?Cannot read (?:block|inode) bitmap - "
        r"|(?:comm .{0,15}: )?unable to read inode block - )",
        (
            _EXT + r"\w{1,60}(?::\d{1,6})?: (?:inode #\d{1,20}: block (\d{1,20}): comm"
            r"|(?:comm .{0,15}: )?Cannot read (?:block|inode) bitmap - block_group = \d{1,10},"
            r" \w{1,20} = (\d{1,20})\b"
            r"|(?:comm .{0,15}: )?unable to read inode block - inode=\d{1,20}, block=(\d{1,20})\b)"
        ),
        read.read_ext,
        "blocks of the filesystem",
        "fs/ext4/inode.c, ext4_get_inode_loc(); fs/ext4/balloc.c, ext4_wait_block_bitmap()",
        "all",
        "EXT4-fs error (device sdb1): __ext4_get_inode_loc:4699: inode #20447260: block 81788961:"
        " comm gitea: unable to read itable block",
        seen="raspberrypi/linux#3814",
        is_above=True,
    ),
    Pattern(
        "ext4, damaged directory",
        # With a path, which any user may choose, the words behind it are not trusted.
        r"EXT[234]-fs error \(device [^)\s]{1,64}\): \w{1,60}(?::\d{1,6})?: inode #\d{1,20}: block"
        r" \d{1,20}: comm .{0,15}: bad entry in directory: ",
        _EXT + r"\w{1,60}(?::\d{1,6})?: inode #\d{1,20}: block (\d{1,20}): comm",
        read.read_ext,
        "blocks of the filesystem",
        "fs/ext4/dir.c, __ext4_check_dir_entry()",
        "all that name the block",
        "EXT4-fs error (device dm-4): htree_dirblock_to_tree:896: inode #1703950: block 6832992:"
        " comm updatedb.mlocat: bad entry in directory: rec_len is smaller than minimal -"
        " offset=0(28672), inode=0, rec_len=0, name_len=0",
        seen="kubernetes/kubernetes#12905",
        is_above=True,
    ),
    Pattern(
        "ext4, writeback",
        r"EXT4-fs warning \(device [^)\s]{1,64}\): ext4_end_bio:\d{1,6}: I/O error ",
        r"EXT4-fs warning \(device ([^)\s]{1,64})\): ext4_end_bio",
        read.unplaced(read.BEHIND, repeated=True),
        "",
        "fs/ext4/page-io.c, ext4_end_bio()",
        "since 2.6.37",
        "EXT4-fs warning (device dm-1): ext4_end_bio:316: I/O error -5 writing to inode "
        "10223621 (offset 41943040 size 8388608 starting block 14406502)",
        seen="raspberrypi/linux#703",
    ),
    Pattern(
        "md, RAID 4, 5 and 6",
        r"(?:md/)?raid[456]?:\S{1,40}: read error (?:not correctable|NOT corrected!!|on"
        r" replacement device) \(sector ",
        (
            r"(?:md/)?raid[456]?:\S{1,40}: read error [^(]{1,30}"
            r"\(sector (\d{1,20}) on ([^\s)]{1,64})\)"
        ),
        read.read_stripe,
        "512-byte sectors of the member",
        "drivers/md/raid5.c, raid5_end_read_request()",
        "since 2.6.24",
        "md/raid:md7: read error not correctable (sector 2504656 on sdh1).",
        seen="a mail archive",
        is_above=True,
    ),
    Pattern(
        "md, RAID 1 and 10",
        r"md/raid10?:md\w{1,40}: \S{1,64}: unrecoverable I/O read error for block ",
        (
            r"md/raid10?:(md\w{1,40}): \S{1,64}: unrecoverable I/O read error for block"
            r" (\d{1,20})\b"
        ),
        read.read_array,
        "512-byte sectors of the array",
        "drivers/md/raid1.c, raid1_read_request()",
        "since 2.6.39",
        "md/raid1:md0: sda: unrecoverable I/O read error for block 21319296",
        seen="a forum, of Linux 3.13",
        is_above=True,
    ),
    Pattern(
        "md, corrected or redirected",
        r"(?:md/)?raid\w{0,2}:\S{1,40}: (?:\S{1,64}: )?(?:read error corrected|redirecting sector"
        r"|rescheduling sector)",
        r"(?:md/)?raid",
        read.harmless,
        "",
        "drivers/md/raid5.c, drivers/md/raid1.c",
        "all",
        "md/raid1:md1: sdb3: rescheduling sector 1849689328",
        seen="a question about Fedora 19 on super-unix.com",
    ),
    Pattern(
        "md, check",
        r"(?:md: )?(?:md\w{1,40}): mismatch sector in range ",
        r"(?:md: )?(md\w{1,40}): mismatch",
        read.unplaced("which is in all members of a stripe"),
        "",
        "drivers/md/raid5.c, handle_parity_checks5()",
        "since 4.18",
        "md1: mismatch sector in range 2742891144-2742891152",
        seen="a mail archive",
    ),
    Pattern(
        "dm-integrity",
        r"device-mapper: integrity: dm-\d{1,6}: Checksum failed at sector ",
        (r"device-mapper: integrity: (dm-\d{1,6}): Checksum failed at sector 0x([0-9a-f]{1,16})"),
        read.read_integrity,
        "512-byte sectors of the integrity device",
        "drivers/md/dm-integrity.c, integrity_metadata()",
        "since 5.6",
        "device-mapper: integrity: dm-0: Checksum failed at sector 0x6e70",
        seen="a mail archive, October 2025",
        is_above=True,
    ),
    Pattern(
        "dm-integrity, no device",
        r"device-mapper: integrity: (?!dm-\d{1,6}: )(?:\S{1,64}: )?Checksum failed ",
        r"device-mapper: ",
        read.unplaced("because the integrity device is not named"),
        "",
        "drivers/md/dm-integrity.c, integrity_metadata(), dm_integrity_inline_recheck()",
        "4.12 to 5.5; devices with metadata of their own",
        "device-mapper: integrity: Checksum failed at sector 0xe228",
        seen="the list linux-raid, January 2020",
    ),
    Pattern(
        "dm-verity",
        r"device-mapper: verity: \S{1,20}: (?:meta)?data block \d{1,20} is corrupted",
        r"device-mapper: ",
        read.unplaced("because the block size of the verity device is not logged"),
        "",
        "drivers/md/dm-verity-target.c, verity_handle_err()",
        "since 3.4",
        "device-mapper: verity: 253:3: metadata block 260095 is corrupted",
        seen="flatcar-archive/coreos-overlay#472",
    ),
    Pattern(
        "dm-verity, corrected",
        r"device-mapper: verity(?:-fec)?: \S{1,20}: FEC \d{1,20}: corrected ",
        r"device-mapper: ",
        read.harmless,
        "",
        "drivers/md/dm-verity-fec.c, fec_decode_bufs()",
        "since 4.5",
        "device-mapper: verity-fec: 7:1: FEC 0: corrected 8 errors",
        seen="the list dm-devel, February 2021",
    ),
    Pattern(
        "dm-crypt with integrity",
        r"(?:trusted_key: )?device-mapper: crypt: (?:\S{1,64}: )?INTEGRITY AEAD ERROR",
        r"(?:trusted_key: )?device-mapper: ",
        read.unplaced("which counts from an offset that is not logged"),
        "",
        "drivers/md/dm-crypt.c, crypt_convert_block_aead()",
        "since 4.12",
        "trusted_key: device-mapper: crypt: dm-0: INTEGRITY AEAD ERROR, sector 0",
        seen="confidential-containers/guest-components#1052",
    ),
    Pattern(
        "MMC and SD cards",
        r"mmcblk\w{1,20}: error -?\d{1,5} (?:transferring data|sending \S{1,30} command), sector ",
        (r"(mmcblk\w{1,20}): error -?\d{1,5} [\w /]{1,60}, sector (\d{1,20}), nr (\d{1,8})\b"),
        read.read_mmc,
        "512-byte sectors",
        "drivers/mmc/core/block.c, mmc_blk_err_check()",
        "2.6.30 to 4.15",
        "mmcblk0: error -84 transferring data, sector 3, nr 5, cmd response 0x900, card status 0x0",
        seen="beagleboard/pocketbeagle#19",
    ),
    Pattern(
        "swap",
        r"(?:Read|Write)-error on swap-device \(",
        r"(?:Read|Write)-error",
        read.unplaced(read.BEHIND, repeated=True),
        "",
        "mm/page_io.c, end_swap_bio_read()",
        "all",
        "Write-error on swap-device (253:0:7545984)",
        seen="the list linux-mm, January 2013",
    ),
    Pattern(
        "IDE disks",
        r"hd[a-z]: \w{1,40}: error=0x[0-9a-f]{1,2} \{ (?:UncorrectableError|SectorIdNotFound"
        r"|AddrMarkNotFound) \}, LBAsect=",
        r"(hd[a-z]): .{1,80} LBAsect=(\d{1,20})\b",
        read.read_ide,
        "512-byte sectors",
        "drivers/ide/ide-lib.c, ide_dump_ata_error()",
        "2.4 to 5.13",
        "hda: task_in_intr: error=0x40 { UncorrectableError }, LBAsect=100789723, sector=100789720",
        seen="a web log, June 2006",
    ),
    Pattern(
        "loop device, backing file",
        r"loop: Write error at byte offset ",
        r"loop: ",
        read.unplaced("which is in the file behind a loop device that is not named"),
        "",
        "drivers/block/loop.c, lo_write_bvec()",
        "since 2.6.39",
        "loop: Write error at byte offset 673251328, length 4096.",
        seen="sonic-net/sonic-buildimage#23146",
    ),
    Pattern(
        "soft offline",
        r"[Ss]oft[ _]offline: 0x",
        r"[Ss]oft",
        read.harmless,
        "",
        "mm/memory-failure.c, soft_offline_page()",
        "since 2.6.33",
        "soft offline: 0x150000 page already poisoned",
        seen="the list linux-mm, October 2019",
    ),
)


def find_pattern(text: str) -> Pattern | None:
    """Return the pattern whose first words a message begins with, None if there is none."""
    match = _BEGINS.match(text)
    return PATTERNS[int(match.lastgroup[1:])] if match and match.lastgroup else None


#: All first words in one expression; the name of the group is the number of the pattern.
_BEGINS: Final = re.compile(
    "|".join(f"(?P<p{number}>{one.begin})" for number, one in enumerate(PATTERNS)), re.ASCII
)
