"""Conversion of pieces to rows of the contract."""

from whoseblock.fs.base import Owner, Paths
from whoseblock.fs.ext4.static import FixedMetadata
from whoseblock.fs.ext4.volume import Volume
from whoseblock.fs.pieces import INODES, LOG, METADATA, Piece, row_of

__all__ = ["make_row"]


def make_row(volume: Volume, fixed: FixedMetadata, piece: Piece, paths: Paths | None) -> Owner:
    """Return the row for a piece; fixed metadata gets its name and its inodes."""
    if piece.kind != METADATA or piece.what == LOG:
        return row_of(piece, paths)
    block = piece.start // volume.block_size
    runs = [run for run in fixed.within(block, block + 1) if run.what == piece.what]
    if not runs:
        return row_of(piece, None, detail="rest of a cluster of fixed metadata")
    run = runs[0]
    detail = run.name if run.name == "boot block" else f"{run.name} of group {run.group}"
    if piece.what != INODES:
        return row_of(piece, None, detail=detail)
    size, count = volume.sb.inode_size, volume.sb.inodes_per_group
    offset = piece.start - run.start * volume.block_size
    first, last = offset // size, (offset + piece.length - 1) // size
    if first >= count:
        return row_of(piece, None, detail=f"end of the {detail}")
    base = run.group * count + 1
    return row_of(piece, None, inodes=(base + first, base + min(last, count - 1)))
