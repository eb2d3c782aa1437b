"""Comparison of the reverse map with the other structures of a filesystem.

A block of the rmap btree may be valid and outdated, because the medium lost a later write.  Other
structures hold the same facts.  For the blocks of a question they are compared here:

- who the owner is: the extent map of the inode, the inode btree, the superblock, and for blocks of
  the btrees of a group these btrees and its free list;
- how many owners there are: the refcount btree, which counts two and more;
- that there is no owner: the free-space btrees.

A contradiction does not show which side is right.  It becomes a note that names both, and the
answer is incomplete.
"""

from bisect import bisect_right
from collections.abc import Iterable, Iterator
from itertools import accumulate
from operator import gt, itemgetter
from typing import Final, NamedTuple

from whoseblock.errors import BlockError
from whoseblock.fs.pieces import (
    AG,
    DATA,
    EXTENT_MAP,
    FILE,
    FILE_DATA,
    INODE_BTREE,
    INODES,
    LOG,
    METADATA,
    REFCOUNT_BTREE,
    STAGING,
    STATIC,
)
from whoseblock.fs.xfs.btree import BNOBT, CNTBT, INOBT, REFCOUNTBT, Fault, size_key
from whoseblock.fs.xfs.format.ag import AG_HEADERS
from whoseblock.fs.xfs.format.btree import (
    XFS_INODES_PER_CHUNK,
    XFS_INODES_PER_HOLEMASK_BIT,
    XFS_REFC_COWFLAG,
    XFS_RMAP_OFF_MASK,
    XFS_RMAP_OFF_UNWRITTEN,
)
from whoseblock.fs.xfs.format.inode import ATTR_FORK, DATA_FORK, XFS_DIFLAG2_REFLINK
from whoseblock.fs.xfs.owners.group_btrees import GROUP_BTREES, GroupBtrees, Trees
from whoseblock.fs.xfs.owners.maps import ExtentMaps
from whoseblock.fs.xfs.owners.rows import classify
from whoseblock.fs.xfs.volume import Volume

__all__ = [
    "Claim",
    "CrossCheck",
    "Part",
    "ScanCheck",
    "inode_blocks",
    "most_counted",
    "static_blocks",
]

_MOST_NOTES: Final = 20
#: The structures that name the blocks of btrees of a group, for notes.
_NAMING: Final = {
    AG: "the free-space and rmap btrees and the AGFL have",
    INODE_BTREE: "the inode btrees have",
    REFCOUNT_BTREE: "the refcount btree has",
}


class Claim(NamedTuple):
    """An rmap record: owner and place of the blocks from ``low`` up to ``high`` of its group."""

    low: int
    high: int
    owner: int
    offset: int


class Part(NamedTuple):
    """The part of a question that lies in one group: blocks from ``low`` up to ``high``."""

    agno: int
    low: int
    high: int


def most_counted(counts: list[tuple[int, int, int]], low: int, high: int) -> int:
    """Return the highest of the counts, which are in order, of blocks from ``low`` to ``high``."""
    index = bisect_right(counts, low, key=itemgetter(1))
    most = 0
    while index < len(counts) and counts[index][0] < high:
        most = max(most, counts[index][2])
        index += 1
    return most


def static_blocks(volume: Volume) -> int:
    """Return how many blocks the headers of a group take."""
    return -(-len(AG_HEADERS) * volume.sb.sectsize // volume.block_size)


class CrossCheck:
    """Compares what the rmap btree says with the other structures."""

    #: The source of the claims, for notes.
    source = "the rmap btree"

    def __init__(self, volume: Volume, trees: Trees, maps: ExtentMaps) -> None:
        self.volume = volume
        self.trees = trees
        self.maps = maps
        self.btrees = GroupBtrees(volume, trees)
        #: The notes about numbers of owners, which the caller clears.
        self.miscounts: list[str] = []

    def needs_counts(self, claims: list[Claim]) -> bool:
        """Return whether the refcount btree must be descended for the claims on a part.

        One descent beside that of the rmap btree notices an old block of it.  A claim whose owner
        costs a descent of another structure needs the refcount btree too only if the two notice
        different states: see docs/internals/xfs.md.
        """
        return any(map(self._needs_count, claims)) or _overlap(claims)

    def _needs_count(self, claim: Claim) -> bool:
        kind, what, fork = classify(claim.owner, claim.offset)
        if kind != FILE:
            return kind != STAGING and what != INODES and what not in GROUP_BTREES
        ino = claim.owner
        try:
            if not self.maps.is_btree(ino, DATA_FORK if fork == DATA else ATTR_FORK):
                return True
            # The kernel sets the flag before an inode shares its first extent.
            flags = self.maps.inodes.get(ino).core.flags2
        except BlockError:
            return True
        return what == FILE_DATA and bool(flags & XFS_DIFLAG2_REFLINK)

    def counts(
        self, part: Part, notes: list[str], *, lost: list[Fault]
    ) -> list[tuple[int, int, int]]:
        """Return the refcount records that touch a part: from, to, and the count.

        ``lost`` receives what cannot be read of them.
        """
        if not self.volume.sb.has_reflink:
            return []
        agno, low, high = part
        tree = self.trees.tree(agno, REFCOUNTBT)
        if tree.is_empty:
            return []
        faults: list[Fault] = []
        found = [
            (max(first, low), min(first + blocks, high), count)
            for first, blocks, count in tree.find(low, high, faults)
        ]
        if not faults:
            return found
        lost += [fault for fault in faults if fault.low < high and low < fault.high]
        notes += [fault.note for fault in lost]
        return found

    def check(
        self,
        part: Part,
        claims: list[Claim],
        counts: list[tuple[int, int, int]],
        lost: Iterable[Fault],
        notes: list[str],
    ) -> None:
        """Compare the claims on a part with the other structures.

        ``lost`` are the blocks for which records of the rmap or the refcount btree are missing.
        """
        if counts or _overlap(claims):
            self._check_counts(part, claims, counts, list(lost), notes)
        for claim in claims:
            self.check_owner(part.agno, claim, notes)

    # ------------------------------------------------------------------ how many

    def _check_counts(
        self,
        part: Part,
        claims: list[Claim],
        counts: list[tuple[int, int, int]],
        lost: list[Fault],
        notes: list[str],
    ) -> None:
        said: list[tuple[int, int, str]] = []
        for low, high, sharers, others, counted in _segments(part, claims, counts):
            if any(fault.low < high and low < fault.high for fault in lost):
                continue
            why = self._disagreement(sharers, others, counted)
            if not why:
                continue
            if said and said[-1][1:] == (low, why):
                said[-1] = said[-1][0], high, why
            else:
                said.append((low, high, why))
        for low, high, why in said[:_MOST_NOTES]:
            self.miscounts.append(why.format(self._place(part.agno, low, high)))
        notes += self.miscounts

    def _disagreement(self, sharers: int, others: int, counted: int | None) -> str:
        """Return how the owners in the rmap btree and the counted ones differ, "" if they agree."""
        if others > 1 or (others and sharers):
            return (
                f"{self.source} names {sharers + others} owners of {{}}, and not all of them can"
                " share blocks"
            )
        if not sharers and not others:
            if counted is None:
                return ""
            return f"{self.source} names no owner of {{}}, the refcount btree counts {counted}"
        expected = 1 if counted is None else counted
        if sharers + others == expected and counted != 1:
            return ""
        named = sharers + others
        owners = "1 owner" if named == 1 else f"{named} owners"
        if not self.volume.sb.has_reflink:
            return f"{self.source} names {owners} of {{}}, in a filesystem without reflink"
        return f"{self.source} names {owners} of {{}}, the refcount btree counts {expected}"

    def is_free(self, agno: int, start: int, count: int, notes: list[str]) -> bool:
        """Return whether the free-space btree by size has an extent of the one by place.

        It holds nothing that the other one does not. Where the medium does not return a block of
        it, the reverse mapping and the other btree are enough.
        """
        faults: list[Fault] = []
        key = size_key(start, count)
        found = list(self.trees.tree(agno, CNTBT).find(key, key + 1, faults))
        faults = [fault for fault in faults if fault.low <= key < fault.high]
        if faults and all(fault.unreadable for fault in faults):
            return True
        notes += [fault.note for fault in faults]
        if not found and not faults:
            place = self._place(agno, start, start + count)
            notes.append(f"the free-space btrees by place and by size disagree about {place}")
        return bool(found) and not faults

    # ------------------------------------------------------------------ who

    def check_owner(self, agno: int, claim: Claim, notes: list[str]) -> None:
        """Compare a claim with the structure that has the same fact from the other side."""
        kind, what, fork = classify(claim.owner, claim.offset)
        low, high = claim.low, claim.high
        if kind == FILE:
            self._check_file(agno, claim, what, DATA_FORK if fork == DATA else ATTR_FORK, notes)
        elif kind == STAGING:
            self._check_staging(agno, claim, notes)
        elif kind != METADATA:
            return
        elif what == STATIC:
            if high > static_blocks(self.volume):
                place = self._place(agno, low, high)
                notes.append(
                    f"the rmap btree has headers of AG {agno} at {place}, where there are none"
                )
        elif what == LOG:
            if not self.is_log(agno, low, high):
                place = self._place(agno, low, high)
                notes.append(
                    f"the rmap btree has the log at {place}, the superblock has it elsewhere"
                )
        elif what == INODES:
            self._check_inodes(agno, claim, notes)
        elif what in GROUP_BTREES:
            self._check_btrees(agno, claim, what, notes)

    def _check_file(self, agno: int, claim: Claim, what: int, fork: str, notes: list[str]) -> None:
        low, high, ino, offset = claim
        fsbno = agno << self.volume.sb.agblklog | low
        try:
            if what == EXTENT_MAP:
                known = self.maps.blocks(ino, fork)
                true = known is None or known.issuperset(range(fsbno, fsbno + high - low))
            else:
                true = self.maps.holds(
                    ino,
                    fork,
                    offset & XFS_RMAP_OFF_MASK,
                    fsbno,
                    high - low,
                    unwritten=bool(offset & XFS_RMAP_OFF_UNWRITTEN),
                )
        except BlockError as error:
            notes.append(str(error))
            return
        if not true:
            place = self._place(agno, low, high)
            notes.append(
                f"the rmap btree says that inode {ino} owns {place}, the extent map of the inode"
                " does not confirm it"
            )

    def is_log(self, agno: int, low: int, high: int) -> bool:
        """Return whether all blocks of a range are of the log."""
        sb = self.volume.sb
        start = sb.logstart & ((1 << sb.agblklog) - 1)
        in_group = bool(sb.logstart) and sb.logstart >> sb.agblklog == agno
        return in_group and start <= low and high <= start + sb.logblocks

    def _check_staging(self, agno: int, claim: Claim, notes: list[str]) -> None:
        """Check that the refcount btree has records of blocks staged for copy-on-write."""
        low, high = claim.low, claim.high
        lost: list[Fault] = []
        at = low
        tree = self.trees.tree(agno, REFCOUNTBT)
        for first, blocks, count in tree.find(
            low | XFS_REFC_COWFLAG, high | XFS_REFC_COWFLAG, lost
        ):
            first &= ~XFS_REFC_COWFLAG  # noqa: PLW2901
            if first > at or count != 1:
                break
            at = first + blocks
        notes += [fault.note for fault in lost]
        if at < high:
            place = self._place(agno, low, high)
            notes.append(
                f"the rmap btree has {place} staged for copy-on-write, the refcount btree has not"
            )

    def _check_inodes(self, agno: int, claim: Claim, notes: list[str]) -> None:
        low, high = claim.low, claim.high
        lost: list[Fault] = []
        log = self.volume.sb.inopblog
        at = low
        for chunk in self.trees.tree(agno, INOBT).find(low << log, high << log, lost):
            for first, after in inode_blocks(chunk[0], chunk[1], log):
                if first <= at:
                    at = max(at, after)
        notes += [fault.note for fault in lost]
        if at < high:
            place = self._place(agno, low, high)
            notes.append(f"the rmap btree has inodes at {place}, the inode btree has not")

    def _check_btrees(self, agno: int, claim: Claim, what: int, notes: list[str]) -> None:
        lost: list[str] = []
        if self.btrees.has(agno, what, claim.low, claim.high, lost):
            return
        notes += lost[:_MOST_NOTES]
        if not lost:
            place = self._place(agno, claim.low, claim.high)
            notes.append(f"the rmap btree has btree blocks at {place}, {_NAMING[what]} not")

    def _place(self, agno: int, low: int, high: int) -> str:
        start = self.volume.ag_to_byte(agno, low)
        return f"{start}+{(high - low) * self.volume.block_size}"


class ScanCheck(CrossCheck):
    """Compares what a scan of all inodes found with the other structures.

    The maps of inodes and the btrees of a group are its sources, so that only the free-space and
    the refcount btree can contradict them.
    """

    source = "a scan of the inodes"

    def needs_counts(self, claims: list[Claim]) -> bool:  # noqa: ARG002 - it is always needed
        """Return whether the refcount btree must be descended: where files may share blocks."""
        return self.volume.sb.has_reflink

    def check_owner(self, agno: int, claim: Claim, notes: list[str]) -> None:
        """Check that the free-space btree does not have the blocks of a claim."""
        kind, _, _ = classify(claim.owner, claim.offset)
        what = f"blocks of inode {claim.owner}" if kind == FILE else "metadata"
        low, high = claim.low, claim.high
        lost: list[Fault] = []
        for first, blocks in self.trees.tree(agno, BNOBT).find(low, high, lost):
            place = self._place(agno, max(first, low), min(first + blocks, high))
            notes.append(f"{self.source} has {what} at {place}, the free-space btree calls it free")
            break
        notes += [fault.note for fault in lost if fault.low < high and low < fault.high]


def _overlap(claims: list[Claim]) -> bool:
    """Return whether two of the claims, which are in order, overlap."""
    if len(claims) < 2:  # noqa: PLR2004 - one is alone
        return False
    reach = accumulate((claim.high for claim in claims), max)
    return any(map(gt, reach, (claim.low for claim in claims[1:])))


def inode_blocks(startino: int, holemask: int, log: int) -> Iterator[tuple[int, int]]:
    """Return the blocks in which a chunk has inodes: from, to."""
    if not holemask:
        yield startino >> log, -(-(startino + XFS_INODES_PER_CHUNK) >> log)
        return
    step = XFS_INODES_PER_HOLEMASK_BIT
    for bit in range(XFS_INODES_PER_CHUNK // step):
        if not holemask >> bit & 1:
            first = startino + bit * step
            yield first >> log, -(-(first + step) >> log)


def _segments(
    part: Part, claims: list[Claim], counts: list[tuple[int, int, int]]
) -> Iterator[tuple[int, int, int, int, int | None]]:
    """Cut a part where owners change: from, to, how many can share and cannot, and the count."""
    changes: dict[int, list[int]] = {part.low: [0, 0, 0, 0]}
    for low, high, owner, offset in claims:
        kind, what, _ = classify(owner, offset)
        which = 0 if (kind, what) == (FILE, FILE_DATA) else 1
        changes.setdefault(low, [0, 0, 0, 0])[which] += 1
        changes.setdefault(high, [0, 0, 0, 0])[which] -= 1
    for low, high, count in counts:
        for at, sign in ((low, 1), (high, -1)):
            change = changes.setdefault(at, [0, 0, 0, 0])
            change[2] += sign * count
            change[3] += sign
    edges = sorted(changes)
    sharers = others = count = counted = 0
    for at, after in zip(edges, [*edges[1:], part.high], strict=True):
        more = changes[at]
        sharers, others = sharers + more[0], others + more[1]
        count, counted = count + more[2], counted + more[3]
        if at < after:
            yield at, after, sharers, others, count if counted else None
