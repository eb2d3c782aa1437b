"""Confirmation of the extents that a scan found, by the kernel, as they are now.

A regular file or a directory is opened by its handle, with the generation of its inode, and asked
for its extents (FIEMAP).  The kernel reports neither the blocks of a map nor, for a file with
attributes inside its inode, the block with the others.  It opens no symbolic link and no reserved
inode, and no encrypted file without its key.  These are confirmed by their inode and its map, which
are read again from the kernel's own buffers while the handle still leads to the inode.
"""

import errno
import os
from bisect import bisect_right
from collections.abc import Iterable, Iterator
from typing import Final, NamedTuple

from whoseblock.errors import BlockError, PrivilegeError
from whoseblock.fs.ext4.format.inode import EXT4_EA_INODE_FL, Inode
from whoseblock.fs.ext4.mounted import kernel
from whoseblock.fs.ext4.mounted.metadata import LiveMetadata
from whoseblock.fs.ext4.names.paths import internal_files
from whoseblock.fs.ext4.owners.values import values_of
from whoseblock.fs.ext4.scan import EXT4_ROOT_INO, VALUE_INODE
from whoseblock.fs.mounted.fiemap import extents_of
from whoseblock.fs.pieces import ATTR, DATA, DIRECTORY, FILE_DATA, XATTR, data_what
from whoseblock.fs.scan.engine import UNWRITTEN, Extent, Wanted

__all__ = ["Confirmed", "confirm_extents", "has_handle", "join_mapped"]

#: From so many extents of a file on, it is asked for all between the first and the last at once.
_MANY: Final = 4
#: Errors of opening a file that the kernel knows and does not open.
_CLOSED_TO_US: Final = frozenset(
    (errno.ENOKEY, errno.EACCES, errno.EPERM, errno.EWOULDBLOCK, errno.ENOPKG, errno.ETXTBSY)
)
_FIEMAP_UNWRITTEN: Final = 0x800


def has_handle(live: LiveMetadata, number: int, inode: Inode) -> bool:
    """Return whether the kernel opens an inode by a handle.

    Those of the filesystem itself it refuses.  An inode that holds the value of an attribute would
    be reported as an error of the filesystem.
    """
    if inode.flags & EXT4_EA_INODE_FL or number in internal_files(live.volume):
        return False
    return number == EXT4_ROOT_INO or number >= live.sb.first_ino


class Confirmed(NamedTuple):
    """The extents that the kernel confirms, in order, and their inodes as they were before."""

    extents: list[Extent]
    inodes: dict[int, Inode]

    def changed(self, live: LiveMetadata) -> set[int]:
        """Return the inodes that have another generation or another map by now."""
        found: set[int] = set()
        for number, before in self.inodes.items():
            try:
                now, _ = live.volume.inode(number)
            except BlockError:
                found.add(number)
                continue
            if _state(before) != _state(now):
                found.add(number)
        return found


def _state(inode: Inode) -> tuple[object, ...]:
    return inode.generation, inode.mode, inode.flags, inode.acl_block, inode.i_block


def confirm_extents(
    live: LiveMetadata, mount: int, hits: Iterable[Extent], wanted: Wanted
) -> Confirmed:
    """Return the extents that the inodes of ``hits`` have of the blocks ``wanted``, clipped.

    ``mount`` is a descriptor on the filesystem.  Those that are no more are left out.  Raises
    `PrivilegeError`.
    """
    by_inode: dict[int, list[Extent]] = {}
    for hit in hits:
        by_inode.setdefault(hit.inode, []).append(hit)
    found: set[Extent] = set()
    inodes: dict[int, Inode] = {}
    for number, some in by_inode.items():
        try:
            inode, raw = live.volume.inode(number)
            inodes[number] = inode
            found.update(_of_inode(live, mount, number, inode, raw, some))
        except PrivilegeError:
            raise
        except (BlockError, OSError):
            # Gone, or another inode by now.
            continue
    joined = join_mapped(found)
    return Confirmed(sorted(part for one in joined for part in _within(one, wanted)), inodes)


def join_mapped(extents: Iterable[Extent]) -> list[Extent]:
    """Join extents that continue or repeat others in a file and on the device.

    FIEMAP reports what the kernel has cached: two extents become one, or one becomes two, from one
    question to the next.
    """
    found: list[Extent] = []
    last: dict[tuple[int, int, int, int], int] = {}
    for one in sorted(extents):
        key = one.inode, one.fork, one.flags, one.start - one.offset
        index = last.get(key)
        if one.offset >= 0 and index is not None and one.start <= found[index].end:
            before = found[index]
            found[index] = before._replace(length=max(before.end, one.end) - before.start)
            continue
        if one.offset >= 0:
            last[key] = len(found)
        found.append(one)
    return found


def _within(extent: Extent, wanted: Wanted) -> Iterator[Extent]:
    """Yield the parts of an extent that are wanted."""
    at = bisect_right(wanted.highs, extent.start)
    while at < len(wanted.lows) and wanted.lows[at] < extent.end:
        start, end = max(extent.start, wanted.lows[at]), min(extent.end, wanted.highs[at])
        offset = extent.offset if extent.offset < 0 else extent.offset + start - extent.start
        yield extent._replace(start=start, length=end - start, offset=offset)
        at += 1


def _of_inode(  # noqa: PLR0913 - what an inode is
    live: LiveMetadata, mount: int, number: int, inode: Inode, raw: bytes, hits: list[Extent]
) -> Iterator[Extent]:
    """Yield the extents of one inode where those of ``hits`` were; raises OSError, `BlockError`."""
    mapped = [one for one in hits if one.fork == DATA and one.what in {FILE_DATA, DIRECTORY}]
    others = [one for one in hits if one.fork != DATA or one.what not in {FILE_DATA, DIRECTORY}]
    if not has_handle(live, number, inode):
        yield from _in_map(live, number, inode, hits)
        return
    if mapped:
        try:
            yield from _by_fiemap(live, mount, number, inode, mapped)
        except OSError as error:
            if error.errno not in _CLOSED_TO_US:
                raise
            others = hits
    if not others:
        return
    named = kernel.name_inode(mount, number, inode.generation)
    try:
        # Read after the handle was opened: the inode has not been freed before.
        again, raw = live.volume.inode(number)
        if again.generation != inode.generation:
            return
        yield from _in_map(live, number, again, [one for one in others if not _is_value(one)])
        yield from _in_values(live, again, raw, [one for one in others if _is_value(one)])
    finally:
        os.close(named)


def _by_fiemap(
    live: LiveMetadata, mount: int, number: int, inode: Inode, hits: list[Extent]
) -> Iterator[Extent]:
    size = live.volume.block_size
    asked = [(one.offset, one.offset + one.length) for one in hits]
    if len(asked) > _MANY:
        asked = [(min(start for start, _ in asked), max(end for _, end in asked))]
    what = data_what(inode.mode)
    fd = kernel.open_data(mount, number, inode.generation)
    try:
        for start, end in asked:
            for one in extents_of(fd, start * size, (end - start) * size):
                if one.has_place and not one.physical % size:
                    flags = what << 1 | (UNWRITTEN if one.flags & _FIEMAP_UNWRITTEN else 0)
                    place, length = one.physical // size, -(-one.length // size)
                    yield Extent(place, length, number, DATA, one.logical // size, flags)
    finally:
        os.close(fd)


def _in_map(live: LiveMetadata, number: int, inode: Inode, hits: list[Extent]) -> Iterator[Extent]:
    """Yield the extents of an inode, by its map, that touch those of ``hits``."""
    if not hits:
        return
    low, high = min(one.start for one in hits), max(one.end for one in hits)
    wanted = {(one.fork, one.what) for one in hits}
    for row in live.scan.extents_of(number, inode):
        one = Extent._make(row)
        if (one.fork, one.what) in wanted and one.start < high and one.end > low:
            yield one


def _is_value(extent: Extent) -> bool:
    return bool(extent.flags & VALUE_INODE)


def _in_values(
    live: LiveMetadata, inode: Inode, raw: bytes, hits: list[Extent]
) -> Iterator[Extent]:
    """Yield those of ``hits`` that an inode still has by a value of one of its attributes."""
    if not hits:
        return
    blocks: dict[int, list[int]] = {}
    held: list[Extent] = []
    for value in values_of(live.volume, inode, raw, blocks):
        holder, _ = live.volume.inode(value)
        held += map(Extent._make, live.scan.extents_of(value, holder))
    for hit in hits:
        if any(
            (one.start, one.length, one.what, one.fork) == (hit.start, hit.length, XATTR, ATTR)
            for one in held
        ):
            yield hit
