"""Rows of answers as numbers, before they become the rows of the contract.

Each filesystem builds its `Piece` in its own way; what holds for all of them is here.
"""

import stat
from itertools import accumulate
from typing import Final, NamedTuple

from msgspec import UNSET, UnsetType

from whoseblock.fs.arrays import FORKS, KINDS, WHATS
from whoseblock.fs.base import (
    FileId,
    FileOwner,
    Free,
    MetadataOwner,
    Outside,
    Owner,
    Paths,
    Staging,
    Unknown,
    Unreferenced,
)

__all__ = ["Piece", "data_what", "is_shareable", "mark_shared", "row_of"]

# The numbers of the words in KINDS, FORKS and WHATS.
FILE, METADATA, FREE, STAGING, OUTSIDE, UNKNOWN, UNREFERENCED = range(len(KINDS))
NO_FORK, DATA, ATTR = range(len(FORKS))
(
    NOTHING,
    FILE_DATA,
    DIRECTORY,
    SYMLINK,
    XATTR,
    EXTENT_MAP,
    UNKNOWN_DATA,
    STATIC,
    LOG,
    AG,
    INODE_BTREE,
    INODES,
    REFCOUNT_BTREE,
    PAST_END,
    GROUP_DESCRIPTORS,
    RESERVED_GROUP_DESCRIPTORS,
    BLOCK_BITMAP,
    INODE_BITMAP,
    MMP,
    TREE,
) = range(len(WHATS))


class Piece(NamedTuple):
    """A row in numbers; the columns of `OwnerArrays` but for the question."""

    start: int
    length: int
    kind: int
    what: int = NOTHING
    fork: int = NO_FORK
    inode: int = 0
    file_offset: int = -1
    unwritten: bool = False
    shared: bool = False
    subvolume: int = 0

    @property
    def file(self) -> FileId:
        """The identity of the file that owns it."""
        return FileId(self.subvolume, self.inode)

    @property
    def end(self) -> int:
        """The first byte past it."""
        return self.start + self.length


def data_what(mode: int) -> int:
    """Return what the data fork of an inode of this mode holds."""
    if stat.S_ISDIR(mode):
        return DIRECTORY
    return SYMLINK if stat.S_ISLNK(mode) else FILE_DATA


def is_shareable(piece: Piece) -> bool:
    """Return whether other files could share it: only the data of files can be shared."""
    return piece.kind == FILE and piece.fork == DATA and piece.what != EXTENT_MAP


def mark_shared(pieces: list[Piece]) -> None:
    """Mark the pieces, ordered by start, whose bytes of the device another piece of a file has too.

    Every owner of the range is among them, so that no count of references need be read.
    """
    shareable = [index for index, piece in enumerate(pieces) if is_shareable(piece)]
    reach = list(accumulate((pieces[index].end for index in shareable), max, initial=0))
    for number, index in enumerate(shareable):
        piece = pieces[index]
        following = shareable[number + 1 : number + 2]
        if reach[number] > piece.start or any(pieces[at].start < piece.end for at in following):
            pieces[index] = piece._replace(shared=True)


def row_of(
    piece: Piece,
    paths: Paths | None,
    *,
    inodes: tuple[int, int] | UnsetType = UNSET,
    detail: str | UnsetType = UNSET,
    generation: int | UnsetType = UNSET,
) -> Owner:
    """Return the row of the contract for a piece.

    ``inodes`` and ``detail`` are about metadata, ``generation`` about a file.
    """
    start, length = piece.start, piece.length
    if piece.kind == FILE:
        return FileOwner(
            start,
            length,
            piece.inode,
            FORKS[piece.fork],
            WHATS[piece.what],
            None if piece.what == EXTENT_MAP else piece.file_offset,
            piece.unwritten,
            piece.shared,
            UNSET if paths is None else paths.paths,
            True if paths is not None and paths.unlinked else UNSET,
            UNSET if paths is None or not paths.detail else paths.detail,
            generation,
            UNSET if paths is None else paths.mounted_at,
            subvolume=piece.subvolume or UNSET,
            encrypted_name=True if paths is not None and paths.encrypted_name else UNSET,
        )
    if piece.kind == METADATA:
        return MetadataOwner(start, length, WHATS[piece.what], inodes, detail)
    if piece.kind == OUTSIDE:
        return Outside(start, length, WHATS[piece.what])
    return _BARE.get(piece.kind, Unknown)(start, length)


#: Rows that have nothing but their place.
_BARE: Final[dict[int, type[Free | Staging | Unknown | Unreferenced]]] = {
    FREE: Free,
    STAGING: Staging,
    UNREFERENCED: Unreferenced,
}
