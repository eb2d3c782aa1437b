"""The number of an inode is reused between two questions of a batch."""

import os
from pathlib import Path

import pytest
from tests.support import ext4_images
from tests.support.mounts import mounted
from tests.support.tools import need_loop_mounts
from tests.support.xfs_images import Geometry, make_image

import whoseblock
from whoseblock.fs.base import FileOwner
from whoseblock.fs.mounted.volume import FsmapVolume

SIZE = 200 << 20
FORMS = ["xfs", "xfs without a reverse map", "ext4"]


def make(path: Path, form: str) -> Path:
    if form == "ext4":
        return ext4_images.make_image(path, SIZE, "-t", "ext4", "-b", "4096")
    index = form == "xfs"
    size = 320 << 20
    return make_image(path, Geometry("reuse", size=size, rmapbt=index, parent=index))


def write(path: bytes) -> int:
    """Write a block of a new file to the disk, and return its inode."""
    with open(path, "xb") as file:
        file.write(os.urandom(4096))
        file.flush()
        os.fsync(file.fileno())
        return os.fstat(file.fileno()).st_ino


@pytest.mark.parametrize("form", FORMS)
def test_a_reused_inode_is_another_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, form: str
) -> None:
    # Each row must have the generation and the paths of the file that had its bytes.
    need_loop_mounts()
    find = FsmapVolume._find
    calls: list[int] = []
    with mounted(make(tmp_path / "reuse.img", form), kind=form.split(maxsplit=1)[0]) as folder:
        inode = write(folder + b"/old")
        others = [write(folder + b"/other-%d" % number) for number in range(2)]
        with whoseblock.open(os.fsdecode(folder)) as fs:
            files = {row.inode: row for row in fs.owners(0, fs.size) if isinstance(row, FileOwner)}
            before, other = files[inode], files[others[0]]

            def find_later(self: FsmapVolume, start: int, length: int) -> object:
                calls.append(start)
                if length == fs.size:
                    os.unlink(folder + b"/old")
                    os.sync()
                    made = (write(folder + b"/new-%d" % number) for number in range(1000))
                    assert any(one == inode for one in made)
                return find(self, start, length)

            monkeypatch.setattr(FsmapVolume, "_find", find_later)
            ranges = [(before.start, 4096), (other.start, 4096), (0, fs.size)]
            first, second, everything = fs.owners_many(ranges)
        assert calls
        (new,) = (one for one in os.listdir(folder) if os.stat(folder + b"/" + one).st_ino == inode)
    (old,) = first
    assert isinstance(old, FileOwner)
    assert (old.inode, old.generation) == (inode, before.generation)
    assert old.paths == ()
    assert not first.complete
    assert any("is gone" in note for note in first.notes)
    assert second.complete, second.notes
    assert [row.paths for row in second if isinstance(row, FileOwner)] == [("/other-0",)]
    after = [row for row in everything if isinstance(row, FileOwner) and row.inode == inode]
    assert {row.paths for row in after} == {(f"/{os.fsdecode(new)}",)}
    assert before.generation not in {row.generation for row in after}
