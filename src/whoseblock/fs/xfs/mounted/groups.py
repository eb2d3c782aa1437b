"""The metadata of groups of a mounted XFS without a reverse map, and whether it is certain.

XFS_IOC_INUMBERS returns the inode chunks that the kernel has.  The kernel reports the blocks of no
btree, so that those are read from the disk.  They are certain if the group there is as the kernel
has it, and nothing changes meanwhile.  The free-space btree must have the free extents of GETFSMAP,
and the inode btree the chunks of XFS_IOC_INUMBERS with the same inodes in use.
"""

import os
from collections.abc import Iterator
from pathlib import Path
from typing import Final, NamedTuple

from whoseblock.errors import BlockError
from whoseblock.fs.mounted.kernel import fsmap
from whoseblock.fs.pieces import (
    INODES,
    LOG,
    METADATA,
    STATIC,
)
from whoseblock.fs.scan.engine import Wanted
from whoseblock.fs.xfs.btree import BNOBT, INOBT, Fault
from whoseblock.fs.xfs.format.ag import AG_HEADERS
from whoseblock.fs.xfs.format.btree import XFS_INODES_PER_CHUNK, InobtRec
from whoseblock.fs.xfs.mounted import kernel
from whoseblock.fs.xfs.mounted.disk import DiskState
from whoseblock.fs.xfs.mounted.format import XFS_FSOP_GEOM_FLAGS_SPINODES, Geometry
from whoseblock.fs.xfs.owners.crosscheck import Part
from whoseblock.fs.xfs.owners.rows import SPECIAL_OWNERS

__all__ = ["LiveGroups", "Metadata", "TransactionCounter"]

_ALL_INODES: Final = (1 << XFS_INODES_PER_CHUNK) - 1


class Metadata(NamedTuple):
    """Blocks ``start`` to before ``end`` of the device, with kind and what of a `Piece`.

    ``doubt`` is the reason why they may be another's by now, "" if they are certain.
    """

    start: int
    end: int
    kind: int
    what: int
    doubt: str = ""


class TransactionCounter:
    """Counts the transactions of the filesystem on a device, given by its dev_t.

    Each change of a file, a map or a btree is one.  Source: ``xs_trans_sync`` and
    ``xs_trans_async`` of fs/xfs/xfs_stats.h.
    """

    def __init__(self, device: int) -> None:
        node = Path(f"/sys/dev/block/{os.major(device)}:{os.minor(device)}").resolve().name
        self._path = Path(f"/sys/fs/xfs/{node}/stats/stats")

    def read(self) -> int | None:
        """Return how many were committed since the mount, None if /sys does not show it."""
        try:
            with self._path.open() as file:
                words = next(line for line in file if line.startswith("trans ")).split()
            return int(words[1]) + int(words[2])
        except (OSError, ValueError, LookupError, StopIteration):
            return None


class LiveGroups:
    """The metadata of all groups; ``fd`` is a descriptor on the filesystem.

    ``device`` is the number of the data device in GETFSMAP.
    """

    def __init__(
        self, fd: int, geometry: Geometry, device: int, transactions: TransactionCounter
    ) -> None:
        self._fd = fd
        self._geometry = geometry
        self._device = device
        self._transactions = transactions
        #: The states of groups that were compared, after how many transactions, and the result.
        self._compared: dict[int, tuple[DiskState, int, str]] = {}

    def fixed(self, disk: DiskState | None, low: int, high: int) -> Iterator[Metadata]:
        """Yield headers and log within blocks of the device, clipped; they never move."""
        blocks = self._geometry.agblocks
        headers = -(-len(AG_HEADERS) * self._geometry.sectsize // self._geometry.blocksize)
        for agno in range(low // blocks, (high - 1) // blocks + 1):
            base = agno * blocks
            runs = [(base, base + headers, STATIC)]
            if disk is not None:
                sb = disk.volume.sb
                if sb.logstart and sb.logstart >> sb.agblklog == agno:
                    start = base + (sb.logstart & ((1 << sb.agblklog) - 1))
                    runs.append((start, start + sb.logblocks, LOG))
            for start, end, what in runs:
                if start < high and low < end:
                    yield Metadata(max(start, low), min(end, high), METADATA, what)

    def find(
        self, disk: DiskState, run: tuple[int, int], since: int | None, notes: list[str]
    ) -> Iterator[Metadata]:
        """Yield the metadata within blocks of the device that are not fixed, clipped.

        ``since`` is the number of transactions before files were asked.  ``notes`` receives why
        other metadata may be missing.  Raises OSError.
        """
        low, high = run
        blocks = self._geometry.agblocks
        for agno in range(low // blocks, (high - 1) // blocks + 1):
            base = agno * blocks
            part = Part(agno, max(low - base, 0), min(high - base, blocks))
            yield from self._in_group(disk, part, since, notes)

    def _in_group(
        self, disk: DiskState, part: Part, since: int | None, notes: list[str]
    ) -> Iterator[Metadata]:
        base = part.agno * self._geometry.agblocks
        certain = list(self._inode_blocks(part))
        for start, end in certain:
            yield Metadata(base + start, base + end, METADATA, INODES)
        known = Wanted(certain)
        doubt: str | None = None
        at = part.low
        for start, count, owner, _ in disk.metadata.find(part, notes):
            kind, what = SPECIAL_OWNERS[owner]
            high = min(start + count, part.high)
            # An old list or node may name blocks that others have by now.
            for first, after in known.gaps(max(start, at), high) if at < high else ():
                if what not in {STATIC, LOG}:
                    doubt = self._doubt(disk, part.agno, since) if doubt is None else doubt
                    yield Metadata(base + first, base + after, kind, what, doubt)
            at = max(at, high)

    def _inode_blocks(self, part: Part) -> Iterator[tuple[int, int]]:
        """Yield the blocks of a part that hold an inode in use, or a chunk that has no holes."""
        geometry = self._geometry
        log, bits = geometry.inopblog, geometry.agino_bits
        first = part.agno << bits | max((part.low << log) - XFS_INODES_PER_CHUNK + 1, 0)
        last = part.agno << bits | (part.high << log) - 1
        holes = bool(geometry.flags & XFS_FSOP_GEOM_FLAGS_SPINODES)
        step = 1 << log
        at = part.low
        for chunk in kernel.chunks(self._fd, part.agno, first, last):
            begin = chunk.first & ((1 << bits) - 1)
            for inode in range(begin, begin + XFS_INODES_PER_CHUNK, step):
                used = chunk.used >> (inode - begin) & ((1 << min(step, XFS_INODES_PER_CHUNK)) - 1)
                block = inode >> log
                if (used or not holes) and at <= block < part.high:
                    yield block, block + 1
                    at = block + 1

    # ------------------------------------------------------------------ whether it is certain

    def _doubt(self, disk: DiskState, agno: int, since: int | None) -> str:
        """Return why the metadata of a group on the disk may be old, "" if it is not.

        ``since`` is the number of transactions before its files were asked.
        """
        if agno in self._compared and since is not None:
            state, then, doubt = self._compared[agno]
            if then == since and (state is disk or not doubt):
                return doubt
        try:
            doubt = "" if self._is_as_on_disk(disk, agno) else _OLD.format(agno)
        except (OSError, BlockError) as error:
            doubt = f"the metadata of AG {agno} cannot be compared with the kernel's: {error}"
        if since is None or self._transactions.read() != since:
            # A block may have gone from a btree to a file that was asked before.
            return doubt or _OLD.format(agno)
        self._compared[agno] = disk, since, doubt
        return doubt

    def _is_as_on_disk(self, disk: DiskState, agno: int) -> bool:
        """Return whether a group on the disk has the free extents and inodes that the kernel has.

        Raises OSError and `BlockError`.
        """
        geometry, volume = self._geometry, disk.volume
        faults: list[Fault] = []
        limit = volume.ag_blocks(agno)
        free = set(disk.trees.tree(agno, BNOBT).find(0, limit, faults))
        most = (limit << geometry.inopblog) + XFS_INODES_PER_CHUNK
        records = map(InobtRec._make, disk.trees.tree(agno, INOBT).find(0, most, faults))
        inodes = {one.startino: one.free ^ _ALL_INODES for one in records}
        if faults:
            return False
        base = agno * geometry.ag_bytes
        size = geometry.blocksize
        end = base + limit * size
        now = {
            ((one.physical - base) // size, one.length // size)
            for one in fsmap(self._fd, self._device, base, end)
            if one.is_free
        }
        if now != free:
            return False
        bits = geometry.agino_bits
        chunks = kernel.chunks(self._fd, agno, agno << bits, (agno + 1 << bits) - 1)
        mask = (1 << bits) - 1
        return inodes == {one.first & mask: one.used for one in chunks}


_OLD: Final = (
    "the metadata of AG {} was read from the disk, which does not have all changes yet: ask again"
    " in a minute, or when less changes"
)
