"""The logical addresses of a btrfs filesystem, which its kernel messages use, as a space to ask."""

from collections.abc import Iterable, Iterator
from typing import Protocol

from whoseblock.fs.base import Answer, Progress, no_progress
from whoseblock.fs.driver import AddressSpace
from whoseblock.fs.stream import LeadingRows

__all__ = ["LogicalFilesystem", "LogicalSpace"]


class LogicalFilesystem(Protocol):
    """A filesystem that can be asked about logical addresses."""

    name: str
    block_size: int
    max_owners: int

    @property
    def logical_size(self) -> int:
        """The end of the addresses."""
        ...

    def logical_stream(
        self, ranges: Iterable[tuple[int, int]], *, paths: bool = True
    ) -> Iterator[LeadingRows | Answer]:
        """Answer many ranges; see `AddressSpace.owners_stream`."""
        ...

    def close(self) -> None:
        """Close the filesystem."""
        ...


class LogicalSpace(AddressSpace):
    """The logical addresses of ``filesystem``, which is closed with it.

    The ``copies`` of a row are all places of its first byte.
    """

    def __init__(self, filesystem: LogicalFilesystem) -> None:
        self.name = filesystem.name
        self.device_size = filesystem.logical_size
        self.block_size = filesystem.block_size
        self.progress: Progress = no_progress
        self._filesystem = filesystem

    def owners_stream(
        self, ranges: Iterable[tuple[int, int]], *, paths: bool = True
    ) -> Iterator[LeadingRows | Answer]:
        """Answer many ranges; see `AddressSpace.owners_stream`."""
        self._filesystem.max_owners = self.max_owners
        return self._filesystem.logical_stream(ranges, paths=paths)

    def close(self) -> None:
        """Close the filesystem."""
        self._filesystem.close()
