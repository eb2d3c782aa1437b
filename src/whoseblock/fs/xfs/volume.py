"""An XFS volume: where things are, and reading them verified.

Three kinds of block number meet here.  A block of an allocation group (*agbno*) counts from the
group's start; a filesystem block number (*fsbno*) and an inode number carry the group's number in
their high bits, which is no plain division when the size of a group is no power of two; the medium
counts in bytes.
"""

from collections import Counter
from collections.abc import Iterator
from itertools import chain
from typing import Final, Protocol

from whoseblock.errors import (
    BlockError,
    CorruptError,
    MediaError,
    NotAFilesystemError,
    UnsupportedError,
)
from whoseblock.fs.xfs.format.ag import (
    AGF,
    AGI,
    XFS_AGF_CRC_OFF,
    XFS_AGF_MAGIC,
    XFS_AGI_CRC_OFF,
    XFS_AGI_MAGIC,
    Agf,
    Agi,
)
from whoseblock.fs.xfs.format.checksum import crc_matches
from whoseblock.fs.xfs.format.superblock import (
    NULLFSINO,
    SUPERBLOCK,
    XFS_SB_MAGIC,
    XFS_SB_VERSION_5,
    Superblock,
    parse_superblock,
)
from whoseblock.media.base import Media

__all__ = ["Volume", "begins_with_superblock", "open_superblock"]

#: What `Volume.read` reads, by the name it is counted under.
KINDS: Final = {
    "agf": "AGF of AG",
    "agi": "AGI of AG",
    "rmapbt": "rmap btree block",
    "bnobt": "free-space btree block",
    "cntbt": "free-space btree (by size) block",
    "refcountbt": "refcount btree block",
    "inobt": "inode btree block",
    "bmbt": "extent map block",
    "inode": "inode",
    "inode-chunk": "inode chunk",
    "dir": "directory block",
    "attr": "attribute block",
    "remote": "remote value block",
}

_LARGEST_SECTOR: Final = 32 * 1024
#: Disk addresses in metadata count 512-byte blocks ("daddr").
DADDR: Final = 512
#: How mkfs.xfs may have divided a device whose first superblock is lost.
_COMMON_BLOCK_SIZES: Final = (4096, 1024, 2048, 8192, 16384, 32768, 65536)
_MOST_LIKELY_GROUPS: Final = 64
#: How much of the device is searched if it was none of these, and in which steps.
_SEARCH_LIMIT: Final = 16 << 30
_SEARCH_STEP: Final = 1 << 20
_MAGIC_BYTES = XFS_SB_MAGIC.to_bytes(4, "big")


class OwnedHeader(Protocol):
    """What the headers of all blocks that belong to inodes have in common."""

    @property
    def uuid(self) -> bytes: ...
    @property
    def owner(self) -> int: ...
    @property
    def blkno(self) -> int: ...


class Volume:
    """The geometry of one filesystem on one medium, and its verified headers.

    ``reads`` counts what was read from the medium, in blocks of whatever kind was asked for.
    """

    def __init__(self, media: Media, sb: Superblock) -> None:
        self.media = media
        self.sb = sb
        self.block_size = sb.blocksize
        self.inode_size = sb.inodesize
        self.uuid = sb.metadata_uuid
        self.size = sb.dblocks * sb.blocksize
        self.ag_bytes = sb.agblocks * sb.blocksize
        self.agino_bits = sb.agblklog + sb.inopblog
        self.dir_block_size = sb.blocksize << sb.dirblklog
        self.reads: Counter[str] = Counter()
        self._agfs: dict[int, Agf] = {}
        self._agis: dict[int, Agi] = {}

    # ------------------------------------------------------------------ where

    @property
    def groups_on_device(self) -> int:
        """How many groups begin before the device ends: an image may be cut off, or lie."""
        return min(self.sb.agcount, -(-self.media.size // self.ag_bytes))

    def ag_blocks(self, agno: int) -> int:
        """Give the length of a group in blocks; the last may be shorter."""
        return min(self.sb.agblocks, self.sb.dblocks - agno * self.sb.agblocks)

    def ag_to_byte(self, agno: int, agbno: int) -> int:
        """Where a block of a group is, in bytes."""
        return agno * self.ag_bytes + agbno * self.block_size

    def fsb_to_byte(self, fsbno: int, count: int = 1) -> int | None:
        """Where ``count`` filesystem blocks are, in bytes; None if they are not in one group."""
        agno, agbno = fsbno >> self.sb.agblklog, fsbno & ((1 << self.sb.agblklog) - 1)
        if agno >= self.sb.agcount or agbno + count > self.ag_blocks(agno):
            return None
        return self.ag_to_byte(agno, agbno)

    def split_inode(self, ino: int) -> tuple[int, int]:
        """Split an inode number into its group and its number within the group."""
        return ino >> self.agino_bits, ino & ((1 << self.agino_bits) - 1)

    def join_inode(self, agno: int, agino: int) -> int:
        """Put an inode number together."""
        return agno << self.agino_bits | agino

    def agino_to_byte(self, agno: int, agino: int) -> int:
        """Where an inode is, in bytes: within a group they simply follow one another."""
        return agno * self.ag_bytes + agino * self.inode_size

    def inode_to_byte(self, ino: int) -> int | None:
        """Where an inode is, in bytes; None if there can be no such inode."""
        agno, agino = self.split_inode(ino)
        if agno >= self.sb.agcount or agino >> self.sb.inopblog >= self.ag_blocks(agno):
            return None
        return self.agino_to_byte(agno, agino)

    def inodes_within(self, start: int, length: int) -> tuple[int, int]:
        """Give the first and last inode that touch a range of inode blocks, within one group."""
        agno, offset = divmod(start, self.ag_bytes)
        first = offset // self.inode_size
        last = (offset + length - 1) // self.inode_size
        return self.join_inode(agno, first), self.join_inode(agno, last)

    # ------------------------------------------------------------------ what

    def read(self, kind: str, start: int, length: int) -> bytes:
        """Read one block of metadata, of a kind of `KINDS`; raises `MediaError` that names it."""
        self.reads[kind] += 1
        try:
            return self.media.pread(start, length)
        except MediaError as error:
            what = self.describe(kind, start)
            raise MediaError(error.ranges, error.reason, what) from error

    def describe(self, kind: str, start: int) -> str:
        """Name the block of a kind that is at byte ``start``."""
        agno, offset = divmod(start, self.ag_bytes)
        if kind in ("agf", "agi"):
            return f"{KINDS[kind]} {agno}"
        if kind in ("inode", "inode-chunk"):
            return f"{KINDS[kind]} {self.join_inode(agno, offset // self.inode_size)}"
        return f"{KINDS[kind]} {offset // self.block_size} of AG {agno}"

    def agf(self, agno: int) -> Agf:
        """Give the AGF of a group, verified; raises `BlockError`."""
        if agno not in self._agfs:
            start, raw = self._read_header("agf", agno, 1)
            agf = AGF.unpack_from(raw)
            faults = {"checksum mismatch": not crc_matches(raw, XFS_AGF_CRC_OFF)}
            self._verify_header("agf", start, agf, XFS_AGF_MAGIC, faults)
            self._agfs[agno] = agf
        return self._agfs[agno]

    def agi(self, agno: int) -> Agi:
        """Give the AGI of a group, verified; raises `BlockError`."""
        if agno not in self._agis:
            start, raw = self._read_header("agi", agno, 2)
            agi = AGI.unpack_from(raw)
            faults = {"checksum mismatch": not crc_matches(raw, XFS_AGI_CRC_OFF)}
            self._verify_header("agi", start, agi, XFS_AGI_MAGIC, faults)
            self._agis[agno] = agi
        return self._agis[agno]

    def _read_header(self, kind: str, agno: int, sector: int) -> tuple[int, bytes]:
        """Read a header; the group's superblock is in sector 0, AGF and AGI in the two after."""
        start = agno * self.ag_bytes + sector * self.sb.sectsize
        return start, self.read(kind, start, self.sb.sectsize)

    def _verify_header(
        self, kind: str, start: int, header: Agf | Agi, magic: int, faults: dict[str, bool]
    ) -> None:
        agno = start // self.ag_bytes
        wrong = {
            "wrong magic number": header.magicnum != magic,
            **faults,
            "of another filesystem": header.uuid != self.uuid,
            "of another allocation group": header.seqno != agno,
            "wrong length of the group": header.length != self.ag_blocks(agno),
        }
        self.verify(self.describe(kind, start), start, wrong)

    # ------------------------------------------------------------------ whether

    def verify(self, what: str, start: int, faults: dict[str, bool]) -> None:
        """Raise `CorruptError` with the first fault that is true."""
        for reason, true in faults.items():
            if true:
                raise CorruptError(what, start, reason)

    def ownership_faults(self, header: OwnedHeader, ino: int, start: int) -> dict[str, bool]:
        """Say what may be wrong with a block of an inode that is sound in itself."""
        return {
            "of another filesystem": header.uuid != self.uuid,
            "of another inode": header.owner != ino,
            "written for another place": header.blkno * DADDR != start,
        }


def _read_superblock(media: Media, start: int) -> Superblock:
    """Read and verify the superblock at ``start``: its sector, and no byte more."""
    head = media.pread(start, min(DADDR, media.size - start))
    sector_size = SUPERBLOCK.unpack_from(head).sectsize if len(head) == DADDR else 0
    if DADDR < sector_size <= _LARGEST_SECTOR:
        head = media.pread(start, min(sector_size, media.size - start))
    return parse_superblock(head, start)


def begins_with_superblock(media: Media) -> bool:
    """Tell whether a superblock that verifies is where the first one belongs."""
    try:
        _read_superblock(media, 0)
    except BlockError:
        return False
    return True


def open_superblock(media: Media) -> tuple[Superblock, tuple[str, ...]]:
    """Find the superblock of ``media``, a copy if the first one is lost; with notes.

    Raises `NotAFilesystemError` where there is none, and `UnsupportedError` for features that
    forbid reading to those who do not know them.
    """
    notes: tuple[str, ...] = ()
    try:
        sb = _read_superblock(media, 0)
    except BlockError as error:
        first = str(error)
        copy = _find_copy(media) if _may_be_xfs(media) else None
        if copy is None:
            raise NotAFilesystemError(
                f"no XFS filesystem on {media.name!r}: {first}",
                hint="for a disk with partitions, name the partition",
            ) from error
        sb, start = copy
        notes = (f"{first}; the copy of the superblock at byte {start} was used in its place",)
    if sb.version == XFS_SB_VERSION_5 and sb.unknown_incompat:
        raise UnsupportedError(
            f"{media.name!r} is XFS with features that this whoseblock does not know"
            f" (incompat {sb.unknown_incompat:#x})",
            hint="a newer whoseblock may know them",
        )
    return sb, notes


def _may_be_xfs(media: Media) -> bool:
    """Tell whether a search is worth it: the device begins like XFS, or its beginning is lost.

    A rescued image has zeros where nothing could be read.
    """
    try:
        head = media.pread(0, min(DADDR, media.size))
    except BlockError:
        return True
    return head.startswith(_MAGIC_BYTES) or not any(head)


def _find_copy(media: Media) -> tuple[Superblock, int] | None:
    """Search for a superblock at the start of a later group, verified against where it stands."""
    for start in chain(_likely_copies(media.size), _possible_copies(media)):
        try:
            sb = _read_copy(media, start)
        except BlockError:
            continue
        return _best_copy(media, sb, start)
    return None


def _read_copy(media: Media, start: int) -> Superblock:
    """Read a copy of the superblock; raises `BlockError` if it is none for where it stands."""
    sb = _read_superblock(media, start)
    agno, rest = divmod(start, sb.agblocks * sb.blocksize)
    if rest or not 0 < agno < sb.agcount or sb.version != XFS_SB_VERSION_5:
        raise CorruptError("copy of the superblock", start, "of another place")
    # mkfs.xfs leaves this set in the copies.
    return sb._replace(inprogress=0)


def _best_copy(media: Media, sb: Superblock, start: int) -> tuple[Superblock, int]:
    """Prefer a copy that knows the root directory.

    mkfs.xfs tells only those of the last and of the middle group.
    """
    for agno in (sb.agcount - 1, (sb.agcount - 1) // 2):
        at = agno * sb.agblocks * sb.blocksize
        try:
            copy = _read_copy(media, at)
        except BlockError:
            continue
        if copy.uuid == sb.uuid and copy.rootino != NULLFSINO:
            return copy, at
    return sb, start


def _likely_copies(size: int) -> Iterator[int]:
    """Give where the second group begins if mkfs.xfs divided the device evenly, as it does."""
    for block_size in _COMMON_BLOCK_SIZES:
        blocks = size // block_size
        for groups in range(2, _MOST_LIKELY_GROUPS + 1):
            if start := -(-blocks // groups) * block_size:
                yield start


def _possible_copies(media: Media) -> Iterator[int]:
    """Give every sector near the start of the device that begins like a superblock."""
    for base in range(0, min(media.size, _SEARCH_LIMIT), _SEARCH_STEP):
        try:
            chunk = media.pread(base, min(_SEARCH_STEP, media.size - base))
        except BlockError:
            continue
        at = chunk.find(_MAGIC_BYTES)
        while at >= 0:
            if at % DADDR == 0:
                yield base + at
            at = chunk.find(_MAGIC_BYTES, at + 1)
