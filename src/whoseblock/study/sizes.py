"""What the kernel's structures weigh, in bytes, on x86-64.

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
    "allocated",
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

#: The sizes that kmalloc() hands out, where no cache of their own is made for a structure.
_KMALLOC: Final = (8, 16, 32, 64, 96, 128, 192, 256)


def allocated(size: int) -> int:
    """Give what kmalloc() takes for ``size`` bytes, at most 256."""
    return next(slab for slab in _KMALLOC if slab >= size)
