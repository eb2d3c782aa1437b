"""Disk images with partitions and volumes, and where each byte of them belongs."""

import contextlib
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from tests.support.mounts import loop_device
from tests.support.tools import need_root, program, run

__all__ = ["STRIPE", "Place", "Volume", "copy_range", "make_group", "partition", "places_of"]

_MIB = 1 << 20
_CONFIG = (
    "devices{use_devicesfile=0 scan_lvs=0} backup{backup=0 archive=0}"
    " activation{udev_sync=0 udev_rules=0 monitoring=0} global{event_activation=0}"
)


@dataclass(frozen=True, order=True)
class Place:
    """``length`` bytes from ``start`` of a disk that are those from ``at`` of an image."""

    start: int
    length: int
    image: Path
    at: int


def partition(disk: Path, script: str) -> None:
    """Write a partition table with sfdisk."""
    run(["sfdisk", "--quiet", "--no-reread", disk], stdin=script.encode())


def copy_range(source: Path, at: int, target: Path, start: int, length: int) -> None:
    """Copy bytes from one image into another, holes excepted."""
    with source.open("rb") as read, target.open("r+b") as write:
        for offset in range(0, length, _MIB):
            read.seek(at + offset)
            data = read.read(min(_MIB, length - offset))
            if any(data):
                write.seek(start + offset)
                write.write(data)


@dataclass(frozen=True)
class Volume:
    """A logical volume to be: its segments as LVM's metadata has them, in extents of 1 MiB.

    A segment is a list of stripes, each the number of a physical volume and its first extent, and
    the extents that it has in all.
    """

    name: str
    segments: tuple[tuple[tuple[tuple[int, int], ...], int], ...]


#: LVM's smallest stripe that is no block.
STRIPE = 64 * 1024


def make_group(name: str, disks: Sequence[Path], volumes: Sequence[Volume]) -> int:
    """Make physical volumes of files with LVM, and write the metadata of a group.

    What device-mapper would have to make, and is not needed for the metadata, is written as LVM's
    backup text and restored by LVM.  Gives the byte at which the first extent begins.
    """
    need_root()
    program("vgcfgrestore")
    backup = disks[0].with_suffix(".vg")
    with contextlib.ExitStack() as stack:
        loops = [stack.enter_context(loop_device(disk)) for disk in disks]
        config = ["--config", _CONFIG]
        run(["pvcreate", *config, "-y", *loops])
        run(["vgcreate", *config, "-s", "1M", name, *loops])
        run(["vgcfgbackup", *config, "-f", backup, name])
        text = backup.read_text()
        (start,) = set(re.findall(r"pe_start = (\d+)", text))
        inside = "logical_volumes {\n" + "".join(map(_text, volumes)) + "}\n"
        at = _end_of_group(text, name)
        backup.write_text(text[:at] + inside + text[at:])
        run(["vgcfgrestore", *config, "-f", backup, name])
    return int(start) * 512


def _end_of_group(text: str, name: str) -> int:
    """Find the bracket that ends the section of the group."""
    at = text.index(f"{name} {{") + len(name) + 2
    depth = 1
    while depth:
        depth += {"{": 1, "}": -1}.get(text[at], 0)
        at += 1
    return at - 1


def _text(volume: Volume) -> str:
    segments = []
    first = 0
    for number, (stripes, extents) in enumerate(volume.segments, 1):
        names = ", ".join(f'"pv{physical}", {extent}' for physical, extent in stripes)
        size = f"stripe_size = {STRIPE // 512}\n" if len(stripes) > 1 else ""
        segments.append(
            f"segment{number} {{\nstart_extent = {first}\nextent_count = {extents}\n"
            f'type = "striped"\nstripe_count = {len(stripes)}\n{size}stripes = [{names}]\n}}\n'
        )
        first += extents
    uuid = "-".join(
        ["AAAAAA", "aaaa", "aaaa", "aaaa", "aaaa", "aaaa", volume.name[:6].rjust(6, "b")]
    )
    return (
        f'{volume.name} {{\nid = "{uuid}"\nstatus = ["READ", "WRITE", "VISIBLE"]\nflags = []\n'
        f"segment_count = {len(segments)}\n{''.join(segments)}}}\n"
    )


def places_of(
    volume: Volume, first_extent: int, image: Path, disks: Sequence[tuple[int, int]]
) -> Iterator[tuple[int, Place]]:
    """Yield every run of an image's bytes, with the number of its disk.

    ``disks`` are, for each physical volume, the number of its disk and where it begins there.
    """
    at = 0
    for stripes, extents in volume.segments:
        length = extents * _MIB
        if len(stripes) == 1:
            ((physical, extent),) = stripes
            disk, begin = disks[physical]
            yield disk, Place(begin + first_extent + extent * _MIB, length, image, at)
        else:
            for number in range(length // STRIPE):
                row, column = divmod(number, len(stripes))
                physical, extent = stripes[column]
                disk, begin = disks[physical]
                start = begin + first_extent + extent * _MIB + row * STRIPE
                yield disk, Place(start, STRIPE, image, at + number * STRIPE)
        at += length
