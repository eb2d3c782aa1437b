"""Images about which not everything can be known: that is said, and nothing wrong."""

import os
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path

import pytest
from tests.support import system_calls, xfsdb
from tests.support.answers import answer_json, lookup_json, same
from tests.support.expected_rows import Expectation
from tests.support.filled_images import Zoo, by_kernel, with_nameless
from tests.support.mounts import frozen, loop_device, mounted
from tests.support.questions import around_edges
from tests.support.random_files import Filler
from tests.support.tools import Missing, need_loop_mounts, sees
from tests.support.truth import Truth
from tests.support.xfs_images import MIB, Geometry, make_image, sparse_copy, sparse_file

import whoseblock
from whoseblock.cli.presentation.table import table_lines
from whoseblock.fs.base import FileOwner

SMALL = Geometry("small", size=128 * MIB, groups=3)


def compare(truth: Truth, *, complete: bool, log_device: Path | None = None) -> list[str]:
    """Compare every answer with the truth; gives the notes of one answer."""
    expectation = Expectation(truth)
    asked = around_edges(truth, truth.rows)
    with whoseblock.open(truth.image, log_device=log_device) as fs:
        for question, answer in zip(asked, fs.owners_many(asked), strict=True):
            same(answer_json(answer), question, expectation, complete=complete)
        for question in asked[:: max(1, len(asked) // 300)]:
            same(answer_json(fs.owners(*question)), question, expectation, complete=complete)
    (by_program,) = lookup_json(truth.image, [(0, 4096)])
    return [str(note) for note in by_program["notes"]]


def fill_a_little(root: bytes) -> None:
    filler = Filler(root, "little", block=4096)
    filler.folder_tree()
    filler.links()
    filler.shared_files()
    filler.unwritten_and_holes()


@pytest.fixture
def frozen_copy(tmp_path: Path) -> Path:
    """Provide an image taken while the filesystem was frozen and in use.

    Files without a name are open, and blocks are reserved for copy-on-write.
    """
    need_loop_mounts()
    image = make_image(tmp_path / "live.img", SMALL)
    with mounted(image) as root, ExitStack() as stack:
        fill_a_little(root)

        def opened(path: bytes, flags: int) -> int:
            file = os.open(path, flags | os.O_RDWR, 0o600)
            stack.callback(os.close, file)
            return file

        for file in (opened(root + b"/unlinked", os.O_CREAT), opened(root, os.O_TMPFILE)):
            os.write(file, b"no name" * 10_000)
            os.setxattr(file, b"user.large", bytes(30_000))
        os.unlink(root + b"/unlinked")
        original, copy = opened(root + b"/one", os.O_CREAT), opened(root + b"/two", os.O_CREAT)
        os.write(original, b"shared" * 50_000)
        os.fsync(original)
        system_calls.clone_range(original, 0, 0, copy, 0)
        # More is reserved than is written, and stays reserved.
        os.pwrite(copy, b"own", 100_000)
        os.fsync(copy)
        with frozen(root):
            return sparse_copy(image, tmp_path / "frozen.img")


def test_dirty_log_open_files_and_staging(frozen_copy: Path) -> None:
    truth = by_kernel(frozen_copy)
    assert any(row.kind == "staging" for row in truth.rows)
    nameless = {number: inode for number, inode in truth.inodes.items() if not inode.paths}
    assert [inode.links for inode in nameless.values()] == [0, 0]
    notes = compare(truth, complete=False)
    assert any("log" in note for note in notes)
    with whoseblock.open(frozen_copy) as fs:
        for number in nameless:
            paths = fs.paths(number)
            assert not list(paths)
            assert paths.unlinked


def test_metadata_directories_have_no_user_paths(tmp_path: Path) -> None:
    need_loop_mounts()
    if not sees("-m", "metadir=1"):
        raise Missing("this mkfs.xfs makes no metadata directories: run tools/xfsprogs")
    image = make_image(tmp_path / "metadir.img", replace(SMALL, more=("-m", "metadir=1")))
    with mounted(image) as root:
        fill_a_little(root)
    truth = by_kernel(image)
    assert compare(truth, complete=True) == []
    with whoseblock.open(image) as fs:
        expectation = Expectation(truth)
        for number, paths in fs.paths_many(truth.inodes).items():
            assert list(paths) == expectation.paths(number)


def test_external_log(tmp_path: Path) -> None:
    need_loop_mounts()
    log = sparse_file(tmp_path / "log.img", 80 * MIB)
    more = ("-l", f"logdev={log},size=64m")
    image = make_image(tmp_path / "image.img", Geometry("external", size=300 * MIB, more=more))
    with loop_device(log) as device:
        with mounted(image, f"logdev={device}") as root:
            fill_a_little(root)
        truth = by_kernel(image, f"logdev={device}")
    notes = compare(truth, complete=False)
    assert any("log" in note for note in notes)
    with whoseblock.open(image, log_device=log) as fs:
        answer = answer_json(fs.owners(0, 4096))
    assert answer["complete"]
    assert not answer["notes"]


def realtime_image(folder: Path, geometry: Geometry) -> Path:
    """Make an image with a realtime device, without a mount: not every kernel knows such."""
    realtime = sparse_file(folder / "realtime.img", 100 * MIB)
    content = folder / "content"
    (content / "folder").mkdir(parents=True)
    for number in range(200):
        (content / "folder" / f"file-{number}").write_bytes(b"data" * number * 10)
    more = (*geometry.more, "-r", f"rtdev={realtime}")
    return make_image(folder / "image.img", replace(geometry, more=more), content=content)


def test_realtime_groups(tmp_path: Path) -> None:
    # What is on the data device is answered; that there is another device is said.
    if not sees("-m", "metadir=1"):
        raise Missing("this mkfs.xfs makes no realtime groups: run tools/xfsprogs")
    geometry = Geometry("realtime", size=300 * MIB, more=("-m", "metadir=1"))
    image = realtime_image(tmp_path, geometry)
    block = xfsdb.superblock(image)
    truth = with_nameless(Truth(image, block, xfsdb.rows(image, block), xfsdb.walk(image)))
    expectation = Expectation(truth)
    with whoseblock.open(image) as fs:
        for row in truth.rows:
            answer = answer_json(fs.owners(row.start, row.length))
            same(answer, (row.start, row.length), expectation, complete=answer["complete"])
            assert any("realtime" in note for note in answer["notes"]), answer["notes"]


def test_realtime_device_without_rmapbt(tmp_path: Path) -> None:
    # Before realtime groups there was no rmapbt beside a realtime device.
    geometry = Geometry("realtime", size=300 * MIB, rmapbt=False, reflink=False)
    image = realtime_image(tmp_path, geometry)
    with whoseblock.open(image) as fs:
        answer = fs.owners(0, 4096)
        whole = fs.owners(0, fs.size)
    (remark,) = answer.notes
    assert "realtime" in remark
    below = [line for line in table_lines([answer]) if line.startswith("  ")]
    assert f"  note: {remark}" in below
    (by_program,) = lookup_json(image, [(0, 4096)])
    assert (by_program["notes"], by_program["complete"]) == ([remark], True)
    # What realtime files have lies elsewhere, and everything here has an owner or is free.
    assert whole.complete, whole.notes
    assert all(row.what != "unknown" for row in whole if isinstance(row, FileOwner))


def test_a_mounted_image_is_reported(zoo: Zoo) -> None:
    truth = zoo.to_mount("4k")
    row = next(row for row in truth.rows if row.kind == "file")
    with mounted(truth.image, "ro", "norecovery"), whoseblock.open(truth.image, offline=True) as fs:
        answer = fs.owners(row.start, row.length)
        assert not answer.complete
        assert "it is mounted at" in answer.notes[0]
    with whoseblock.open(truth.image) as fs:
        assert fs.owners(row.start, row.length).complete
