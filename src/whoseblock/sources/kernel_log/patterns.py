"""Patterns of kernel messages, and their results.

`messages` has the table. A pattern names the unit of its numbers. Where a unit depends on a device
or a filesystem, `Units` returns it or None; a unit is never assumed.
"""

import re
from collections.abc import Callable
from typing import Final, NamedTuple

from whoseblock.sources.base import MAX_OFFSET

__all__ = ["SECTOR", "Found", "Harmless", "Located", "Pattern", "Units", "Unplaced", "locate"]

#: The unit of the block layer, in bytes, whatever the sector size of the device.
SECTOR: Final = 512


class Located(NamedTuple):
    """A range of a device in bytes; ``remark`` limits what the message says about it.

    With ``is_logical``, the range has addresses of the filesystem on the device. With ``file``, a
    subvolume and an inode of that filesystem, the range is of the file.
    """

    device: str
    start: int
    length: int
    remark: str = ""
    is_logical: bool = False
    file: tuple[int, int] | None = None


class Unplaced(NamedTuple):
    """An error whose place is unknown; ``reason`` completes "at an unknown place, …".

    ``is_repeated`` is whether another message reports the same error with a usable place.
    """

    device: str
    reason: str
    is_repeated: bool = False


class Harmless(NamedTuple):
    """An error that lost no data: of the path, corrected, or of a request without data."""


Found = Located | Unplaced | Harmless


def _no_size(_: str) -> int | None:
    return None


class Units(NamedTuple):
    """The units that messages count in, in bytes; None where a unit is unknown.

    ``logical_block`` returns that of a disk, and ``filesystem_block`` that of an ext2, ext3 or ext4
    filesystem on a device, by the name in the message. ``buffer_block`` is the unit of the lines
    ``Buffer I/O error``.
    """

    page: int = 4096
    logical_block: Callable[[str], int | None] = _no_size
    filesystem_block: Callable[[str], int | None] = _no_size
    buffer_block: int | None = None


class Pattern(NamedTuple):
    """A kind of message.

    ``begin``, ``whole`` and ``foreign`` are regular expressions, of ASCII; ``begin`` is one without
    groups for the first words of the message, which no other pattern matches. ``whole`` matches it
    from its beginning, and ``read`` interprets the match. If ``whole`` does not match, the message
    is unrecognised; but it is damaged if ``expected`` is not empty, unless ``foreign`` matches too.
    ``sample`` is a message, and ``seen`` the public place of a log that has it. ``source`` and
    ``versions`` are the file and function of the kernel that prints it, and in which versions.
    ``is_above`` is whether it is of a layer above the device of the block layer's message about the
    same error. ``is_live`` is whether the daemon takes it from /dev/kmsg.
    """

    name: str
    begin: str
    whole: str
    read: Callable[[re.Match[str], Units], Found]
    unit: str
    source: str
    versions: str
    sample: str
    seen: str
    is_above: bool = False
    is_live: bool = False
    expected: str = ""
    foreign: str = ""

    def match(self, text: str) -> re.Match[str] | None:
        """Match a message with ``whole``, which is compiled when it is first needed."""
        return re.match(self.whole, text, re.ASCII)

    def is_foreign(self, text: str) -> bool:
        """Return whether a message is not of this kind in spite of its first words."""
        return bool(self.foreign) and re.match(self.foreign, text, re.ASCII) is not None


def locate(device: str, start: int, length: int, remark: str = "") -> Found:
    """Return a place, or `Unplaced` if it is past the largest offset."""
    if length <= 0 or start + length > MAX_OFFSET:
        return Unplaced(device, "which is printed as a number past the end of any device")
    return Located(device, start, length, remark)
