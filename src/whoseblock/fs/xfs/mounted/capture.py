"""Lead the allocator of a mounted XFS to given free blocks, so that an unlinked file gets them.

The first block of a file is allocated in the allocation group of its inode, and its inode in the
group of its directory; mkdir(2) takes the groups in turn.  Later blocks are allocated near the
neighbouring extent, at the distance that they have in the file.  That holds up to four times the
length allocated (``xfs_bmap_adjacent`` in ``xfs_bmap.c`` of the kernel).  So a file walks to the
wanted blocks in hops, and frees on the way what it does not need.  The kernel does not
allocate again what was freed until the log is written.

With ``inode32`` files do not begin in the group of their inode, and nothing is reached.
"""

import contextlib
import errno
import fcntl
import os
import time
from collections.abc import Generator, Sequence
from struct import Struct
from typing import Final, NamedTuple

from whoseblock.fs.mounted.fallocate import allocate, collapse_range, punch_hole
from whoseblock.fs.mounted.fiemap import Extent, extents_of
from whoseblock.fs.xfs.mounted import kernel
from whoseblock.fs.xfs.mounted.format import Geometry
from whoseblock.ranges import ByteRange

__all__ = ["capture"]

#: Where the first block is in the file: far from its beginning and its end.
_MIDDLE: Final = 1 << 60
_END: Final = 1 << 61
#: XFS_ALLOC_GAP_UNITS: the allocator heeds a gap of so many times the length it allocates.
_GAP: Final = 4
#: One hop allocates at most so much, and at most this part of the free space.
_HOP: Final = 1 << 30
_HOP_SHARE: Final = 16
#: All extents together are at most this part of the free space.
_SHARE: Final = 2
_PATIENCE_S: Final = 1.0
#: Nothing is attempted if a group has fewer free inodes: other processes take some, too.
_FREE_INODES: Final = 8
#: So much of a free extent is allocated at least finally, if it is that long.
_AIM: Final = 1 << 20

_FS_IOC_FSGETXATTR, _FS_IOC_FSSETXATTR = 0x801C581F, 0x401C5820
#: ``struct fsxattr`` of ``linux/fs.h``: flags, extent size, extents, project, extent size for CoW
_FSXATTR: Final = Struct("=5I8x")
#: FS_XFLAG_REALTIME, FS_XFLAG_EXTSIZE, FS_XFLAG_COWEXTSIZE
_INHERITED: Final = 0x1 | 0x800 | 0x10000


def capture(
    root: int, work: int, geometry: Geometry, run: ByteRange, free: ByteRange
) -> int | None:
    """Return an unlinked file that has the free blocks ``run`` at its byte 0, and no others.

    ``root`` and ``work`` are descriptors of directories: the root, and one only for this, in which
    other directories are made and removed.  ``run`` is in whole blocks of the device, within the
    free extent ``free``.  Other processes can allocate half of the free space
    meanwhile, which takes milliseconds, and a second at most.  Returns None if the allocator could
    not be led there.  Raises OSError.
    """
    group = run.start // geometry.ag_bytes
    if (run.end - 1) // geometry.ag_bytes != group:
        return None
    if kernel.free_inodes(root, group) < _FREE_INODES:
        # The kernel may allocate more inodes, in just these blocks.
        return None
    status = os.fstatvfs(root)
    space = status.f_bavail * status.f_frsize
    wanted = _wanted(run, free, space, geometry.blocksize)
    deadline = time.monotonic() + _PATIENCE_S
    with contextlib.closing(_folders(root, work, geometry.agcount)) as folders:
        for folder in folders:
            file = _temporary(folder)
            with contextlib.ExitStack() as undo:
                undo.callback(_free_and_close, file)
                walk = _Walk(file, geometry, wanted, deadline)
                if walk.begin() == group:
                    place = walk.reach()
                    if place is None:
                        return None
                    _keep_only(file, place, run.length)
                    undo.pop_all()
                    return file
            if time.monotonic() > deadline:
                break
    return None


def _folders(root: int, work: int, groups: int) -> Generator[int, None, None]:
    """Yield descriptors of directories, of every allocation group if possible."""
    yield root
    for number in range(2 * groups):
        name = f"capture-{number}"
        # An interrupted run may have left it.
        with contextlib.suppress(FileNotFoundError):
            os.rmdir(name, dir_fd=work)
        os.mkdir(name, 0o700, dir_fd=work)
        try:
            folder = os.open(name, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC, dir_fd=work)
            try:
                yield folder
            finally:
                os.close(folder)
        finally:
            os.rmdir(name, dir_fd=work)


def _temporary(folder: int) -> int:
    """Create an unlinked file, without what it inherits from the directory."""
    file = os.open(".", os.O_TMPFILE | os.O_RDWR | os.O_CLOEXEC, 0o600, dir_fd=folder)
    try:
        attributes = bytearray(_FSXATTR.size)
        fcntl.ioctl(file, _FS_IOC_FSGETXATTR, attributes)
        flags, *_ = _FSXATTR.unpack_from(attributes)
        # Neither a quota of a project, nor the realtime device, nor larger pieces.
        _FSXATTR.pack_into(attributes, 0, flags & ~_INHERITED, 0, 0, 0, 0)
        fcntl.ioctl(file, _FS_IOC_FSSETXATTR, attributes)
    except OSError:
        os.close(file)
        raise
    return file


def _free_and_close(file: int) -> None:
    # The kernel frees the blocks of a file that is closed only later, in the background.
    with contextlib.suppress(OSError):
        punch_hole(file, 0, _END)
    os.close(file)


def _keep_only(file: int, start: int, length: int) -> None:
    """Free all blocks of a file but those of a range, and make this its byte 0."""
    punch_hole(file, 0, start)
    punch_hole(file, start + length, _END - start - length)
    os.ftruncate(file, start + length)
    collapse_range(file, 0, start)


class _Free(NamedTuple):
    """A run of free blocks, and the part of their free extent to allocate.

    ``longest`` is the most that one hop allocates, and ``most`` what the file may ever have.
    """

    run: ByteRange
    aim: ByteRange
    longest: int
    most: int


def _wanted(run: ByteRange, free: ByteRange, space: int, block: int) -> _Free:
    longest = min(space // _HOP_SHARE // block * block, _HOP)
    # The longer it is, the fewer free extents come before it.
    most = max(run.length, min(longest, _AIM))
    start = max(free.start, run.end - most)
    aim = ByteRange(start, min(free.end, start + most) - start)
    return _Free(run, aim, max(longest, aim.length), space // _SHARE)


class _Anchor(NamedTuple):
    """A block that the file has: where it is in the file and on the device."""

    logical: int
    physical: int


class _Walk:
    """Leads a file to a run of free blocks; it has but one block between two hops, the anchor."""

    def __init__(self, file: int, geometry: Geometry, free: _Free, deadline: float) -> None:
        self._file = file
        self._block = geometry.blocksize
        self._group = geometry.ag_bytes
        self._run, self._aim, self._longest, self._most = free
        self._deadline = deadline
        self._anchor = _Anchor(0, 0)

    def begin(self) -> int:
        """Allocate the first block; return its allocation group."""
        (extent,) = self._allocate(_MIDDLE, self._block)
        self._anchor = _Anchor(extent.logical, extent.physical)
        return extent.physical // self._group

    def reach(self) -> int | None:
        """Return where in the file the run is, None if it could not be reached.

        What the file has besides is freed later.
        """
        if (place := self._place_of_run(self._extents(_MIDDLE, self._block))) is not None:
            return place
        shortest = self._aim.length
        length = self._longest
        while time.monotonic() < self._deadline:
            start, wanted = self._next_hop(length)
            extents = self._allocate(start, wanted)
            if (place := self._place_of_run(extents)) is not None:
                return place
            nearest = self._nearest(extents)
            if nearest is not None:
                length = min(4 * wanted, self._longest)
            elif wanted > shortest:
                length = max(wanted // 4 // self._block * self._block, shortest)
            else:
                return self._take_nearby()
            self._move_to(nearest or self._anchor)
        return None

    def _take_nearby(self) -> int | None:
        """Allocate free extents, each the nearest to the last, until the run is among them."""
        length, last = self._aim.length, self._anchor
        self._move_to(last)
        ahead = last.physical < self._aim.start
        # Whatever is on the other side is not to be nearer than the run.
        other = min(abs(self._aim.start - last.physical), self._most // 2)
        away = -other if ahead else self._block
        self._allocate(last.logical + away, other // self._block * self._block)
        for _number in range(self._most // length):
            # A gap that the allocator does not heed if it has gone past the run.
            towards = ahead == (last.physical < self._aim.start)
            gap = (_GAP if towards else 2 * _GAP) * length
            start = last.logical + (self._block + gap if ahead else -gap - length)
            extents = self._allocate(start, length)
            if (place := self._place_of_run(extents)) is not None:
                return place
            if not extents or time.monotonic() > self._deadline:
                break
            last = self._edge(extents[-1] if ahead else extents[0], ahead=ahead)
        return None

    def _next_hop(self, most: int) -> tuple[int, int]:
        """Return the range of the file to allocate next, of up to ``most`` bytes."""
        at, aim, block = self._anchor, self._aim, self._block
        ahead = aim.start > at.physical
        reach = aim.end - at.physical - block if ahead else at.physical - aim.start
        # Long enough that the run is in the gap that the allocator heeds.
        length = max(-(-reach // (_GAP + 1) // block) * block, aim.length)
        length = min(length, most)
        reach = min(reach, (_GAP + 1) * length)
        if ahead:
            return at.logical + block + reach - length, length
        return at.logical - reach, length

    def _allocate(self, start: int, length: int) -> list[Extent]:
        """Allocate a part of the file, as far as there is space; return what it has there."""
        try:
            allocate(self._file, start, length)
        except OSError as error:
            if error.errno not in (errno.ENOSPC, errno.EDQUOT):
                raise
        return self._extents(start, length)

    def _extents(self, start: int, length: int) -> list[Extent]:
        found = []
        for extent in extents_of(self._file, start, length):
            # The kernel merges neighbours, of which a part is elsewhere in the file.
            low, high = max(extent.logical, start), min(extent.end, start + length)
            if low < high:
                physical = extent.physical + low - extent.logical
                found.append(Extent(low, physical, high - low, extent.flags))
        return found

    def _place_of_run(self, extents: Sequence[Extent]) -> int | None:
        """Return where the file has the run, None if it does not; allocates the rest of a part."""
        run = self._run
        for one in extents:
            start = one.logical + run.start - one.physical
            if one.physical < run.end and run.start < one.physical + one.length:
                missing = run.length
                for part in self._allocate(start, run.length):
                    if part.physical - part.logical == run.start - start:
                        missing -= part.length
                return None if missing else start
        return None

    def _edge(self, extent: Extent, *, ahead: bool) -> _Anchor:
        """Return the last block of an extent, or the first."""
        at = extent.length - self._block if ahead else 0
        return _Anchor(extent.logical + at, extent.physical + at)

    def _nearest(self, extents: Sequence[Extent]) -> _Anchor | None:
        """Return a block nearer to the run than the anchor, None if there is none."""
        edges = [self._edge(one, ahead=ahead) for one in extents for ahead in (True, False)]
        edges.append(self._anchor)
        best = min(edges, key=lambda edge: abs(edge.physical - self._aim.start))
        return None if best == self._anchor else best

    def _move_to(self, anchor: _Anchor) -> None:
        """Free all blocks but one."""
        punch_hole(self._file, 0, anchor.logical)
        rest = anchor.logical + self._block
        punch_hole(self._file, rest, _END - rest)
        self._anchor = anchor
