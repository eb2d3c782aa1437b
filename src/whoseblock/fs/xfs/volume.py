"""An XFS volume: where things are, and reading them verified.

Three kinds of block number meet here.  A block of an allocation group (*agbno*) counts from the
group's start; a filesystem block number (*fsbno*) and an inode number carry the group's number in
their high bits, which is no plain division when the size of a group is no power of two; the medium
counts in bytes.
"""

from collections import Counter
from typing import Final

from whoseblock.errors import BlockError, CorruptError, NotAFilesystemError, UnsupportedError
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
    SUPERBLOCK,
    XFS_SB_MAGIC,
    XFS_SB_VERSION_5,
    Superblock,
    parse_superblock,
)
from whoseblock.media.base import Media

__all__ = ["Volume", "open_superblock"]

_LARGEST_SECTOR: Final = 32 * 1024
#: Disk addresses in metadata count 512-byte blocks ("daddr").
DADDR: Final = 512
#: How much of a device is searched for a copy of a lost superblock, and in which steps.
_SEARCH_LIMIT: Final = 1 << 40
_SEARCH_STEP: Final = 1 << 20
_MAGIC_BYTES = XFS_SB_MAGIC.to_bytes(4, "big")


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
        """Read one block of metadata; raises `MediaError`."""
        self.reads[kind] += 1
        return self.media.pread(start, length)

    def agf(self, agno: int) -> Agf:
        """Give the AGF of a group, verified; raises `BlockError`."""
        if agno not in self._agfs:
            start, raw = self._read_header("agf", agno, 1)
            agf = AGF.unpack_from(raw)
            self._check_header("AGF", start, agno, agf, XFS_AGF_MAGIC)
            if not crc_matches(raw, XFS_AGF_CRC_OFF):
                raise CorruptError(f"AGF of AG {agno}", start, "checksum mismatch")
            self._agfs[agno] = agf
        return self._agfs[agno]

    def agi(self, agno: int) -> Agi:
        """Give the AGI of a group, verified; raises `BlockError`."""
        if agno not in self._agis:
            start, raw = self._read_header("agi", agno, 2)
            agi = AGI.unpack_from(raw)
            self._check_header("AGI", start, agno, agi, XFS_AGI_MAGIC)
            if not crc_matches(raw, XFS_AGI_CRC_OFF):
                raise CorruptError(f"AGI of AG {agno}", start, "checksum mismatch")
            self._agis[agno] = agi
        return self._agis[agno]

    def _read_header(self, kind: str, agno: int, sector: int) -> tuple[int, bytes]:
        """Read a header; the group's superblock is in sector 0, AGF and AGI in the two after."""
        start = agno * self.ag_bytes + sector * self.sb.sectsize
        return start, self.read(kind, start, self.sb.sectsize)

    def _check_header(
        self, name: str, start: int, agno: int, header: Agf | Agi, magic: int
    ) -> None:
        faults = {
            "wrong magic number": header.magicnum != magic,
            "of another filesystem": header.uuid != self.uuid,
            "of another allocation group": header.seqno != agno,
            "wrong length of the group": header.length != self.ag_blocks(agno),
        }
        for reason, true in faults.items():
            if true:
                raise CorruptError(f"{name} of AG {agno}", start, reason)


def _read_superblock(media: Media, start: int) -> Superblock:
    """Read and verify the superblock at ``start``: its sector, and no byte more."""
    head = media.pread(start, min(DADDR, media.size - start))
    sector_size = SUPERBLOCK.unpack_from(head).sectsize if len(head) == DADDR else 0
    if DADDR < sector_size <= _LARGEST_SECTOR:
        head = media.pread(start, min(sector_size, media.size - start))
    return parse_superblock(head, start)


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
        try:
            magic = media.pread(0, min(len(_MAGIC_BYTES), media.size))
        except BlockError:
            magic = _MAGIC_BYTES
        # Only a device that begins like XFS, or whose beginning is lost, is worth a search.
        copy = _find_copy(media) if magic == _MAGIC_BYTES else None
        if copy is None:
            raise NotAFilesystemError(
                f"no XFS filesystem on {media.name!r}: {first}",
                hint="for a disk with partitions, name the partition",
            ) from error
        sb, start = copy
        notes = (f"the first {first}; the copy at byte {start} was used in its place",)
    if sb.version == XFS_SB_VERSION_5 and sb.unknown_incompat:
        raise UnsupportedError(
            f"{media.name!r} is XFS with features that this whoseblock does not know"
            f" (incompat {sb.unknown_incompat:#x})",
            hint="a newer whoseblock may know them",
        )
    return sb, notes


def _find_copy(media: Media) -> tuple[Superblock, int] | None:
    """Search for a superblock at the start of a later group, verified against where it stands."""
    for base in range(0, min(media.size, _SEARCH_LIMIT), _SEARCH_STEP):
        length = min(_SEARCH_STEP, media.size - base)
        try:
            chunk = media.pread(base, length)
        except BlockError:
            continue
        at = chunk.find(_MAGIC_BYTES)
        while at >= 0:
            start = base + at
            if start and at % DADDR == 0:
                try:
                    sb = _read_superblock(media, start)
                except BlockError:
                    pass
                else:
                    agno, rest = divmod(start, sb.agblocks * sb.blocksize)
                    if rest == 0 and agno < sb.agcount and sb.version == XFS_SB_VERSION_5:
                        return sb, start
            at = chunk.find(_MAGIC_BYTES, at + 1)
    return None
