"""Open filesystems: find the driver of a medium, or of what is mounted."""

import os
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Final

from whoseblock.errors import BlockError, NotAFilesystemError, UnsupportedError
from whoseblock.fs import registry
from whoseblock.fs.driver import (
    AddressSpace,
    CompanionContent,
    MountedDevice,
    MountedVolume,
    Probe,
    Volume,
)
from whoseblock.fs.registry import Registration, driver_of
from whoseblock.media.base import Media
from whoseblock.media.mounts import Mount, find_mounts

__all__ = [
    "begins_with_filesystem",
    "identify_companion",
    "open_companion",
    "open_mounted",
    "open_mounted_or_disk",
    "open_volume",
    "probe_member",
]

_SECTOR: Final = 512
#: So much of a medium is read at once for the magic numbers near its beginning.
_HEAD: Final = 2048
#: Opens a filesystem by reading its disk; takes why the kernel did not answer, and the doubts.
OpenDisk = Callable[[BlockError | None, Sequence[str]], Volume]


def _matching(media: Media) -> tuple[list[Registration], list[Registration]]:
    """Sort the drivers into those whose magic number is on a medium, and the others."""
    with_magic: list[Registration] = []
    without: list[Registration] = []
    head = b""
    with suppress(BlockError):
        head = media.pread(0, min(_HEAD, media.size))
    for one in registry.DRIVERS:
        found = any(_has_magic(media, head, offset, magic) for offset, magic in one.magic)
        (with_magic if found else without).append(one)
    return with_magic, without


def _has_magic(media: Media, head: bytes, offset: int, magic: bytes) -> bool:
    """Return whether a magic number is on a medium that begins with ``head``."""
    if offset + len(magic) <= len(head):
        return head.startswith(magic, offset)
    if media.size < offset + len(magic):
        return False
    try:
        return media.pread(offset, len(magic)) == magic
    except BlockError:
        return False


def begins_with_filesystem(media: Media) -> bool:
    """Return whether a filesystem that a driver knows begins where the medium does."""
    return any(one.driver.probe(media) is not None for one in _matching(media)[0])


def probe_member(media: Media) -> Probe | None:
    """Identify a filesystem that may be on several devices; None if none begins on the medium."""
    for one in registry.DRIVERS:
        if one.spans_devices and any(_has_magic(media, b"", *magic) for magic in one.magic):
            return one.driver.probe(media)
    return None


def open_volume(
    members: Sequence[Media],
    companions: Mapping[str, Media] | None = None,
    doubts: Iterable[str] = (),
    find_others: Callable[[Probe], Sequence[Media]] = lambda _: (),
) -> Volume:
    """Open the filesystem on its devices, which are closed with it; so are its companions.

    Ranges are of the first member.  ``find_others`` returns more members of a filesystem that may
    be on several devices.  Drivers whose magic number is there are tried first; the others may know
    of copies.  Every answer is incomplete if there are ``doubts``.  Raises
    `NotAFilesystemError` or `UnsupportedError`; nothing is closed then.
    """
    doubts = tuple(doubts)
    errors: list[NotAFilesystemError] = []
    with_magic, without = _matching(members[0])
    for one in with_magic:
        if one.spans_devices and (probe := one.driver.probe(members[0])) is not None:
            members = [*members, *find_others(probe)]
            break
    for one in (*with_magic, *without):
        if len(members) > 1 and not one.spans_devices:
            if one in with_magic:
                raise UnsupportedError(f"{members[0].name}: {one.title} is on one device")
            continue
        try:
            return one.driver.open(members, companions or {}, doubts)
        except NotAFilesystemError as error:
            errors.append(error)
    raise _name_content(errors[0], members[0], with_magic)


def _name_content(
    error: NotAFilesystemError, media: Media, with_magic: Sequence[Registration]
) -> NotAFilesystemError:
    """Return the error with what is on a medium, which the drivers refused.

    The error is that of the driver whose filesystem the medium most resembles.
    """
    # Only a failed open needs the table of signatures.
    from whoseblock.fs.signatures import find_content

    content = find_content(media)
    if content is None:
        return error
    subject, reason = error.subject, content.what
    if with_magic and error.reason:
        reason = f"{reason} ({error.reason})"
    named = NotAFilesystemError(subject, reason=reason, hint=content.hint, title=content.title)
    named.__cause__ = error.__cause__
    return named


def open_mounted(device: int, size: int | None = None) -> MountedVolume | None:
    """Open what is mounted from the device of a number; None if nothing is.

    ``size`` is that of the image which the device reads, if it reads one.  The kernel answers for
    a filesystem without a driver as far as it does for every kind.  Raises `PrivilegeError`,
    `UnsupportedError`, `TargetError`, or `BlockError` if the kernel does not answer.
    """
    process, mounts = find_mounts(device)
    if not mounts:
        return None
    if size is None:
        folder = Path(f"/sys/dev/block/{os.major(device)}:{os.minor(device)}")
        try:
            size = int((folder / "size").read_text()) * _SECTOR
        except (OSError, ValueError):
            # No block device: the kernel reports no owners on such filesystems anyway.
            size = 0
    return _open_mounts(mounts, process, MountedDevice(device, size))


def _open_mounts(
    mounts: Sequence[Mount], process: int | None, device: MountedDevice
) -> MountedVolume:
    driver = driver_of(mounts[0].kind)
    if driver is not None:
        volume = driver.open_mounted(mounts, process, device)
        if volume is not None:
            return volume
    from whoseblock.fs.mounted.volume import FsmapVolume

    return FsmapVolume.open(mounts, process, device.size)


def open_mounted_or_disk(device: int | None, size: int | None, open_disk: OpenDisk) -> Volume:
    """Open what is mounted from the device of a number, or else read the disk.

    The disk is also read where the kernel does not answer.  It may have shut the filesystem down
    over the very failure that is looked up.  ``open_disk`` then gets the error, and the doubts that
    make every answer incomplete.  Raises what `open_mounted` does.
    """
    if device is not None:
        try:
            if mounted := open_mounted(device, size):
                return mounted
        except BlockError as error:
            return open_disk(error, (f"{error}; the disk was read instead",))
    return open_disk(None, ())


def open_companion(role: str, media: Media, data: Media) -> AddressSpace:
    """Open the companion on ``media`` of the filesystem on ``data``; see `Driver.open_companion`.

    Raises `NotAFilesystemError`, or `UnsupportedError` if the filesystem has none of that role.
    """
    errors: list[NotAFilesystemError] = []
    with_magic, without = _matching(data)
    for one in (*with_magic, *without):
        if one in with_magic or any(companion.role == role for companion in one.companions):
            try:
                return one.driver.open_companion(role, media, data)
            except NotAFilesystemError as error:
                errors.append(error)
    if not errors:
        raise UnsupportedError(f"{data.name} has no {role} device")
    raise _name_content(errors[0], data, with_magic)


def identify_companion(media: Media) -> CompanionContent | None:
    """Return which companion a medium without a filesystem is, None if it is none."""
    candidates = (one.driver for one in registry.DRIVERS if one.companions)
    return next(filter(None, (driver.identify_companion(media) for driver in candidates)), None)
