"""Reading inodes, verified, and the blocks of their forks."""

import stat
from collections.abc import Iterable, Iterator
from typing import Final, NamedTuple

from whoseblock.errors import BlockError, CorruptError
from whoseblock.fs.xfs.format.btree import (
    BMBT_REC,
    LONG_HEADER,
    LONG_HEADER_SIZE,
    XFS_BMAP_CRC_MAGIC,
    XFS_BMAP_MAGIC,
    XFS_BTREE_LBLOCK_CRC_OFF,
    XFS_BTREE_MAXLEVELS,
    BmbtRec,
    InobtRec,
)
from whoseblock.fs.xfs.format.checksum import crc_matches
from whoseblock.fs.xfs.format.inode import (
    XFS_DINODE_CRC_OFF,
    XFS_DINODE_FMT_BTREE,
    XFS_DINODE_FMT_DEV,
    XFS_DINODE_FMT_EXTENTS,
    XFS_DINODE_FMT_LOCAL,
    XFS_DINODE_MAGIC,
    Dinode,
    Fork,
    parse_inode,
)
from whoseblock.fs.xfs.volume import Volume

__all__ = ["Extent", "InodeTable", "LoadedInode"]

_CACHED_INODES: Final = 4096
#: Inodes closer together than this are read together, as far as that makes no larger read.
_READ_GAP: Final = 16 * 1024
_READ_MOST: Final = 256 * 1024

_MAGIC_BYTES: Final = XFS_DINODE_MAGIC.to_bytes(2, "big")
_VERSION_AT: Final = 4
_INO_AT: Final = 152
_UUID_AT: Final = 160
_BMDR_HEADER: Final = 4
_MAPPED: Final = (XFS_DINODE_FMT_EXTENTS, XFS_DINODE_FMT_BTREE)
_ATTR_FORMATS: Final = (XFS_DINODE_FMT_LOCAL, *_MAPPED)
#: The formats that a data fork may have, by the type of the file.
_FORMATS: Final = {
    stat.S_IFREG: _MAPPED,
    stat.S_IFDIR: _ATTR_FORMATS,
    stat.S_IFLNK: _ATTR_FORMATS,
    **dict.fromkeys(
        (stat.S_IFCHR, stat.S_IFBLK, stat.S_IFIFO, stat.S_IFSOCK), (XFS_DINODE_FMT_DEV,)
    ),
}


class LoadedInode(NamedTuple):
    """An inode that has been verified, with the bytes of its forks."""

    core: Dinode
    raw: bytes
    start: int

    def fork_bytes(self, fork: Fork) -> bytes:
        """Return the bytes of a fork that lie in the inode."""
        return self.raw[fork.offset : fork.offset + fork.size]


def _fault_of_old(raw: bytes | memoryview) -> str:
    """Return what is wrong with an inode that has no checksum, "" if nothing is.

    The kernel refuses the same (``xfs_dinode_verify``).
    """
    if not 0 < raw[_VERSION_AT] < 3:  # noqa: PLR2004 - versions 1 and 2
        return f"version {raw[_VERSION_AT]}"
    core = parse_inode(raw)
    kind = stat.S_IFMT(core.mode)
    if not core.mode:
        return ""
    if core.format not in _FORMATS.get(kind, ()):
        return f"mode {core.mode:o} and a data fork of format {core.format}"
    if core.forkoff * 8 >= len(raw) - core.length:
        return "an attribute fork past its end"
    if core.forkoff and core.aformat not in _ATTR_FORMATS:
        return f"an attribute fork of format {core.aformat}"
    return ""


class Extent(NamedTuple):
    """``blocks`` blocks of a fork from its block ``offset`` on, which lie at byte ``start``."""

    offset: int
    start: int
    blocks: int


class InodeTable:
    """The inodes of a volume."""

    def __init__(self, volume: Volume) -> None:
        self.volume = volume
        self._cache: dict[int, LoadedInode] = {}
        #: The directories of sound chunks, by the first byte of the chunk: each of many searches
        #: for names need not read all chunks again.
        self.directories: dict[int, tuple[InobtRec, tuple[int, ...]]] = {}

    def get(self, ino: int) -> LoadedInode:
        """Read an inode; raises `BlockError`."""
        inode = self._cache.get(ino)
        if inode is None:
            start = self.volume.inode_to_byte(ino)
            if start is None:
                raise CorruptError(f"inode {ino}", 0, "there can be no such inode")
            raw = self.volume.read("inode", start, self.volume.inode_size)
            inode = self.verified(ino, raw, start)
        return inode

    def verified(self, ino: int, raw: bytes, start: int) -> LoadedInode:
        """Verify the inode ``ino`` that was read from byte ``start``; raises `CorruptError`."""
        if fault := self.fault(ino, raw):
            raise CorruptError(f"inode {ino}", start, fault)
        if len(self._cache) >= _CACHED_INODES:
            self._cache.clear()
        inode = self._cache[ino] = LoadedInode(parse_inode(raw), raw, start)
        return inode

    def fault(self, ino: int, raw: bytes | memoryview) -> str:
        """Return what is wrong with the bytes of an inode, "" if nothing is."""
        if raw[:2] != _MAGIC_BYTES:
            return "wrong magic number"
        if not self.volume.has_crc:
            return _fault_of_old(raw)
        if raw[_VERSION_AT] != 3:  # noqa: PLR2004 - version 5 filesystems have inodes of version 3
            return f"version {raw[_VERSION_AT]}"
        if not crc_matches(raw, XFS_DINODE_CRC_OFF):
            return "checksum mismatch"
        if raw[_INO_AT:_UUID_AT] != ino.to_bytes(8, "big"):
            return "it is another inode"
        return "" if raw[_UUID_AT : _UUID_AT + 16] == self.volume.uuid else "of another filesystem"

    def read_many(
        self, inodes: Iterable[int]
    ) -> tuple[dict[int, bytes | memoryview], dict[int, str]]:
        """Read many inodes, verified; returns their bytes, and what is wrong with the others.

        Neighbours are read together; they need not be asked for in order.
        """
        found: dict[int, bytes | memoryview] = {}
        faults: dict[int, str] = {}
        for run in self._runs(sorted(set(inodes)), faults):
            first = run[0][1]
            try:
                size = run[-1][1] + self.volume.inode_size - first
                whole = memoryview(self.volume.read("inode", first, size))
            except BlockError:
                self._read_singly(run, found, faults)
                continue
            for ino, start in run:
                raw = whole[start - first : start - first + self.volume.inode_size]
                if fault := self.fault(ino, raw):
                    faults[ino] = str(CorruptError(f"inode {ino}", start, fault))
                else:
                    found[ino] = raw
        return found, faults

    def _read_singly(
        self,
        run: list[tuple[int, int]],
        found: dict[int, bytes | memoryview],
        faults: dict[int, str],
    ) -> None:
        """Read each inode of a run alone, after a read of the whole run failed."""
        for ino, _ in run:
            try:
                found[ino] = self.get(ino).raw
            except BlockError as error:
                faults[ino] = str(error)

    def _runs(self, inodes: list[int], faults: dict[int, str]) -> Iterator[list[tuple[int, int]]]:
        """Group ascending inodes, each with its byte, into what one read gets."""
        run: list[tuple[int, int]] = []
        for ino in inodes:
            start = self.volume.inode_to_byte(ino)
            if start is None:
                faults[ino] = str(CorruptError(f"inode {ino}", 0, "there can be no such inode"))
                continue
            if run and (start - run[-1][1] > _READ_GAP or start - run[0][1] > _READ_MOST):
                yield run
                run = []
            run.append((ino, start))
        if run:
            yield run

    # ------------------------------------------------------------------ forks

    def extents(self, ino: int, which: str) -> Iterator[Extent]:
        """Yield the extents of a fork, in the order of the fork; raises `BlockError`.

        A fork that lies in the inode, or is not there, has none.
        """
        inode = self.get(ino)
        fork = inode.core.fork(which, self.volume.inode_size)
        if fork is None or fork.format == XFS_DINODE_FMT_LOCAL:
            return
        raw = inode.fork_bytes(fork)
        if fork.format == XFS_DINODE_FMT_EXTENTS:
            if fork.nextents * BMBT_REC.size > len(raw):
                raise CorruptError(f"inode {ino}", inode.start, "more extents than fit")
            yield from self._decode_extents(ino, raw, 0, fork.nextents, inode.start)
        elif fork.format == XFS_DINODE_FMT_BTREE:
            yield from self._walk_map(ino, raw, inode.start)

    def _walk_map(self, ino: int, root: bytes, start: int) -> Iterator[Extent]:
        """Walk the btree of an extent map, whose root is in the fork; bounded as `AgTree` is."""
        level = int.from_bytes(root[:2], "big")
        count = int.from_bytes(root[2:_BMDR_HEADER], "big")
        # A key and a pointer are 8 bytes each.
        most = (len(root) - _BMDR_HEADER) // 16
        if not 0 < level < XFS_BTREE_MAXLEVELS or not 0 < count <= most:
            raise CorruptError(f"inode {ino}", start, "impossible root of the extent map")
        header = LONG_HEADER.size if self.volume.has_crc else LONG_HEADER_SIZE
        todo = [(child, level - 1) for child in self._children(root, _BMDR_HEADER, most, count)]
        seen: set[int] = set()
        while todo:
            fsbno, level = todo.pop()
            block, count, start = self._read_map_block(ino, fsbno, level)
            if fsbno in seen:
                raise CorruptError(f"extent map of inode {ino}", start, "reached twice")
            seen.add(fsbno)
            if level == 0:
                yield from self._decode_extents(ino, block, header, count, start)
                continue
            most = (len(block) - header) // 16
            children = self._children(block, header, most, count)
            todo += [(child, level - 1) for child in children]

    @staticmethod
    def _children(block: bytes, offset: int, most: int, count: int) -> list[int]:
        """Return the pointers of a node, last first, to be pushed onto a stack."""
        at = offset + most * 8
        return [
            int.from_bytes(block[at + index * 8 : at + index * 8 + 8], "big")
            for index in range(count - 1, -1, -1)
        ]

    def _read_map_block(self, ino: int, fsbno: int, level: int) -> tuple[bytes, int, int]:
        volume = self.volume
        title = f"extent map of inode {ino}"
        start = volume.fsb_to_byte(fsbno)
        if start is None:
            raise CorruptError(title, 0, f"there can be no block {fsbno}")
        block = volume.read("bmbt", start, volume.block_size)
        header = LONG_HEADER.unpack_from(block)
        has_crc = volume.has_crc
        size = LONG_HEADER.size if has_crc else LONG_HEADER_SIZE
        record_size = 16
        faults = {
            "wrong magic number": header.magic
            != (XFS_BMAP_CRC_MAGIC if has_crc else XFS_BMAP_MAGIC),
            "checksum mismatch": has_crc and not crc_matches(block, XFS_BTREE_LBLOCK_CRC_OFF),
            "wrong level": header.level != level,
            "more records than fit": header.numrecs > (volume.block_size - size) // record_size,
        }
        if has_crc:
            faults |= volume.ownership_faults(header, ino, start)
        volume.verify(title, start, faults)
        return block, header.numrecs, start

    def _decode_extents(
        self, ino: int, raw: bytes, offset: int, count: int, at: int
    ) -> Iterator[Extent]:
        for index in range(count):
            record: BmbtRec = BMBT_REC.unpack_from(raw, offset + index * BMBT_REC.size)
            start = self.volume.fsb_to_byte(record.startblock, record.blockcount)
            if start is None or record.blockcount == 0:
                raise CorruptError(f"extent map of inode {ino}", at, "an extent that cannot be")
            yield Extent(record.startoff, start, record.blockcount)
