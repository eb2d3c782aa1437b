"""Images that promise more than they hold, with right checksums."""

import os
from pathlib import Path

from tests.support import xfsdb
from tests.support.image_damage import overwrite, seal
from tests.support.mounts import mounted
from tests.support.xfs_images import MIB, Geometry, make_image

__all__ = [
    "DEPTH",
    "GIB",
    "LINKS",
    "MODE",
    "NLINK",
    "SIZE",
    "claim_groups",
    "forge_directory",
    "forge_inode",
    "make_large",
    "make_links",
]

GIB = 1 << 30
#: How deep the directory of `make_links` lies, and how many names its file has.
DEPTH, LINKS = 1000, 3000
#: Where an inode has its fields (xfs_format.h, `struct xfs_dinode`).
_CORE = 176
MODE, _FORMAT, NLINK, SIZE, _NEXTENTS = 2, 5, 16, 56, 76
_EXTENTS = 2
_MOST_BLOCKS = (1 << 21) - 1


def _extent(offset: int, block: int, count: int) -> bytes:
    """Pack one extent."""
    return (offset << 73 | block << 21 | count).to_bytes(16, "big")


def forge_inode(image: Path, ino: int, *edits: tuple[int, bytes]) -> None:
    """Change an inode of an image and make its checksum right."""
    sb = xfsdb.superblock(image)
    bits = sb.block_log + sb.inodes_log
    start = (ino >> bits) * sb.group_size + (ino & (1 << bits) - 1) * sb.inode
    with image.open("r+b") as file:
        file.seek(start)
        data = file.read(sb.inode)
        assert data[:2] == b"IN"
        for at, new in edits:
            data = overwrite(data, at, new)
        file.seek(start)
        file.write(seal("inode", data))


def make_large(image: Path) -> dict[str, int]:
    """Make a large and empty filesystem with few files; return their inode numbers."""
    make_image(image, Geometry("large", size=64 * GIB, groups=4, parent=False, nrext64=False))
    with mounted(image) as root:
        for name in (b"/evil", b"/file", b"/other"):
            Path(os.fsdecode(root + name)).write_bytes(b"x")
    return {paths.paths[0]: ino for ino, paths in xfsdb.walk(image).items()}


def forge_directory(image: Path, ino: int, count: int, size: int = 1 << 35) -> None:
    """Make an inode a directory of ``count`` huge extents that hold nothing of a directory."""
    extents = b"".join(
        _extent(index * _MOST_BLOCKS, index % 4 << 22 | 1000, _MOST_BLOCKS)
        for index in range(count)
    )
    forge_inode(
        image,
        ino,
        (MODE, (0o040755).to_bytes(2, "big")),
        (_FORMAT, bytes([_EXTENTS])),
        (SIZE, size.to_bytes(8, "big")),
        (_NEXTENTS, count.to_bytes(4, "big")),
        (_CORE, extents),
    )


def claim_groups(image: Path, size: int) -> None:
    """Leave nothing of an image but a superblock that claims ``size`` bytes in tiny groups."""
    with image.open("r+b") as file:
        data = file.read(512)
        for at, new in (
            (4, (512).to_bytes(4, "big")),
            (8, (size // 512).to_bytes(8, "big")),
            (84, (64).to_bytes(4, "big")),
            (88, (size // 512 // 64).to_bytes(4, "big")),
            (106, (1).to_bytes(2, "big")),
            (120, bytes([9, 9, 9, 0, 6])),
            (192, b"\0"),
        ):
            data = overwrite(data, at, new)
        file.seek(0)
        file.truncate(0)
        file.write(seal("superblock", data))
        file.truncate(size)


def make_links(image: Path, *, parent: bool) -> tuple[int, int]:
    """Make a file with `LINKS` names in a directory `DEPTH` deep; return where its data lies."""
    size = 13 * 4096
    make_image(image, Geometry("deep", size=300 * MIB, parent=parent))
    name = "n" * 200
    with mounted(image) as root:
        at = os.open(root, os.O_RDONLY)
        for _ in range(DEPTH):
            os.mkdir(name, dir_fd=at)
            below = os.open(name, os.O_RDONLY, dir_fd=at)
            os.close(at)
            at = below
        Path(f"/proc/self/fd/{at}/0").write_bytes(b"x" * size)
        for number in range(1, LINKS):
            os.link("0", str(number), src_dir_fd=at, dst_dir_fd=at)
        os.close(at)
    rows = xfsdb.rows(image, xfsdb.superblock(image))
    row = next(row for row in rows if row.kind == "file" and row.length == size)
    return row.start, row.length
