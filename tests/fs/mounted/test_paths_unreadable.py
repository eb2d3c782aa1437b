"""Paths on a mounted XFS of which inode clusters and directory blocks really fail."""

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from tests.support.emulated_device import emulated
from tests.support.kernel_oracle import getfsmap
from tests.support.mounts import mounted
from tests.support.tools import need_loop_mounts
from tests.support.xfs_images import MIB, Geometry, make_image
from tests.support.xfsdb import superblock

import whoseblock
from whoseblock.fs.base import Answer, FileOwner
from whoseblock.ranges import ByteRange

#: Without parent pointers, as almost all filesystems are; names are searched for.
PLAIN = Geometry("plain", size=300 * MIB, parent=False)
INODE = 512
#: A path is found even if directories near the file cannot be read.
FILES = [f"{number:03}" for number in range(320)]


class Disk:
    """An image with files; its inodes, and the blocks of a file, by path."""

    def __init__(self, folder: Path) -> None:
        need_loop_mounts()
        self.image = make_image(folder / "disk.img", PLAIN)
        with mounted(self.image) as root:
            top = Path(os.fsdecode(root))
            # The inodes of `far` are in another allocation group than the root's.
            for path in [*FILES, *(f"far/{name}" for name in FILES)]:
                (top / path).parent.mkdir(exist_ok=True)
                (top / path).write_bytes(b"x")
            self.inodes = {
                str(path.relative_to(top)): path.stat().st_ino for path in top.rglob("*")
            }
            os.sync()
            self.rows = [row for row in getfsmap(root) if row.kind == "file"]
        self.numbers = superblock(self.image)

    def place(self, path: str) -> ByteRange:
        """Return the first block of a file or a directory."""
        row = next(row for row in self.rows if row.inode == self.inodes[path])
        return ByteRange(row.start, self.numbers.block)

    def cluster(self, inode: int) -> ByteRange:
        """Return 32 inodes, a cluster, with one of them."""
        first = inode // 32 * 32
        group = self.numbers.group_of(first)
        bits = (self.numbers.group_blocks - 1).bit_length() + 3
        within = first - (group << bits)
        return ByteRange(group * self.numbers.group_size + within * INODE, 32 * INODE)


@pytest.fixture(scope="module")
def disk(tmp_path_factory: pytest.TempPathFactory) -> Disk:
    return Disk(tmp_path_factory.mktemp("unreadable"))


@contextmanager
def failing(disk: Disk, folder: Path, bad: ByteRange) -> Iterator[str]:
    with (
        emulated(disk.image, folder / "served", permanent=[bad], in_place=False) as served,
        served.loop() as loop,
        mounted(loop, "ro", "norecovery", loop=False) as root,
    ):
        yield os.fsdecode(root)


def ask(root: str, where: ByteRange) -> tuple[Answer, FileOwner]:
    with whoseblock.open(root) as fs:
        answer = fs.owners(where.start, where.length)
    (row,) = answer
    assert isinstance(row, FileOwner)
    return answer, row


def test_an_unreadable_cluster_near_a_file_hides_no_path(disk: Disk, tmp_path: Path) -> None:
    # The search begins 128 inodes before the file, and reads directories from there on.
    bad = disk.cluster(disk.inodes["far/300"] - 128)
    with failing(disk, tmp_path, bad) as root:
        answer, row = ask(root, disk.place("far/300"))
        assert row.paths == ("/far/300",)
        # The mount is without its log; nothing else may be missing.
        assert all("norecovery" in note for note in answer.notes)


def test_an_unreadable_inode_leaves_the_other_answers(disk: Disk, tmp_path: Path) -> None:
    inode = disk.inodes["far/300"]
    with failing(disk, tmp_path, disk.cluster(inode)) as root:
        answer, row = ask(root, disk.place("far/300"))
        assert (row.inode, row.paths, answer.complete) == (inode, (), False)
        assert f"inode {inode} cannot be read: Input/output error" in answer.notes
        assert ask(root, disk.place("far/000"))[1].paths == ("/far/000",)


@pytest.mark.parametrize("what", ["inode", "block"])
def test_an_unreadable_directory_is_a_note(disk: Disk, tmp_path: Path, what: str) -> None:
    bad = disk.place("far") if what == "block" else disk.cluster(disk.inodes["far"])
    name = "far/300"
    with failing(disk, tmp_path, bad) as root:
        answer, row = ask(root, disk.place(name))
        assert (row.paths, answer.complete) == ((), False)
        notes = [note for note in answer.notes if "norecovery" not in note]
        assert any("1 directory could not be read" in note for note in notes), notes
        assert ask(root, disk.place("300"))[1].paths == ("/300",)
