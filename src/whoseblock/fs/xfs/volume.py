"""An XFS volume: the addresses of structures, and verified reads.

Three kinds of address meet here.  A block of an allocation group (*agbno*) counts from the group's
start.  A filesystem block number (*fsbno*) and an inode number carry the group's number in their
high bits, which is no plain division when the size of a group is no power of two.  The medium
counts in bytes.
"""

from collections import Counter
from contextlib import suppress
from typing import Final, NamedTuple, Protocol

from whoseblock.errors import BlockError, CorruptError, MediaError
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
from whoseblock.fs.xfs.format.superblock import Superblock
from whoseblock.media.base import Media

__all__ = ["MOST_LOST_GROUPS", "DisputedEnd", "Volume"]

#: What `Volume.read` reads, by the name it is counted under.
KINDS: Final = {
    "agf": "AGF of AG",
    "agi": "AGI of AG",
    "agfl": "AGFL of AG",
    "rmapbt": "rmap btree block",
    "bnobt": "free-space btree block",
    "cntbt": "free-space btree (by size) block",
    "refcountbt": "refcount btree block",
    "inobt": "inode btree block",
    "finobt": "free-inode btree block",
    "btree": "btree block",
    "bmbt": "extent map block",
    "inode": "inode",
    "inode-chunk": "inode chunk",
    "dir": "directory block",
    "attr": "attribute block",
    "remote": "remote value block",
}

#: Behind so many groups in a row whose headers do not verify no others are looked for: a forged
#: superblock may claim billions of them.
MOST_LOST_GROUPS: Final = 1024
#: Disk addresses in metadata count 512-byte blocks ("daddr").
DADDR: Final = 512


class DisputedEnd(NamedTuple):
    """The end of the filesystem if the headers that claim most are right, and a note about it.

    ``end`` is in bytes, and past the end by the superblock.
    """

    end: int
    note: str


class OwnedHeader(Protocol):
    """The common fields of the headers of blocks that belong to inodes."""

    @property
    def uuid(self) -> bytes: ...
    @property
    def owner(self) -> int: ...
    @property
    def blkno(self) -> int: ...


class Volume:
    """The geometry of one filesystem on one medium, and its verified headers.

    ``reads`` counts what was read from the medium, in blocks of whatever kind was asked for.
    ``disputed`` is set if it is not certain that the filesystem ends where ``sb`` says.
    """

    def __init__(self, media: Media, sb: Superblock, disputed: DisputedEnd | None = None) -> None:
        self.media = media
        self.sb = sb
        self.disputed = disputed
        self.block_size = sb.blocksize
        self.inode_size = sb.inodesize
        self.uuid = sb.metadata_uuid
        #: Whether metadata has checksums, and says whose it is and where it belongs.
        self.has_crc = sb.has_crc
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
        """The number of groups that begin before the device ends: an image may be cut off."""
        return min(self.sb.agcount, -(-self.media.size // self.ag_bytes))

    def ag_blocks(self, agno: int) -> int:
        """Return the length of a group in blocks; the last may be shorter."""
        return min(self.sb.agblocks, self.sb.dblocks - agno * self.sb.agblocks)

    def ag_to_byte(self, agno: int, agbno: int) -> int:
        """Return the byte address of a block of a group."""
        return agno * self.ag_bytes + agbno * self.block_size

    def fsb_to_byte(self, fsbno: int, count: int = 1) -> int | None:
        """Return the byte address of ``count`` blocks; None if they are not in one group."""
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
        """Return the byte address of an inode: within a group they follow one another."""
        return agno * self.ag_bytes + agino * self.inode_size

    def inode_to_byte(self, ino: int) -> int | None:
        """Return the byte address of an inode; None if there can be no such inode."""
        agno, agino = self.split_inode(ino)
        if agno >= self.sb.agcount or agino >> self.sb.inopblog >= self.ag_blocks(agno):
            return None
        return self.agino_to_byte(agno, agino)

    def inodes_within(self, start: int, length: int) -> tuple[int, int]:
        """Return the first and last inode that touch a range of inode blocks, within one group."""
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
        if kind in ("agf", "agi", "agfl"):
            return f"{KINDS[kind]} {agno}"
        if kind in ("inode", "inode-chunk"):
            return f"{KINDS[kind]} {self.join_inode(agno, offset // self.inode_size)}"
        return f"{KINDS[kind]} {offset // self.block_size} of AG {agno}"

    def agf(self, agno: int) -> Agf:
        """Return the AGF of a group, verified; raises `BlockError`."""
        if agno not in self._agfs:
            self._keep_agf(agno, *self._read_header("agf", agno, 1))
        return self._agfs[agno]

    def agi(self, agno: int) -> Agi:
        """Return the AGI of a group, verified; raises `BlockError`."""
        if agno not in self._agis:
            self._keep_agi(agno, *self._read_header("agi", agno, 2))
        return self._agis[agno]

    def headers(self, agno: int) -> tuple[Agf | None, Agi | None]:
        """Return AGF and AGI of a group, None for one that does not verify.

        Both are read together if neither is known.
        """
        if agno not in self._agfs and agno not in self._agis:
            size = self.sb.sectsize
            start = agno * self.ag_bytes + size
            with suppress(BlockError):
                both = self.read("agf", start, 2 * size)
                with suppress(CorruptError):
                    self._keep_agf(agno, start, both[:size])
                with suppress(CorruptError):
                    self._keep_agi(agno, start + size, both[size:])
                return self._agfs.get(agno), self._agis.get(agno)
        for header in (self.agf, self.agi):
            with suppress(BlockError):
                header(agno)
        return self._agfs.get(agno), self._agis.get(agno)

    def _keep_agf(self, agno: int, start: int, raw: bytes) -> None:
        """Verify an AGF, and keep it; raises `CorruptError`."""
        agf = AGF.unpack_from(raw)
        faults = {"checksum mismatch": self.has_crc and not crc_matches(raw, XFS_AGF_CRC_OFF)}
        self._verify_header("agf", start, agf, XFS_AGF_MAGIC, faults)
        self._agfs[agno] = agf

    def _keep_agi(self, agno: int, start: int, raw: bytes) -> None:
        """Verify an AGI, and keep it; raises `CorruptError`."""
        agi = AGI.unpack_from(raw)
        faults = {"checksum mismatch": self.has_crc and not crc_matches(raw, XFS_AGI_CRC_OFF)}
        self._verify_header("agi", start, agi, XFS_AGI_MAGIC, faults)
        self._agis[agno] = agi

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
            "of another filesystem": self.has_crc and header.uuid != self.uuid,
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
        """Return, by description, which faults of ownership a block of an inode has.

        The block itself verifies.
        """
        return {
            "of another filesystem": header.uuid != self.uuid,
            "of another inode": header.owner != ino,
            "written for another place": header.blkno * DADDR != start,
        }
