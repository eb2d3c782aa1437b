"""Device-mapper: what its tables say, and reading them from the kernel.

A table has lines ``START LENGTH KIND ARGUMENTS…`` in 512-byte sectors; the arguments are those of
the kernel's Documentation/admin-guide/device-mapper.  The kernel gives tables only by an ioctl on
/dev/mapper/control (``struct dm_ioctl`` in include/uapi/linux/dm-ioctl.h).
"""

import fcntl
import os
import re
from collections.abc import Iterator, Sequence
from struct import Struct
from typing import Final, NamedTuple

from whoseblock.errors import UnsupportedError
from whoseblock.stack.base import Ending, Layer, Linear, Segment
from whoseblock.stack.host import SECTOR, Host
from whoseblock.stack.raid import MemberSegment, Raid0

__all__ = ["DmTarget", "dm_table", "parse_table", "segments_on"]

_DEVICE: Final = re.compile(r"[0-9]{1,8}:[0-9]{1,8}", re.ASCII)
_NUMBER: Final = re.compile(r"[0-9]{1,18}", re.ASCII)
_MOST_LINES: Final = 1 << 20


class DmTarget(NamedTuple):
    """A line of a table: ``length`` bytes from ``start`` of the volume, and how they are mapped."""

    start: int
    length: int
    kind: str
    arguments: tuple[str, ...]


def parse_table(text: str) -> list[DmTarget]:
    """Read a table as ``dmsetup table`` writes it; raises `UnsupportedError`."""
    targets = []
    for line in text.splitlines()[:_MOST_LINES]:
        start, length, kind, *arguments = [*line.split(), "", "", ""][: max(len(line.split()), 3)]
        if not start:
            continue
        if not _NUMBER.fullmatch(start) or not _NUMBER.fullmatch(length) or not kind:
            raise UnsupportedError("a device-mapper table that cannot be read")
        targets.append(DmTarget(int(start) * SECTOR, int(length) * SECTOR, kind, tuple(arguments)))
    return targets


class _Place(NamedTuple):
    """Where a target's bytes begin on a device; ``remark`` is worth telling."""

    device: str
    start: int
    remark: str = ""


#: Kinds that give every byte the same place on one device, behind so many other arguments.
_LINEAR_KINDS: Final = {"linear": 0, "flakey": 0, "delay": 0, "dust": 0, "crypt": 3}
_COPY: Final = "another device of it has a copy"


def segments_on(
    device: str, size: int, volume: Layer, targets: Sequence[DmTarget]
) -> Iterator[Segment]:
    """Cut a device of ``size`` bytes with the number ``device`` (``8:1``) for the volume on it.

    A kind that is not followed takes all of the device, and says that it is not followed.
    """
    for target in targets:
        if device not in target.arguments:
            continue
        try:
            segments = list(_followed(device, volume, target))
        except (UnsupportedError, IndexError, ValueError):
            segments = []
        if segments:
            yield from segments
        else:
            what = f"part of {volume.name}, device-mapper {target.kind}, which is not followed"
            yield Ending(0, size, what, certain=False)


def _followed(device: str, volume: Layer, target: DmTarget) -> Iterator[Segment]:
    """Give the segments of one target; raises IndexError or ValueError for what makes no sense."""
    if target.kind == "striped":
        yield from _striped(device, volume, target)
        return
    for place in _places(target):
        if place.device == device:
            remark = place.remark and f"{volume.name}: {place.remark}"
            yield Linear(place.start, target.length, volume, target.start, remark=remark)


def _places(target: DmTarget) -> Iterator[_Place]:
    """Say where a target is kept, as far as it is kept as it is."""
    arguments = target.arguments
    if target.kind in _LINEAR_KINDS:
        before = _LINEAR_KINDS[target.kind]
        yield _Place(arguments[before], _sectors(arguments[before + 1]))
    elif target.kind == "snapshot-origin":
        yield _Place(arguments[0], 0, "a snapshot may need these bytes too")
    elif target.kind == "multipath":
        # Every path leads to the same disk.
        yield from (_Place(one, 0) for one in arguments if _DEVICE.fullmatch(one))
    elif target.kind == "mirror":
        # log type, count of its arguments, these, count of devices, pairs of device and start
        at = 2 + int(arguments[1])
        for number in range(int(arguments[at])):
            name, start = arguments[at + 1 + 2 * number : at + 3 + 2 * number]
            yield _Place(name, _sectors(start), _COPY)
    elif target.kind == "raid" and arguments[0] == "raid1":
        # kind, count of parameters, these, count of devices, pairs of metadata and data device
        at = 2 + int(arguments[1])
        for number in range(int(arguments[at])):
            yield _Place(arguments[at + 2 + 2 * number], 0, _COPY)


def _striped(device: str, volume: Layer, target: DmTarget) -> Iterator[Segment]:
    """Give a target's stripes on a device; it has a count, a chunk, pairs of device and start."""
    stripes, chunk = int(target.arguments[0]), _sectors(target.arguments[1])
    pairs = target.arguments[2 : 2 + 2 * stripes]
    if stripes < 1 or chunk < SECTOR or len(pairs) != 2 * stripes:
        raise ValueError("stripes that make no sense")
    each = target.length // stripes
    striping = Raid0(chunk, [each // chunk] * stripes)
    for number in range(stripes):
        name, start = pairs[2 * number : 2 * number + 2]
        if name == device:
            at = _sectors(start)
            yield MemberSegment(at, each, volume, striping, number, target.start)


def _sectors(text: str) -> int:
    if not _NUMBER.fullmatch(text):
        raise ValueError(f"{text!r} is no number of sectors")
    return int(text) * SECTOR


# ------------------------------------------------------------------ from the kernel

#: version, data size, data start, target count, open count, flags, event, -, device, name, uuid
_IOCTL: Final = Struct("<3I2I I i I I I Q 128s 129s 7x")
_TARGET_SPEC: Final = Struct("<QQiI16s")
_DM_TABLE_STATUS: Final = 0xC138FD0C  # _IOWR(0xfd, 12, struct dm_ioctl)
_STATUS_TABLE, _BUFFER_FULL = 1 << 4, 1 << 8
_CONTROL: Final = "/dev/mapper/control"
_SMALLEST, _LARGEST = 16 * 1024, 64 << 20


def dm_table(host: Host, name: str) -> list[DmTarget]:
    """Read the table of the volume that the kernel calls ``name`` (``dm-0``).

    A snapshot has it in dm-tables/.  Raises `UnsupportedError` with the reason if it cannot be had.
    """
    if not host.live:
        text = host.text(host.root / "dm-tables" / name)
        if text is None:
            raise UnsupportedError("the snapshot has no table of it")
        return parse_table(text)
    folder = host.root / "sys/class/block" / name
    number = (host.text(folder / "dev") or "").partition(":")
    try:
        return _ask_kernel(os.makedev(int(number[0]), int(number[2])))
    except PermissionError:
        raise UnsupportedError("reading its table needs CAP_SYS_ADMIN") from None
    except (OSError, ValueError) as error:
        raise UnsupportedError(f"its table cannot be read: {error}") from None


def _ask_kernel(device: int) -> list[DmTarget]:
    descriptor = os.open(_CONTROL, os.O_RDWR | os.O_CLOEXEC)
    try:
        size = _SMALLEST
        while size <= _LARGEST:
            buffer = bytearray(size)
            _IOCTL.pack_into(
                buffer, 0, 4, 0, 0, size, _IOCTL.size, 0, 0, _STATUS_TABLE, 0, 0, device, b"", b""
            )
            fcntl.ioctl(descriptor, _DM_TABLE_STATUS, buffer)
            if not _IOCTL.unpack_from(buffer)[7] & _BUFFER_FULL:
                return decode_table(bytes(buffer))
            size *= 4
    finally:
        os.close(descriptor)
    raise UnsupportedError("its table is too large")


def decode_table(buffer: bytes) -> list[DmTarget]:
    """Read the answer to DM_TABLE_STATUS; raises `UnsupportedError`."""
    fields = _IOCTL.unpack_from(buffer)
    end, begin, count = fields[3], fields[4], fields[5]
    targets = []
    at = begin
    for _ in range(min(count, _MOST_LINES)):
        if not begin <= at <= len(buffer) - _TARGET_SPEC.size:
            raise UnsupportedError("a table that ends too early")
        start, length, _, following, kind = _TARGET_SPEC.unpack_from(buffer, at)
        text = buffer[at + _TARGET_SPEC.size : min(begin + following, end, len(buffer))]
        arguments = text.partition(b"\0")[0].decode("utf-8", "replace").split()
        name = kind.partition(b"\0")[0].decode("ascii", "replace")
        if name == "crypt" and len(arguments) > 1:
            # The key is nobody's business, least of all ours.
            arguments[1] = "-"
        targets.append(DmTarget(start * SECTOR, length * SECTOR, name, tuple(arguments)))
        # The kernel counts from where the targets begin.
        at = begin + following
    return targets
