"""Whole images: every row and every path equals what dump-tree and a walk of the mount say."""

import json
import os
import random
import shutil
import struct
from pathlib import Path

import pytest
from click.testing import CliRunner
from tests.support.btrfs_damage import Base, DamagedMedia, make_base, run_case
from tests.support.btrfs_images import (
    SECTOR,
    Claim,
    Truth,
    differences,
    make_image,
    read_truth,
)
from tests.support.mounts import mounted
from tests.support.tools import need_loop_mounts, run

import whoseblock
from whoseblock.cli.group import cli
from whoseblock.errors import UnsupportedError
from whoseblock.fs.base import FileId, FileOwner, MetadataOwner, Unreferenced
from whoseblock.fs.btrfs.format.checksum import CHECKSUMS

MIB = 1 << 20
SIZE = 256 * MIB
SUPERBLOCK = 64 << 10
#: By name: the options of mkfs.btrfs, and the option of the mount.  Some are of the newest one.
FORMS: dict[str, tuple[str, str]] = {
    "64 KiB nodes, single, no free space tree": (
        "-n 65536 --csum sha256 -m single -R ^free-space-tree",
        "zstd",
    ),
    "mixed": ("-n 4096 --csum blake2 --mixed", ""),
    "newest": ("", "lzo"),
    "newest, simple quota": ("-n 4096 -O squota", ""),
    "old features, quota": ("--csum xxhash -O ^skinny-metadata,^no-holes -R quota -d dup", ""),
}


@pytest.fixture(scope="module")
def default(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Provide an image as mkfs.btrfs makes it, with nodes of 4 KiB, copied while it was in use.

    An unlinked file was open, and a subvolume was just deleted.
    """
    need_loop_mounts()
    folder = tmp_path_factory.mktemp("btrfs")
    image, copy = folder / "used.img", folder / "copy.img"
    make_image(image, SIZE, "-n", "4096")
    with mounted(image, kind="btrfs") as mount:
        root = Path(os.fsdecode(mount))
        with (root / "orphan").open("wb") as file:
            file.write(random.Random(3).randbytes(50_000))
            os.fsync(file.fileno())
            (root / "orphan").unlink()
            run(["btrfs", "subvolume", "delete", root / "snapshots/of_sub4"])
            run(["btrfs", "filesystem", "sync", root])
            shutil.copyfile(image, copy)
    image.unlink()
    return copy


@pytest.fixture(scope="module")
def base(default: Path) -> Base:
    """Provide the image with its truth, to be damaged."""
    return make_base(default)


def check(image: Path, truth: Truth, count: int) -> None:
    """Compare one question about everything, and many about ranges, with the truth."""
    size = image.stat().st_size
    rnd = random.Random(1)
    owned = [number for number, claims in enumerate(truth.claims) if claims != {Claim("free")}]
    with whoseblock.open(image) as fs:
        assert fs.reverse_map == "index"
        answer = fs.owners(0, size)
        assert answer.complete, answer.notes
        assert differences(truth, answer) == []
        asked = []
        for sector in rnd.choices(owned, k=count):
            start = sector * SECTOR + rnd.randrange(SECTOR)
            length = rnd.choice((1, SECTOR, 9999, 100_000))
            asked.append((start, min(length, size - start)))
        for one in fs.owners_many(asked):
            assert one.complete
            assert differences(truth, one) == []


@pytest.mark.parametrize("form", FORMS)
def test_rows_and_paths_equal_the_truth(form: str, tmp_path: Path) -> None:
    need_loop_mounts()
    options, compress = FORMS[form]
    newest = form.startswith("newest")
    image = make_image(tmp_path / "x.img", SIZE, *options.split(), compress=compress, newest=newest)
    check(image, read_truth(image, newest=newest), 200)


def test_an_image_of_a_filesystem_in_use(default: Path, base: Base) -> None:
    check(default, base.truth, 200)
    with whoseblock.open(default) as fs:
        rows = fs.owners(0, fs.size).owners
    files = [row for row in rows if isinstance(row, FileOwner)]
    unlinked = {row.file for row in files if row.unlinked is True and row.subvolume == 5}
    assert len(unlinked) == 1
    assert {"zlib", "lzo", "zstd"} <= {row.encoding for row in files}
    assert any(row.unwritten for row in files)
    paths = {row.subvolume_path for row in files}
    assert {"/", "/sub", "/sub/nested", "/snapshots/twice"} <= paths
    assert max(len(row.paths) for row in files if isinstance(row.paths, tuple)) > 160
    held = [row for row in rows if isinstance(row, Unreferenced)]
    assert held
    assert all(isinstance(holder, FileId) for row in held for holder in row.holders)


def test_a_leaf_names_the_files_whose_data_is_in_it(default: Path, base: Base) -> None:
    raw, places = base.raw, {block[0] for block in base.blocks}
    checked = 0
    with whoseblock.open(default) as fs:
        for place in sorted(places):
            (row,) = fs.owners(place, base.node_size).owners
            assert isinstance(row, MetadataOwner)
            (logical,) = struct.unpack_from("<Q", raw, place + 0x30)
            found = row.inline_files if isinstance(row.inline_files, tuple) else ()
            assert {FileId(one.subvolume, one.inode) for one in found} == base.truth.inline.get(
                logical, set()
            )
            for one in found:
                assert isinstance(one.paths, tuple)
                expected = base.truth.paths.get(FileId(one.subvolume, one.inode), set())
                assert set(one.paths) == expected
                checked += 1
    assert checked > 100


def test_the_other_copy_of_a_tree_block_is_named_and_read(base: Base) -> None:
    first, second = next(places for places in base.blocks if len(places) == 2)
    with whoseblock.open(DamagedMedia(base.raw, {}, {first})) as fs:
        answer = fs.owners(first, SECTOR)
        assert answer.complete
        assert [row.copies[0].start for row in answer if isinstance(row.copies, tuple)] == [second]


def test_damage_leads_to_no_wrong_word(base: Base) -> None:
    assert [run_case(base, seed) for seed in range(30)] == [[]] * 30


def patched(base: Base, offset: int, value: int, width: str) -> DamagedMedia:
    """Return the image with a field of both superblocks changed, and their checksums right."""
    edits = {}
    for at in (SUPERBLOCK, 64 * MIB):
        raw = bytearray(base.raw[at : at + 4096])
        struct.pack_into(width, raw, offset, value)
        raw[:4] = CHECKSUMS[0](bytes(raw[32:]))
        edits[at] = bytes(raw)
    return DamagedMedia(base.raw, edits, set())


@pytest.mark.parametrize(
    ("offset", "value", "width", "what"),
    [
        (0xBC, 0x1000 | 0x341, "<Q", "zoned"),
        (0xBC, 0x2000 | 0x341, "<Q", "extent-tree-v2"),
        (0xBC, 0x4000 | 0x341, "<Q", "raid-stripe-tree"),
        (0xBC, 0x20000 | 0x341, "<Q", "remap-tree"),
        (0xBC, 1 << 50 | 0x341, "<Q", "incompatible feature 0x4000000000000"),
        (0xB4, 0x13, "<Q", "read-only compatible feature 0x10"),
        (0x38, 1 << 32, "<Q", "a seed device"),
    ],
)
def test_features_are_refused_by_name(
    base: Base, offset: int, value: int, width: str, what: str
) -> None:
    with pytest.raises(UnsupportedError, match=what):
        whoseblock.open(patched(base, offset, value, width))


def test_another_number_of_devices_makes_every_answer_incomplete(base: Base) -> None:
    with whoseblock.open(patched(base, 0x88, 3, "<Q")) as fs:
        answer = fs.owners(0, 1)
    assert answer.notes == ("the superblock has 3 devices, the chunk tree 1",)


def test_a_log_tree_makes_every_answer_incomplete(base: Base) -> None:
    with whoseblock.open(patched(base, 0x60, 1 << 20, "<Q")) as fs:
        answer = fs.owners(0, 1)
    assert not answer.complete
    assert answer.notes == (
        "the log tree has changes that are not replayed: owners and free space may be older",
    )


def test_a_copy_of_the_superblock_is_used_and_said(base: Base) -> None:
    with whoseblock.open(DamagedMedia(base.raw, {}, {SUPERBLOCK})) as fs:
        answer = fs.owners(100 * MIB, 40 * MIB)
    assert not answer.complete
    assert "the copy at byte 67108864 was used, which may be older" in answer.notes[0]
    assert differences(base.truth, answer) == []


def test_the_command_line(default: Path, base: Base) -> None:
    sector = next(
        number
        for number, claims in enumerate(base.truth.claims)
        if any(claim.kind == "file" and claim.subvolume > 5 for claim in claims)
    )
    done = CliRunner().invoke(cli, ["lookup", "--json", str(default), f"{sector}p"])
    assert done.exit_code == 0, done.output
    (answer,) = map(json.loads, done.output.splitlines())
    assert answer["complete"]
    assert {row["kind"] for row in answer["owners"]} == {"file"}
    assert all(row["subvolume"] for row in answer["owners"])
    for arguments in (["stack", default], ["lookup", "--summary", default, f"{sector}p"]):
        done = CliRunner().invoke(cli, list(map(str, arguments)))
        assert done.exit_code == 0, done.output
        assert "btrfs" in done.output or "/" in done.output


def test_a_limit_of_owners_is_said(default: Path, base: Base) -> None:
    sector, most = max(
        ((number, len(claims)) for number, claims in enumerate(base.truth.claims)),
        key=lambda one: one[1],
    )
    assert most > 3
    with whoseblock.open(default) as fs:
        assert len(fs.owners(sector * SECTOR, SECTOR)) == most
        fs.max_owners = 3
        answer = fs.owners(sector * SECTOR, SECTOR)
        assert not answer.complete
        assert len(answer) <= 3
        assert "has more than 3 owners, not all of which are listed" in str(answer.notes)
    done = CliRunner().invoke(
        cli, ["lookup", "--json", "--max-owners", "2", str(default), f"{sector}p"]
    )
    assert done.exit_code == 0, done.output
    assert "has more than 2 owners" in str(json.loads(done.output)["notes"])


def test_an_empty_filesystem(tmp_path: Path) -> None:
    image = tmp_path / "empty.img"
    with image.open("wb") as file:
        file.truncate(SIZE)
    run(["mkfs.btrfs", "-q", image])
    with whoseblock.open(image) as fs:
        answer = fs.owners(0, SIZE)
    assert answer.complete
    assert {row.kind for row in answer} == {"free", "metadata"}
