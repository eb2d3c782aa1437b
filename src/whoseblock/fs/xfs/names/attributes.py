"""Reading extended attributes, parent pointers among them, and remote symbolic links."""

from bisect import bisect_right
from collections.abc import Iterator
from typing import Final, NamedTuple

from whoseblock.errors import BlockError, CorruptError
from whoseblock.fs.xfs.format.attr import (
    PARENT_REC,
    REMOTE_HEADER,
    XFS_ATTR3_LEAF_MAGIC,
    XFS_ATTR3_RMT_CRC_OFF,
    XFS_ATTR3_RMT_MAGIC,
    XFS_ATTR_INCOMPLETE,
    XFS_ATTR_LEAF_MAGIC,
    XFS_ATTR_PARENT,
    XFS_DA3_CRC_OFF,
    XFS_DA3_NODE_MAGIC,
    XFS_DA_NODE_MAGIC,
    XFS_DA_NODE_MAXDEPTH,
    XFS_SYMLINK_MAGIC,
    Attribute,
    DaBlockInfo,
    da_header,
    leaf_attributes,
    node_children,
    short_attributes,
)
from whoseblock.fs.xfs.format.checksum import crc_matches
from whoseblock.fs.xfs.format.directory import is_name
from whoseblock.fs.xfs.format.inode import ATTR_FORK, DATA_FORK, XFS_DINODE_FMT_LOCAL
from whoseblock.fs.xfs.inodes import Extent, InodeTable
from whoseblock.fs.xfs.volume import Volume

__all__ = ["Attributes", "ParentPointer"]

#: The kernel's limit on what a symbolic link may hold, XFS_SYMLINK_MAXLEN.
_SYMLINK_MAXLEN: Final = 1024
#: No extent of a link is longer, unless it is one block.
_LINK_EXTENT: Final = 4096
#: An attribute fork has no more extents than this here, and all values of one inode no more bytes.
_MOST_EXTENTS: Final = 1 << 18
_MOST_VALUES: Final = 64 << 20


class ParentPointer(NamedTuple):
    """One name of a file: the directory's inode and generation, and the name there."""

    parent: int
    generation: int
    name: bytes


class _Fork(NamedTuple):
    """The extents of an attribute fork in ascending order, and the first block of each."""

    offsets: list[int]
    extents: list[Extent]


class Attributes:
    """The attribute forks of a volume's inodes; every method raises `BlockError`."""

    def __init__(self, volume: Volume, inodes: InodeTable) -> None:
        self.volume = volume
        self.inodes = inodes
        self._leaf_magic = XFS_ATTR3_LEAF_MAGIC if volume.has_crc else XFS_ATTR_LEAF_MAGIC
        #: The length of the header of remote values and links.
        self._remote_header = REMOTE_HEADER.size if volume.has_crc else 0

    def parents(self, ino: int, most: int) -> list[ParentPointer]:
        """Return the parent pointers of an inode, or the first ones if there are more than most."""
        found: list[ParentPointer] = []
        for attribute in self._all(ino):
            if not attribute.flags & XFS_ATTR_PARENT or attribute.flags & XFS_ATTR_INCOMPLETE:
                continue
            if len(found) > most:
                break
            if len(attribute.value) != PARENT_REC.size or not is_name(attribute.name):
                start = self.inodes.get(ino).start
                raise CorruptError(f"parent pointer of inode {ino}", start, "not well-formed")
            record = PARENT_REC.unpack_from(attribute.value)
            found.append(ParentPointer(record.ino, record.gen, attribute.name))
        return found

    def values(self, ino: int) -> Iterator[Attribute]:
        """Yield every attribute of an inode with its value, except for parent pointers."""
        extents: _Fork | None = None
        left = _MOST_VALUES
        for attribute in self._all(ino):
            if attribute.flags & (XFS_ATTR_PARENT | XFS_ATTR_INCOMPLETE):
                continue
            if attribute.remote_block is None:
                yield attribute
                continue
            left -= attribute.remote_length
            if left < 0:
                start = self.inodes.get(ino).start
                raise CorruptError(f"attributes of inode {ino}", start, "too many long values")
            extents = extents or self._fork(ino)
            value = self._remote_value(
                ino, extents, attribute.remote_block, attribute.remote_length
            )
            yield attribute._replace(value=value)

    def readlink(self, ino: int) -> bytes:
        """Return the target of a symbolic link."""
        inode = self.inodes.get(ino)
        size = inode.core.size
        if not inode.core.is_symlink or size > _SYMLINK_MAXLEN:
            raise CorruptError(f"inode {ino}", inode.start, "not a symbolic link")
        fork = inode.core.fork(DATA_FORK, self.volume.inode_size)
        if fork is not None and fork.format == XFS_DINODE_FMT_LOCAL:
            return inode.fork_bytes(fork)[:size]
        target = b""
        # One header for each extent, unlike attributes, which have one for each block.
        for extent in self.inodes.extents(ino, DATA_FORK):
            length = extent.blocks * self.volume.block_size
            if extent.blocks > 1 and length > _LINK_EXTENT:
                raise CorruptError(f"inode {ino}", inode.start, "more blocks than a link needs")
            part = min(size - len(target), length - self._remote_header)
            if part > 0:
                target += self._remote_part(
                    ino, extent.start, length, XFS_SYMLINK_MAGIC, len(target), part
                )
        if len(target) != size:
            raise CorruptError(f"inode {ino}", inode.start, "part of the link is missing")
        return target

    # ------------------------------------------------------------------ the fork

    def _all(self, ino: int) -> Iterator[Attribute]:
        inode = self.inodes.get(ino)
        fork = inode.core.fork(ATTR_FORK, self.volume.inode_size)
        if fork is None:
            return
        if fork.format == XFS_DINODE_FMT_LOCAL:
            yield from short_attributes(inode.fork_bytes(fork), inode.start)
            return
        extents = self._fork(ino)
        if not extents.offsets:
            return
        number: int | None = self._first_leaf(ino, extents)
        seen: set[int] = set()
        while number is not None:
            start, block, header = self._da_block(ino, extents, number)
            if number in seen or header.magic != self._leaf_magic:
                raise CorruptError(f"attribute leaf of inode {ino}", start, "not the next leaf")
            seen.add(number)
            has_crc = self.volume.has_crc
            yield from leaf_attributes(block, header.entries, start, has_crc=has_crc)
            number = header.forw or None

    def _fork(self, ino: int) -> _Fork:
        """Read where the blocks of an attribute fork are."""
        offsets: list[int] = []
        places: list[Extent] = []
        for extent in self.inodes.extents(ino, ATTR_FORK):
            start = self.inodes.get(ino).start
            if len(offsets) >= _MOST_EXTENTS:
                raise CorruptError(f"attributes of inode {ino}", start, "too many extents")
            if offsets and extent.offset <= offsets[-1]:
                raise CorruptError(f"attributes of inode {ino}", start, "extents out of order")
            offsets.append(extent.offset)
            places.append(extent)
        return _Fork(offsets, places)

    def _first_leaf(self, ino: int, extents: _Fork) -> int:
        """Descend to the leftmost leaf, from which the leaves are chained."""
        number = 0
        for _ in range(XFS_DA_NODE_MAXDEPTH):
            start, block, header = self._da_block(ino, extents, number)
            if header.magic == self._leaf_magic:
                return number
            has_crc = self.volume.has_crc
            number = node_children(block, header.entries, start, has_crc=has_crc)[0]
        raise CorruptError(f"attributes of inode {ino}", start, "a tree too high")

    def _da_block(self, ino: int, extents: _Fork, number: int) -> tuple[int, bytes, DaBlockInfo]:
        """Read block ``number`` of the fork, a node or a leaf."""
        volume = self.volume
        start = self._where(ino, extents, number)
        block = volume.read("attr", start, volume.block_size)
        has_crc = volume.has_crc
        header = da_header(block, has_crc=has_crc)
        node = XFS_DA3_NODE_MAGIC if has_crc else XFS_DA_NODE_MAGIC
        faults = {
            "wrong magic number": header.magic not in (self._leaf_magic, node),
            "checksum mismatch": has_crc and not crc_matches(block, XFS_DA3_CRC_OFF),
        }
        if has_crc:
            faults |= volume.ownership_faults(header, ino, start)
        volume.verify(f"attribute block of inode {ino}", start, faults)
        return start, block, header

    def _where(self, ino: int, fork: _Fork, number: int) -> int:
        index = bisect_right(fork.offsets, number) - 1
        if index >= 0:
            extent = fork.extents[index]
            if number < extent.offset + extent.blocks:
                return extent.start + (number - extent.offset) * self.volume.block_size
        start = self.inodes.get(ino).start
        raise CorruptError(f"attributes of inode {ino}", start, f"no block {number} in the fork")

    # ------------------------------------------------------------------ remote blocks

    def _remote_value(self, ino: int, extents: _Fork, number: int, length: int) -> bytes:
        size = self.volume.block_size
        value = b""
        while len(value) < length:
            part = min(length - len(value), size - self._remote_header)
            start = self._where(ino, extents, number)
            value += self._remote_part(ino, start, size, XFS_ATTR3_RMT_MAGIC, len(value), part)
            number += 1
        return value

    def _remote_part(  # noqa: PLR0913 - what is expected of the header, field by field
        self, ino: int, start: int, length: int, magic: int, offset: int, size: int
    ) -> bytes:
        """Read ``size`` bytes that follow a header, which must say ``offset`` and ``size``."""
        volume = self.volume
        block = volume.read("remote", start, length)
        if not volume.has_crc:
            return block[:size]
        header = REMOTE_HEADER.unpack_from(block)
        faults = {
            "wrong magic number": header.magic != magic,
            "checksum mismatch": not crc_matches(block, XFS_ATTR3_RMT_CRC_OFF),
            "another part": (header.offset, header.bytes) != (offset, size),
        }
        faults |= volume.ownership_faults(header, ino, start)
        volume.verify(f"remote block of inode {ino}", start, faults)
        return block[REMOTE_HEADER.size : REMOTE_HEADER.size + size]


def parents_or_none(attributes: Attributes, ino: int, most: int) -> list[ParentPointer] | None:
    """Return the parent pointers of an inode, None if they cannot be read.

    If there are more than ``most``, one more than that are returned.
    """
    try:
        return attributes.parents(ino, most)
    except BlockError:
        return None
