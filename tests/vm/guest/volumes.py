"""Volumes of LVM on the disk that fails, with a filesystem on them."""

from pathlib import Path
from typing import Final

from tests.vm.guest.disk import Disk
from tests.vm.guest.machine import Undo, make_xfs, mount, run

__all__ = [
    "OVER_ERRORS",
    "OVER_PARTITION",
    "break_under",
    "over_errors",
    "over_partition",
    "with_realtime",
]

_MIB = 1 << 20
_EXTENT = 4 * _MIB
_VOLUME = "/dev/mapper/vg-lv"

#: Where the first byte of the volume is on the disk: partition, then the area of the metadata, then
#: the gap of five extents.
OVER_PARTITION: Final = _MIB + _MIB + 5 * _EXTENT
#: Where it is on what is under the volume.
OVER_ERRORS: Final = _MIB


def over_partition(disk: Disk, undo: Undo) -> Path:
    """Make a filesystem on a volume of two pieces, the second before the first, in a partition."""
    run(["sfdisk", "-q", "--wipe", "always", disk.device], b"label: gpt\nstart=2048\n")
    physical = disk.partition(1)
    run(["pvcreate", "-y", "-ff", "--dataalignment", "1m", physical])
    run(["vgcreate", "-s", "4m", "vg", physical])
    undo.then("vgremove", "-f", "-y", "vg")
    run(["lvcreate", "-y", "-Wn", "-an", "-l", "5", "-n", "gap", "vg"])
    run(["lvcreate", "-y", "-Wn", "-l", "80", "-n", "lv", "vg"])
    run(["lvremove", "-y", "vg/gap"])
    run(["lvextend", "-y", "-l", "+5", "vg/lv", f"{physical}:0-4"])
    make_xfs(_VOLUME)
    return mount(undo, _VOLUME)


def over_errors(disk: Disk, undo: Undo) -> Path:
    """Make a filesystem on a volume over device-mapper's device ``under``, where errors can be."""
    sectors = 399 * _MIB // 512
    run(["dmsetup", "create", "under", "--table", f"0 {sectors} linear {disk.device} 2048"])
    undo.then("dmsetup", "remove", "under")
    run(["pvcreate", "-y", "-ff", "--dataalignment", "1m", "/dev/mapper/under"])
    run(["vgcreate", "-s", "4m", "vg", "/dev/mapper/under"])
    undo.then("vgchange", "-an", "vg")
    run(["lvcreate", "-y", "-Wn", "-l", "90", "-n", "lv", "vg"])
    make_xfs(_VOLUME)
    return mount(undo, _VOLUME)


def with_realtime(disk: Disk, undo: Undo) -> Path:
    """Make a filesystem on the first partition whose files are on the second."""
    table = b"label: gpt\nstart=2048,size=634880\nstart=636928\n"
    run(["sfdisk", "-q", "--wipe", "always", disk.device], table)
    data, realtime = disk.partition(1), disk.partition(2)
    realtime_options = ["-d", "rtinherit=1", "-r", f"rtdev={realtime},rgsize=32m"]
    make_xfs(data, "-m", "metadir=1", *realtime_options)
    return mount(undo, data, f"rtdev={realtime}")


def break_under(disk: Disk, offset: int) -> None:
    """Make 4 KiB of ``under`` fail."""
    first, sectors = offset // 512, 399 * _MIB // 512
    table = (
        f"0 {first} linear {disk.device} 2048\n{first} 8 error\n"
        f"{first + 8} {sectors - first - 8} linear {disk.device} {2048 + first + 8}\n"
    )
    run(["dmsetup", "suspend", "under"])
    run(["dmsetup", "load", "under"], table.encode())
    run(["dmsetup", "resume", "under"])
