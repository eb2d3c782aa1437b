"""Features that mke2fs alone does not fill: each image is compared with dumpe2fs and debugfs."""

import os
from pathlib import Path

import pytest
from tests.support.ext4_checks import check_image
from tests.support.ext4_forms import FORMS
from tests.support.ext4_images import fill, make_image, read_truth
from tests.support.mounts import loop_device, mounted
from tests.support.tools import need_loop_mounts, program, run

import whoseblock
from whoseblock.fs.base import FileOwner

MIB = 1 << 20
_VERITY = 0x100000
_EXTENTS = 0x80000
_CASEFOLD = 0x40000000


def debugfs(image: Path, *commands: str) -> None:
    """Change an image."""
    text = "\n".join(commands).encode()
    run(["debugfs", "-w", "-f", "-", image], stdin=text)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Provide a folder with files of every kind."""
    path = tmp_path_factory.mktemp("files")
    fill(path)
    return path


@pytest.mark.parametrize("options", ["-t ext4 -b 1024", "-t ext2 -b 4096", "-t ext4 -b 4096"])
def test_bad_blocks_belong_to_their_inode(options: str, folder: Path, tmp_path: Path) -> None:
    image, bad = tmp_path / "disk.img", tmp_path / "bad"
    wanted = [*range(3000, 3600, 3), *range(5000, 5100), 9000]
    bad.write_text("".join(f"{block}\n" for block in wanted))
    make_image(image, 40 * MIB, *options.split(), "-l", str(bad), folder=folder)
    later = tmp_path / "later"
    later.write_text("9500\n9501\n")
    # The exit code says that it changed the image.
    run(["sh", "-c", '"$0" -fy -l "$1" "$2" || test $? = 1', program("e2fsck"), later, image])
    check_image(image)
    size = read_truth(image).block_size
    with whoseblock.open(image) as fs:
        for block in (*wanted, 9500, 9501):
            (row,) = fs.owners(block * size, size)
            assert isinstance(row, FileOwner)
            assert (row.inode, row.detail, row.paths) == (1, "bad blocks", ())


def test_the_journal_is_on_another_device(tmp_path: Path) -> None:
    need_loop_mounts()
    image = tmp_path / "disk.img"
    journal = make_image(tmp_path / "journal.img", 8 * MIB, "-b", "1024", "-O", "journal_dev")
    with loop_device(journal) as device:
        options = ("-t", "ext4", "-b", "1024", "-J", f"device={device}")
        make_image(image, 40 * MIB, *options)
        with mounted(image, f"journal_path={device}", kind="ext4") as place:
            fill(Path(place.decode()))
    truth, _ = check_image(image)
    assert "log" not in {claim.what for claims in truth.claims for claim in claims}


def test_extents_and_indirect_maps_in_one_filesystem(tmp_path: Path) -> None:
    need_loop_mounts()
    image = make_image(tmp_path / "disk.img", 64 * MIB, "-t", "ext3", "-b", "1024")
    with mounted(image, kind="ext4") as place:
        (Path(place.decode()) / "old").mkdir()
        fill(Path(place.decode()) / "old")
    run(["tune2fs", "-O", "extents,flex_bg", image])
    with mounted(image, kind="ext4") as place:
        (Path(place.decode()) / "new").mkdir()
        fill(Path(place.decode()) / "new", seed=2)
    check_image(image)


@pytest.mark.parametrize("form", ["ext4, 1 KiB", "meta_bg", "sparse_super2", "uninit_bg"])
def test_a_filesystem_that_grew_and_shrank(form: str, tmp_path: Path) -> None:
    need_loop_mounts()
    size, options = FORMS[form]
    image = make_image(tmp_path / "disk.img", size, *options.split())
    with mounted(image, kind="ext4") as place:
        fill(Path(place.decode()))
    for new in (3 * size, 2 * size - 777 * 1024):
        if new > image.stat().st_size:
            os.truncate(image, new)
        run(["e2fsck", "-fp", image])
        run(["resize2fs", image, f"{new >> 10}K"])
    run(["e2fsck", "-fp", image])
    check_image(image)


def test_casefolded_directories(folder: Path, tmp_path: Path) -> None:
    size, options = FORMS["casefold"]
    image = make_image(tmp_path / "disk.img", size, *options.split(), folder=folder)
    content = tmp_path / "content"
    content.write_bytes(b"x" * 30_000)
    names = ("Straße", "ΣΊΣΥΦΟΣ", "a" * 200, "I")
    debugfs(
        image,
        "mkdir /Fold",
        f"set_inode_field /Fold flags {_EXTENTS | _CASEFOLD:#x}",
        *(f"write {content} /Fold/{name}" for name in names),
        "mkdir /Fold/Below",
        f"write {content} /Fold/Below/x",
    )
    run(["e2fsck", "-fn", image])
    truth, _ = check_image(image)
    paths = set().union(*truth.paths.values())
    assert {"/Fold/Straße", "/Fold/Below/x"} <= paths


def test_the_hashes_of_verity_belong_to_their_file(tmp_path: Path) -> None:
    need_loop_mounts()
    options = ("-t", "ext4", "-b", "4096", "-O", "verity")
    image = make_image(tmp_path / "disk.img", 40 * MIB, *options)
    with mounted(image, kind="ext4") as place:
        fill(Path(place.decode()))
        path = Path(place.decode()) / "sealed"
        # The kernel writes the tree of hashes from the next 64 KiB on, past the end of the file.
        path.write_bytes(b"x" * 200_000)
        with path.open("r+b") as file:
            file.seek(262_144)
            file.write(b"h" * 12_288)
    debugfs(
        image,
        "set_inode_field /sealed size 200000",
        f"set_inode_field /sealed flags {_EXTENTS | _VERITY:#x}",
    )
    run(["e2fsck", "-fn", image])
    truth, _ = check_image(image)
    (inode,) = (inode for inode, paths in truth.paths.items() if "/sealed" in paths)
    offsets = {one.offset for claims in truth.claims for one in claims if one.inode == inode}
    assert {64, 65, 66} <= offsets


@pytest.mark.parametrize(
    ("path", "mode", "why"),
    [
        ("/sparse", "0120644", "a symbolic link that is too long"),
        ("/attributes1", "0120644", "is not of the type that its directory has"),
        ("/sparse", "0644", "no type"),
        ("/d/f0001", "040755", "a directory of no whole blocks"),
    ],
)
def test_a_type_that_an_inode_cannot_have(
    path: str, mode: str, why: str, folder: Path, tmp_path: Path
) -> None:
    image = make_image(tmp_path / "disk.img", 24 * MIB, "-t", "ext2", "-b", "1024", folder=folder)
    truth = read_truth(image)
    (inode,) = (inode for inode, paths in truth.paths.items() if path in paths)
    blocks = [at for at, claims in enumerate(truth.claims) if inode in {c.inode for c in claims}]
    debugfs(image, f"set_inode_field {path} mode {mode}")
    with whoseblock.open(image) as fs:
        answer = fs.owners(blocks[0] * 1024, 1024)
        assert not answer.complete
        assert any(why in note for note in answer.notes)
        if "type that" not in why:
            starts = [block * 1024 for block in blocks]
            assert not fs.owners_of(starts, [1024] * len(blocks)).complete.any()
