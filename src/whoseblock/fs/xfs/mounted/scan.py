"""The owners of blocks of a mounted XFS without a reverse map, from the kernel's own inodes.

XFS_IOC_BULKSTAT returns all inodes in use, with or without a name, and XFS_IOC_GETBMAPX the maps of
files and directories.  Both are the state that the kernel has in memory, which may be newer than
the log on the disk.

The kernel opens neither symbolic links nor special files by a handle, and reports the extents of a
map but not the blocks of its btree.  These come from the inode on the disk, if that is in the state
that the kernel has.  Generation, type, time of the last change, and the numbers of extents and
blocks must be equal, and of an open file all its extents.
"""

import os
import stat
from collections.abc import Iterable, Iterator
from typing import Final, NamedTuple

from whoseblock.errors import BlockError, CorruptError, PrivilegeError, TargetError
from whoseblock.fs.mounted.format import FS_XFLAG_REALTIME
from whoseblock.fs.pieces import ATTR, DATA, EXTENT_MAP, XATTR, data_what
from whoseblock.fs.scan.engine import UNWRITTEN, Batch, Extent, UnreadInodes, Wanted
from whoseblock.fs.xfs.mounted import kernel
from whoseblock.fs.xfs.mounted.disk import CHANGED, DiskState, read_disk
from whoseblock.fs.xfs.mounted.format import (
    BBSIZE,
    BMV_OF_PREALLOC,
    BMV_OF_SHARED,
    Geometry,
    InodeState,
    MapExtent,
)

__all__ = ["SHARED", "Confirmed", "LiveScan", "UnaskedInodes", "clip_extents"]

#: Of `Extent.flags`: other files have these blocks, too; and the kernel does not report it.
SHARED, _FROM_DISK = 1 << 9, 1 << 10
#: Inodes that one call returns, and extents of a batch.
_ROOM: Final = 1024
_BATCH: Final = 1 << 14
#: Inodes of a cluster, which the kernel reads at once; it differs for other sizes of inodes.
_CLUSTER: Final = 32
#: Unreadable clusters of a group after which the rest of it is given up; each may take a minute.
_MAX_UNREADABLE: Final = 16
#: A fork of so few extents has no btree: MINDBTPTRS and MINABTPTRS of xfs_bmap_btree.h.
_FEW_DATA, _FEW_ATTR = 3, 2


class UnaskedInodes(UnreadInodes):
    """Inodes whose data the kernel did not report, so that they may share blocks of others."""


class Confirmed(NamedTuple):
    """Extents as the kernel has them now, by their start, and inodes that may have others."""

    extents: list[Extent]
    unread: list[UnreadInodes]


class LiveScan:
    """Reads the extents of inodes of a mounted filesystem; ``fd`` is a descriptor on it.

    ``device`` is the number of its data device.  Starts, lengths and offsets are blocks.
    """

    def __init__(self, fd: int, fsid: bytes, geometry: Geometry, device: int) -> None:
        self._fd = fd
        self._fsid = fsid
        self._geometry = geometry
        self._device = device
        self._unit = geometry.blocksize // BBSIZE
        self._disk: DiskState | None = None

    def disk(self) -> DiskState:
        """Return the metadata on the disk as of the last `forget`; raises `BlockError`."""
        if self._disk is None:
            try:
                self._disk = read_disk(self._device)
            except TargetError as error:
                raise BlockError(str(error)) from error
        return self._disk

    def forget(self) -> None:
        """Read the disk again when it is needed."""
        if self._disk is not None:
            self._disk.close()
        self._disk = None

    # ------------------------------------------------------------------ all inodes

    def batches(self, groups: Iterable[int]) -> Iterator[Batch | UnreadInodes]:
        """Yield the extents of all inodes of ``groups``, and the inodes that are unread.

        Raises `PrivilegeError`.
        """
        for group in groups:
            first = group << self._geometry.agino_bits
            last = (group + 1 << self._geometry.agino_bits) - 1
            unreadable = 0
            while first <= last:
                try:
                    states = kernel.inode_states(self._fd, group, first, _ROOM)
                except OSError as error:
                    unreadable += 1
                    after = (first // _CLUSTER + 1) * _CLUSTER
                    if unreadable == _MAX_UNREADABLE:
                        after = last + 1
                    reason = f"the kernel cannot read them: {error.strerror}"
                    yield UnaskedInodes(first, after - 1, reason)
                    first = after
                    continue
                if not states:
                    break
                yield from self._batch(states)
                first = states[-1].number + 1

    def _batch(self, states: list[InodeState]) -> Iterator[Batch | UnreadInodes]:
        rows: list[Extent] = []
        for state in states:
            if not (state.blocks or state.extents or state.attr_extents):
                continue
            try:
                for extent in self._extents(state):
                    rows.append(extent)
                    if len(rows) >= _BATCH:
                        yield Batch.of(rows, 0)
                        rows.clear()
            except FileNotFoundError:
                # Deleted meanwhile.
                continue
            except (OSError, BlockError) as error:
                yield _unread(state.number, error)
        yield Batch.of(rows, len(states))

    # ------------------------------------------------------------------ one inode

    def _extents(self, state: InodeState) -> Iterator[Extent]:
        """Yield all extents of an inode; raises OSError and `BlockError`."""
        if not _can_be_opened(state):
            yield from self._on_disk(state)
            return
        found: list[Extent] = []
        reserved = 0
        for fork, one in self._maps(state):
            if one.block < 0:
                reserved += one.length // self._unit
            else:
                found.append(self._extent(state, fork, one))
        is_realtime = bool(state.xflags & FS_XFLAG_REALTIME)
        listed = [one for one in found if not (is_realtime and one.fork == DATA)]
        yield from listed
        if state.extents <= _FEW_DATA and state.attr_extents <= _FEW_ATTR:
            return
        # The kernel counts nothing if the data fork is inside the inode.
        if not state.blocks or sum(one.length for one in found) + reserved < state.blocks:
            yield from self._blocks_of_maps(state, listed)

    def _maps(self, state: InodeState) -> Iterator[tuple[int, MapExtent]]:
        """Yield the extents of both forks of a file or directory, each with its fork."""
        fd = self._open(state)
        try:
            for one in kernel.extents(fd):
                yield DATA, one
            if state.attr_extents:
                for one in kernel.extents(fd, attributes=True):
                    yield ATTR, one
        finally:
            os.close(fd)

    def _open(self, state: InodeState) -> int:
        flags = os.O_RDONLY
        return kernel.open_invisibly(self._fd, self._fsid, state.number, state.generation, flags)

    def _extent(self, state: InodeState, fork: int, one: MapExtent) -> Extent:
        what = XATTR if fork == ATTR else data_what(state.mode)
        flags = what << 1
        flags |= UNWRITTEN if one.flags & BMV_OF_PREALLOC else 0
        flags |= SHARED if one.flags & BMV_OF_SHARED else 0
        unit = self._unit
        length = one.length // unit
        return Extent(one.block // unit, length, state.number, fork, one.offset // unit, flags)

    def _on_disk(self, state: InodeState) -> list[Extent]:
        """Return all extents of an inode from the disk; raises `BlockError`."""
        return [one._replace(flags=one.flags | _FROM_DISK) for one in self.disk().extents_of(state)]

    def _blocks_of_maps(self, state: InodeState, listed: list[Extent]) -> list[Extent]:
        """Return the blocks of the maps of an inode whose extents are those that the kernel lists.

        Raises `BlockError`.
        """
        on_disk = self._on_disk(state)
        others = [one for one in on_disk if one.what != EXTENT_MAP]
        if _joined(others) != _joined(listed):
            raise CorruptError(f"inode {state.number}", 0, CHANGED)
        return [one for one in on_disk if one.what == EXTENT_MAP]

    # ------------------------------------------------------------------ as it is now

    def confirm(self, hits: Iterable[Extent], wanted: Wanted) -> Confirmed:
        """Return the extents that the inodes of ``hits`` have of the blocks ``wanted``, clipped.

        Those that are no more are left out.  `forget` comes before.  Raises `PrivilegeError`.
        """
        by_inode: dict[int, list[Extent]] = {}
        for hit in hits:
            by_inode.setdefault(hit.inode, []).append(hit)
        found: set[Extent] = set()
        unread: list[UnreadInodes] = []
        for number, some in by_inode.items():
            try:
                state = kernel.inode_state(self._fd, number)
                if state is not None:
                    found.update(self._present(state, some))
            except FileNotFoundError:
                continue
            except (OSError, BlockError) as error:
                unread.append(_unread(number, error))
        return Confirmed(sorted(clip_extents(found, wanted)), unread)

    def _present(self, state: InodeState, hits: list[Extent]) -> Iterator[Extent]:
        """Yield the extents of an inode where those of ``hits`` were."""
        if not _can_be_opened(state) or any(one.flags & _FROM_DISK for one in hits):
            yield from self._extents(state)
            return
        if state.xflags & FS_XFLAG_REALTIME:
            hits = [one for one in hits if one.fork != DATA]
        fd = self._open(state)
        try:
            for fork in {one.fork for one in hits}:
                start = min(one.offset for one in hits if one.fork == fork) * self._unit
                end = max(one.offset + one.length for one in hits if one.fork == fork) * self._unit
                for one in kernel.extents(fd, attributes=fork == ATTR, start=start):
                    if one.offset >= end:
                        break
                    if one.block >= 0:
                        yield self._extent(state, fork, one)
        finally:
            os.close(fd)


def _can_be_opened(state: InodeState) -> bool:
    """Return whether the kernel opens an inode by a handle."""
    return stat.S_ISREG(state.mode) or stat.S_ISDIR(state.mode)


def _unread(number: int, error: Exception) -> UnreadInodes:
    if isinstance(error, PrivilegeError):
        raise error
    if isinstance(error, OSError):
        return UnaskedInodes(number, number, f"inode {number}: {error.strerror}")
    return UnreadInodes(number, number, str(error))


def _joined(extents: Iterable[Extent]) -> list[tuple[int, int, int, int, bool]]:
    """Join extents that follow one another in a fork and on the device, shared or not."""
    found: list[tuple[int, int, int, int, bool]] = []
    for one in sorted(extents, key=lambda one: (one.fork, one.offset)):
        start, length = one.start, one.length
        if found:
            fork, offset, begin, before, unwritten = found[-1]
            follows = fork, offset + before, begin + before, unwritten
            if follows == (one.fork, one.offset, one.start, one.unwritten):
                found[-1] = fork, offset, begin, before + length, unwritten
                continue
        found.append((one.fork, one.offset, start, length, one.unwritten))
    return found


def clip_extents(extents: Iterable[Extent], wanted: Wanted) -> Iterator[Extent]:
    """Yield the parts of extents that are wanted."""
    for one in extents:
        for start, end in wanted.within(one.start, one.end):
            offset = one.offset if one.offset < 0 else one.offset + start - one.start
            yield one._replace(start=start, length=end - start, offset=offset)
