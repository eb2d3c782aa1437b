"""The sizes of the kernel's structures, in bytes, on x86-64.

``pahole``, or the type information of a running kernel
(/sys/kernel/btf/vmlinux), shows them; the tests compare with that.
"""

from typing import Final

__all__ = [
    "ADDRESS_SPACE",
    "ENTRY_PAGES",
    "PAGE",
    "RB_NODE",
    "RB_ROOT_CACHED",
    "RMAP_RECORD",
    "SHARED_FILE",
    "STRUCT_PAGE",
    "rmap_reserve",
]

PAGE: Final = 4096
#: What the kernel keeps of every page in any case.
STRUCT_PAGE: Final = 64
#: Pages of a 2 MiB entry.
ENTRY_PAGES: Final = 512

RB_NODE: Final = 24
RB_ROOT_CACHED: Final = 16
#: The RFC's ``struct shared_file``: a pointer to the mapping, an index, an rb_node.
SHARED_FILE: Final = 8 + 8 + RB_NODE
#: ``struct address_space`` of Linux 6.18; it was up to 8 bytes more in earlier ones.
ADDRESS_SPACE: Final = 192
#: ``struct xfs_rmap_rec``, on the disk.
RMAP_RECORD: Final = 24

#: A block of the reverse mapping is a header and records or, above the leaves, two keys of 20 bytes
#: and a pointer of 4 for each block below; it is at least half full.
_BLOCK_HEADER: Final = 56
_LEAF_LEAST: Final = (PAGE - _BLOCK_HEADER) // RMAP_RECORD // 2
_NODE_LEAST: Final = (PAGE - _BLOCK_HEADER) // (2 * 20 + 4) // 2


def rmap_reserve(blocks: int) -> int:
    """Return the blocks that the kernel reserves in an allocation group for its reverse mapping.

    ``blocks`` are those of the group without an internal log. The rule is that of
    ``xfs_rmapbt_calc_reserves``: a hundredth of the group, or the size of a tree with a record for
    each block and with minimally filled nodes, whichever is larger.
    """
    level = tree = -(-blocks // _LEAF_LEAST)
    while level > 1:
        level = -(-level // _NODE_LEAST)
        tree += level
    return max(blocks // 100, tree)
