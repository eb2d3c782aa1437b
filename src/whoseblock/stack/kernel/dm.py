"""Read and interpret the tables of device-mapper.

A table has lines ``START LENGTH KIND ARGUMENTS…`` in 512-byte sectors; the arguments are those of
the kernel's Documentation/admin-guide/device-mapper. The kernel returns tables only by an ioctl on
/dev/mapper/control (``struct dm_ioctl`` in include/uapi/linux/dm-ioctl.h).
"""

import fcntl
import os
import re
from collections.abc import Iterator, Sequence
from struct import Struct
from typing import Final, NamedTuple

from whoseblock.errors import UnsupportedError
from whoseblock.media.striping import Raid0
from whoseblock.stack.base import Layer, LinearSegment, Segment, UnmappedSegment
from whoseblock.stack.kernel.host import SECTOR, Host
from whoseblock.stack.members import MemberSegment

__all__ = [
    "FOLLOWED_TARGETS",
    "DmTarget",
    "add_mirror_states",
    "cut_dm_segments",
    "decode_dm_table",
    "parse_dm_table",
    "read_dm_table",
]

_DEVICE: Final = re.compile(r"[0-9]{1,8}:[0-9]{1,8}", re.ASCII)
_NUMBER: Final = re.compile(r"[0-9]{1,18}", re.ASCII)
_MAX_LINES: Final = 1 << 20


class DmTarget(NamedTuple):
    """A line of a table: the mapping of ``length`` bytes from ``start`` of the volume.

    ``in_sync`` is whether all devices of a mirror have a full copy, None if that is unknown.
    """

    start: int
    length: int
    kind: str
    arguments: tuple[str, ...]
    in_sync: bool | None = None


def parse_dm_table(text: str) -> list[DmTarget]:
    """Parse a table in the form of ``dmsetup table``; raises `UnsupportedError`."""
    targets = []
    for line in text.splitlines()[:_MAX_LINES]:
        start, length, kind, *arguments = [*line.split(), "", "", ""][: max(len(line.split()), 3)]
        if not start:
            continue
        if not _NUMBER.fullmatch(start) or not _NUMBER.fullmatch(length) or not kind:
            raise UnsupportedError("invalid device-mapper table")
        targets.append(DmTarget(int(start) * SECTOR, int(length) * SECTOR, kind, tuple(arguments)))
    return targets


class _LinearRange(NamedTuple):
    """The start of a target's bytes on a device; ``remark`` and ``doubt`` become notes."""

    device: str
    start: int
    remark: str = ""
    doubt: str = ""


#: Kinds that map linearly to one device, and the number of arguments before that device.
_LINEAR_KINDS: Final = {"linear": 0, "flakey": 0, "delay": 0, "dust": 0, "crypt": 3}
_COPY: Final = "another of its devices has a copy"
_COPYING: Final = (
    "it is being copied to this device (pvmove or a new mirror): the bytes may not be here yet"
)
#: The kinds of targets that are followed, with how. Any other kind is named, and unknown.
FOLLOWED_TARGETS: Final = {
    **dict.fromkeys(_LINEAR_KINDS, "by its offset"),
    "striped": "by its stripes",
    "snapshot-origin": "as the volume itself; a snapshot may need the bytes, too",
    "multipath": "every path leads to the same volume",
    "mirror": "every device has a copy, with a doubt while it is being copied",
    "raid": "raid1: every device has a copy; other levels are unknown",
}


def cut_dm_segments(
    device: str, size: int, volume: Layer, targets: Sequence[DmTarget]
) -> Iterator[Segment]:
    """Yield the segments of ``volume`` on a device of ``size`` bytes.

    ``device`` is the device number (``8:1``). A target of a kind that is not followed becomes a
    segment over the whole device.
    """
    for target in targets:
        if device not in target.arguments:
            continue
        try:
            segments = list(_cut_target(device, volume, target))
        except (UnsupportedError, IndexError, ValueError):
            segments = []
        if segments:
            yield from segments
        else:
            what = f"part of {volume.name}, device-mapper {target.kind}, which is not followed"
            yield UnmappedSegment(0, size, what, certain=False)


def _cut_target(device: str, volume: Layer, target: DmTarget) -> Iterator[Segment]:
    """Yield the segments of a target; raises IndexError or ValueError for invalid arguments."""
    if target.kind not in FOLLOWED_TARGETS:
        return
    if target.kind == "striped":
        yield from _cut_stripes(device, volume, target)
        return
    for mapped in _linear_ranges(target):
        if mapped.device == device:
            remark = mapped.remark and f"{volume.name}: {mapped.remark}"
            doubt = mapped.doubt and f"{volume.name}: {mapped.doubt}"
            at, length = mapped.start, target.length
            yield LinearSegment(at, length, volume, target.start, remark=remark, doubt=doubt)


def _linear_ranges(target: DmTarget) -> Iterator[_LinearRange]:
    """Yield the ranges that a target maps to linearly."""
    arguments = target.arguments
    if target.kind in _LINEAR_KINDS:
        before = _LINEAR_KINDS[target.kind]
        yield _LinearRange(arguments[before], _parse_sectors(arguments[before + 1]))
    elif target.kind == "snapshot-origin":
        yield _LinearRange(arguments[0], 0, "a snapshot may need these bytes too")
    elif target.kind == "multipath":
        # All paths lead to the same disk.
        yield from (_LinearRange(one, 0) for one in arguments if _DEVICE.fullmatch(one))
    elif target.kind == "mirror":
        # log type, number of its arguments, these, number of devices, pairs of device and start
        at = 2 + int(arguments[1])
        in_sync = target.in_sync or "nosync" in arguments[2:at]
        for number in range(int(arguments[at])):
            name, start = arguments[at + 1 + 2 * number : at + 3 + 2 * number]
            # The kernel copies from the first device to the others.
            doubt = _COPYING if number and not in_sync else ""
            yield _LinearRange(name, _parse_sectors(start), "" if doubt else _COPY, doubt)
    elif target.kind == "raid" and arguments[0] == "raid1":
        # kind, number of parameters, these, number of devices, pairs of metadata and data device
        at = 2 + int(arguments[1])
        for number in range(int(arguments[at])):
            yield _LinearRange(arguments[at + 2 + 2 * number], 0, _COPY)


def _cut_stripes(device: str, volume: Layer, target: DmTarget) -> Iterator[Segment]:
    """Yield the stripes of a target on a device; arguments: count, chunk, (device, start) pairs."""
    stripes, chunk = int(target.arguments[0]), _parse_sectors(target.arguments[1])
    pairs = target.arguments[2 : 2 + 2 * stripes]
    if stripes < 1 or chunk < SECTOR or len(pairs) != 2 * stripes:
        raise ValueError("invalid stripes")
    each = target.length // stripes
    striping = Raid0(chunk, [each // chunk] * stripes)
    for number in range(stripes):
        name, start = pairs[2 * number : 2 * number + 2]
        if name == device:
            at = _parse_sectors(start)
            yield MemberSegment(at, each, volume, striping, number, target.start)


def _parse_sectors(text: str) -> int:
    if not _NUMBER.fullmatch(text):
        raise ValueError(f"{text!r} is not a number of sectors")
    return int(text) * SECTOR


# ------------------------------------------------------------------ the ioctl

#: version, data size, data start, target count, open count, flags, event, -, device, name, uuid
_IOCTL: Final = Struct("<3I2I I i I I I Q 128s 129s 7x")
_TARGET_SPEC: Final = Struct("<QQiI16s")
_DM_TABLE_STATUS: Final = 0xC138FD0C  # _IOWR(0xfd, 12, struct dm_ioctl)
_STATUS_TABLE, _BUFFER_FULL = 1 << 4, 1 << 8
_CONTROL: Final = "/dev/mapper/control"
_MIN_BUFFER, _MAX_BUFFER = 16 * 1024, 64 << 20


def read_dm_table(host: Host, name: str) -> list[DmTarget]:
    """Read the table of the volume with the kernel name ``name`` (``dm-0``).

    A snapshot has it in dm-tables/. Raises `UnsupportedError` if it cannot be read.
    """
    if not host.live:
        text = host.read_text(host.root / "dm-tables" / name)
        if text is None:
            raise UnsupportedError("its table is not in the snapshot")
        return parse_dm_table(text)
    folder = host.root / "sys/class/block" / name
    number = (host.read_text(folder / "dev") or "").partition(":")
    try:
        return _read_from_kernel(os.makedev(int(number[0]), int(number[2])))
    except PermissionError:
        raise UnsupportedError("reading its table needs CAP_SYS_ADMIN") from None
    except (OSError, ValueError) as error:
        raise UnsupportedError(f"cannot read its table: {error}") from None


def _read_from_kernel(device: int) -> list[DmTarget]:
    descriptor = os.open(_CONTROL, os.O_RDWR | os.O_CLOEXEC)
    try:
        targets = decode_dm_table(_query(descriptor, device, _STATUS_TABLE))
        if any(target.kind == "mirror" for target in targets):
            return add_mirror_states(targets, decode_dm_table(_query(descriptor, device, 0)))
        return targets
    finally:
        os.close(descriptor)


def _query(descriptor: int, device: int, flags: int) -> bytes:
    """Return the table of a volume, or without `_STATUS_TABLE` the states of its targets."""
    size = _MIN_BUFFER
    while size <= _MAX_BUFFER:
        buffer = bytearray(size)
        _IOCTL.pack_into(buffer, 0, 4, 0, 0, size, _IOCTL.size, 0, 0, flags, 0, 0, device, b"", b"")
        fcntl.ioctl(descriptor, _DM_TABLE_STATUS, buffer)
        if not _IOCTL.unpack_from(buffer)[7] & _BUFFER_FULL:
            return bytes(buffer)
        size *= 4
    raise UnsupportedError("its table is too large")


def add_mirror_states(targets: Sequence[DmTarget], states: Sequence[DmTarget]) -> list[DmTarget]:
    """Return the targets of a table, with whether mirrors are in sync by the states of targets.

    The state of a mirror has the number of its devices, the devices, and ``DONE/ALL`` regions
    (mirror_status in drivers/md/dm-raid1.c).
    """
    found = {state.start: state for state in states if state.kind == "mirror"}
    return [
        target._replace(in_sync=_is_in_sync(found[target.start].arguments))
        if target.kind == "mirror" and target.start in found
        else target
        for target in targets
    ]


def _is_in_sync(state: Sequence[str]) -> bool:
    if not state or not _NUMBER.fullmatch(state[0]) or len(state) < int(state[0]) + 2:
        return False
    done, _, regions = state[int(state[0]) + 1].partition("/")
    return bool(regions) and done == regions


def decode_dm_table(buffer: bytes) -> list[DmTarget]:
    """Decode the result of DM_TABLE_STATUS; raises `UnsupportedError`."""
    if len(buffer) < _IOCTL.size:
        raise UnsupportedError("its table is truncated")
    fields = _IOCTL.unpack_from(buffer)
    end, begin, count = fields[3], fields[4], fields[5]
    targets = []
    at = begin
    for _ in range(min(count, _MAX_LINES)):
        if not begin <= at <= len(buffer) - _TARGET_SPEC.size:
            raise UnsupportedError("its table is truncated")
        start, length, _, following, kind = _TARGET_SPEC.unpack_from(buffer, at)
        if begin + following < at + _TARGET_SPEC.size:
            # Targets that lead back to earlier ones would be read again and again.
            raise UnsupportedError("its table leads back to an earlier target")
        text = buffer[at + _TARGET_SPEC.size : min(begin + following, end, len(buffer))]
        arguments = text.partition(b"\0")[0].decode("utf-8", "replace").split()
        name = kind.partition(b"\0")[0].decode("ascii", "replace")
        if name == "crypt" and len(arguments) > 1:
            # Keys are dropped: they must not reach any output.
            arguments[1] = "-"
        targets.append(DmTarget(start * SECTOR, length * SECTOR, name, tuple(arguments)))
        # The offset counts from the first target.
        at = begin + following
    return targets
