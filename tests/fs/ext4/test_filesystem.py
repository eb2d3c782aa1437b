"""Whole images: every row and every path equals what dumpe2fs and debugfs say."""

import json
import subprocess
from pathlib import Path

import pytest
from click.testing import CliRunner
from tests.support.ext4_checks import check_image
from tests.support.ext4_damage import BASES, make_base, run_case
from tests.support.ext4_forms import BY_MKE2FS, FORMS, NOT_MOUNTED
from tests.support.ext4_images import Claim, differences, fill, make_image, read_truth
from tests.support.mounts import mounted
from tests.support.tools import need_loop_mounts, program, run

import whoseblock
from whoseblock.cli.group import cli
from whoseblock.errors import UnsupportedError
from whoseblock.fs.base import FileOwner
from whoseblock.fs.driver import Volume

MIB = 1 << 20


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Provide a folder with files of every kind that its user may make."""
    path = tmp_path_factory.mktemp("files")
    fill(path)
    return path


@pytest.mark.parametrize("version", ["system", "newest"])
@pytest.mark.parametrize("form", BY_MKE2FS)
def test_images_filled_by_mke2fs(form: str, version: str, folder: Path, tmp_path: Path) -> None:
    newest = version == "newest"
    size, options = FORMS[form].size, FORMS[form].words(newest=newest)
    path = tmp_path / "disk.img"
    image = make_image(path, size, *options, folder=folder, newest=newest)
    _, rows = check_image(image, newest=newest)
    assert rows > 100


@pytest.mark.parametrize("version", ["system", "newest"])
@pytest.mark.parametrize("form", [form for form in FORMS if form not in NOT_MOUNTED])
def test_images_filled_by_the_kernel(form: str, version: str, tmp_path: Path) -> None:
    need_loop_mounts()
    newest = version == "newest"
    size, options = FORMS[form].size, FORMS[form].words(newest=newest)
    image = make_image(tmp_path / "disk.img", size, *options, newest=newest)
    kind = "ext2" if form in {"ext2", "revision 0"} else "ext4"
    with mounted(image, kind=kind) as place:
        fill(Path(place.decode()))
    _, rows = check_image(image, newest=newest)
    assert rows > 100


def test_a_value_in_an_inode_of_its_own_belongs_to_all_with_the_attribute(tmp_path: Path) -> None:
    need_loop_mounts()
    options = ("-t", "ext4", "-b", "4096", "-O", "ea_inode")
    image = make_image(tmp_path / "disk.img", 40 * MIB, *options)
    with mounted(image, kind="ext4") as place:
        fill(Path(place.decode()), values=True)
    truth = read_truth(image)
    with whoseblock.open(image) as fs:
        answer = fs.owners(0, len(truth.claims) * truth.block_size)
        assert answer.complete
        wrong = {one[0] for one in differences(truth, answer) if isinstance(one, tuple)}
        values = [
            row
            for row in answer
            if isinstance(row, FileOwner) and row.start // truth.block_size in wrong
        ]
        paths = {row.paths[0] for row in values if isinstance(row.paths, tuple)}
        assert paths == {f"/attributes{number}" for number in range(6)}
        assert {(row.fork, row.what) for row in values} == {("attr", "xattr")}
        # Five blocks of 4 KiB for 20,000 bytes.
        assert {(row.file_offset, row.length) for row in values} == {(0, 20480)}
        first = min(row.start for row in values)
        alone = fs.owners(first, 1)
        assert len(alone) == 6
        assert all(isinstance(row, FileOwner) and row.shared for row in alone)


def test_without_a_scan_only_what_needs_none_is_known(folder: Path, tmp_path: Path) -> None:
    image = make_image(tmp_path / "disk.img", 24 * MIB, "-t", "ext4", folder=folder)
    truth = read_truth(image)
    with whoseblock.open(image) as fs:
        fs.scans = False
        answer = fs.owners(0, len(truth.claims) * truth.block_size)
        assert not answer.complete
        assert {row.kind for row in answer} == {"metadata", "free", "unknown"}
        assert any("not permitted" in note for note in answer.notes)
        free = [row for row in answer if row.kind == "free"]
        sure = fs.owners(free[0].start, free[0].length)
        assert (sure.complete, sure.owners) == (True, (free[0],))
        assert isinstance(fs, Volume)
        assert "inode table" not in fs.reads


def test_blocks_that_several_files_share(tmp_path: Path) -> None:
    folder = tmp_path / "files"
    folder.mkdir()
    for name in "abc":
        (folder / name).write_bytes(name.encode() * 8192)
    options = ("-t", "ext4", "-b", "4096", "-O", "^has_journal")
    image = make_image(tmp_path / "disk.img", 16 * MIB, *options, folder=folder)
    before = read_truth(image)
    inodes = {next(iter(paths)): inode for inode, paths in before.paths.items()}
    places: dict[int, int] = {}
    for block, claims in enumerate(before.claims):
        places.update({one.inode: block for one in claims if one.what == "data" and not one.offset})
    first, other = places[inodes["/a"]], places[inodes["/b"]]
    commands = ["feature shared_blocks"]
    commands += [f"set_inode_field <{inodes['/b']}> block[5] {first}", f"freeb {other} 2"]
    for command in commands:
        run(["debugfs", "-w", "-R", command, image])
    # It corrects the counts of free blocks; its exit code is then 1.
    subprocess.run([program("e2fsck"), "-fy", image], capture_output=True, check=False)
    with whoseblock.open(image) as fs:
        for asked in [first * 4096, 512], [first * 4096 + 4096, 4096]:
            answer = fs.owners(*asked)
            assert answer.complete
            rows = [row for row in answer if isinstance(row, FileOwner)]
            assert [row.paths for row in rows] == [("/a",), ("/b",)]
            assert all(row.shared for row in rows)
        whole = fs.owners(0, len(before.claims) * 4096)
        assert whole.complete
        assert differences(read_truth(image), whole) == []
    # The same blocks without the feature that permits it.
    run(["debugfs", "-w", "-R", "feature ^shared_blocks", image])
    with whoseblock.open(image) as fs:
        whole = fs.owners(0, len(before.claims) * 4096)
        assert not whole.complete
        assert any("is claimed by inode" in note for note in whole.notes)


def test_what_cannot_be_read_is_refused_by_name(tmp_path: Path) -> None:
    image = make_image(tmp_path / "ext2.img", 4 * MIB, "-t", "ext2")
    with image.open("r+b") as file:
        file.seek(1024 + 0x63)
        file.write(b"\x80")
    with pytest.raises(UnsupportedError, match="FEATURE_I31"):
        whoseblock.open(image)
    journal = make_image(tmp_path / "journal.img", 8 * MIB, "-O", "journal_dev", "-b", "4096")
    with pytest.raises(UnsupportedError, match="external journal"):
        whoseblock.open(journal)


@pytest.mark.parametrize("name", BASES)
def test_no_complete_answer_about_a_damaged_image_is_wrong(name: str, tmp_path: Path) -> None:
    base = make_base(name, tmp_path)
    assert [line for seed in range(25) for line in run_case(base, seed)] == []


def test_the_command_line_answers(folder: Path, tmp_path: Path) -> None:
    image = make_image(tmp_path / "disk.img", 24 * MIB, "-t", "ext4", folder=folder)

    def run_cli(*words: str) -> str:
        done = CliRunner().invoke(cli, words, catch_exceptions=False)
        assert done.exit_code == 0, done.output
        return str(done.stdout)

    assert "ext4 (owners by a scan of its inodes)" in run_cli("stack", str(image))
    with whoseblock.open(image) as fs:
        rows = [row for row in fs.owners(0, fs.size) if isinstance(row, FileOwner)]
    paths = ("/d/e/f/hard1", "/many/hard2", "/sparse")
    row = next(row for row in rows if row.paths == paths)
    asked = str(image), f"{row.start}+512"
    assert json.loads(run_cli("lookup", "--json", *asked))["owners"][0]["paths"] == [*paths]
    (unknown,) = json.loads(run_cli("lookup", "--json", "--no-scan", *asked))["owners"]
    assert unknown["kind"] == "unknown"
    total = json.loads(run_cli("lookup", "--json", "--summary", str(image), f"0+{24 * MIB}"))
    assert sum(total["totals"].values()) == 24 * MIB
    lost = {one.get("path"): one["bytes"] for one in total["files"] if one["what"] == "data"}
    assert lost["/d/e/f/hard1"] == sum(
        one.length for one in rows if one.inode == row.inode and one.what == "data"
    )


def test_a_bitmap_and_a_descriptor_that_are_both_old_free_nothing(tmp_path: Path) -> None:
    image = make_image(tmp_path / "disk.img", 16 * MIB, "-t", "ext4", "-b", "4096")
    before = image.read_bytes()
    content = tmp_path / "content"
    content.write_bytes(b"x" * 40_000)
    run(["debugfs", "-w", "-R", f"write {content} new", image])
    truth = read_truth(image)
    places = [block for block, one in enumerate(truth.claims) if any(c.what == "data" for c in one)]
    with whoseblock.open(image) as fs:
        (row,) = fs.owners(places[0] * 4096, 4096 * 10)
        assert isinstance(row, FileOwner)
        assert row.paths == ("/new",)
    bitmap = truth.claims.index({Claim("block-bitmap")})
    raw = bytearray(image.read_bytes())
    # The descriptors are in the block after the superblock's.
    for block in (1, bitmap):
        assert raw[block * 4096 : (block + 1) * 4096] != before[block * 4096 : (block + 1) * 4096]
        raw[block * 4096 : (block + 1) * 4096] = before[block * 4096 : (block + 1) * 4096]
    image.write_bytes(raw)
    with whoseblock.open(image) as fs:
        answer = fs.owners(places[0] * 4096, 4096 * 10)
        assert not answer.complete
        assert "free" not in {row.kind for row in answer}
        assert any("the superblock counts" in note for note in answer.notes)
