"""Names in large directories without parent pointers, confirmed by the hash index.

An image is made in two states: files are renamed and linked in between.  Then blocks of the earlier
state are put into the later one.
"""

import os
import re
from collections.abc import Iterator
from contextlib import closing, contextmanager
from pathlib import Path
from typing import NamedTuple

import pytest
from tests.support.filled_images import by_kernel
from tests.support.image_damage import Block, Overlay, find_metadata
from tests.support.mounts import mounted
from tests.support.tools import need_loop_mounts
from tests.support.truth import Truth
from tests.support.xfs_images import MIB, Geometry, make_image, sparse_copy
from tests.support.xfsdb import ask

import whoseblock
from whoseblock.fs.xfs import XfsFilesystem
from whoseblock.fs.xfs.format.directory import hash_of_name
from whoseblock.media import EmulatedPmem, FileMedia
from whoseblock.ranges import ByteRange

#: An index of one leaf, and one of several leaves below a node.
FORMS = {
    "leaf": (Geometry("leaf", size=128 * MIB, groups=2, parent=False), 150),
    "node": (Geometry("node", size=128 * MIB, groups=2, block=1024, parent=False), 900),
}
NAME = b"a name that takes some room %d"
#: Inodes are written in clusters of so many bytes.
CLUSTER = 8192


class Aged(NamedTuple):
    """The truth of the later state, the inodes of renamed files, and blocks that changed."""

    truth: Truth
    renamed: list[int]
    old: dict[str, list[Block]]

    @contextmanager
    def open(self, patches: dict[int, bytes], *bad: ByteRange) -> Iterator[XfsFilesystem]:
        with closing(FileMedia(self.truth.image)) as media:
            overlay = Overlay(media, patches)
            with whoseblock.open(EmulatedPmem(overlay, bad) if bad else overlay) as fs:
                assert isinstance(fs, XfsFilesystem)
                yield fs

    def paths(self, ino: int) -> list[str]:
        return sorted(self.truth.inodes[ino].paths)


@pytest.fixture(scope="module", params=FORMS)
def aged(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Aged:
    need_loop_mounts()
    geometry, names = FORMS[request.param]
    image = make_image(tmp_path_factory.mktemp("hash") / "after.img", geometry)
    with mounted(image) as root:
        os.mkdir(root + b"/folder")
        for number in range(names):
            Path(os.fsdecode(root + b"/folder/" + NAME % number)).write_bytes(b"x" * 5000)
    before = sparse_copy(image, image.with_name("before.img"))
    with mounted(image) as root:
        # In another group than the file, so that an old name is the nearest.
        folders = [root + b"/elsewhere-%d" % number for number in range(4)]
        for number, folder in enumerate(folders):
            os.mkdir(folder)
            for name in range(number * 10, number * 10 + 10):
                os.rename(root + b"/folder/" + NAME % name, folder + b"/%d" % name)
        for number in range(60, 70):
            os.link(root + b"/folder/" + NAME % number, root + b"/elsewhere-0/link-%d" % number)
        os.unlink(root + b"/folder/" + NAME % 80)
    truth = by_kernel(image)
    renamed = [
        ino
        for ino, inode in truth.inodes.items()
        if len(inode.paths) == 1 and re.fullmatch(r"/elsewhere-\d/\d+", inode.paths[0])
    ]
    known = {block.start: block for found in find_metadata(before).values() for block in found}
    metadata = find_metadata(image)
    old = {
        kind: [known[one.start] for one in found if known.get(one.start, one) != one]
        for kind, found in metadata.items()
    }
    old["cluster"] = list(clusters(before, image, metadata["inode"]))
    return Aged(truth, renamed, old)


def clusters(before: Path, after: Path, inodes: list[Block]) -> Iterator[Block]:
    """Yield the clusters of inodes that changed, as they were before."""
    old, new = before.read_bytes(), after.read_bytes()
    for start in sorted({block.start // CLUSTER * CLUSTER for block in inodes}):
        if old[start : start + CLUSTER] != new[start : start + CLUSTER]:
            yield Block("inode", start, old[start : start + CLUSTER])


def index_blocks(truth: Truth) -> list[ByteRange]:
    """Return where blocks with an index of hashes are."""
    raw = truth.image.read_bytes()
    size = truth.superblock.block
    return [
        ByteRange(at, size)
        for at in range(0, len(raw), size)
        if raw[at + 8 : at + 10] in {b"\x3d\xf1", b"\x3d\xff"}
    ]


def test_hashes(tmp_path: Path) -> None:
    image = make_image(tmp_path / "empty.img", Geometry("empty", parent=False))
    names = ["a", "ab", "abc", "abcd", "abcde", "a-longer-name", "ÿþ", "x" * 255]
    printed = ask(image, [f"hash {name}" for name in names])
    found = [int(number, 16) for number in re.findall(rb"0x[0-9a-f]+", printed)]
    assert found == [hash_of_name(name.encode()) for name in names]


def test_the_image_itself(aged: Aged) -> None:
    assert len(aged.renamed) == 40
    with aged.open({}) as fs:
        for ino, paths in fs.paths_many(aged.truth.inodes).items():
            assert (sorted(paths), paths.complete) == (aged.paths(ino), True)


def test_an_old_block_of_a_directory_does_not_bring_back_a_name(aged: Aged) -> None:
    blocks = [block for block in aged.old["directory"] if block.data[:4] == b"XDD3"]
    assert blocks
    for block in blocks:
        with aged.open({block.start: block.data}) as fs:
            together = fs.paths_many(aged.renamed)
            for ino in aged.renamed:
                assert set(together[ino]) <= set(aged.paths(ino))
                assert sorted(together[ino]) == aged.paths(ino) or not together[ino].complete
            for ino in aged.renamed[::7]:
                assert fs.paths(ino) == together[ino]


def test_an_index_that_is_lost(aged: Aged) -> None:
    inside = [ino for ino, inode in aged.truth.inodes.items() if "/folder/" in inode.paths[0]][:20]
    bad = index_blocks(aged.truth)
    assert bad
    # Where the medium does not return it, nothing contradicts the names.
    with aged.open({}, *bad) as fs:
        for ino in inside:
            paths = fs.paths(ino)
            assert (sorted(paths), paths.complete) == (aged.paths(ino), True)
    # What it returns must verify.
    with aged.open({one.start + 100: b"garbage" for one in bad}) as fs:
        for ino, paths in fs.paths_many(inside).items():
            assert sorted(paths) == aged.paths(ino)
            assert not paths.complete
            assert any("is not confirmed: hash index" in note for note in paths.notes)
            assert fs.paths(ino) == paths


def test_an_old_chunk_of_inodes_is_noticed(aged: Aged) -> None:
    # A file was deleted: what the inode btree calls free is in use in the old chunk.
    noticed = 0
    for block in aged.old["cluster"]:
        with aged.open({block.start: block.data}) as fs:
            found = fs.paths_many(aged.truth.inodes)
            odd = {
                ino
                for ino, paths in found.items()
                if any("may be old" in one for one in paths.notes)
            }
            noticed += bool(odd)
            for ino in odd:
                assert not found[ino].complete
            for ino in sorted(odd)[::25]:
                assert fs.paths(ino) == found[ino]
    assert noticed
