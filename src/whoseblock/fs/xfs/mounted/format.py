"""Structures of the ioctls of XFS.

Unlike structures on disks they are in the byte order of the machine.  Source: ``xfs_fs.h`` of the
kernel's libxfs, also installed by xfsprogs.
"""

from collections.abc import Iterator
from struct import Struct
from typing import Final, NamedTuple

from whoseblock.fs.mounted.format import InodeFacts, Parent, file_handle

__all__ = [
    "BULKSTAT_BYTES",
    "FSID_BYTES",
    "GEOMETRY_BYTES",
    "XFS_HANDLE_BYTES",
    "Chunk",
    "Geometry",
    "InodeState",
    "MapExtent",
    "ag_geometry_request",
    "bulkstat_request",
    "handle_request",
    "inode_handle",
    "inumbers_request",
    "map_request",
    "open_request",
    "parents_request",
    "read_bulkstat",
    "read_free_inodes",
    "read_geometry",
    "read_inumbers",
    "read_map",
    "read_parents",
    "read_states",
    "xfs_handle",
]

#: The data device in GETFSMAP where devices are not numbered by their dev_t.
XFS_DEV_DATA: Final = 1

# ---------------------------------------------------------------------- XFS: geometry

XFS_IOC_FSGEOMETRY: Final = 0x8100587E
XFS_FSOP_GEOM_FLAGS_SPINODES: Final = 1 << 18
XFS_FSOP_GEOM_FLAGS_RMAPBT: Final = 1 << 19
XFS_FSOP_GEOM_FLAGS_REFLINK: Final = 1 << 20
XFS_FSOP_GEOM_FLAGS_EXCHANGE_RANGE: Final = 1 << 24
_GEOMETRY: Final = Struct("=8I4Q16s2IiI")
GEOMETRY_BYTES: Final = 256


class Geometry(NamedTuple):
    """The part of ``struct xfs_fsop_geom`` that says where inodes are; blocks are ``blocksize``."""

    blocksize: int
    agblocks: int
    agcount: int
    sectsize: int
    inodesize: int
    datablocks: int
    rtblocks: int
    uuid: bytes
    flags: int

    @property
    def size(self) -> int:
        """Bytes of the data section."""
        return self.datablocks * self.blocksize

    @property
    def ag_bytes(self) -> int:
        """Bytes of an allocation group; the last may be shorter."""
        return self.agblocks * self.blocksize

    @property
    def agino_bits(self) -> int:
        """The number of bits of an inode number count within the group (xfs_format.h)."""
        return (self.agblocks - 1).bit_length() + self.inopblog

    @property
    def inopblog(self) -> int:
        """The logarithm of the number of inodes in a block."""
        return (self.blocksize // self.inodesize).bit_length() - 1

    def inodes_within(self, start: int, length: int) -> tuple[int, int]:
        """Return the first and the last inode that touch a range of inode blocks, in one group."""
        agno, offset = divmod(start, self.ag_bytes)
        first, last = offset // self.inodesize, (offset + length - 1) // self.inodesize
        return agno << self.agino_bits | first, agno << self.agino_bits | last


def read_geometry(answer: bytearray) -> Geometry:
    """Read a ``struct xfs_fsop_geom``."""
    fields = _GEOMETRY.unpack_from(answer)
    blocksize, _, agblocks, agcount, _, sectsize, inodesize, _, *more = fields
    datablocks, rtblocks, _, _, uuid, _, _, _, flags = more
    return Geometry(
        blocksize, agblocks, agcount, sectsize, inodesize, datablocks, rtblocks, uuid, flags
    )


XFS_IOC_AG_GEOMETRY: Final = 0xC080583D
#: number, length, free blocks, inodes, free inodes of ``struct xfs_ag_geometry``
_AG_GEOMETRY: Final = Struct("=5I108x")


def ag_geometry_request(group: int) -> bytearray:
    """Make the ``struct xfs_ag_geometry`` that asks for an allocation group."""
    return bytearray(_AG_GEOMETRY.pack(group, 0, 0, 0, 0))


def read_free_inodes(answer: bytearray) -> int:
    """Return the inodes that are allocated in a group, and free."""
    return int(_AG_GEOMETRY.unpack_from(answer)[4])


# ---------------------------------------------------------------------- XFS: inodes

XFS_IOC_BULKSTAT: Final = 0x8040587F
XFS_BULK_IREQ_AGNO: Final = 1 << 0
XFS_BULK_IREQ_SPECIAL: Final = 1 << 1
#: With `XFS_BULK_IREQ_SPECIAL`, in place of a number: the root directory.
XFS_BULK_IREQ_SPECIAL_ROOT: Final = 1
_BULK_IREQ: Final = Struct("=Q4I40x")
#: ino, size, xflags; gen; nlink; mode
_BULKSTAT: Final = Struct("=2Q8xQ32xI44xI16xH58x")
BULKSTAT_BYTES: Final = _BULKSTAT.size


def bulkstat_request(first: int, room: int, flags: int = 0, agno: int = 0) -> bytearray:
    """Make the ``struct xfs_bulkstat_req`` for up to ``room`` inodes from number ``first`` on.

    With `XFS_BULK_IREQ_AGNO`, only those of the group ``agno``.
    """
    return bytearray(_BULK_IREQ.pack(first, flags, room, 0, agno) + bytes(room * _BULKSTAT.size))


def read_bulkstat(answer: bytearray) -> Iterator[InodeFacts]:
    """Return the inodes of an answer, ascending."""
    _, _, _, count, _ = _BULK_IREQ.unpack_from(answer)
    records = memoryview(answer)[_BULK_IREQ.size : _BULK_IREQ.size + count * _BULKSTAT.size]
    return map(InodeFacts._make, _BULKSTAT.iter_unpack(records))


#: ino, blocks, xflags; ctime; gen; ctime_nsec; extents, aextents; mode
_STATE: Final = Struct("=Q8x2Q16xq8xI20xI24x2I8xH58x")


class InodeState(NamedTuple):
    """The part of ``struct xfs_bulkstat`` that tells whether an inode has blocks, and changed.

    ``blocks`` counts the blocks of both forks and their maps, and those that are only reserved; it
    is 0 if the data fork is inside the inode, even if the attribute fork has blocks.
    """

    number: int
    blocks: int
    xflags: int
    ctime: int
    generation: int
    ctime_nsec: int
    extents: int
    attr_extents: int
    mode: int

    @property
    def changed_ns(self) -> int:
        """The time of the last change in nanoseconds since 1970."""
        return self.ctime * 1_000_000_000 + self.ctime_nsec


def read_states(answer: bytearray) -> Iterator[InodeState]:
    """Return the inodes of an answer to a `bulkstat_request`, ascending."""
    _, _, _, count, _ = _BULK_IREQ.unpack_from(answer)
    records = memoryview(answer)[_BULK_IREQ.size : _BULK_IREQ.size + count * _STATE.size]
    return map(InodeState._make, _STATE.iter_unpack(records))


XFS_IOC_INUMBERS: Final = 0x80405880
#: startino, allocmask
_INUMBERS: Final = Struct("=2Q8x")


class Chunk(NamedTuple):
    """``struct xfs_inumbers``: 64 inodes from ``first`` on, and a bit for each that is in use."""

    first: int
    used: int


def inumbers_request(first: int, room: int, agno: int) -> bytearray:
    """Make the ``struct xfs_inumbers_req`` for chunks of a group, from that of ``first`` on."""
    head = _BULK_IREQ.pack(first, XFS_BULK_IREQ_AGNO, room, 0, agno)
    return bytearray(head + bytes(room * _INUMBERS.size))


def read_inumbers(answer: bytearray) -> list[Chunk]:
    """Return the chunks of an answer, ascending."""
    _, _, _, count, _ = _BULK_IREQ.unpack_from(answer)
    records = memoryview(answer)[_BULK_IREQ.size : _BULK_IREQ.size + count * _INUMBERS.size]
    return list(map(Chunk._make, _INUMBERS.iter_unpack(records)))


# ---------------------------------------------------------------------- XFS: maps of files

XFS_IOC_GETBMAPX: Final = 0xC0205838
BMV_IF_ATTRFORK: Final = 0x1
#: Report unwritten extents as such, and delayed allocations: without these, the kernel writes.
BMV_IF_PREALLOC, BMV_IF_DELALLOC, BMV_IF_NO_HOLES = 0x4, 0x8, 0x10
BMV_OF_PREALLOC, BMV_OF_SHARED = 0x1, 0x8
#: Offsets and lengths in ``struct getbmapx`` are in units of 512 bytes.
BBSIZE: Final = 512
#: offset, block, length; count, entries, iflags, oflags
_GETBMAPX: Final = Struct("=3q4i8x")
_MOST_BB: Final = ((1 << 63) - 1) // BBSIZE


class MapExtent(NamedTuple):
    """An extent of a fork, in units of 512 bytes; ``block`` is negative if it has no place yet."""

    offset: int
    block: int
    length: int
    flags: int


def map_request(offset: int, room: int, flags: int) -> bytearray:
    """Make the ``struct getbmapx`` that asks for ``room`` extents from ``offset`` on."""
    head = _GETBMAPX.pack(offset, 0, _MOST_BB - offset, room + 1, 0, flags, 0)
    return bytearray(head + bytes(room * _GETBMAPX.size))


def read_map(answer: bytearray) -> list[MapExtent]:
    """Return the extents of an answer, in the order of the fork."""
    _, _, _, _, entries, _, _ = _GETBMAPX.unpack_from(answer)
    records = memoryview(answer)[_GETBMAPX.size : _GETBMAPX.size * (entries + 1)]
    return [
        MapExtent(offset, block, length, flags)
        for offset, block, length, _, _, _, flags in _GETBMAPX.iter_unpack(records)
    ]


# ---------------------------------------------------------------------- XFS: handles and parents

XFS_IOC_FD_TO_HANDLE: Final = 0xC038586A
XFS_IOC_OPEN_BY_HANDLE: Final = 0xC038586B
XFS_IOC_GETPARENTS_BY_HANDLE: Final = 0xC040583F
XFS_GETPARENTS_OFLAG_DONE: Final = 1 << 1
#: ``fid_len``: the bytes of ``struct xfs_fid`` behind it.
_FID_LEN: Final = 14
FSID_BYTES: Final = 8
#: fsid, fid_len, fid_pad, fid_gen, fid_ino
_XFS_HANDLE: Final = Struct("=8sHHIQ")
#: ``struct xfs_fsop_handlereq`` where pointers have 8 bytes.
_HANDLEREQ: Final = Struct("=I4xQI4xQI4xQQ")
#: cursor; iflags, oflags, bufsize; reserved; buffer
_GETPARENTS: Final = Struct("=16s2HI2Q")
#: ``struct xfs_getparents_rec`` after its handle: reclen
_PARENT_REC: Final = Struct("=I4x")


def handle_request(fd: int, handle: int, length: int) -> bytearray:
    """Make the ``struct xfs_fsop_handlereq`` that has a handle and its length written to memory.

    ``handle`` and ``length`` are addresses.
    """
    return bytearray(_HANDLEREQ.pack(fd, 0, 0, 0, 0, handle, length))


XFS_HANDLE_BYTES: Final = _XFS_HANDLE.size


def xfs_handle(fsid: bytes, inode: int, generation: int) -> bytes:
    """Pack the ``struct xfs_handle`` of an inode."""
    return _XFS_HANDLE.pack(fsid, _FID_LEN, 0, generation, inode)


def open_request(handle: int, flags: int) -> bytearray:
    """Make the ``struct xfs_fsop_handlereq`` that opens a file; ``handle`` is an address."""
    return bytearray(_HANDLEREQ.pack(0, 0, flags, handle, XFS_HANDLE_BYTES, 0, 0))


def parents_request(  # noqa: PLR0913 - what the structure holds
    fsid: bytes, inode: int, generation: int, cursor: bytes, buffer: int, length: int
) -> bytearray:
    """Make the ``struct xfs_getparents_by_handle``; ``buffer`` is an address.

    ``cursor`` is that of the answer before, at first 16 zeros.
    """
    handle = xfs_handle(fsid, inode, generation)
    return bytearray(handle + _GETPARENTS.pack(cursor, 0, 0, length, 0, buffer))


def read_parents(answer: bytearray, buffer: bytes) -> tuple[list[Parent], bytes, bool]:
    """Return the parents in ``buffer``, the next cursor, and whether they are the last.

    Raises ValueError if the records do not lie one behind the other.
    """
    cursor, _, flags, length, _, _ = _GETPARENTS.unpack_from(answer, _XFS_HANDLE.size)
    parents: list[Parent] = []
    at, header = 0, _XFS_HANDLE.size + _PARENT_REC.size
    while at + header <= min(length, len(buffer)):
        _, _, _, generation, inode = _XFS_HANDLE.unpack_from(buffer, at)
        (size,) = _PARENT_REC.unpack_from(buffer, at + _XFS_HANDLE.size)
        if not inode:
            break
        if size < header:
            raise ValueError("a record of a parent is shorter than its header")
        name = buffer[at + header : at + size].partition(b"\0")[0]
        parents.append(Parent(inode, generation, name))
        at += size
    return parents, cursor, bool(flags & XFS_GETPARENTS_OFLAG_DONE)


#: FILEID_INO32_GEN with XFS_FILEID_TYPE_64FLAG (``xfs_fid64`` in xfs_export.h).
_FILEID_INO64_GEN: Final = 0x81
_FID64: Final = Struct("=QI")


def inode_handle(inode: int, generation: int) -> bytes:
    """Pack the ``struct file_handle`` of open_by_handle_at(2) for an inode of XFS."""
    return file_handle(_FILEID_INO64_GEN, _FID64.pack(inode, generation))
