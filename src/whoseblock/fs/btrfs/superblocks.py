"""The superblocks of the devices: of each the first, or a copy of it."""

from collections.abc import Sequence
from typing import Final, NamedTuple

from whoseblock.errors import BlockError, NotAFilesystemError, UnsupportedError
from whoseblock.fs.btrfs.format.items import DeviceItem
from whoseblock.fs.btrfs.format.superblock import (
    COPIES,
    SUPERBLOCK_SIZE,
    Superblock,
    parse_superblock,
    superblock_fault,
    unsupported_features,
)
from whoseblock.media.base import Media

__all__ = [
    "OpenedDevices",
    "OpenedSuperblock",
    "begins_with_superblock",
    "open_devices",
    "open_superblock",
]

_NAME: Final = "btrfs"


class OpenedSuperblock(NamedTuple):
    """A superblock that verifies, and the notes that make every answer incomplete."""

    sb: Superblock
    notes: tuple[str, ...]


class OpenedDevices(NamedTuple):
    """The devices of one filesystem, the first of which has the number ``first``.

    ``sb`` is the newest superblock of all; ``notes`` make every answer incomplete.
    """

    sb: Superblock
    first: int
    media: dict[int, Media]
    items: dict[int, DeviceItem]
    notes: tuple[str, ...]


def open_devices(members: Sequence[Media]) -> OpenedDevices:
    """Verify the superblocks of devices, and that they belong together.

    Raises `NotAFilesystemError` for the first, and `UnsupportedError`.
    """
    newest, notes = open_superblock(members[0])
    items = {newest.device.device: newest.device}
    media = {newest.device.device: members[0]}
    generations = {members[0].name: newest.generation}
    first = newest.device.device
    for member in members[1:]:
        try:
            sb, more = open_superblock(member)
        except NotAFilesystemError as error:
            raise UnsupportedError(f"{member.name}: no device of {_NAME}") from error
        if sb.fsid != newest.fsid:
            raise UnsupportedError(f"{member.name}: a device of another {_NAME} filesystem")
        number = sb.device.device
        if number in media:
            raise UnsupportedError(
                f"{media[number].name} and {member.name} are both device {number} of one {_NAME}"
                " filesystem: is one a copy?"
            )
        notes += tuple(f"{member.name}: {note}" for note in more)
        media[number], items[number] = member, sb.device
        generations[member.name] = sb.generation
        newest = max(newest, sb, key=lambda one: one.generation)
    notes += tuple(
        f"{name} has the state of generation {generation}, and another device that of"
        f" {newest.generation}: it missed changes"
        for name, generation in generations.items()
        if generation != newest.generation
    )
    return OpenedDevices(newest, first, media, items, notes)


def _read(media: Media, offset: int) -> Superblock | str:
    """Return the superblock at a byte, or why there is none."""
    if media.size < offset + SUPERBLOCK_SIZE:
        return "the device is too small"
    try:
        raw = media.pread(offset, SUPERBLOCK_SIZE)
    except BlockError as error:
        return str(error)
    sb = parse_superblock(raw)
    return superblock_fault(sb, raw, offset) or sb


def begins_with_superblock(media: Media) -> Superblock | None:
    """Return the superblock at its first place, None if it does not verify."""
    found = _read(media, COPIES[0])
    return None if isinstance(found, str) else found


def open_superblock(media: Media) -> OpenedSuperblock:
    """Find and verify the superblock, and compare it with its copies.

    Raises `NotAFilesystemError`, or `UnsupportedError` for features that are not read.
    """
    first = _read(media, COPIES[0])
    copies = {offset: _read(media, offset) for offset in COPIES[1:]}
    valid = {offset: sb for offset, sb in copies.items() if isinstance(sb, Superblock)}
    notes: list[str] = []
    if isinstance(first, Superblock):
        sb = first
        for offset, copy in valid.items():
            if copy.fsid == first.fsid and copy.generation != first.generation:
                notes.append(
                    f"the copy of the superblock at byte {offset} is of generation"
                    f" {copy.generation}, the first of {first.generation}"
                )
                sb = max(sb, copy, key=lambda one: one.generation)
    else:
        sb = _from_copies(media, first, valid)
        notes.append(
            f"the superblock is lost ({first}); the copy at byte {sb.address} was used, which may"
            " be older"
        )
    if names := unsupported_features(sb):
        raise UnsupportedError(
            f"{media.name}: features of {_NAME} that are not read: {', '.join(names)}"
        )
    if not sb.device.device:
        raise UnsupportedError(
            f"{media.name}: the target of a replacement of a device that was interrupted",
            hint="name the other devices of the filesystem",
        )
    return OpenedSuperblock(sb, tuple(notes))


def _from_copies(media: Media, why: str, valid: dict[int, Superblock]) -> Superblock:
    """Return the newest copy, unless the device begins like something else."""
    if valid and not _has_other_filesystem(media):
        return max(valid.values(), key=lambda one: one.generation)
    raise NotAFilesystemError(
        f"no {_NAME} filesystem on {media.name!r}",
        reason=f"superblock: {why}",
        hint="name the device or the image of the filesystem",
    )


def _has_other_filesystem(media: Media) -> bool:
    """Return whether the device begins like another filesystem, made over a former btrfs."""
    from whoseblock.signatures import SIGNATURES, find_signatures

    others = [one for one in SIGNATURES if one.kind == "filesystem" and one.name != _NAME]
    return bool(find_signatures(others, media.pread, media.size)[0])
