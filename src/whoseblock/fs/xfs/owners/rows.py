"""Conversion of reverse-map records to rows of answers.

Single and bulk lookups make the same `Piece` in different ways; both use these definitions.
"""

from typing import Final

from msgspec import UNSET

from whoseblock.fs.base import Owner, Paths
from whoseblock.fs.pieces import (
    AG,
    ATTR,
    DATA,
    EXTENT_MAP,
    FILE,
    FILE_DATA,
    INODE_BTREE,
    INODES,
    LOG,
    METADATA,
    NO_FORK,
    NOTHING,
    REFCOUNT_BTREE,
    STAGING,
    STATIC,
    UNKNOWN,
    XATTR,
    Piece,
    row_of,
)
from whoseblock.fs.xfs.format.ag import AG_HEADERS
from whoseblock.fs.xfs.format.btree import (
    XFS_RMAP_NON_INODE,
    XFS_RMAP_OFF_ATTR_FORK,
    XFS_RMAP_OFF_BMBT_BLOCK,
    XFS_RMAP_OFF_MASK,
    XFS_RMAP_OFF_UNWRITTEN,
    XFS_RMAP_OWN_AG,
    XFS_RMAP_OWN_COW,
    XFS_RMAP_OWN_FS,
    XFS_RMAP_OWN_INOBT,
    XFS_RMAP_OWN_INODES,
    XFS_RMAP_OWN_LOG,
    XFS_RMAP_OWN_REFC,
)
from whoseblock.fs.xfs.volume import Volume

__all__ = ["SPECIAL_OWNERS", "classify", "make_row", "piece_of"]

#: No file is larger, so that no record of a place past it is true.
MAX_FILE_SIZE: Final = 1 << 63

#: Owners that are no inodes: kind and what.  Any other is unknown.
SPECIAL_OWNERS: Final = {
    XFS_RMAP_OWN_FS: (METADATA, STATIC),
    XFS_RMAP_OWN_LOG: (METADATA, LOG),
    XFS_RMAP_OWN_AG: (METADATA, AG),
    XFS_RMAP_OWN_INOBT: (METADATA, INODE_BTREE),
    XFS_RMAP_OWN_INODES: (METADATA, INODES),
    XFS_RMAP_OWN_REFC: (METADATA, REFCOUNT_BTREE),
    XFS_RMAP_OWN_COW: (STAGING, NOTHING),
}


def classify(owner: int, offset: int) -> tuple[int, int, int]:
    """Return kind, what and fork of a record; only the inode shows what a data fork holds."""
    if owner & XFS_RMAP_NON_INODE:
        return *SPECIAL_OWNERS.get(owner, (UNKNOWN, NOTHING)), NO_FORK
    fork = ATTR if offset & XFS_RMAP_OFF_ATTR_FORK else DATA
    if offset & XFS_RMAP_OFF_BMBT_BLOCK:
        return FILE, EXTENT_MAP, fork
    return FILE, XATTR if fork == ATTR else FILE_DATA, fork


def piece_of(
    record: tuple[int, ...], start: int, length: int, skipped: int, block_size: int
) -> Piece:
    """Make the piece of a record that was clipped to ``length`` bytes from ``start``.

    ``skipped`` bytes of the record lie before it.
    """
    _, count, owner, offset = record
    kind, what, fork = classify(owner, offset)
    if kind != FILE:
        return Piece(start, length, kind, what)
    if what == EXTENT_MAP:
        return Piece(start, length, kind, what, fork, owner)
    block = offset & XFS_RMAP_OFF_MASK
    if (block + count) * block_size > MAX_FILE_SIZE:
        return Piece(start, length, UNKNOWN)
    file_offset = block * block_size + skipped
    unwritten = bool(offset & XFS_RMAP_OFF_UNWRITTEN)
    return Piece(start, length, kind, what, fork, owner, file_offset, unwritten)


def make_row(volume: Volume, piece: Piece, paths: Paths | None) -> Owner:
    """Return the row of the contract for a piece."""
    start, length = piece.start, piece.length
    inodes = volume.inodes_within(start, length) if piece.what == INODES else UNSET
    detail = _static_detail(volume, start, length) if piece.what == STATIC else UNSET
    return row_of(piece, paths, inodes=inodes, detail=detail)


def _static_detail(volume: Volume, start: int, length: int) -> str:
    """Name the headers of an allocation group that a range of static metadata touches."""
    agno, offset = divmod(start, volume.ag_bytes)
    first, last = offset // volume.sb.sectsize, (offset + length - 1) // volume.sb.sectsize
    names = AG_HEADERS[first : last + 1] or ("header block",)
    return f"{', '.join(names)} of AG {agno}"
