"""Records of a reverse map that a forward scan makes, on filesystems that have none.

Headers, the log and free space need no scan.  All other blocks of a batch of questions are looked
for together in the maps of all inodes.  Blocks of btrees and inode chunks are among them.  A list
or a node that lost its last write may name blocks that files have by now.
"""

from collections.abc import Callable, Iterable, Iterator
from typing import TYPE_CHECKING, Final, NamedTuple

from whoseblock.errors import BlockError
from whoseblock.fs.pieces import ATTR, DIRECTORY, EXTENT_MAP, FILE_DATA, SYMLINK
from whoseblock.fs.scan.engine import Extent, Found, Wanted, run_scan
from whoseblock.fs.xfs.btree import BNOBT, Fault
from whoseblock.fs.xfs.format.btree import (
    XFS_RMAP_OFF_ATTR_FORK,
    XFS_RMAP_OFF_BMBT_BLOCK,
    XFS_RMAP_OFF_UNWRITTEN,
    XFS_RMAP_OWN_FS,
    XFS_RMAP_OWN_LOG,
)
from whoseblock.fs.xfs.owners.coverage import NOT_COVERED, BlockSum, sum_of_files
from whoseblock.fs.xfs.owners.crosscheck import Part
from whoseblock.fs.xfs.owners.group_btrees import Trees
from whoseblock.fs.xfs.owners.metadata import GroupMetadata
from whoseblock.fs.xfs.scan import InodeScan
from whoseblock.fs.xfs.volume import MOST_LOST_GROUPS, Volume

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    from whoseblock.fs.xfs.owners.scanned_arrays import ExtentRecords

__all__ = ["NOT_SCANNED", "ScannedRecords", "scan_remark", "unread_note"]

NOT_SCANNED: Final = "the owner was not looked for, because a scan of all inodes was not permitted"
#: Reasons for unread inodes that are named in one note.
_MOST_REASONS: Final = 3
#: More ranges of one group than this are searched for as one.
_MOST_SINGLE: Final = 16
#: NumPy takes as long to import as so many inodes to decode without it.
_LARGE: Final = 1 << 14
#: Owners whose blocks do not depend on what a medium may have lost.
_FIXED: Final = frozenset({XFS_RMAP_OWN_FS, XFS_RMAP_OWN_LOG})
_Record = tuple[int, int, int, int]


class Recorded(NamedTuple):
    """Records of a part, in order, and why there may be others.

    ``notes`` are about inodes that may own any block, ``lost`` about metadata of the group.
    """

    records: list[_Record]
    notes: list[str]
    lost: list[str]


class ScannedRecords:
    """The records that a scan makes; `prepare` comes before each batch of questions.

    ``is_at_rest`` returns whether the blocks on the disk are of one moment: the log is clean.
    """

    def __init__(
        self, volume: Volume, trees: Trees, scan: InodeScan, is_at_rest: Callable[[], bool]
    ) -> None:
        self.volume = volume
        self.trees = trees
        self.scan = scan
        self._is_at_rest = is_at_rest
        self.metadata = GroupMetadata(volume, trees)
        self._wanted = Wanted(())
        self._found: Found | None = None
        #: A note about files that may own any block, "" if there are none.
        self.doubt = ""
        #: The sum over the blocks that files should have, once it is known.
        self._sum_of_files: int | None = None
        self._arrays: ExtentRecords | None = None
        self._whats: dict[int, int] | None = None

    def prepare(
        self,
        questions: Iterable[tuple[int, int]],
        progress: Callable[[int], None],
        *,
        may_scan: bool,
    ) -> None:
        """Scan for the owners of questions, given as ``(start, length)`` in bytes."""
        size, end = self.volume.block_size, self.volume.size
        union = Wanted(
            (start // size, -(-min(start + length, end) // size))
            for start, length in questions
            if start < end
        )
        self._found = self._arrays = self._whats = None
        self.doubt = ""
        # Without checksums, no inode may have what a btree has.
        self._wanted = Wanted(self._unexplained(union)) if self.volume.has_crc else union
        if self._wanted and may_scan:
            self._found = self._run(progress)

    def _run(self, progress: Callable[[int], None]) -> Found:
        """Scan all inodes for the owners of ``_wanted``, and set ``doubt``."""
        blocks = BlockSum()
        if self.volume.sb.icount < _LARGE:
            items = blocks.of_extents(self.scan.batches())
            found = run_scan(items, self._wanted, None, progress)
        else:
            from whoseblock.fs.scan.bulk import run_bulk_scan

            columns = blocks.of_extents(self.scan.columns())
            found = run_bulk_scan(columns, self._wanted, progress)
        if found.unread_count:
            self.doubt = unread_note(found)
        elif self._is_at_rest() and not self._is_sum_of_files(blocks.value):
            self.doubt = NOT_COVERED
        return found

    def _is_sum_of_files(self, value: int) -> bool:
        """Return whether a sum is that of all files, or may be."""
        if self._sum_of_files is None:
            self._sum_of_files = sum_of_files(self.volume, self.trees, self.metadata)
        return self._sum_of_files in (value, None)

    @property
    def remark(self) -> str:
        """A note about the scan, "" if owners were not looked for."""
        if self._found is None:
            return ""
        return scan_remark(self.inodes_read)

    @property
    def inodes_read(self) -> int:
        """The number of inodes that the scan has read."""
        return 0 if self._found is None else self._found.inodes_read

    def needs_scan(self, start: int, length: int) -> bool:
        """Return whether a question of the batch has blocks that only inodes know."""
        size = self.volume.block_size
        low, high = start // size, -(-(start + length) // size)
        return any(True for _ in self._wanted.within(low, high))

    def find(self, part: Part) -> Recorded:
        """Return the records that touch a part."""
        notes: list[str] = []
        lost: list[str] = []
        base = part.agno * self.volume.sb.agblocks
        records = self.metadata.find(part, lost)
        if self._found is not None:
            extents = self._found.within(base + part.low, base + part.high)
            records += _joined(sorted(_record(extent, base) for extent in extents))
            notes += [self.doubt] if self.doubt else []
        elif any(True for _ in self._wanted.within(base + part.low, base + part.high)):
            notes.append(NOT_SCANNED)
        return Recorded(sorted(records), notes, lost)

    @property
    def has_columns(self) -> bool:
        """Whether `columns` has all that is known: blocks were looked for, or need not be."""
        return self._found is not None or not self._wanted

    def columns(self, part: Part, lost: list[str]) -> "NDArray[np.void]":
        """Return the same records as `find`, and the notes of its ``lost``, as an array.

        Others, which do not touch the part, may be among them.
        """
        base = part.agno * self.volume.sb.agblocks
        return self._records.within(base, part.low, part.high, self.metadata.find(part, lost))

    def set_whats(self, rows: "NDArray[np.void]") -> None:
        """Set what the data forks hold that rows are of."""
        self._records.set_whats(rows)

    def what_of(self, inode: int) -> int:
        """Return what the data fork of an inode holds that the scan found."""
        if self._whats is None:
            extents = () if self._found is None else self._found.extents
            others = (one for one in extents if one.what in (DIRECTORY, SYMLINK))
            self._whats = {one.inode: one.what for one in others}
        return self._whats.get(inode, FILE_DATA)

    @property
    def _records(self) -> "ExtentRecords":
        if self._arrays is None:
            from whoseblock.fs.xfs.owners.scanned_arrays import ExtentRecords as Records

            self._arrays = Records(Found() if self._found is None else self._found)
        return self._arrays

    def _unexplained(self, union: Wanted) -> Iterator[tuple[int, int]]:
        """Yield the blocks that are neither at a fixed place nor free."""
        length = self.volume.sb.agblocks
        groups: dict[int, list[tuple[int, int]]] = {}
        for low, high in zip(union.lows, union.highs, strict=True):
            for agno in range(low // length, (high - 1) // length + 1):
                base = agno * length
                run = max(low - base, 0), min(high - base, self.volume.ag_blocks(agno))
                groups.setdefault(agno, []).append(run)
        lost = 0
        for agno, runs in groups.items():
            base = agno * length
            lost = 0 if self._has_header(agno) else lost + 1
            if lost >= MOST_LOST_GROUPS:
                return
            explained = Wanted(self._explained(agno, runs))
            for run in runs:
                for low, high in explained.gaps(*run):
                    yield base + low, base + high

    def _has_header(self, agno: int) -> bool:
        try:
            self.volume.agf(agno)
        except BlockError:
            return False
        return True

    def _explained(self, agno: int, runs: list[tuple[int, int]]) -> Iterator[tuple[int, int]]:
        """Yield the blocks of a group that are headers, log or free, about which is asked."""
        if len(runs) > _MOST_SINGLE:
            runs = [(runs[0][0], runs[-1][1])]
        for low, high in runs:
            notes: list[str] = []
            for start, count, owner, _ in self.metadata.find(Part(agno, low, high), notes):
                if owner in _FIXED:
                    yield start, start + count
            faults: list[Fault] = []
            free = list(self.trees.tree(agno, BNOBT).find(low, high, faults))
            if not faults:
                for start, count in free:
                    yield start, start + count


def _record(extent: Extent, base: int) -> _Record:
    """Return an extent as a record of the reverse map of the group that begins at ``base``."""
    offset = XFS_RMAP_OFF_ATTR_FORK if extent.fork == ATTR else 0
    if extent.what == EXTENT_MAP:
        offset |= XFS_RMAP_OFF_BMBT_BLOCK
    else:
        offset |= extent.offset
    if extent.unwritten:
        offset |= XFS_RMAP_OFF_UNWRITTEN
    return extent.start - base, extent.length, extent.inode, offset


def _joined(records: Iterable[_Record]) -> list[_Record]:
    """Join records as the reverse map does: those that follow one another in file and device."""
    found: list[_Record] = []
    # The record that ends at a block, of one owner and with the offset that would follow.
    ends: dict[tuple[int, int, int], int] = {}
    for start, count, owner, offset in records:
        index = ends.pop((start, owner, offset), None)
        if index is None:
            index = len(found)
            found.append((start, count, owner, offset))
        else:
            begin, before, _, first = found[index]
            found[index] = begin, before + count, owner, first
        follows = offset if offset & XFS_RMAP_OFF_BMBT_BLOCK else offset + count
        ends[start + count, owner, follows] = index
    return found


def scan_remark(count: int) -> str:
    """Return the remark on answers for which so many inodes were read."""
    return f"there is no reverse map: the owners were found by a scan of {count} inodes"


def unread_note(found: Found) -> str:
    """Return the note about inodes that could not be read."""
    reasons = list(dict.fromkeys(one.reason for one in found.unread))[:_MOST_REASONS]
    return (
        f"{found.unread_count} inodes may own it too, which could not be read or verified:"
        f" {'; '.join(reasons)}"
    )
