"""The metadata of a mounted filesystem, as the kernel has it in memory.

ext4 keeps all metadata in the page cache of its device.  A buffered read of the device copies from
that cache.  So it shows each change as soon as the kernel has made it, before the journal is
written, and before blocks are written in place.  This holds for the superblock, descriptors,
bitmaps, inodes, maps, directories and attributes; not for the data of files.

A read may meet a change half done: the checksum is then wrong for a moment.  So whatever does not
verify is read again.
"""

import time
from collections.abc import Callable, Iterable, Iterator
from functools import partial
from typing import TYPE_CHECKING, Final, TypeVar, cast

from whoseblock.closing import Closing
from whoseblock.errors import CorruptError, MediaError, NotAFilesystemError
from whoseblock.fs.ext4.format.descriptor import Descriptor
from whoseblock.fs.ext4.format.inode import Inode
from whoseblock.fs.ext4.format.superblock import Superblock
from whoseblock.fs.ext4.inodes import inode_at
from whoseblock.fs.ext4.scan import InodeScan
from whoseblock.fs.ext4.static import FixedMetadata
from whoseblock.fs.ext4.superblocks import OpenedSuperblock, open_superblock
from whoseblock.fs.ext4.volume import Bitmap, Volume
from whoseblock.fs.scan.engine import Batch, UnreadInodes
from whoseblock.media.base import Media

if TYPE_CHECKING:
    from whoseblock.fs.scan.bulk import ArrayBatch

__all__ = ["LiveMetadata", "LiveScan", "LiveVolume"]

#: How often what does not verify is read again, and the first pause between, which doubles.
_ATTEMPTS: Final = 6
_PAUSE: Final = 0.001
#: Groups that one scan reads again; damage that stays must not cost a pause in each group.
_MOST_AGAIN: Final = 32
_T = TypeVar("_T")
_Columns = TypeVar("_Columns", bound="Batch | ArrayBatch")


def _again(read: Callable[[], _T], forget: Callable[[], None]) -> _T:
    """Return what ``read`` does, again after a pause where it raises `CorruptError`."""
    for attempt in range(_ATTEMPTS - 1):
        try:
            return read()
        except CorruptError:
            time.sleep(_PAUSE * (1 << attempt))
            forget()
    return read()


class _FailedReads:
    """A medium on which no read that failed is tried again before `forget`.

    Each may take a failing disk a minute, and is of no use for a change half done.
    """

    def __init__(self, media: Media) -> None:
        self.name = media.name
        self.size = media.size
        self._media = media
        self._failed: dict[tuple[int, int], MediaError] = {}

    def pread(self, offset: int, length: int) -> bytes:
        """Return exactly ``length`` bytes from ``offset``; raises `MediaError`."""
        if (offset, length) in self._failed:
            raise self._failed[offset, length]
        try:
            return self._media.pread(offset, length)
        except MediaError as error:
            self._failed[offset, length] = error
            raise

    def forget(self) -> None:
        """Try again what failed."""
        self._failed.clear()

    def close(self) -> None:
        """Close the medium."""
        self._media.close()


class LiveVolume(Volume):
    """A volume whose metadata changes: nothing is kept past a `forget`."""

    def forget(self) -> None:
        """Read descriptors and bitmaps again."""
        self._descriptor_block.cache_clear()
        self.inode_bitmap.cache_clear()

    def descriptor(self, group: int) -> Descriptor:
        """Return the descriptor of a group, verified; raises `BlockError`.

        No copy is used: the kernel keeps the descriptors themselves in memory.
        """
        block = self._descriptors_at(group // self.per_block)
        return _again(lambda: self._descriptor_in(block, group), self.forget)

    def read_block_bitmap(self, group: int) -> Bitmap:
        """Return the block bitmap of a group as it is now."""
        return self._bitmap_of(super().read_block_bitmap, group)

    def _read_inode_bitmap(self, group: int) -> Bitmap:
        """Return the inode bitmap of a group as it is now."""
        return self._bitmap_of(super()._read_inode_bitmap, group)

    def _bitmap_of(self, read: Callable[[int], Bitmap], group: int) -> Bitmap:
        """Return a bitmap; its checksum and its counts are in the descriptor of the same moment."""
        for attempt in range(_ATTEMPTS - 1):
            self._descriptor_block.cache_clear()
            found = read(group)
            if not found.fault:
                return found
            time.sleep(_PAUSE * (1 << attempt))
        return read(group)

    def inode(self, number: int) -> tuple[Inode, bytes]:
        """Return an inode, verified, and its bytes; raises `BlockError`."""
        return _again(lambda: inode_at(self, number), self.forget)


class LiveScan(InodeScan):
    """Reads inode tables that change meanwhile.

    An extent may come twice, and one that moves may be missing: each is a hint only.
    """

    def __init__(self, volume: LiveVolume, fixed: FixedMetadata) -> None:
        super().__init__(volume, fixed)
        self._live = volume
        self._again = _MOST_AGAIN

    def batches(self, groups: Iterable[int]) -> Iterator[Batch | UnreadInodes]:
        """Yield the extents of all inodes of ``groups``, and the inodes that stay unread."""
        scan = super().batches
        for group in groups:
            yield from self._repeated(partial(scan, (group,)))

    def tables(self, groups: Iterable[int]) -> "Iterator[Batch | ArrayBatch | UnreadInodes]":
        """Yield the same with NumPy as columns."""
        from whoseblock.fs.ext4.tables import TableDecoder

        self._map_blocks = 0
        decoder = TableDecoder(self.volume, self.fixed)
        for group in groups:
            yield from self._repeated(partial(self.decoded, group, decoder))

    def _repeated(
        self, read: "Callable[[], Iterator[_Columns | UnreadInodes]]"
    ) -> "Iterator[_Columns | UnreadInodes]":
        """Yield what ``read`` does, again after a pause where it yields unread inodes."""
        unread: list[UnreadInodes] = []
        for attempt in range(_ATTEMPTS):
            self._live.forget()
            unread = []
            for item in read():
                if isinstance(item, UnreadInodes):
                    unread.append(item)
                else:
                    # The inodes of the group count once.
                    again = cast("_Columns", item._replace(inodes_done=0))
                    yield item if attempt == 0 else again
            if not unread or not self._again:
                break
            self._again -= attempt == 0
            time.sleep(_PAUSE * (1 << attempt))
        yield from unread


class LiveMetadata(Closing):
    """The metadata of a mounted filesystem on ``media``, which is closed with it.

    Raises `NotAFilesystemError` and `UnsupportedError`.
    """

    def __init__(self, media: Media) -> None:
        self.media = _FailedReads(media)
        self._opened = self._superblock()
        self.volume = LiveVolume(media, self._opened.sb)
        self._fixed: FixedMetadata | None = None
        self._scan: LiveScan | None = None

    @property
    def sb(self) -> Superblock:
        """The superblock as of the last `refresh`."""
        return self._opened.sb

    @property
    def notes(self) -> tuple[str, ...]:
        """The reasons to doubt the superblock."""
        return self._opened.notes

    @property
    def fixed(self) -> FixedMetadata:
        """The fixed metadata, which only a change of the size moves."""
        if self._fixed is None:
            self._fixed = self._read_fixed()
        return self._fixed

    def _read_fixed(self) -> FixedMetadata:
        for attempt in range(_ATTEMPTS - 1):
            found = FixedMetadata(self.volume)
            if not found.faults:
                return found
            time.sleep(_PAUSE * (1 << attempt))
            self.volume.forget()
        return FixedMetadata(self.volume)

    def refresh(self) -> None:
        """Read the superblock again; the filesystem may have grown."""
        self.media.forget()
        self._scan = None
        before, self._opened = self._opened.sb, self._superblock()
        after = self._opened.sb
        if _geometry(before) != _geometry(after):
            self._fixed = None
            self.volume = LiveVolume(self.media, after)
        self.volume.forget()

    @property
    def scan(self) -> LiveScan:
        """The scan of the inodes, which keeps directories until the next `refresh`."""
        if self._scan is None:
            self._scan = LiveScan(self.volume, self.fixed)
        return self._scan

    def _superblock(self) -> OpenedSuperblock:
        for attempt in range(_ATTEMPTS - 1):
            try:
                found = open_superblock(self.media)
            except NotAFilesystemError:
                found = None
            if found is not None and not found.notes:
                return found
            time.sleep(_PAUSE * (1 << attempt))
        return open_superblock(self.media)

    def close(self) -> None:
        """Close the medium; a second time has no effect."""
        self.media.close()


def _geometry(sb: Superblock) -> tuple[int, ...]:
    return (
        sb.blocks_count,
        sb.inodes_count,
        sb.reserved_gdt_blocks,
        sb.first_meta_bg,
        sb.compat,
        sb.incompat,
        sb.ro_compat,
    )
