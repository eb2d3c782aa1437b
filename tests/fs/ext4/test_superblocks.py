"""Lost superblocks and descriptors are replaced by their copies, as e2fsck -b does."""

import re
from pathlib import Path

import pytest
from tests.support.ext4_forms import FORMS
from tests.support.ext4_images import Truth, differences, fill, make_image, read_truth
from tests.support.tools import program, run

import whoseblock
from whoseblock.errors import NotAFilesystemError
from whoseblock.fs.base import Answer, FileOwner

#: By form, the first group that has a copy of the superblock.
_COPIES = {
    "ext2": 1,
    "32 bits": 1,
    "ext4, 8 KiB": 0,
    "no sparse_super": 1,
    "sparse_super2": 1,
    "sparse_super2, no copy": 0,
    "bigalloc": 0,
    "meta_bg": 1,
}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Provide a folder with files of every kind."""
    path = tmp_path_factory.mktemp("files")
    fill(path)
    return path


def make(form: str, folder: Path, path: Path) -> Truth:
    size, options = FORMS[form]
    make_image(path, size, *options.split(), folder=folder)
    return read_truth(path)


def overwrite(image: Path, offset: int, length: int) -> None:
    with image.open("r+b") as file:
        file.seek(offset)
        file.write(bytes(length))


def ask(image: Path, truth: Truth) -> Answer:
    with whoseblock.open(image) as fs:
        return fs.owners(0, len(truth.claims) * truth.block_size)


@pytest.mark.parametrize("form", _COPIES)
def test_a_lost_superblock_is_replaced_by_its_copy(form: str, folder: Path, tmp_path: Path) -> None:
    image = tmp_path / "disk.img"
    truth = make(form, folder, image)
    overwrite(image, 0, 2048)
    if not _COPIES[form]:
        with pytest.raises(NotAFilesystemError):
            whoseblock.open(image)
        return
    answer = ask(image, truth)
    assert not answer.complete
    assert f"the copy in group {_COPIES[form]} was used" in answer.notes[0]
    # Without checksums, all else agrees; with them, the copy's count of free blocks does not.
    wrong = [one for one in differences(truth, answer) if isinstance(one, tuple)]
    assert {claim.what for one in wrong for claim in truth.claims[one[0]]} <= {"free"}


def test_the_next_copy_is_used_if_the_first_is_lost_too(folder: Path, tmp_path: Path) -> None:
    image = tmp_path / "disk.img"
    form = "ext4, 1 KiB"
    size, options = FORMS[form]
    make_image(image, 2 * size, *options.split(), folder=folder)
    for offset in (1024, 8193 * 1024):
        overwrite(image, offset, 1024)
    with whoseblock.open(image) as fs:
        assert any("the copy in group 3 was used" in note for note in fs.doubts)


@pytest.mark.parametrize("form", ["ext4, 1 KiB", "uninit_bg", "meta_bg", "ext2", "sparse_super2"])
def test_lost_descriptors_are_replaced_by_their_copies(
    form: str, folder: Path, tmp_path: Path
) -> None:
    image = tmp_path / "disk.img"
    truth = make(form, folder, image)
    size = truth.block_size
    overwrite(image, 2 * size, size)
    answer = ask(image, truth)
    assert not answer.complete
    assert any("descriptor of group 0" in note and "was used" in note for note in answer.notes)
    rows = [row for row in answer if isinstance(row, FileOwner)]
    wrong = [one for one in differences(truth, answer) if isinstance(one, tuple)]
    # What has an owner still has it, and nothing else has one.
    assert len(rows) > 100
    for block, found, right in wrong:
        assert {claim.what for claim in found} == {"unknown"}, (block, found, right)
    unsure = {claim.what for one in wrong for claim in one[2]}
    assert unsure <= {"free"}


def test_without_any_copy_the_group_is_lost(folder: Path, tmp_path: Path) -> None:
    image = tmp_path / "disk.img"
    truth = make("ext4", folder, image)
    size = truth.block_size
    overwrite(image, size, size)
    answer = ask(image, truth)
    assert not answer.complete
    assert any("descriptor of group 0" in note for note in answer.notes)
    assert not any("was used" in note for note in answer.notes)


def test_groups_of_another_size_and_how_to_find_their_copies(folder: Path, tmp_path: Path) -> None:
    image, options = tmp_path / "disk.img", ("-t", "ext4", "-b", "1024", "-g", "2048")
    make_image(image, 24 << 20, *options, folder=folder)
    # The magic number stays.
    overwrite(image, 1024 + 4, 4)
    with pytest.raises(NotAFilesystemError) as caught:
        whoseblock.open(image)
    assert caught.value.hint is not None
    assert "mke2fs -n" in caught.value.hint
    # As the hint says.
    printed = run(["mke2fs", "-n", "-F", *options, image]).decode()
    copies = re.search(r"Superblock backups stored on blocks:\s*(\d+)", printed)
    assert copies is not None
    run(["sh", "-c", '"$0" -fy -b "$1" -B 1024 "$2" || test $? = 1', program("e2fsck"),
         copies[1], image])  # fmt: skip
    with whoseblock.open(image) as fs:
        assert fs.owners(0, fs.size, paths=False).complete
