"""Making empty XFS images of every geometry."""

from dataclasses import dataclass
from pathlib import Path

from tests.support.tools import Missing, run, sees, xfsprogs

__all__ = ["Geometry", "make_image", "sparse_copy", "sparse_file"]

MIB = 1 << 20


@dataclass(frozen=True)
class Geometry:
    """The options of mkfs.xfs; None leaves the choice to it."""

    name: str
    size: int = 256 * MIB
    block: int = 4096
    sector: int = 512
    directory_block: int | None = None
    inode: int = 512
    #: Blocks of an allocation group; best no power of two, nor a divisor of the size.
    group_blocks: int | None = None
    groups: int | None = None
    parent: bool = True
    rmapbt: bool = True
    reflink: bool = True
    nrext64: bool = True
    sparse_inodes: bool = True
    version4: bool = False
    #: Whether directories of version 4 have the types of files; those of version 5 always do.
    ftype: bool = True
    #: Bytes of the image past the end of the filesystem.
    beyond: int = 0
    more: tuple[str, ...] = ()

    def options(self) -> list[str]:
        """Return the command line of mkfs.xfs, without the device."""
        data = [f"size={self.size}"]
        data += [f"agsize={self.group_blocks * self.block}"] if self.group_blocks else []
        data += [f"agcount={self.groups}"] if self.groups else []
        naming = [f"size={self.directory_block}"] if self.directory_block else []
        inode = [f"size={self.inode}"]
        if self.version4:
            metadata = ["crc=0", "finobt=0"]
            naming += [] if self.ftype else ["ftype=0"]
        else:
            metadata = [f"rmapbt={self.rmapbt:d}", f"reflink={self.reflink:d}"]
            inode += [f"sparse={self.sparse_inodes:d}"]
            # Older mkfs.xfs knows neither option, and makes what zero would give.
            inode += [f"nrext64={self.nrext64:d}"] if sees("-i", "nrext64=1") else []
            if sees("-n", "parent=1"):
                naming += [f"parent={self.parent:d}"]
            elif self.parent:
                raise Missing("this mkfs.xfs makes no parent pointers: run tools/xfsprogs")
        given = ["-b", f"size={self.block}", "-s", f"size={self.sector}"]
        given += ["-d", ",".join(data), "-i", ",".join(inode), "-m", ",".join(metadata)]
        given += ["-n", ",".join(naming)] if naming else []
        return [*given, *self.more]


def sparse_file(path: Path, size: int) -> Path:
    """Make a file of one hole."""
    with path.open("wb") as file:
        file.truncate(size)
    return path


def sparse_copy(source: Path, target: Path) -> Path:
    """Copy an image without filling its holes."""
    run(["cp", "--sparse=always", source, target])
    return target


def make_image(path: Path, geometry: Geometry, *, content: Path | None = None) -> Path:
    """Make an image; ``content`` is a folder to fill it with, which needs no root."""
    if content is not None and not sees("-p", str(content)):
        raise Missing("this mkfs.xfs cannot fill an image from a folder: run tools/xfsprogs")
    sparse_file(path, geometry.size + geometry.beyond)
    # --unsupported allows very small filesystems, which are quick to test.
    options = ["-q", "-f", "--unsupported", *geometry.options()]
    options += ["-p", str(content)] if content is not None else []
    run([xfsprogs("mkfs.xfs"), *options, path])
    return path
