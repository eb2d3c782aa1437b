#!/usr/bin/env python3
"""Make demo/image.xfs.xz anew: a small real XFS, filled through the kernel.

Needs root, for the loop mount, and whatever tools/xfsprogs needs. demo/README.md says what the
image holds. The UUID is fixed, but inode generations and times are not: no two runs give the same
bytes.
"""

import fcntl
import lzma
import os
import shutil
import struct
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import NamedTuple

TOP = Path(__file__).resolve().parent.parent
IMAGE = TOP / "demo" / "image.xfs.xz"

SIZE = 300 << 20  # mkfs.xfs makes nothing smaller
UUID = "07d1b10c-b10c-4b10-8b10-c0ffee000307"
PAGE = 4096
THE_PAGE = 307  # the example of the fsdax discussion; it has to be data that two files share

FICLONERANGE = 0x4020940D
FS_IOC_FIEMAP = 0xC020660B
FIEMAP_EXTENT_SHARED = 0x2000
FIEMAP = struct.Struct("=QQIIII")  # start, length, flags, mapped, count, reserved
FIEMAP_EXTENT = struct.Struct("=QQQ16xI12x")  # logical, physical, length, flags


class Extent(NamedTuple):
    """A piece of a file: where it is in the file, and where on the device. In bytes."""

    logical: int
    physical: int
    length: int
    flags: int


def extents(path: Path) -> list[Extent]:
    """Ask the kernel where a file is."""
    room = 256
    answer = bytearray(FIEMAP.size + room * FIEMAP_EXTENT.size)
    FIEMAP.pack_into(answer, 0, 0, 2**64 - 1, 0, 0, room, 0)
    with path.open("rb") as file:
        fcntl.ioctl(file, FS_IOC_FIEMAP, answer)
    mapped = FIEMAP.unpack_from(answer)[3]
    places = range(FIEMAP.size, FIEMAP.size + mapped * FIEMAP_EXTENT.size, FIEMAP_EXTENT.size)
    return [Extent(*FIEMAP_EXTENT.unpack_from(answer, place)) for place in places]


def extent_of_the_page(path: Path) -> Extent:
    """Return the extent of a file that holds the page."""
    byte = THE_PAGE * PAGE
    for extent in extents(path):
        if extent.physical <= byte < extent.physical + extent.length:
            return extent
    sys.exit(f"page {THE_PAGE} is not in {path.name}: {extents(path)}")


def text(title: str, first: int, count: int) -> bytes:
    """Return whole pages of text; each page is different, and says which it is."""
    pages = (f"{title}, page {number}\n".encode() for number in range(first, first + count))
    return b"".join((page * (PAGE // len(page) + 1))[:PAGE] for page in pages)


def write(path: Path, content: bytes, offset: int = 0) -> None:
    """Write part of a file, and have it allocated before anything else is."""
    path.parent.mkdir(parents=True, exist_ok=True)
    file = os.open(path, os.O_WRONLY | os.O_CREAT, 0o644)
    os.pwrite(file, content, offset)
    os.fsync(file)
    os.close(file)


def clone(source: Path, target: Path, start: int = 0, length: int = 0, to: int = 0) -> None:
    """Make part of a file share blocks with another file; length 0 is all there is."""
    with source.open("rb") as old, target.open("r+b") as new:
        fcntl.ioctl(new, FICLONERANGE, struct.pack("=qQQQ", old.fileno(), start, length, to))


def fill(top: Path) -> None:
    """Make the files. The order matters: the first data of all lands around the page."""
    write(top / "a", b"")
    write(top / "readme.txt", text("readme", 0, 27))  # so long that the page is at 1 MiB of /a
    write(top / "a", text("/a", 0, 512))

    # A file of its own in the middle of which 128 pages are those of /a, the page among them.
    write(top / "d/e/c", text("/d/e/c", 0, 256))
    extent = extent_of_the_page(top / "a")
    start = extent.logical + THE_PAGE * PAGE - extent.physical - 64 * PAGE
    clone(top / "a", top / "d/e/c", start, 128 * PAGE, 32 * PAGE)

    write(top / "photos/2020/harbour.raw", text("harbour", 0, 128))
    write(top / "photos/best/harbour.raw", b"")
    clone(top / "photos/2020/harbour.raw", top / "photos/best/harbour.raw")

    # One file, three names in three folders.
    invoice = top / "inbox/invoice.txt"
    write(invoice, text("invoice", 0, 16))
    for name in "archive/2020/04/invoice.txt", "people/Zoë/Rechnung März.txt":
        (top / name).parent.mkdir(parents=True)
        os.link(invoice, top / name)
    write(top / "people/Zoë/Grüße 👋.txt", text("Grüße", 0, 8))
    write(top / "people/notes.txt", text("notes", 0, 32))

    # Sparse: some pages far apart, and 2 MiB allocated but never written.
    disk = top / "vm/disk.img"
    for page in 0, 4096, 12288:
        write(disk, text("disk", page, 4), page * PAGE)
    with disk.open("r+b") as file:
        os.posix_fallocate(file.fileno(), 8192 * PAGE, 512 * PAGE)
    (top / "latest").symlink_to("photos/2020/harbour.raw")

    # Every second one is deleted again: free space between files.
    logs = [top / f"logs/day-{day:02}.log" for day in range(1, 31)]
    for log in logs:
        write(log, text(log.name, 0, 8))
    for log in logs[::2]:
        log.unlink()
    os.sync()

    for path in top / "a", top / "d/e/c":
        if not extent_of_the_page(path).flags & FIEMAP_EXTENT_SHARED:
            sys.exit(f"page {THE_PAGE} of {path.name} is not shared")


@contextmanager
def mounted(image: Path, folder: Path) -> Iterator[Path]:
    """Mount an image for a while."""
    folder.mkdir()
    subprocess.run(["mount", "-o", "loop", image, folder], check=True)
    try:
        yield folder
    finally:
        subprocess.run(["umount", folder], check=True)


def compress(image: Path, target: Path) -> None:
    """Compress a file as well as xz can."""
    with (
        image.open("rb") as plain,
        lzma.open(target, "wb", preset=9 | lzma.PRESET_EXTREME) as packed,
    ):
        shutil.copyfileobj(plain, packed, 1 << 20)


def main() -> None:
    """Make the image, have xfs_repair check it, and compress it."""
    if os.geteuid() != 0:
        sys.exit("make_demo_image.py: only root can mount the image to fill it")
    fetch = subprocess.run([TOP / "tools/xfsprogs"], check=True, stdout=subprocess.PIPE, text=True)
    programs = Path(fetch.stdout.strip())
    with tempfile.TemporaryDirectory() as scratch:
        image = Path(scratch) / "image.xfs"
        with image.open("wb") as file:
            file.truncate(SIZE)
        options = ["-q", "-L", "whoseblock", "-m", f"uuid={UUID},rmapbt=1,reflink=1"]
        options += ["-n", "parent=1"]
        subprocess.run([programs / "mkfs.xfs", *options, image], check=True)
        with mounted(image, Path(scratch) / "mnt") as top:
            fill(top)
        subprocess.run([programs / "xfs_repair", "-n", image], check=True, capture_output=True)
        compress(image, IMAGE)
    print(f"{IMAGE.relative_to(TOP)}: {IMAGE.stat().st_size:,} bytes")


if __name__ == "__main__":
    main()
