"""Reading directories: who their parent is, and which names they have for which inodes."""

from collections.abc import Iterable, Iterator, Mapping
from typing import TYPE_CHECKING, Final

from whoseblock.errors import BlockError, CorruptError, MediaError
from whoseblock.fs.xfs.format.checksum import crc_matches
from whoseblock.fs.xfs.format.directory import (
    DIR_BLOCK,
    FILE_TYPES,
    XFS_DIR2_BLOCK_MAGIC,
    XFS_DIR2_DATA_MAGIC,
    XFS_DIR2_LEAF_OFFSET,
    XFS_DIR3_BLOCK_MAGIC,
    XFS_DIR3_DATA_CRC_OFF,
    XFS_DIR3_DATA_MAGIC,
    Entry,
    block_entries,
    has_index,
    is_name,
    short_entries,
)
from whoseblock.fs.xfs.format.inode import DATA_FORK, XFS_DINODE_FMT_LOCAL
from whoseblock.fs.xfs.inodes import InodeTable, LoadedInode
from whoseblock.fs.xfs.volume import Volume

if TYPE_CHECKING:
    from whoseblock.fs.xfs.names.hash_index import HashIndex

__all__ = ["Directories", "Faults"]

#: Up to so many inodes are searched for as bytes before a block is decoded.
_FEW: Final = 4
#: A directory of which so many blocks are not its own is not read any further.
_MOST_BAD_BLOCKS: Final = 64
#: So many of them are named, the rest only counted.
_NAMED_BAD_BLOCKS: Final = 4
#: A search over a badly damaged device keeps so many faults in mind.
_MOST_FAULTS: Final = 1000
#: The magic numbers of blocks with entries, by whether metadata has checksums.
_MAGICS: Final = {
    True: (XFS_DIR3_BLOCK_MAGIC, XFS_DIR3_DATA_MAGIC),
    False: (XFS_DIR2_BLOCK_MAGIC, XFS_DIR2_DATA_MAGIC),
}
#: What a directory says of the type of a file, by the highest four bits of the file's mode.
_FILE_TYPES: Final = tuple(FILE_TYPES.get(nibble << 12, 0) for nibble in range(16))


class Faults:
    """Damage found in a search for names.

    Some of it may hide a name of any inode, the rest only names of certain ones.  The notes kept
    do not depend on the order in which they were added.  ``doubts`` are about names that were
    found, by the inode of the directory and the name.
    """

    def __init__(self) -> None:
        self._of_any: set[str] = set()
        self._of: dict[int, set[str]] = {}
        self.doubts: dict[tuple[int, bytes], str] = {}

    def add(self, note: str) -> None:
        """Add what may hide a name of any inode."""
        self._keep(self._of_any, note)

    def add_for(self, inodes: Iterable[int], note: str) -> None:
        """Add what may hide a name of these inodes."""
        for ino in inodes:
            self._keep(self._of.setdefault(ino, set()), note)

    def notes(self, ino: int) -> list[str]:
        """Return what may hide a name of an inode, sorted."""
        return sorted(self._of_any | self._of.get(ino, set()))[:_MOST_FAULTS]

    @staticmethod
    def _keep(notes: set[str], note: str) -> None:
        notes.add(note)
        if len(notes) > 2 * _MOST_FAULTS:
            notes.difference_update(sorted(notes)[_MOST_FAULTS:])


class Directories:
    """The directories of a volume.

    A block belongs to one place in one directory, and one that belongs elsewhere ends the reading
    soon: reading a directory takes no longer than what is really there.
    """

    def __init__(self, volume: Volume, inodes: InodeTable) -> None:
        self.volume = volume
        self.inodes = inodes
        #: That of the directory that was read last.
        self._index: HashIndex | None = None

    def parent(self, ino: int) -> int:
        """Return the parent of a directory, from its ``..``; raises `BlockError`."""
        inode = self._load(ino)
        if short := self._short(inode):
            return short[0]
        for block, start, _ in self._blocks(ino, Faults()):
            for entry in block_entries(block, start, typed=self.volume.sb.has_ftype):
                if entry.name == b"..":
                    return entry.inumber
            break
        raise CorruptError(f"directory inode {ino}", inode.start, "its first block has no ..")

    def names(
        self, ino: int, wanted: Mapping[int, int], faults: Faults, *, confirmed: bool = False
    ) -> Iterator[Entry]:
        """Yield the names that directory ``ino`` has for any of the inodes ``wanted``.

        ``wanted`` has the mode of each: a name that is said to be of another type of file belongs
        to an inode that had the number before.  So does one that the hash index does not have,
        unless another structure has ``confirmed`` the names.  ``.`` and ``..`` are left out.  What
        cannot be read is added to ``faults``, and the rest is still searched.
        """
        try:
            inode = self._load(ino)
            short = self._short(inode)
        except BlockError as error:
            faults.add(str(error))
            return
        if short:
            yield from self._select(ino, short[1], wanted, faults)
            return
        few = len(wanted) <= _FEW
        needles = [number.to_bytes(8, "big") for number in wanted] if few else []
        for block, start, offset in self._blocks(ino, faults):
            # An inode number lies in the block as 8 bytes: a block without them needs no decoding.
            if few and not any(needle in block for needle in needles):
                continue
            try:
                entries = block_entries(block, start, typed=self.volume.sb.has_ftype)
                for entry in self._select(ino, entries, wanted, faults):
                    # A directory of one block has its index in that block.
                    if (
                        confirmed
                        or has_index(block)
                        or self._is_indexed(ino, entry, offset, faults)
                    ):
                        yield entry
            except CorruptError as error:
                hidden = [number for number in wanted if number.to_bytes(8, "big") in block]
                faults.add_for(hidden, str(error))

    def _select(
        self, ino: int, entries: Iterable[Entry], wanted: Mapping[int, int], faults: Faults
    ) -> Iterator[Entry]:
        for entry in entries:
            number = entry.inumber
            if number not in wanted or entry.name in (b".", b".."):
                continue
            if not is_name(entry.name):
                why = "which cannot be a name"
            elif entry.ftype not in (_FILE_TYPES[wanted[number] >> 12], -1):
                why = "as another type of file than it is"
            else:
                yield entry
                continue
            name = f"directory inode {ino} has the name {entry.name!r} for inode {number}"
            faults.add_for((number,), f"{name}, {why}")

    def _is_indexed(self, ino: int, entry: Entry, offset: int, faults: Faults) -> bool:
        """Return whether the hash index has a name of the block at byte ``offset``.

        Where the medium does not return a block of the index, nothing contradicts the name.
        """
        if self.volume.sb.ignores_case:
            return True
        if self._index is None or self._index.ino != ino:
            from whoseblock.fs.xfs.names.hash_index import HashIndex

            self._index = HashIndex(self.volume, self.inodes, ino)
        try:
            if self._index.has(entry.name, offset + entry.at):
                return True
        except MediaError:
            return True
        except BlockError as error:
            faults.doubts[ino, entry.name] = (
                f"the name {entry.name!r} in directory inode {ino} is not confirmed: {error}"
            )
            return True
        faults.add_for(
            (entry.inumber,),
            f"directory inode {ino} has the name {entry.name!r} for inode {entry.inumber}, its hash"
            " index has not",
        )
        return False

    def _load(self, ino: int) -> LoadedInode:
        inode = self.inodes.get(ino)
        if not inode.core.is_dir:
            raise CorruptError(f"inode {ino}", inode.start, "not the directory that it should be")
        return inode

    def _short(self, inode: LoadedInode) -> tuple[int, list[Entry]] | None:
        fork = inode.core.fork(DATA_FORK, self.volume.inode_size)
        if fork is None or fork.format != XFS_DINODE_FMT_LOCAL:
            return None
        typed = self.volume.sb.has_ftype
        return short_entries(inode.fork_bytes(fork), inode.start, typed=typed)

    def _blocks(self, ino: int, faults: Faults) -> Iterator[tuple[bytes, int, int]]:
        """Yield the blocks that hold entries, verified.

        Each comes with the byte of the device and the byte of the directory it begins at.
        """
        bad = 0
        seen: set[int] = set()
        try:
            for pieces, offset in self._pieces(ino):
                start = pieces[0][0]
                try:
                    if start in seen:
                        raise CorruptError(f"directory block of inode {ino}", start, "used twice")
                    seen.add(start)
                    yield self._read(ino, pieces), start, offset
                except BlockError as error:
                    bad += 1
                    if bad <= _NAMED_BAD_BLOCKS:
                        faults.add(str(error))
                    if bad == _MOST_BAD_BLOCKS:
                        break
        except BlockError as error:
            faults.add(f"directory inode {ino}: {error}")
        if bad == _MOST_BAD_BLOCKS:
            faults.add(f"directory inode {ino} has {bad} bad blocks: the rest of it was not read")
        elif bad > _NAMED_BAD_BLOCKS:
            faults.add(f"directory inode {ino} has {bad} bad blocks")

    def _pieces(self, ino: int) -> Iterator[tuple[list[tuple[int, int]], int]]:
        """Yield each directory block: the ranges of bytes that make it up, and its own place."""
        size, block_size = self.volume.dir_block_size, self.volume.block_size
        end = self.inodes.get(ino).core.size
        pieces: list[tuple[int, int]] = []
        missing = size
        at = 0
        for extent in self.inodes.extents(ino, DATA_FORK):
            offset = extent.offset * block_size
            if offset >= XFS_DIR2_LEAF_OFFSET:
                break
            if offset % size != size - missing or offset < at:
                raise CorruptError(f"directory inode {ino}", extent.start, "part of a block")
            at = offset + extent.blocks * block_size
            start, left = extent.start, max(min(at, end) - offset, 0)
            while left:
                part = min(left, missing)
                pieces.append((start, part))
                start, left, missing = start + part, left - part, missing - part
                if not missing:
                    yield pieces, min(at, end) - left - size
                    pieces, missing = [], size
            if at > end:
                raise CorruptError(f"directory inode {ino}", extent.start, "blocks past its size")

    def _read(self, ino: int, pieces: list[tuple[int, int]]) -> bytes:
        volume = self.volume
        start = pieces[0][0]
        title = f"directory block of inode {ino}"
        block = b"".join(volume.read("dir", at, length) for at, length in pieces)
        header = DIR_BLOCK.unpack_from(block)
        faults = {
            "wrong magic number": header.magic not in _MAGICS[volume.has_crc],
            "checksum mismatch": volume.has_crc and not crc_matches(block, XFS_DIR3_DATA_CRC_OFF),
        }
        if volume.has_crc:
            faults |= volume.ownership_faults(header, ino, start)
        volume.verify(title, start, faults)
        return block
