"""Extended attributes: short form, leaf and node blocks, remote values (xfs_da_format.h)."""

import struct
from collections.abc import Iterator
from typing import Final, NamedTuple

from whoseblock.errors import CorruptError
from whoseblock.fs.layout import Be16, Be32, Be64, Bytes4, Layout, Uuid

__all__ = [
    "ATTR_LEAF_ENTRY",
    "DA_BLOCK",
    "DA_NODE_ENTRY",
    "PARENT_REC",
    "REMOTE_HEADER",
    "Attribute",
    "DaBlockInfo",
    "ParentRec",
    "RemoteHeader",
    "da_header",
    "leaf_attributes",
    "node_children",
    "node_header_size",
    "short_attributes",
]

#: Version 4 has these, and headers without what begins with ``crc``.
XFS_DA_NODE_MAGIC: Final = 0xFEBE
XFS_ATTR_LEAF_MAGIC: Final = 0xFBEE
XFS_DA3_NODE_MAGIC: Final = 0x3EBE
XFS_ATTR3_LEAF_MAGIC: Final = 0x3BEE
XFS_ATTR3_RMT_MAGIC: Final = 0x5841524D  # "XARM"
XFS_SYMLINK_MAGIC: Final = 0x58534C4D  # "XSLM": remote symlinks have the same header
XFS_DA3_CRC_OFF: Final = 12
XFS_ATTR3_RMT_CRC_OFF: Final = 12
XFS_DA_NODE_MAXDEPTH: Final = 5

XFS_ATTR_LOCAL: Final = 1 << 0
XFS_ATTR_ROOT: Final = 1 << 1
XFS_ATTR_SECURE: Final = 1 << 2
XFS_ATTR_PARENT: Final = 1 << 3
XFS_ATTR_INCOMPLETE: Final = 1 << 7

XFS_XATTR_SIZE_MAX: Final = 1 << 16

_SHORT_HDR = struct.Struct(">HB x")
_LEAF_HDR_SIZE = 80
_NODE_HDR_SIZE = 64
#: The header without a checksum: ``struct xfs_da_blkinfo``, and the numbers behind it.
_DA_HEAD_2 = struct.Struct(">IIHHHH")
_LEAF_HDR_SIZE_2 = 32
_NODE_HDR_SIZE_2 = _DA_HEAD_2.size
_LOCAL_HEAD = struct.Struct(">HB")
_REMOTE_HEAD = struct.Struct(">IIB")


class DaBlockInfo(NamedTuple):
    """``struct xfs_da3_blkinfo`` with what follows it in leaf and node blocks.

    In an attribute leaf the field of ``level`` is ``usedbytes``.
    """

    forw: Be32
    back: Be32
    magic: Be16
    pad: Be16
    crc: Bytes4
    blkno: Be64
    lsn: Be64
    uuid: Uuid
    owner: Be64
    entries: Be16
    level: Be16


class AttrLeafEntry(NamedTuple):
    """``struct xfs_attr_leaf_entry``."""

    hashval: Be32
    nameidx: Be16
    flags_pad: Be16


class DaNodeEntry(NamedTuple):
    """``struct xfs_da_node_entry``."""

    hashval: Be32
    before: Be32


class RemoteHeader(NamedTuple):
    """``struct xfs_attr3_rmt_hdr``, and ``struct xfs_dsymlink_hdr``, which is the same."""

    magic: Be32
    offset: Be32
    bytes: Be32
    crc: Bytes4
    uuid: Uuid
    owner: Be64
    blkno: Be64
    lsn: Be64


class ParentRec(NamedTuple):
    """``struct xfs_parent_rec``: the value of a parent pointer, whose name is the file's."""

    ino: Be64
    gen: Be32


DA_BLOCK: Final = Layout(DaBlockInfo)
ATTR_LEAF_ENTRY: Final = Layout(AttrLeafEntry)
DA_NODE_ENTRY: Final = Layout(DaNodeEntry)
REMOTE_HEADER: Final = Layout(RemoteHeader)
PARENT_REC: Final = Layout(ParentRec)


class Attribute(NamedTuple):
    """One attribute; a remote value is ``remote_length`` bytes from block ``remote_block``."""

    flags: int
    name: bytes
    value: bytes
    remote_block: int | None = None
    remote_length: int = 0

    @property
    def namespace(self) -> int:
        """XFS_ATTR_ROOT ("trusted"), XFS_ATTR_SECURE ("security"), or 0 ("user")."""
        return self.flags & (XFS_ATTR_ROOT | XFS_ATTR_SECURE)


def short_attributes(fork: bytes, start: int) -> list[Attribute]:
    """Decode the attributes that lie in the inode; raises `CorruptError`."""
    if len(fork) < _SHORT_HDR.size:
        raise CorruptError("short-form attributes", start, "the fork is too small")
    total, count = _SHORT_HDR.unpack_from(fork)
    if total > len(fork):
        raise CorruptError("short-form attributes", start, "they end past the fork")
    found = []
    at = _SHORT_HDR.size
    for _ in range(count):
        if at + 3 > total:
            raise CorruptError("short-form attributes", start, "an entry ends past the list")
        name_at = at + 3
        value_at = name_at + fork[at]
        at, flags = value_at + fork[at + 1], fork[at + 2]
        if at > total:
            raise CorruptError("short-form attributes", start, "an entry ends past the list")
        found.append(Attribute(flags, fork[name_at:value_at], fork[value_at:at]))
    return found


def da_header(block: bytes, *, has_crc: bool) -> DaBlockInfo:
    """Decode the header of a node or leaf; what version 4 has not is 0."""
    if has_crc:
        return DA_BLOCK.unpack_from(block)
    forw, back, magic, pad, entries, level = _DA_HEAD_2.unpack_from(block)
    return DaBlockInfo(forw, back, magic, pad, b"", 0, 0, b"", 0, entries, level)


def node_header_size(*, has_crc: bool) -> int:
    """Return the length of the header of nodes, and of leaves of the index of a directory."""
    return _NODE_HDR_SIZE if has_crc else _NODE_HDR_SIZE_2


def leaf_attributes(
    block: bytes, count: int, start: int, *, has_crc: bool = True
) -> Iterator[Attribute]:
    """Decode the ``count`` attributes of a leaf block whose header has been verified.

    Raises `CorruptError` for one that does not fit, after those before it were given.
    """
    size = len(block)
    header = _LEAF_HDR_SIZE if has_crc else _LEAF_HDR_SIZE_2
    if header + count * ATTR_LEAF_ENTRY.size > size:
        raise CorruptError("attribute leaf", start, "more entries than fit")
    flat = ATTR_LEAF_ENTRY.unpack_many(block, header, count)
    for at, flags_pad in zip(flat[1::3], flat[2::3], strict=True):
        flags = flags_pad >> 8
        head = _LOCAL_HEAD if flags & XFS_ATTR_LOCAL else _REMOTE_HEAD
        name_at = at + head.size
        if at < header or name_at > size:
            raise CorruptError("attribute leaf", start, f"no entry can be at {at}")
        if flags & XFS_ATTR_LOCAL:
            valuelen, namelen = head.unpack_from(block, at)
            value_at = name_at + namelen
            after = value_at + valuelen
            found = Attribute(flags, block[name_at:value_at], block[value_at:after])
        else:
            valueblk, valuelen, namelen = head.unpack_from(block, at)
            after = name_at + namelen
            found = Attribute(flags, block[name_at:after], b"", valueblk, valuelen)
        if after > size or valuelen > XFS_XATTR_SIZE_MAX:
            raise CorruptError("attribute leaf", start, f"the entry at {at} does not fit")
        yield found


def node_children(block: bytes, count: int, start: int, *, has_crc: bool = True) -> tuple[int, ...]:
    """Return the fork blocks below a node block; raises `CorruptError`."""
    header = node_header_size(has_crc=has_crc)
    if count == 0 or header + count * DA_NODE_ENTRY.size > len(block):
        raise CorruptError("attribute node", start, "impossible number of entries")
    return DA_NODE_ENTRY.unpack_many(block, header, count)[1::2]
