"""The content of a medium without a filesystem that a driver reads, for messages only."""

from typing import Final, NamedTuple

from whoseblock.errors import BlockError
from whoseblock.media.base import Media, next_data
from whoseblock.signatures import SIGNATURES, Signature, find_signatures

__all__ = ["Content", "find_content"]

_HEAD: Final = 68 * 1024
_BOOT: Final = slice(510, 512)


class Content(NamedTuple):
    """A clause that says what a medium begins like, and what to do about it.

    ``title`` names the content alone, for the end of a branch of layers.
    """

    what: str
    hint: str
    title: str


_ZEROS: Final = Content(
    "it begins with zeros",
    "is it the right device? A rescued image has zeros where nothing could be read",
    "zeros at its beginning",
)
_EMPTY: Final = Content("it is empty", "name another device or image", "empty")
_BOOT_SECTOR: Final = Content(
    "it looks like a partition table or a boot sector",
    "whoseblock stack shows what is on it",
    "a partition table or a boot sector",
)
_UNREADABLE: Final = Content(
    "its beginning cannot be read",
    "copy it with ddrescue, and name the copy",
    "unreadable at its beginning",
)


def find_content(media: Media) -> Content | None:
    """Return what a medium is like by its signatures; None if nothing is recognised.

    All signatures that verify are named: a medium may have those of a former content, too. Those of
    filesystems that have a driver are left out: the driver reports why it does not read them.
    """
    # The registry loads drivers, whose messages come from here.
    from whoseblock.fs.registry import DRIVERS

    if not media.size:
        return _EMPTY
    if next_data(media, 0) >= media.size:
        return _ZEROS
    try:
        head = media.pread(0, min(_HEAD, media.size))
    except BlockError:
        head = b""

    def read(offset: int, length: int) -> bytes:
        if offset + length <= len(head):
            return head[offset : offset + length]
        return media.pread(offset, length)

    ours = {kind for one in DRIVERS for kind in one.kinds}
    others = [one for one in SIGNATURES if one.name not in ours]
    found, _ = find_signatures(others, read, media.size)
    if found:
        titles = " and ".join(dict.fromkeys(one.title for one in found))
        return Content(f"it looks like {titles}", _hint(found), titles)
    if not head:
        return _UNREADABLE
    if head == bytes(len(head)):
        return _ZEROS
    return _BOOT_SECTOR if head[_BOOT] == b"\x55\xaa" else None


def _hint(found: tuple[Signature, ...]) -> str:
    """Return the advice for the first signature that has one."""
    if advice := next((one.advice for one in found if one.advice), ""):
        return advice
    from whoseblock.fs.registry import titles

    return f"whoseblock reads {titles()} only"
