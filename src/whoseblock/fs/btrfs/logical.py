"""The logical addresses of a btrfs filesystem, which its kernel messages use, as a space to ask."""

from collections.abc import Iterable, Iterator
from typing import TYPE_CHECKING

from whoseblock.fs.base import Answer, Progress, no_progress
from whoseblock.fs.driver import AddressSpace
from whoseblock.fs.stream import LeadingRows

if TYPE_CHECKING:
    from whoseblock.fs.btrfs.filesystem import BtrfsFilesystem

__all__ = ["LogicalSpace"]


class LogicalSpace(AddressSpace):
    """The logical addresses of ``filesystem``, which is closed with it.

    The ``copies`` of a row are all places of its first byte.
    """

    def __init__(self, filesystem: "BtrfsFilesystem") -> None:
        self.name = filesystem.name
        self.device_size = filesystem.logical_size
        self.block_size = filesystem.block_size
        self.progress: Progress = no_progress
        self._filesystem = filesystem

    def owners_stream(
        self, ranges: Iterable[tuple[int, int]], *, paths: bool = True
    ) -> Iterator[LeadingRows | Answer]:
        """Answer many ranges; see `AddressSpace.owners_stream`."""
        return self._filesystem.logical_stream(ranges, paths=paths)

    def close(self) -> None:
        """Close the filesystem."""
        self._filesystem.close()
