"""The keys of items, and the numbers of trees and item types."""

from typing import Final

__all__ = [
    "BEYOND",
    "FIRST_FREE",
    "LAST_FREE",
    "Key",
    "is_file_tree",
    "tree_name",
]

#: The object, the type and the offset of an item; keys compare as three numbers.
Key = tuple[int, int, int]

_TOP: Final = 1 << 64
#: Past every key.
BEYOND: Final[Key] = (_TOP, 0, 0)

# Trees.
ROOT_TREE: Final = 1
EXTENT_TREE: Final = 2
CHUNK_TREE: Final = 3
DEV_TREE: Final = 4
FS_TREE: Final = 5
FREE_SPACE_TREE: Final = 10
BLOCK_GROUP_TREE: Final = 11
TREE_RELOC: Final = _TOP - 8
DATA_RELOC_TREE: Final = _TOP - 9

# Objects.
ORPHAN_OBJECT: Final = _TOP - 5
DEV_ITEMS_OBJECT: Final = 1
FIRST_CHUNK_TREE_OBJECT: Final = 256
#: Numbers of subvolumes and of inodes begin and end here.
FIRST_FREE: Final = 256
LAST_FREE: Final = _TOP - 256

# Types of items.
INODE_ITEM: Final = 1
INODE_REF: Final = 12
INODE_EXTREF: Final = 13
ORPHAN_ITEM: Final = 48
DIR_INDEX: Final = 96
EXTENT_DATA: Final = 108
ROOT_ITEM: Final = 132
ROOT_BACKREF: Final = 144
EXTENT_ITEM: Final = 168
METADATA_ITEM: Final = 169
EXTENT_OWNER_REF: Final = 172
TREE_BLOCK_REF: Final = 176
EXTENT_DATA_REF: Final = 178
SHARED_BLOCK_REF: Final = 182
SHARED_DATA_REF: Final = 184
BLOCK_GROUP_ITEM: Final = 192
FREE_SPACE_INFO: Final = 198
FREE_SPACE_EXTENT: Final = 199
FREE_SPACE_BITMAP: Final = 200
DEV_EXTENT: Final = 204
DEV_ITEM: Final = 216
CHUNK_ITEM: Final = 228

_TREE_NAMES: Final = {
    1: "root tree",
    2: "extent tree",
    3: "chunk tree",
    4: "device tree",
    7: "checksum tree",
    8: "quota tree",
    9: "UUID tree",
    10: "free space tree",
    11: "block group tree",
    _TOP - 7: "relocation tree",
    TREE_RELOC: "relocation tree",
    DATA_RELOC_TREE: "data relocation tree",
}


def is_file_tree(tree: int) -> bool:
    """Return whether a tree is that of a subvolume."""
    return tree == FS_TREE or FIRST_FREE <= tree <= LAST_FREE


def tree_name(tree: int) -> str:
    """Return the name of a tree for messages."""
    if is_file_tree(tree):
        return f"tree of subvolume {tree}"
    return _TREE_NAMES.get(tree, f"tree {tree}")
