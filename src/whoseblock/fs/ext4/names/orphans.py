"""The inodes without a name that are still there: the orphan list, and the orphan file."""

from typing import Final

from whoseblock.errors import BlockError
from whoseblock.fs.ext4.format.checksum import LE32, LE64, crc32c
from whoseblock.fs.ext4.format.extents import pointers
from whoseblock.fs.ext4.format.inode import checksum_seed
from whoseblock.fs.ext4.format.superblock import COMPAT_ORPHAN_FILE
from whoseblock.fs.ext4.inodes import get_inode, map_of
from whoseblock.fs.ext4.volume import Volume

__all__ = ["find_orphans"]

EXT4_ORPHAN_BLOCK_MAGIC: Final = 0x0B10CA04
_TAIL: Final = 8
#: mke2fs makes an orphan file of at most 512 blocks.
_MOST_BLOCKS: Final = 4096


def find_orphans(volume: Volume) -> tuple[set[int], str]:
    """Return the orphans of a volume, and why some may be missing, or ""."""
    found: set[int] = set()
    try:
        at = volume.sb.last_orphan
        while at:
            if at in found:
                return found, "the list of orphans goes round in circles"
            inode = get_inode(volume, at)
            found.add(at)
            at = inode.dtime
        if volume.sb.compat & COMPAT_ORPHAN_FILE and volume.sb.orphan_file_inum:
            found |= _in_file(volume, volume.sb.orphan_file_inum)
    except BlockError as error:
        return found, f"the list of orphans: {error}"
    return found, ""


def _in_file(volume: Volume, number: int) -> set[int]:
    found: set[int] = set()
    inode = get_inode(volume, number)
    seed = checksum_seed(volume.seed, number, inode.generation)
    for extent in map_of(volume, number, inode):
        if extent.logical < 0:
            continue
        if extent.logical + extent.length > _MOST_BLOCKS:
            raise volume.corrupt("orphan file", extent.start, "it is too large")
        for block in range(extent.start, extent.start + extent.length):
            raw = volume.read_block("orphan file block", block)
            magic, stored = (LE32.unpack_from(raw, len(raw) - at)[0] for at in (_TAIL, 4))
            if magic != EXT4_ORPHAN_BLOCK_MAGIC:
                raise volume.corrupt("orphan file", block, "wrong magic number")
            crc = crc32c(crc32c(seed, LE64.pack(block)), raw[:-_TAIL])
            if volume.sb.has_checksums and crc != stored:
                raise volume.corrupt("orphan file", block, "checksum mismatch")
            found.update(filter(None, pointers(raw[:-_TAIL])))
    return found
