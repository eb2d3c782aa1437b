"""The content of a report, as records that the page shows.

Offsets and lengths are bytes of the device or image that was asked about.  All text may come from
an adversary: it is what `printable` returns, and the page escapes it.
"""

from typing import Final, NamedTuple

from whoseblock.printable import printable
from whoseblock.report.device_map import DeviceMap

__all__ = [
    "MAX_FILES",
    "Content",
    "Failure",
    "Heading",
    "LayerLine",
    "LostFile",
    "shown_path",
]

#: The files and the failures that a page lists; browsers are slow with more rows.
MAX_FILES: Final = 10_000

_REMEDIES: Final = {
    "directory": "names of files may be lost: repair the filesystem, then look in lost+found",
    "symlink": "make the link again",
    "xattr": "restore the attributes from a copy",
    "extent-map": "the places of its blocks may be lost: repair the filesystem, then restore it",
}


class Heading(NamedTuple):
    """The heading of a report: title, time, host, version of the program, and commands.

    ``response`` is the command that plans repairs, "" if there is none.
    """

    title: str
    made: str
    host: str
    version: str
    command: str
    response: str


class LostFile(NamedTuple):
    """A file, or a part of it that is not data, that lost ``lost`` bytes in ``ranges`` pieces.

    ``others`` are its further paths.  ``size`` and ``share``, the lost part of the file from 0 to
    1, are None if they are unknown.  ``first`` is its first place on a map: the number of the map,
    and the start; None if no map has it.
    """

    path: str
    others: tuple[str, ...]
    layer: str
    inode: str
    what: str
    lost: int
    ranges: int
    size: int | None
    share: float | None
    shared: bool
    first: tuple[int, int] | None

    @property
    def remedy(self) -> str:
        """Advice for the file, in a few words."""
        if self.what in _REMEDIES:
            return _REMEDIES[self.what]
        once = ", once for all files that share it" if self.shared else ""
        return f"restore it from a copy{once}"


class LayerLine(NamedTuple):
    """A layer on the way to a filesystem: its name, its kind and content, its size."""

    name: str
    what: str
    size: int


class Failure(NamedTuple):
    """A failure of the journal.

    ``owners`` and ``state`` are words: the kinds of its owners, and the states of its repair.
    """

    number: int
    seen: str
    host: str
    device: str
    start: int
    length: int
    owners: str
    state: str


class Content(NamedTuple):
    """Everything that a page shows; the first fields are those of the `Heading`.

    ``totals`` are bytes by kind, ``metadata`` bytes by class.  ``reasons`` make the answer
    incomplete, ``remarks`` do not.  ``ways`` lead from a device to a filesystem each.
    """

    title: str
    made: str
    host: str
    version: str
    command: str
    response: str
    asked: int
    complete: bool
    totals: dict[str, int]
    metadata: dict[str, int]
    reasons: list[str]
    remarks: list[str]
    ways: list[list[LayerLine]]
    maps: list[DeviceMap]
    files: list[LostFile]
    failures: list[Failure]


def shown_path(path: str | None) -> str:
    """Return a path as a page shows it."""
    return printable(path) if path else "(no path)"
