"""The inodes whose attributes have their values in other inodes (feature ea_inode)."""

from collections.abc import Collection, Iterator

from whoseblock.errors import BlockError
from whoseblock.fs.ext4.format import xattr
from whoseblock.fs.ext4.format.inode import Inode
from whoseblock.fs.ext4.scan import InodeScan
from whoseblock.fs.ext4.volume import Volume
from whoseblock.fs.scan.engine import UnreadInodes

__all__ = ["find_value_owners", "values_of"]


def find_value_owners(
    volume: Volume, scan: InodeScan, values: Collection[int]
) -> tuple[dict[int, list[int]], list[UnreadInodes]]:
    """Return for each inode of ``values`` the inodes that have it as the value of an attribute.

    Also returns the inodes whose attributes could not be read.
    """
    owners: dict[int, list[int]] = {}
    unread: list[UnreadInodes] = []
    blocks: dict[int, list[int]] = {}
    for group in range(volume.groups):
        for item in scan.inodes(group):
            if isinstance(item, UnreadInodes):
                unread.append(item)
            elif not isinstance(item, int):
                number, inode, raw = item
                try:
                    named = set(values_of(volume, inode, raw, blocks))
                except BlockError as error:
                    unread.append(UnreadInodes(number, number, str(error)))
                    continue
                for value in named & set(values):
                    owners.setdefault(value, []).append(number)
    return owners, unread


def values_of(
    volume: Volume, inode: Inode, raw: bytes, blocks: dict[int, list[int]]
) -> Iterator[int]:
    """Yield the inodes that hold values of an inode's attributes; raises `BlockError`."""
    inside = xattr.inode_attributes(raw)
    if inside is None:
        raise volume.corrupt("the attributes of an inode", 0, "not well formed")
    yield from (one.value_inode for one in inside if one.value_inode)
    block = inode.acl_block
    if not block:
        return
    if block not in blocks:
        content = volume.read_block("attribute block", block)
        listed = xattr.block_attributes(content)
        right = not volume.sb.has_checksums or xattr.xattr_block_matches(
            volume.seed, block, content
        )
        if listed is None or not right:
            raise volume.corrupt("attribute block", block, "checksum mismatch")
        # Most blocks name none: that much is kept, and it is little.
        blocks[block] = [one.value_inode for one in listed if one.value_inode]
    yield from blocks[block]
