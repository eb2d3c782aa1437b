"""What the kernel takes and gives: structures of ioctl(2) and of some system calls.

Unlike what lies on disks they are in the byte order of the machine.  Sources: ``linux/fsmap.h``;
``xfs_fs.h`` of the kernel's libxfs, also installed by xfsprogs; open_by_handle_at(2), openat2(2).
"""

from collections.abc import Iterator
from struct import Struct
from typing import Final, NamedTuple

__all__ = [
    "BULKSTAT_BYTES",
    "FSID_BYTES",
    "GEOMETRY_BYTES",
    "XFS_HANDLE_BYTES",
    "Entry",
    "Fsmap",
    "Geometry",
    "InodeFacts",
    "Parent",
    "bulkstat_request",
    "file_handle",
    "fsmap_request",
    "handle_request",
    "open_how",
    "parents_request",
    "read_bulkstat",
    "read_entries",
    "read_fsmap",
    "read_geometry",
    "read_parents",
]

FS_IOC_GETFSMAP: Final = 0xC0C0583B
FMR_OF_PREALLOC: Final = 0x1
FMR_OF_ATTR_FORK: Final = 0x2
FMR_OF_EXTENT_MAP: Final = 0x4
FMR_OF_SPECIAL_OWNER: Final = 0x10
FMR_OF_LAST: Final = 0x20
#: The owner of free space, with `FMR_OF_SPECIAL_OWNER`.
FMR_OWN_FREE: Final = 1
#: Devices are told by their dev_t, and not by what they are to the filesystem.
FMH_OF_DEV_T: Final = 0x1
#: The data device where they are told by what they are (``XFS_DEV_DATA``).
XFS_DEV_DATA: Final = 1

_FSMAP_HEAD: Final = Struct("=4I48x")
_FSMAP: Final = Struct("=2I4Q24x")
_FSMAP_KEYS: Final = 2 * _FSMAP.size
_MOST32, _MOST64 = 2**32 - 1, 2**64 - 1


class Fsmap(NamedTuple):
    """``struct fsmap``: who has ``length`` bytes from ``physical`` of a device.

    ``offset`` is the place in the owner, in bytes.
    """

    device: int
    flags: int
    physical: int
    owner: int
    offset: int
    length: int

    @property
    def is_free(self) -> bool:
        """Whether the kernel would allocate it."""
        return bool(self.flags & FMR_OF_SPECIAL_OWNER) and self.owner == FMR_OWN_FREE


def fsmap_request(room: int, device: int, start: int, end: int, after: Fsmap | None) -> bytearray:
    """Make the ``struct fsmap_head`` that asks for the records from ``start`` to before ``end``.

    ``after`` is the last record that one has already; ``room`` is for so many more.
    """
    low = after or Fsmap(device, 0, start, 0, 0, 0)
    high = Fsmap(device, _MOST32, end - 1, _MOST64, _MOST64, 0)
    head = _FSMAP_HEAD.pack(0, 0, room, 0) + _FSMAP.pack(*low) + _FSMAP.pack(*high)
    return bytearray(head + bytes(room * _FSMAP.size))


def read_fsmap(answer: bytearray) -> tuple[int, list[Fsmap]]:
    """Give the flags and the records of an answer."""
    _, flags, _, entries = _FSMAP_HEAD.unpack_from(answer)
    begin = _FSMAP_HEAD.size + _FSMAP_KEYS
    records = memoryview(answer)[begin : begin + entries * _FSMAP.size]
    return flags, list(map(Fsmap._make, _FSMAP.iter_unpack(records)))


# ---------------------------------------------------------------------- XFS: geometry

XFS_IOC_FSGEOMETRY: Final = 0x8100587E
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
        """How many bits of an inode number count within the group (xfs_format.h)."""
        inopblog = (self.blocksize // self.inodesize).bit_length() - 1
        return (self.agblocks - 1).bit_length() + inopblog

    def inodes_within(self, start: int, length: int) -> tuple[int, int]:
        """Give the first and the last inode that touch a range of inode blocks, in one group."""
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


# ---------------------------------------------------------------------- XFS: inodes

XFS_IOC_BULKSTAT: Final = 0x8040587F
XFS_BULK_IREQ_SPECIAL: Final = 1 << 1
#: With `XFS_BULK_IREQ_SPECIAL`, in place of a number: the root directory.
XFS_BULK_IREQ_SPECIAL_ROOT: Final = 1
_BULK_IREQ: Final = Struct("=Q4I40x")
#: ino, size, xflags; gen; nlink; mode
_BULKSTAT: Final = Struct("=2Q8xQ32xI44xI16xH58x")
BULKSTAT_BYTES: Final = _BULKSTAT.size
FS_XFLAG_IMMUTABLE, FS_XFLAG_APPEND = 0x8, 0x10  # linux/fs.h


class InodeFacts(NamedTuple):
    """What ``struct xfs_bulkstat`` says of an inode; ``size`` is in bytes.

    ``xflags`` are the FS_XFLAG_… of linux/fs.h.
    """

    number: int
    size: int
    xflags: int
    generation: int
    links: int
    mode: int


def bulkstat_request(first: int, room: int, flags: int = 0) -> bytearray:
    """Make the ``struct xfs_bulkstat_req`` for up to ``room`` inodes from number ``first`` on."""
    return bytearray(_BULK_IREQ.pack(first, flags, room, 0, 0) + bytes(room * _BULKSTAT.size))


def read_bulkstat(answer: bytearray) -> Iterator[InodeFacts]:
    """Give the inodes of an answer, ascending."""
    _, _, _, count, _ = _BULK_IREQ.unpack_from(answer)
    records = memoryview(answer)[_BULK_IREQ.size : _BULK_IREQ.size + count * _BULKSTAT.size]
    return map(InodeFacts._make, _BULKSTAT.iter_unpack(records))


# ---------------------------------------------------------------------- XFS: handles and parents

XFS_IOC_FD_TO_HANDLE: Final = 0xC038586A
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


class Parent(NamedTuple):
    """One name of an inode: the directory that has it, and the name there."""

    inode: int
    generation: int
    name: bytes


def handle_request(fd: int, handle: int, length: int) -> bytearray:
    """Make the ``struct xfs_fsop_handlereq`` that has a handle and its length written to memory.

    ``handle`` and ``length`` are addresses.
    """
    return bytearray(_HANDLEREQ.pack(fd, 0, 0, 0, 0, handle, length))


XFS_HANDLE_BYTES: Final = _XFS_HANDLE.size


def parents_request(  # noqa: PLR0913 - what the structure holds
    fsid: bytes, inode: int, generation: int, cursor: bytes, buffer: int, length: int
) -> bytearray:
    """Make the ``struct xfs_getparents_by_handle``; ``buffer`` is an address.

    ``cursor`` is that of the answer before, at first 16 zeros.
    """
    handle = _XFS_HANDLE.pack(fsid, _FID_LEN, 0, generation, inode)
    return bytearray(handle + _GETPARENTS.pack(cursor, 0, 0, length, 0, buffer))


def read_parents(answer: bytearray, buffer: bytes) -> tuple[list[Parent], bytes, bool]:
    """Give the parents in ``buffer``, the cursor for the next request, and whether it is the last.

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
_FILE_HANDLE: Final = Struct("=IiQI")
_FID64_BYTES: Final = 12


def file_handle(inode: int, generation: int) -> bytes:
    """Make the ``struct file_handle`` of open_by_handle_at(2) for an inode of XFS."""
    return _FILE_HANDLE.pack(_FID64_BYTES, _FILEID_INO64_GEN, inode, generation)


# ---------------------------------------------------------------------- directories

#: ``struct linux_dirent64`` before the name: d_ino, d_off, d_reclen, d_type
_DIRENT64: Final = Struct("=QqHB")
DT_UNKNOWN, DT_DIR = 0, 4


class Entry(NamedTuple):
    """A name in a directory; ``kind`` is a DT_… of readdir(3)."""

    inode: int
    kind: int
    name: bytes


def read_entries(buffer: bytes) -> Iterator[Entry]:
    """Give the entries that getdents64(2) wrote."""
    at, end = 0, len(buffer)
    header = _DIRENT64.size
    unpack = _DIRENT64.unpack_from
    while at < end:
        inode, _, size, kind = unpack(buffer, at)
        yield Entry(inode, kind, buffer[at + header : buffer.index(0, at + header)])
        at += size


_OPEN_HOW: Final = Struct("=3Q")


def open_how(flags: int, resolve: int) -> bytes:
    """Make the ``struct open_how`` of openat2(2)."""
    return _OPEN_HOW.pack(flags, 0, resolve)
