"""The sources of a study's extents: an image, or a generator."""

from collections.abc import Callable
from functools import cached_property
from pathlib import Path
from typing import Protocol, Self

from whoseblock.closing import Closing
from whoseblock.errors import UnsupportedError
from whoseblock.fs.driver import Volume
from whoseblock.fs.opening import open_volume
from whoseblock.media.device import FileMedia
from whoseblock.media.overlay import OverlayMedia
from whoseblock.media.pmem import EmulatedPmem
from whoseblock.study.base import LookupResult
from whoseblock.study.simulation.extents import Extents, extents_of, in_pieces, made_up
from whoseblock.study.simulation.space import Space
from whoseblock.study.sizes import PAGE
from whoseblock.study.trackers.on_demand import DiskAnswers, DiskLookup, SpaceLookup, ask_all

__all__ = ["ImageSource", "MadeUpSource", "PiecesSource", "Source", "open_image"]


class Source(Protocol):
    """Extents, and lookups of their owners."""

    name: str

    @property
    def extents(self) -> Extents:
        """The extents."""

    def space(self) -> Space:
        """Create a filesystem of the study with exactly these extents."""

    def lookup(self, space: Space) -> Callable[[int], LookupResult]:
        """Return the lookup that answers when a page fails."""

    def answers(self, space: Space) -> Callable[[int], list[int]]:
        """Return a faster lookup with the same owners as `lookup`, for any page at any time."""

    def media(self) -> EmulatedPmem:
        """Create a device that fails; written data are discarded."""


def open_image(path: str) -> Volume:
    """Open an image for queries; raises `UnsupportedError` if it has no reverse map."""
    filesystem = open_volume([FileMedia(path)])
    if filesystem.reverse_map == "index":
        return filesystem
    filesystem.close()
    raise UnsupportedError(
        f"{path!r} has no reverse map to measure",
        hint="name the image of a filesystem with one, such as an XFS made with -m rmapbt=1",
    )


class ImageSource(Closing):
    """A real XFS image, which is never written."""

    def __init__(self, path: str) -> None:
        self.path = path
        self.name = Path(path).name
        self.filesystem = open_image(path)

    @cached_property
    def extents(self) -> Extents:
        """The written extents of files."""
        return extents_of(self.filesystem)

    def space(self) -> Space:
        """Create a filesystem of the study with exactly these extents."""
        return Space(self.extents)

    def lookup(self, space: Space) -> DiskLookup:
        """Ask the image, which knows nothing of what the study has changed."""
        return DiskLookup(self.filesystem, space)

    @cached_property
    def _told(self) -> dict[int, list[int]]:
        return ask_all(self.filesystem, self.space())

    def answers(self, space: Space) -> DiskAnswers:
        """Ask the image about everything at once, the first time."""
        return DiskAnswers(self._told, space)

    def media(self) -> EmulatedPmem:
        """Create a device that fails from the image."""
        return EmulatedPmem(OverlayMedia(FileMedia(self.path)))

    def close(self) -> None:
        """Close the image."""
        self.filesystem.close()


class _Blank:
    """A device full of zeros."""

    name = "a made-up device"

    def __init__(self, size: int) -> None:
        self.size = size

    def pread(self, _offset: int, length: int) -> bytes:
        return bytes(length)

    def close(self) -> None:
        pass


class _NoDisk:
    """Extents that are made up: a filesystem in memory alone."""

    def __init__(self, name: str, extents: Extents) -> None:
        self.name = name
        self.extents = extents

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        """Return without effect: no file is open."""

    def space(self) -> Space:
        """Create a filesystem of the study with exactly these extents."""
        return Space(self.extents)

    def lookup(self, space: Space) -> SpaceLookup:
        """Ask what is in memory: there is no disk."""
        return SpaceLookup(space)

    def answers(self, space: Space) -> Callable[[int], list[int]]:
        """Ask what is in memory, which takes no time."""
        return space.keys

    def media(self) -> EmulatedPmem:
        """Create an empty device that fails."""
        return EmulatedPmem(OverlayMedia(_Blank(self.extents.pages * PAGE)))


class MadeUpSource(_NoDisk):
    """About ``pages`` pages of data that so many files share, in extents of any length."""

    def __init__(self, pages: int, sharing: int, seed: int) -> None:
        super().__init__(f"made up, {sharing} files a page", made_up(pages, sharing, seed))


class PiecesSource(_NoDisk):
    """About ``pages`` pages of data that so many files share, in extents of one length."""

    def __init__(self, pages: int, sharing: int, length: int) -> None:
        name = f"made up, {sharing} files, {length} pages an extent"
        super().__init__(name, in_pieces(pages, sharing, length))
