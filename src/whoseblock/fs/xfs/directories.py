"""Reading directories: who their parent is, and which names they have for which inodes."""

from collections.abc import Collection, Iterator
from typing import Final

from whoseblock.errors import BlockError, CorruptError
from whoseblock.fs.xfs.format.checksum import crc_matches
from whoseblock.fs.xfs.format.directory import (
    DIR_BLOCK,
    XFS_DIR2_LEAF_OFFSET,
    XFS_DIR3_BLOCK_MAGIC,
    XFS_DIR3_DATA_CRC_OFF,
    XFS_DIR3_DATA_MAGIC,
    Entry,
    block_entries,
    is_name,
    short_entries,
)
from whoseblock.fs.xfs.format.inode import DATA_FORK, XFS_DINODE_FMT_LOCAL
from whoseblock.fs.xfs.inodes import InodeTable, LoadedInode
from whoseblock.fs.xfs.volume import Volume

__all__ = ["Directories"]

#: Up to so many inodes are searched for as bytes before a block is decoded.
_FEW: Final = 4


class Directories:
    """The directories of a volume.

    A block belongs to one directory, so that one search cannot need more blocks than the volume
    has; `begin_search` grants so many anew, and an image that makes us read more lies.
    """

    def __init__(self, volume: Volume, inodes: InodeTable) -> None:
        self.volume = volume
        self.inodes = inodes
        self._blocks_left = 0
        self.begin_search()

    def begin_search(self) -> None:
        """Forget how many blocks were read."""
        self._blocks_left = self.volume.sb.dblocks

    def parent(self, ino: int) -> int:
        """Give the parent of a directory, from its ``..``; raises `BlockError`."""
        inode = self._load(ino)
        if short := self._short(inode):
            return short[0]
        for block, start in self._blocks(ino, []):
            for entry in block_entries(block, start):
                if entry.name == b"..":
                    return entry.inumber
            break
        raise CorruptError(f"directory inode {ino}", inode.start, "its first block has no ..")

    def names(self, ino: int, wanted: Collection[int], faults: list[str]) -> Iterator[Entry]:
        """Give the names that directory ``ino`` has for any of the inodes ``wanted``.

        ``.`` and ``..`` are left out.  What cannot be read is told in ``faults``, and the rest is
        still searched.
        """
        try:
            inode = self._load(ino)
            short = self._short(inode)
        except BlockError as error:
            faults.append(str(error))
            return
        if short:
            yield from self._select(short[1], inode.start, wanted, faults)
            return
        few = len(wanted) <= _FEW
        needles = [number.to_bytes(8, "big") for number in wanted] if few else []
        for block, start in self._blocks(ino, faults):
            # An inode number lies in the block as 8 bytes: a block without them needs no decoding.
            if few and not any(needle in block for needle in needles):
                continue
            yield from self._select(block_entries(block, start), start, wanted, faults)

    def _select(
        self,
        entries: Iterator[Entry] | list[Entry],
        start: int,
        wanted: Collection[int],
        faults: list[str],
    ) -> Iterator[Entry]:
        try:
            for entry in entries:
                if entry.inumber in wanted and entry.name not in (b".", b".."):
                    if not is_name(entry.name):
                        raise CorruptError("directory", start, f"no name is {entry.name!r}")  # noqa: TRY301
                    yield entry
        except CorruptError as error:
            faults.append(str(error))

    def _load(self, ino: int) -> LoadedInode:
        inode = self.inodes.get(ino)
        if not inode.core.is_dir:
            raise CorruptError(f"inode {ino}", inode.start, "not the directory that it should be")
        return inode

    def _short(self, inode: LoadedInode) -> tuple[int, list[Entry]] | None:
        fork = inode.core.fork(DATA_FORK, self.volume.inode_size)
        if fork is None or fork.format != XFS_DINODE_FMT_LOCAL:
            return None
        return short_entries(inode.fork_bytes(fork), inode.start)

    def _blocks(self, ino: int, faults: list[str]) -> Iterator[tuple[bytes, int]]:
        """Give the blocks that hold entries, verified, each with the byte it begins at."""
        try:
            for pieces in self._pieces(ino):
                try:
                    yield self._read(ino, pieces), pieces[0][0]
                except BlockError as error:
                    faults.append(str(error))
        except BlockError as error:
            faults.append(f"directory inode {ino}: {error}")

    def _pieces(self, ino: int) -> Iterator[list[tuple[int, int]]]:
        """Give each directory block as the ranges of bytes that make it up."""
        size, block_size = self.volume.dir_block_size, self.volume.block_size
        pieces: list[tuple[int, int]] = []
        missing = size
        for extent in self.inodes.extents(ino, DATA_FORK):
            if extent.offset * block_size >= XFS_DIR2_LEAF_OFFSET:
                break
            if extent.offset * block_size % size != size - missing:
                raise CorruptError(f"directory inode {ino}", extent.start, "part of a block")
            start, left = extent.start, extent.blocks * block_size
            while left:
                part = min(left, missing)
                pieces.append((start, part))
                start, left, missing = start + part, left - part, missing - part
                if not missing:
                    yield pieces
                    pieces, missing = [], size

    def _read(self, ino: int, pieces: list[tuple[int, int]]) -> bytes:
        volume = self.volume
        start = pieces[0][0]
        title = f"directory block of inode {ino}"
        self._blocks_left -= len(pieces)
        if self._blocks_left < 0:
            raise CorruptError(title, start, "directories claim more blocks than there are")
        block = b"".join(volume.read("dir", at, length) for at, length in pieces)
        header = DIR_BLOCK.unpack_from(block)
        faults = {
            "wrong magic number": header.magic not in (XFS_DIR3_BLOCK_MAGIC, XFS_DIR3_DATA_MAGIC),
            "checksum mismatch": not crc_matches(block, XFS_DIR3_DATA_CRC_OFF),
        }
        volume.verify(title, start, faults | volume.ownership_faults(header, ino, start))
        return block
