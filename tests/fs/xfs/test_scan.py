"""Owners on XFS by a scan of all inodes: without a reverse map, and in place of one."""

import json
import os
import random
import shutil
from pathlib import Path

import pytest
from tests.support import questions, xfs_blocks, xfsdb
from tests.support.commands import whoseblock as program
from tests.support.filled_images import Zoo, make_content
from tests.support.image_damage import Overlay, seal
from tests.support.tools import Missing, sees, xfsprogs
from tests.support.truth import Truth
from tests.support.xfs_images import Geometry, make_image, sparse_file
from tests.support.xfs_scan_checks import SCANNED, check_scanned

import whoseblock
from whoseblock.errors import UnsupportedError
from whoseblock.fs.driver import Capability
from whoseblock.fs.xfs.filesystem import XfsFilesystem
from whoseblock.media.device import FileMedia


@pytest.fixture(scope="module")
def populated(tmp_path_factory: pytest.TempPathFactory) -> Truth:
    """Fill an image without a reverse map by mkfs.xfs, which any user may do."""
    xfsprogs("xfs_db")
    folder = tmp_path_factory.mktemp("scan")
    geometry = Geometry("scan", group_blocks=20_021, rmapbt=False, parent=False)
    content = folder / "content"
    content.mkdir()
    make_content(os.fsencode(content), random.Random(19))
    image = make_image(folder / "scan.img", geometry, content=content)
    shutil.rmtree(content)
    return xfs_blocks.truth_of(image, xfsdb.walk(image))


def test_every_range_of_a_populated_image(populated: Truth) -> None:
    rng = random.Random(1)
    rows = questions.sample_rows(populated, rng, 60)
    check_scanned(populated, questions.around_edges(populated, rows), paths=False)
    check_scanned(populated, [(row.start, row.length) for row in populated.rows], paths=True)
    check_scanned(populated, [(0, populated.superblock.size)], paths=True)


def test_nothing_is_free_on_version_4_without_a_scan(tmp_path: Path) -> None:
    image = make_image(tmp_path / "old.img", Geometry("4", version4=True, parent=False))
    with whoseblock.open(image) as fs:
        fs.scans = False
        answer = fs.owners(fs.size - 4096, 4096)
        assert (answer.complete, [row.kind for row in answer]) == (False, ["unknown"])
        fs.scans = True
        answer = fs.owners(fs.size - 4096, 4096)
        assert (answer.complete, [row.kind for row in answer]) == (True, ["free"])


def test_old_features_are_refused_by_name(tmp_path: Path) -> None:
    geometry = Geometry("4", version4=True, parent=False)
    image = make_image(tmp_path / "old.img", geometry)
    with image.open("r+b") as file:
        file.seek(100)
        version = int.from_bytes(file.read(2), "big")
        for bits, name in ((0x2000, "directories of version 1"), (0x20, "inodes of version 1")):
            file.seek(100)
            file.write((version & ~bits).to_bytes(2, "big"))
            file.flush()
            with pytest.raises(UnsupportedError, match=name):
                whoseblock.open(image)


@pytest.mark.parametrize("name", ["1k", "3ag-noparent"])
def test_the_scan_answers_as_the_reverse_map_does(zoo: Zoo, name: str) -> None:
    truth = zoo.filled(name)
    rows = questions.sample_rows(truth, random.Random(name), 40)
    asked = [*questions.around_edges(truth, rows), (0, truth.superblock.size)]
    with XfsFilesystem(FileMedia(truth.image)) as fs:
        by_map = list(fs.owners_many(asked, paths=False))
        fs.scan_instead()
        by_scan = list(fs.owners_many(asked, paths=False))
    assert len(asked) > 1000
    for one, other in zip(by_map, by_scan, strict=True):
        assert (one.complete, one.owners) == (other.complete, other.owners)


def test_without_a_scan_only_what_needs_none_is_known(populated: Truth) -> None:
    free = next(row for row in populated.rows if row.kind == "free")
    with whoseblock.open(populated.image) as fs:
        fs.scans = False
        answer = fs.owners(0, fs.size)
        assert not answer.complete
        assert {row.kind for row in answer} == {"metadata", "free", "unknown"}
        assert any("not permitted" in note for note in answer.notes)
        sure = fs.owners(free.start, free.length)
        assert (sure.complete, sure.notes, [row.kind for row in sure]) == (True, (), ["free"])
        assert "inode-chunk" not in fs.reads
        assert Capability.ZERO_FREE not in fs.capabilities


def test_what_is_free_takes_no_scan(populated: Truth) -> None:
    free = [(row.start, row.length) for row in populated.rows if row.kind == "free"]
    with whoseblock.open(populated.image) as fs:
        found = [one for one in fs.allocation([(0, fs.size)]) if one.is_free]
        assert [(one.start, one.length) for one in found] == free
        assert "inode-chunk" not in fs.reads
        assert fs.scans


def test_the_program_says_that_a_scan_answered(populated: Truth) -> None:
    row = next(row for row in populated.rows if row.kind == "file")
    asked = [str(populated.image), f"{row.start}+512"]
    answer = json.loads(program("lookup", "--json", *asked).stdout)
    assert answer["complete"]
    assert answer["notes"][0].startswith(SCANNED)
    (unknown,) = json.loads(program("lookup", "--json", "--no-scan", *asked).stdout)["owners"]
    assert unknown["kind"] == "unknown"


def test_columns_are_the_same(populated: Truth) -> None:
    rows = questions.sample_rows(populated, random.Random(1), 50)
    asked = [(row.start, row.length) for row in rows]
    with whoseblock.open(populated.image) as fs:
        arrays = fs.owners_of(*zip(*asked, strict=True))
        answers = list(fs.owners_many(asked, paths=False))
    assert arrays.complete.all()
    assert arrays.question.size == sum(map(len, answers))
    assert arrays.start.tolist() == [row.start for answer in answers for row in answer]


def test_inodes_that_cannot_be_verified_may_own_it_too(populated: Truth) -> None:
    by_inode = {row.inode: row for row in populated.rows if row.kind == "file"}
    one, other = sorted(by_inode)[10:12]
    place = _place_of(populated, one)
    media = FileMedia(populated.image)
    with XfsFilesystem(Overlay(media, {place + 40: b"damage"})) as fs:
        for inode, kind in ((one, "unknown"), (other, "file")):
            row = by_inode[inode]
            answer = fs.owners(row.start, row.length)
            assert not answer.complete
            assert {found.kind for found in answer} == {kind}
            assert any("1 inodes may own it too" in note for note in answer.notes), answer.notes
        free = next(row for row in populated.rows if row.kind == "free")
        assert fs.owners(free.start, free.length).complete
    media.close()


def _place_of(truth: Truth, inode: int) -> int:
    block = truth.superblock
    bits = block.block_log + block.inodes_log
    return (inode >> bits) * block.group_size + (inode & (1 << bits) - 1) * block.inode


def test_a_btree_of_a_realtime_group_is_refused_by_name(tmp_path: Path) -> None:
    if not sees("-m", "metadir=1"):
        raise Missing("this mkfs.xfs makes no realtime groups: run tools/xfsprogs")
    section = sparse_file(tmp_path / "realtime", 300 << 20)
    more = ("-m", "metadir=1", "-r", f"rtdev={section}")
    geometry = Geometry("groups", size=320 << 20, rmapbt=False, parent=True, more=more)
    image = make_image(tmp_path / "groups.img", geometry)
    commands = ["path -m /rtgroups/0.refcount", "print core.format", "inode"]
    printed = xfsdb.ask(image, commands, "-R", str(section)).split()
    assert b"(meta_btree)" in printed
    inode = int(printed[-1])
    with XfsFilesystem(FileMedia(image)) as fs:
        place = fs.volume.inode_to_byte(inode)
        root = fs.volume.sb.rootino
        (row,) = fs.owners(fs.volume.inode_to_byte(root) or 0, 512)
        assert row.kind == "metadata"
    assert place is not None
    with image.open("r+b") as file:
        file.seek(place)
        core = bytearray(file.read(512))
        core[176:178] = (1).to_bytes(2, "big")
        file.seek(place)
        file.write(seal("inode", bytes(core)))
    with XfsFilesystem(FileMedia(image)) as fs:
        answer = fs.owners(place, 512)
        assert not answer.complete
        assert any(f"inode {inode}" in note and "realtime group" in note for note in answer.notes)
        free = fs.owners(fs.size - 4096, 4096)
        assert (free.complete, [row.kind for row in free]) == (True, ["free"])
