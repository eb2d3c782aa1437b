"""Tree blocks (``struct btrfs_header``, ``btrfs_item``, ``btrfs_key_ptr``)."""

from itertools import islice
from operator import lt
from struct import Struct
from typing import Final, NamedTuple

from whoseblock.fs.btrfs.format.keys import Key

__all__ = ["MAX_LEVEL", "Node", "NodeHeader", "parse_header", "parse_node"]

_HEADER: Final = Struct("<32x16sQQ16sQQIB")
_ITEM: Final = Struct("<QBQII")
_POINTER: Final = Struct("<QBQQQ")
HEADER_SIZE: Final = _HEADER.size
#: Trees have fewer levels.
MAX_LEVEL: Final = 8


class NodeHeader(NamedTuple):
    """The header of a tree block; ``address`` is its own logical address."""

    uuid: bytes
    address: int
    flags: int
    chunk_uuid: bytes
    generation: int
    owner: int
    items: int
    level: int


class Node(NamedTuple):
    """A tree block: a leaf with items, or a node with pointers, in the order of the keys.

    ``places`` are the offset and the size of each item in ``raw``, or the logical address and the
    generation of each child.
    """

    header: NodeHeader
    keys: list[Key]
    places: list[tuple[int, int]]
    raw: bytes

    @property
    def address(self) -> int:
        """Its logical address."""
        return self.header.address

    @property
    def level(self) -> int:
        """Its height above the leaves."""
        return self.header.level

    def data(self, index: int) -> bytes:
        """Return the content of an item of a leaf."""
        offset, size = self.places[index]
        return self.raw[offset : offset + size]


def parse_header(raw: bytes) -> NodeHeader:
    """Decode the header of a tree block."""
    return NodeHeader._make(_HEADER.unpack_from(raw))


def parse_node(raw: bytes) -> Node | str:  # noqa: PLR0911 - faults
    """Decode a tree block whose checksum is right; a string says what is wrong with it."""
    header = parse_header(raw)
    if header.level >= MAX_LEVEL:
        return "invalid level"
    each = _POINTER if header.level else _ITEM
    end = HEADER_SIZE + header.items * each.size
    if end > len(raw):
        return "more items than it has room for"
    if header.level and not header.items:
        return "a node without children"
    items = list(each.iter_unpack(raw[HEADER_SIZE:end]))
    keys: list[Key] = [item[:3] for item in items]
    places: list[tuple[int, int]] = [item[3:] for item in items]
    if not all(map(lt, keys, islice(keys, 1, None))):
        return "keys out of order"
    if header.level == 0:
        # Data of items grows from the end of the block down, without gaps.
        top = len(raw) - HEADER_SIZE
        for number, (offset, size) in enumerate(places):
            if offset + size != top:
                return f"bad place of item {number}"
            places[number] = HEADER_SIZE + offset, size
            top = offset
        if HEADER_SIZE + top < end:
            return "items overlap their headers"
    return Node(header, keys, places, raw)
