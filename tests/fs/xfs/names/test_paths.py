"""An inode has the same paths however it is asked about, on images that contradict themselves."""

import os
import random
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tests.support.filled_images import by_kernel
from tests.support.image_damage import Block, Overlay, find_metadata, overwrite, seal
from tests.support.mounts import mounted
from tests.support.tools import Missing, need_loop_mounts, sees
from tests.support.truth import Truth
from tests.support.xfs_images import MIB, Geometry, make_image, sparse_copy

import whoseblock
from whoseblock.fs.base import FileOwner, Paths
from whoseblock.fs.xfs import XfsFilesystem
from whoseblock.media import FileMedia

_LINKS = 16
_ROOT_AT = 56
_QUOTA_AT = {"uquotino": 160, "gquotino": 168, "pquotino": 232}
_REALTIME_AT = {"rbmino": 64, "rsumino": 72}


class Small:
    """A small image with folders of every form in several groups, and its metadata."""

    def __init__(self, truth: Truth) -> None:
        self.truth = truth
        self.media = FileMedia(truth.image)
        self.metadata = find_metadata(truth.image)
        self.inodes = {
            int.from_bytes(block.data[152:160], "big"): block for block in self.metadata["inode"]
        }
        self.named = sorted(truth.inodes)
        self.has_pointers = bool(self.metadata["superblock"][0].data[219] & 1 << 7)

    def files(self) -> list[int]:
        """Return regular files."""
        return [ino for ino in self.named if self.truth.inodes[ino].mode >> 12 == 8]

    def folders(self) -> list[int]:
        return [ino for ino in self.named if self.truth.inodes[ino].mode >> 12 == 4]

    def open(self, patches: dict[int, bytes]) -> XfsFilesystem:
        fs = whoseblock.open(Overlay(self.media, patches))
        assert isinstance(fs, XfsFilesystem)
        return fs


def fill(root: bytes) -> None:
    rng = random.Random("small")
    folders = [root]
    for number in range(14):
        # The kernel spreads the folders of the root over the groups.
        folders.append((root if number < 6 else rng.choice(folders)) + b"/folder-%d" % number)
        os.mkdir(folders[-1])
    files = []
    for number in range(90):
        files.append(rng.choice(folders) + b"/file-%d" % number)
        Path(os.fsdecode(files[-1])).write_bytes(b"x" * 5000)
    for number in range(25):
        os.link(rng.choice(files), rng.choice(folders) + b"/link-%d" % number)
    for number in range(60):
        # One block of entries, and several.
        for folder in folders[3:5]:
            os.link(
                files[0], folder + b"/a much longer name %d" % number + b"n" * (number % 3 * 90)
            )


@pytest.fixture(scope="module", params=[True, False], ids=["parent", "noparent"])
def small(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Small]:
    need_loop_mounts()
    if request.param and not sees("-n", "parent=1"):
        raise Missing("this mkfs.xfs makes no parent pointers: run tools/xfsprogs")
    geometry = Geometry("small", size=128 * MIB, groups=4, block=1024, parent=request.param)
    image = make_image(tmp_path_factory.mktemp("small") / "small.img", geometry)
    with mounted(image) as root:
        fill(root)
    small = Small(by_kernel(image))
    yield small
    small.media.close()


def sealed(changes: list[tuple[Block, int, bytes]]) -> dict[int, bytes]:
    """Change bytes of metadata, and make the checksums right."""
    forged: dict[int, bytes] = {}
    for block, at, new in changes:
        data = overwrite(forged.get(block.start, block.data), at, new)
        forged[block.start] = seal(block.kind, data)
    return forged


def entries(block: Block) -> list[int]:
    """Find the entries of a block of a folder: where their inode numbers are."""
    found = []
    at = 64
    data = block.data
    end = len(data)
    if data[:4] == b"XDB3":
        end -= 8 + 8 * int.from_bytes(data[-8:-4], "big")
    while at < end:
        if data[at : at + 2] == b"\xff\xff":
            at += int.from_bytes(data[at + 2 : at + 4], "big")
        else:
            found.append(at)
            at += (data[at + 8] + 12 + 7) // 8 * 8
    return found


@st.composite
def lies(draw: st.DrawFn, small: Small) -> list[tuple[Block, int, bytes]]:
    """Make changes of metadata that keep it well-formed, or nearly."""
    changes: list[tuple[Block, int, bytes]] = []
    for _ in range(draw(st.integers(1, 4))):
        how = draw(st.sampled_from(["links", "entry", "parent", "short", "any", "type"]))
        other = draw(st.sampled_from(small.named))
        block = draw(st.sampled_from(small.metadata["directory"]))
        if how == "links":
            file = small.inodes[draw(st.sampled_from(small.named))]
            changes.append((file, _LINKS, draw(st.integers(0, 5)).to_bytes(4, "big")))
        elif how in ("entry", "type"):
            at = draw(st.sampled_from(entries(block)))
            if how == "entry":
                changes.append((block, at, other.to_bytes(8, "big")))
            else:
                type_at = at + 9 + block.data[at + 8]
                changes.append((block, type_at, bytes([draw(st.integers(0, 8))])))
        elif how == "parent":
            changes.append((block, entries(block)[1], other.to_bytes(8, "big")))
        else:
            kinds = (
                ["inode", "directory", "inobt", "attr leaf", "agi"] if how == "any" else ["inode"]
            )
            kind = draw(st.sampled_from([kind for kind in kinds if kind in small.metadata]))
            chosen = draw(st.sampled_from(small.metadata[kind]))
            at = draw(st.integers(176 if how == "short" else 0, len(chosen.data) - 8))
            changes.append((chosen, at, draw(st.binary(min_size=1, max_size=8))))
    return changes


@settings(max_examples=150)
@given(data=st.data())
def test_paths_are_the_same_alone_and_together(small: Small, data: st.DataObject) -> None:
    changes = data.draw(lies(small), label="lies")
    touched = [int.from_bytes(new, "big") for _, _, new in changes if len(new) == 8]
    asked = data.draw(st.lists(st.sampled_from(small.named), min_size=1, max_size=8), label="asked")
    asked = list(dict.fromkeys([*asked, *(ino for ino in touched if ino in small.truth.inodes)]))
    patches = sealed(changes)
    alone: dict[int, Paths] = {}
    for ino in asked:
        with small.open(patches) as fs:
            alone[ino] = fs.paths(ino)
    with small.open(patches) as fs:
        assert fs.paths_many(small.named).items() >= alone.items()
        shuffled = data.draw(st.permutations(asked), label="order")
        assert fs.paths_many(shuffled) == alone
        for size in (2, 3):
            for at in range(0, len(shuffled), size):
                batch = shuffled[at : at + size]
                assert fs.paths_many(batch) == {ino: alone[ino] for ino in batch}


def test_rows_have_the_same_paths_alone_and_in_bulk(small: Small) -> None:
    # Every entry of one folder names the same inode.
    folder = max(small.metadata["directory"], key=lambda block: len(entries(block)))
    target = small.files()[-1]
    changes = [(folder, at, target.to_bytes(8, "big")) for at in entries(folder)[2:]]
    rows = [row for row in small.truth.rows if row.kind == "file"]
    asked = [(row.start, row.length) for row in rows]
    with small.open(sealed(changes)) as fs:
        together = list(fs.owners_many(asked))
    with small.open(sealed(changes)) as fs:
        for question, answer in zip(asked, together, strict=True):
            assert fs.owners(*question) == answer


# ---------------------------------------------------------------------- the filesystem's own files


@pytest.mark.parametrize("field", [*_QUOTA_AT, *_REALTIME_AT])
@pytest.mark.parametrize("which", ["root", "folder", "file"])
def test_a_superblock_hides_no_file_of_a_user(small: Small, field: str, which: str) -> None:
    (superblock,) = [block for block in small.metadata["superblock"] if block.start == 0]
    root = int.from_bytes(superblock.data[_ROOT_AT : _ROOT_AT + 8], "big")
    ino = {"root": root, "folder": small.folders()[3], "file": small.files()[5]}[which]
    at = (_QUOTA_AT | _REALTIME_AT)[field]
    with small.open(sealed([(superblock, at, ino.to_bytes(8, "big"))])) as fs:
        paths = fs.paths(ino)
        rows = [row for row in small.truth.rows if row.kind == "file" and row.inode == ino]
        answers = [fs.owners(row.start, row.length) for row in rows]
    assert sorted(paths.paths) == sorted(small.truth.inodes[ino].paths)
    assert not paths.complete
    assert any(f"inode {ino} is the" in note for note in paths.notes)
    for answer in answers:
        assert not answer.complete
        for row in answer:
            assert isinstance(row, FileOwner)
            assert row.detail != "user quota"


def test_files_of_the_filesystem_are_still_known(small: Small) -> None:
    (superblock,) = [block for block in small.metadata["superblock"] if block.start == 0]
    for at in _REALTIME_AT.values():
        ino = int.from_bytes(superblock.data[at : at + 8], "big")
        with small.open({}) as fs:
            paths = fs.paths(ino)
        assert paths.complete
        assert "realtime" in paths.detail


# ---------------------------------------------------------------------- types


def test_a_name_with_another_file_type_is_not_used(small: Small) -> None:
    # An old block of a folder names an inode that has become something else since.
    once = {ino for ino in small.files() if len(small.truth.inodes[ino].paths) == 1}
    block, at, ino = next(
        (block, at, ino)
        for block in small.metadata["directory"]
        for at in entries(block)
        if (ino := int.from_bytes(block.data[at : at + 8], "big")) in once
    )
    type_at = at + 9 + block.data[at + 8]
    with small.open(sealed([(block, type_at, b"\x07")])) as fs:
        paths = fs.paths(ino)
    if small.has_pointers:
        # They are believed, and the folder is not searched.
        assert list(paths) == small.truth.inodes[ino].paths
        return
    assert not paths.paths
    assert not paths.complete
    assert any("another type of file" in note for note in paths.notes)


# ---------------------------------------------------------------------- old metadata put back


@pytest.fixture(scope="module")
def moved(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """Provide an image with parent pointers before and after files were renamed and linked."""
    need_loop_mounts()
    if not sees("-n", "parent=1"):
        raise Missing("this mkfs.xfs makes no parent pointers: run tools/xfsprogs")
    folder = tmp_path_factory.mktemp("moved")
    image = make_image(folder / "after.img", Geometry("moved", size=128 * MIB, groups=2))
    with mounted(image) as root:
        for name in (b"/one", b"/two", b"/many"):
            os.mkdir(root + name)
        for number in range(40):
            for folder_of in (b"/one", b"/many"):
                name = root + folder_of + b"/file-%d" % number
                Path(os.fsdecode(name)).write_bytes(b"x")
                os.mkdir(root + folder_of + b"/folder-%d" % number)
    before = sparse_copy(image, folder / "before.img")
    with mounted(image) as root:
        for number in range(40):
            for folder_of in (b"/one", b"/many"):
                for kind in (b"file", b"folder"):
                    name = b"/%s-%d" % (kind, number)
                    os.rename(root + folder_of + name, root + b"/two" + folder_of + b"-" + name[1:])
        for number in range(0, 40, 2):
            os.link(root + b"/two/one-file-%d" % number, root + b"/link-%d" % number)
    return before, image


def test_an_old_inode_does_not_restore_its_old_name(moved: tuple[Path, Path]) -> None:
    before, after = moved
    truth = by_kernel(after)
    old = {block.start: block for block in find_metadata(before)["inode"]}
    changed = 0
    with closing(FileMedia(after)) as media:
        for block in find_metadata(after)["inode"]:
            ino = int.from_bytes(block.data[152:160], "big")
            if ino not in truth.inodes or block.start not in old or old[block.start] == block:
                continue
            changed += 1
            with whoseblock.open(Overlay(media, {block.start: old[block.start].data})) as fs:
                paths = fs.paths(ino)
            true = sorted(truth.inodes[ino].paths)
            assert set(paths) <= set(true), (paths, true)
            if paths.complete:
                assert sorted(paths) == true
    assert changed > 50
