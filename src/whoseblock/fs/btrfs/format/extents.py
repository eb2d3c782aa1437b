"""Items of the extent tree: extents, and their back references."""

from struct import Struct
from typing import Final, NamedTuple

from whoseblock.fs.btrfs.format.keys import (
    EXTENT_DATA_REF,
    EXTENT_OWNER_REF,
    METADATA_ITEM,
    SHARED_BLOCK_REF,
    SHARED_DATA_REF,
    TREE_BLOCK_REF,
    Key,
)

__all__ = ["ExtentItem", "Reference", "parse_extent", "parse_reference"]

_EXTENT: Final = Struct("<QQQ")
_BLOCK_INFO: Final = Struct("<QBQB")
_DATA_REF: Final = Struct("<QQQI")
_U32: Final = Struct("<I")
_U64: Final = Struct("<Q")
_FLAG_DATA, _FLAG_BLOCK = 1, 2
_MAX_LEVEL: Final = 8


class Reference(NamedTuple):
    """A back reference of an extent; ``kind`` is the type of its item.

    ``tree``, ``inode`` and ``offset`` are of an EXTENT_DATA_REF, ``tree`` also of a TREE_BLOCK_REF,
    and ``parent`` is the logical address of a tree block.  The offset is that of the file minus
    that in the extent, modulo 2**64.
    """

    kind: int
    tree: int = 0
    inode: int = 0
    offset: int = 0
    parent: int = 0
    times: int = 1


class ExtentItem(NamedTuple):
    """An extent of data, or a tree block of height ``level``; ``references`` are those in it."""

    start: int
    length: int
    is_tree: bool
    level: int
    refs: int
    generation: int
    references: tuple[Reference, ...]


def parse_extent(key: Key, raw: bytes, node_size: int) -> ExtentItem | None:
    """Parse an EXTENT_ITEM or a METADATA_ITEM; None if it is not in its format."""
    if len(raw) < _EXTENT.size:
        return None
    start, kind, offset = key
    refs, generation, flags = _EXTENT.unpack_from(raw)
    at = _EXTENT.size
    is_tree = flags & 3 == _FLAG_BLOCK
    if not is_tree and (flags & 3 != _FLAG_DATA or kind == METADATA_ITEM):
        return None
    length, level = offset, 0
    if kind == METADATA_ITEM:
        length, level = node_size, offset
    elif is_tree:
        if len(raw) < at + _BLOCK_INFO.size:
            return None
        level = _BLOCK_INFO.unpack_from(raw, at)[3]
        at += _BLOCK_INFO.size
    references = _inline_references(raw, at)
    if references is None or level >= _MAX_LEVEL or not refs or not length:
        return None
    if is_tree and length != node_size:
        return None
    return ExtentItem(start, length, is_tree, level, refs, generation, references)


def _inline_references(raw: bytes, at: int) -> tuple[Reference, ...] | None:
    """Parse the back references from byte ``at`` of an extent on."""
    references: list[Reference] = []
    while at < len(raw):
        kind = raw[at]
        if kind == EXTENT_DATA_REF:
            size = 1 + _DATA_REF.size
            body = raw[at + 1 : at + size]
            found = _data_reference(body) if len(body) == _DATA_REF.size else None
        else:
            size = 1 + _U64.size + (_U32.size if kind == SHARED_DATA_REF else 0)
            if at + size > len(raw):
                return None
            (target,) = _U64.unpack_from(raw, at + 1)
            found = _reference(kind, target, raw[at + 9 : at + size])
        if found is None:
            return None
        if found.kind != EXTENT_OWNER_REF:
            references.append(found)
        at += size
    return tuple(references)


def parse_reference(key: Key, raw: bytes) -> Reference | None:
    """Parse a back reference with a key of its own; None if it is not in its format."""
    _, kind, offset = key
    if kind == EXTENT_DATA_REF:
        return _data_reference(raw) if len(raw) == _DATA_REF.size else None
    return _reference(kind, offset, raw)


def _data_reference(raw: bytes) -> Reference:
    tree, inode, offset, count = _DATA_REF.unpack(raw)
    return Reference(EXTENT_DATA_REF, tree, inode, offset, times=count)


def _reference(kind: int, target: int, rest: bytes) -> Reference | None:
    if kind == SHARED_DATA_REF and len(rest) == _U32.size:
        return Reference(kind, parent=target, times=_U32.unpack(rest)[0])
    if rest:
        return None
    if kind in {TREE_BLOCK_REF, EXTENT_OWNER_REF}:
        return Reference(kind, target)
    return Reference(kind, parent=target) if kind == SHARED_BLOCK_REF else None
