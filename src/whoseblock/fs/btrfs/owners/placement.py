"""The logical addresses of a range of a file: the other direction of `references`."""

from collections.abc import Iterator

from whoseblock.errors import CorruptError
from whoseblock.fs.base import FileId
from whoseblock.fs.btrfs.format.items import INLINE, parse_file_extent
from whoseblock.fs.btrfs.format.keys import EXTENT_DATA, tree_name
from whoseblock.fs.btrfs.trees import Item, LostKeys
from whoseblock.fs.btrfs.volume import Volume

__all__ = ["locate_in_file"]


def locate_in_file(
    volume: Volume, file: FileId, offset: int, length: int
) -> Iterator[tuple[int, int]]:
    """Yield start and length of each range of logical addresses that has bytes of a file.

    Holes have none.  Compressed data is a whole extent, and inline data the leaf that has it.
    Raises `BlockError`.
    """
    root = volume.root(file.subvolume)
    first = volume.reader.last_before(root, (file.inode, EXTENT_DATA, offset + 1))
    items: list[Item | LostKeys] = []
    if isinstance(first, LostKeys) or (
        first is not None and first.key[:2] == (file.inode, EXTENT_DATA)
    ):
        items.append(first)
    low, high = (file.inode, EXTENT_DATA, offset + 1), (file.inode, EXTENT_DATA, offset + length)
    for item in (*items, *volume.reader.walk(root, low, high)):
        if isinstance(item, LostKeys):
            raise CorruptError(tree_name(file.subvolume), root.address, item.reason)
        part = parse_file_extent(item.data)
        if part is None:
            raise CorruptError(tree_name(file.subvolume), item.node.address, "damaged file extent")
        at = item.key[2]
        if part.kind == INLINE:
            yield item.node.address, volume.node_size
            continue
        begin, end = max(at, offset), min(at + part.length, offset + length)
        if begin < end and part.address:
            if part.compression:
                yield part.address, part.disk_length
            else:
                yield part.address + part.offset + begin - at, end - begin
