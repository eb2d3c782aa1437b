"""Filesystems of btrfs on several devices, every block of whose files has a tag.

The truth is that of `btrfs_images`, with the places of `facts` about the profiles: the formulas
below are written from the kernel's documentation and do not use whoseblock's.
"""

import contextlib
import os
import random
import struct
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

from tests.support.btrfs_images import SECTOR, Claim, Dump, Truth, paths_below
from tests.support.mounts import loop_device, mounted
from tests.support.tools import run

__all__ = ["Filesystem", "make_filesystem", "mounted_devices", "places_of", "tag_of"]

_SUPERBLOCKS = (64 << 10, 64 << 20)
_STRIPE = 64 << 10
_FIRST_MIB = 1 << 20
_TAG = struct.Struct("<8sQ64s")
_MAGIC = b"btrfstag"


class Filesystem(NamedTuple):
    """The images of the devices, in the order of their numbers from 1, and the truth of each."""

    images: list[Path]
    truths: list[Truth]
    dump: Dump


def _write_tagged(path: Path, blocks: int) -> None:
    """Write a file whose blocks have their place in it and its name, and else random bytes."""
    rnd = random.Random(path.name)
    with path.open("wb") as file:
        for number in range(blocks):
            head = _TAG.pack(_MAGIC, number * SECTOR, path.name.encode())
            file.write(head + rnd.randbytes(SECTOR - len(head)))


def tag_of(block: bytes) -> tuple[str, int] | None:
    """Return the name of the file and the offset that a block has, None if it has no tag."""
    magic, offset, name = _TAG.unpack_from(block)
    return (name.rstrip(b"\0").decode(), offset) if magic == _MAGIC else None


def _fill(root: Path) -> None:
    """Make tagged files, some that a snapshot shares, small files, and compressed ones."""
    run(["btrfs", "subvolume", "create", root / "sub"])
    for number in range(24):
        _write_tagged(root / f"tagged{number}", 1 + number * 11)
        _write_tagged(root / f"sub/below{number}", 1 + number)
        (root / f"small{number}").write_bytes(b"x" * (number * 90 + 1))
    os.sync()
    run(["btrfs", "subvolume", "snapshot", root / "sub", root / "snapshot"])
    _write_tagged(root / "sub/below20", 9)
    (root / "zstd").mkdir()
    os.setxattr(root / "zstd", "btrfs.compression", b"zstd")
    (root / "zstd/c").write_bytes(bytes(range(200)) * 5000)
    with (root / "tagged23").open("r+b") as file:
        file.seek(20 * SECTOR)
        file.write(b"overwritten" * 3000)
    (root / "tagged9").unlink()
    os.sync()


@contextlib.contextmanager
def _loops(images: Sequence[Path]) -> Iterator[list[str]]:
    with contextlib.ExitStack() as undo:
        loops = [undo.enter_context(loop_device(image)) for image in images]
        # The kernel keeps what it knows of a device until it receives this.
        undo.callback(lambda: run(["btrfs", "device", "scan", "--forget", *loops]))
        yield loops


@contextlib.contextmanager
def _mounted(loops: Sequence[str], *options: str) -> Iterator[Path]:
    given = [*options, *(f"device={loop}" for loop in loops)]
    with mounted(Path(loops[0]), *given, kind="btrfs", loop=False) as root:
        yield Path(os.fsdecode(root))


@contextlib.contextmanager
def mounted_devices(images: Sequence[Path]) -> Iterator[tuple[list[str], Path]]:
    """Mount a filesystem, and give its loop devices and its folder."""
    with _loops(images) as loops, _mounted(loops) as root:
        yield loops, root


def make_filesystem(
    folder: Path,
    count: int,
    *options: str,
    size: int = 128 << 20,
    change: Callable[[Path], None] = lambda _: None,
) -> Filesystem:
    """Make a filesystem with mkfs.btrfs, and fill and ``change`` it through the kernel."""
    images = [folder / f"device{number + 1}.img" for number in range(count)]
    for image in images:
        with image.open("wb") as file:
            file.truncate(size)
    run(["mkfs.btrfs", "-q", "-f", *options, *images])
    with _loops(images) as loops:
        with _mounted(loops) as root:
            _fill(root)
            change(root)
            os.sync()
        dump = Dump(Path(loops[0]))
        with _mounted(loops, "ro", "subvolid=5") as root:
            paths = paths_below(os.fsencode(root))
    truths = [Truth(_claims(dump, number + 1, size), paths, dump.inline) for number in range(count)]
    return Filesystem(images, truths, dump)


def places_of(dump: Dump, logical: int) -> list[tuple[int, int]]:
    """Return the device and the byte of each copy of a logical address; parity is none."""
    found = []
    for _, _, stripes in dump.profiles.values():
        for device in {device for device, _ in stripes}:
            for place, start, length in pieces(dump, device):
                if start is not None and start <= logical < start + length:
                    found.append((device, place + logical - start))
        if found:
            break
    return found


def _claims(dump: Dump, device: int, size: int) -> list[set[Claim]]:
    """Return the owners of each sector of a device."""
    claims: list[set[Claim]] = [
        {Claim("free" if at >= _FIRST_MIB else "static")} for at in range(0, size, SECTOR)
    ]
    reserved = set(_reserved(dump))
    for place, logical, length in pieces(dump, device):
        for at in range(0, length, SECTOR):
            if logical is None:
                claims[(place + at) // SECTOR] = {Claim("parity")}
                continue
            found = dump.logical.get(logical + at)
            kind = "static" if logical + at in reserved else "free"
            claims[(place + at) // SECTOR] = set(found) if found else {Claim(kind)}
    for offset in _SUPERBLOCKS:
        claims[offset // SECTOR] = {Claim("static")}
    return claims


def pieces(dump: Dump, device: int) -> Iterator[tuple[int, int | None, int]]:
    """Yield the place on a device, the logical address and the length of each piece of a chunk.

    Parity has no logical address.
    """
    for start, (length, profile, stripes) in dump.profiles.items():
        n = len(stripes)
        for number, (owner, offset) in enumerate(stripes):
            if owner != device:
                continue
            if profile not in ("RAID0", "RAID10", "RAID5", "RAID6"):
                yield offset, start, length
                continue
            data = {"RAID0": n, "RAID10": n // 2, "RAID5": n - 1, "RAID6": n - 2}[profile]
            for row in range(length // data // _STRIPE):
                if profile == "RAID0":
                    stripe: int | None = row * n + number
                elif profile == "RAID10":
                    stripe = row * (n // 2) + number // 2
                else:
                    column = (number - row) % n
                    stripe = row * data + column if column < data else None
                logical = None if stripe is None else start + stripe * _STRIPE
                yield offset + row * _STRIPE, logical, _STRIPE


def _reserved(dump: Dump) -> Iterator[int]:
    """Yield the logical sectors where the kernel allocates nothing, around superblocks."""
    for start, (length, profile, stripes) in dump.profiles.items():
        devices = {device for device, _ in stripes}
        for device in devices:
            for place, logical, size in pieces(dump, device):
                for offset in _SUPERBLOCKS:
                    if not place <= offset < place + size:
                        continue
                    if profile in ("RAID5", "RAID6"):
                        data = len(stripes) - (1 if profile == "RAID5" else 2)
                        own = next(one for owner, one in stripes if owner == device)
                        row = start + (place - own) * data
                        if start <= row < start + length:
                            yield from range(row, row + data * _STRIPE, SECTOR)
                    elif logical is not None and start <= logical < start + length:
                        low = logical + (offset - place) // _STRIPE * _STRIPE
                        yield from range(low, low + _STRIPE, SECTOR)
