"""Mounted ext2, ext3 and ext4, compared with the kernel, and with the disk at the same moment."""

import json
import os
import random
import shutil
import stat
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from tests.fs.ext4.names.test_paths import add_key, encrypt
from tests.support.ext4_forms import FORMS
from tests.support.ext4_images import (
    Claim,
    Truth,
    claims_in,
    differences,
    fill,
    make_image,
    read_truth,
)
from tests.support.ext4_mounted import HELD, check_with_kernel, kernel_truth
from tests.support.mounts import frozen, loop_device, mounted
from tests.support.system_calls import KEEP_SIZE, fallocate, sync_filesystem
from tests.support.tools import need_loop_mounts, run

import whoseblock
from whoseblock.fs.base import Answer, FileOwner
from whoseblock.fs.ext4.mounted.volume import MountedExt4
from whoseblock.fs.mounted.fiemap import file_extents

MIB = 1 << 20
#: The forms that take different ways through the driver; all others differ in the format only.
MOUNTED = ("ext4", "ext2", "ext3", "bigalloc", "inline_data", "orphan_file", "meta_bg")
_HELD = {Claim("unknown")}


def live(place: bytes | str | Path) -> MountedExt4:
    opened = whoseblock.open(os.fsdecode(place))
    assert isinstance(opened, MountedExt4)
    return opened


@contextmanager
def new(tmp_path: Path, options: str = "-t ext4 -b 4096", size: int = 40) -> Iterator[Path]:
    """Mount a new filesystem for writing."""
    need_loop_mounts()
    image = make_image(tmp_path / "disk.img", size * MIB, *options.split())
    with mounted(image, kind="ext2" if "ext2" in options else "ext4") as place:
        yield Path(os.fsdecode(place))


def sync(folder: Path) -> None:
    """Write all files of a filesystem, so that each block has its place."""
    descriptor = os.open(folder, os.O_RDONLY)
    sync_filesystem(descriptor)
    os.close(descriptor)


def write(path: Path, length: int) -> int:
    """Write a file to the disk, and return where its first byte is on the device."""
    with path.open("wb") as file:
        file.write(os.urandom(length))
        file.flush()
        os.fsync(file.fileno())
    return next(file_extents(str(path), 0, length)).physical


def wrong(truth: Truth, answer: Answer) -> list[object]:
    """Return the differences, but for blocks that the kernel holds for later, with their note."""
    found = claims_in(answer, truth.block_size)
    held = {block for block, claims in found.items() if claims == _HELD}
    assert bool(held) == any(HELD in note for note in answer.notes)
    for block in held:
        if truth.claims[block] <= {Claim("free")}:
            truth.claims[block] = _HELD
    return differences(truth, answer)


@pytest.mark.parametrize("form", MOUNTED)
def test_rows_and_paths_are_those_of_the_kernel_and_of_the_disk(form: str, tmp_path: Path) -> None:
    need_loop_mounts()
    size, words = FORMS[form].size, FORMS[form].words(newest=False)
    image = make_image(tmp_path / "disk.img", size, *words)
    with mounted(image, kind="ext2" if form == "ext2" else "ext4") as place:
        fill(Path(os.fsdecode(place)))
        sync(Path(os.fsdecode(place)))
        by_kernel = kernel_truth(place)
        with live(place) as fs:
            assert fs.reverse_map == "scan"
            # What was changed last is in the journal, and not on the disk in its place.
            answer = fs.owners(0, len(by_kernel.claims) * by_kernel.block_size)
            some = random.Random(form).sample(
                [row for row in answer if isinstance(row, FileOwner)], 40
            )
            together = list(fs.owners_many([(row.start, row.length) for row in some]))
            for row, one in zip(some, together, strict=True):
                assert one.complete, one.notes
                alone = fs.owners(row.start, row.length)
                assert alone.complete, alone.notes
                assert row in one.owners
                assert alone.owners == one.owners
        with frozen(place):
            copy = tmp_path / "frozen.img"
            shutil.copyfile(image, copy)
        mount = os.fsdecode(place)
    by_disk = read_truth(copy)
    assert wrong(by_disk, answer) == []
    # Where the kernel knows an owner, it is the same; where not, the disk has shown it above.
    check_with_kernel(answer, by_kernel, mount, clusters=form == "bigalloc")
    files = [row for row in answer if isinstance(row, FileOwner)]
    assert sum(row.inode in by_kernel.paths for row in files) > 100
    # Unmounted and mounted again, nothing is held any more, and all is certain.
    with mounted(image, "ro", kind="ext2" if form == "ext2" else "ext4") as place:
        with live(place) as fs:
            again = fs.owners(0, answer.length)
        assert again.complete, again.notes
    assert differences(read_truth(image), again) == []


def test_deleted_files_that_are_open_have_no_paths(tmp_path: Path) -> None:
    with new(tmp_path) as folder, (folder / "gone").open("wb") as file:
        file.write(os.urandom(50_000))
        file.flush()
        os.fsync(file.fileno())
        start = next(file_extents(str(folder / "gone"), 0, 4096)).physical
        (folder / "gone").unlink()
        with live(folder) as fs:
            answer = fs.owners(start, 4096)
        assert answer.complete, answer.notes
        (row,) = answer
        assert isinstance(row, FileOwner)
        assert (row.inode, row.unlinked) == (os.fstat(file.fileno()).st_ino, True)
        assert (row.paths, row.mounted_at) == ((), ())


def test_a_file_that_is_gone_since_the_scan_is_not_named(tmp_path: Path) -> None:
    with new(tmp_path) as folder, live(folder) as fs:
        start = write(folder / "one", 4096)
        fs._prepare([(start, 4096)])
        assert [row.inode for row in fs._ask(start, 4096, [])] == [(folder / "one").stat().st_ino]
        (folder / "one").unlink()
        notes: list[str] = []
        (piece,) = fs._ask(start, 4096, notes)
        assert piece.inode == 0
        assert notes
        # It was freed, and the kernel keeps the block until the journal commits.
        sync(folder)
        (row,) = fs.owners(start, 4096)
        assert row.kind in {"free", "unknown"}


def test_delayed_blocks_are_in_no_row(tmp_path: Path) -> None:
    with new(tmp_path) as folder, live(folder) as fs:
        path = folder / "late"
        with path.open("wb") as file:
            fallocate(file.fileno(), 0, 1 << 20, KEEP_SIZE)
            os.fsync(file.fileno())
            os.pwrite(file.fileno(), b"x" * 8192, 4 << 20)
            rows = [row for row in fs.owners(0, fs.size) if isinstance(row, FileOwner)]
            (extent,) = file_extents(str(path), 0, 1 << 20)
            assert [
                (row.start, row.length, row.unwritten)
                for row in rows
                if row.inode == path.stat().st_ino
            ] == [(extent.physical, extent.length, True)]


def test_values_and_blocks_of_attributes_name_every_inode(tmp_path: Path) -> None:
    with new(tmp_path, "-t ext4 -b 4096 -O ea_inode") as folder:
        value = os.urandom(20_000)
        for name in ("a", "b"):
            (folder / name).touch()
            os.setxattr(folder / name, "user.value", value)
            os.setxattr(folder / name, "user.large", b"Z" * 3000)
        os.mkfifo(folder / "fifo")
        os.setxattr(folder / "fifo", "trusted.large", b"Z" * 3000)
        sync(folder)
        with live(folder) as fs:
            answer = fs.owners(0, fs.size)
            truth: dict[str, set[int]] = {}
            for row in answer:
                if isinstance(row, FileOwner) and row.what == "xattr":
                    truth.setdefault("shared" if row.shared else "own", set()).add(row.inode)
            both = {(folder / name).stat().st_ino for name in ("a", "b")}
            fifo = (folder / "fifo").stat().st_ino
            assert truth["shared"] == both
            assert truth["own"] >= {fifo}
            names = {
                path
                for row in answer
                if isinstance(row, FileOwner) and row.what == "xattr"
                for path in (row.paths if isinstance(row.paths, tuple) else ())
            }
            assert names == {"/a", "/b", "/fifo"}
        log = run(["dmesg"]).decode()
        assert "EA inode" not in log.rpartition("EXT4-fs error")[2][:200]


@pytest.mark.parametrize("key", [True, False], ids=["key", "no key"])
def test_encrypted_files(tmp_path: Path, *, key: bool) -> None:
    need_loop_mounts()
    options = ("-t", "ext4", "-b", "4096", "-O", "encrypt")
    image = make_image(tmp_path / "disk.img", 40 * MIB, *options)
    with mounted(image, kind="ext4") as place:
        root = Path(os.fsdecode(place))
        encrypt(root / "secret", add_key(root), 0)
        start = write(root / "secret" / ("name" * 20), 5000)
        inode = (root / "secret" / ("name" * 20)).stat().st_ino
        if key:
            with live(root) as fs:
                (row,) = fs.owners(start, 4096)
            assert isinstance(row, FileOwner)
            assert row.paths == ("/secret/" + "name" * 20,)
            assert row.encrypted_name is not True
            return
    with mounted(image, kind="ext4") as place:
        (name,) = os.listdir(os.fsdecode(place) + "/secret")
        with live(place) as fs:
            answer = fs.owners(start, 4096)
    assert answer.complete, answer.notes
    (row,) = answer
    assert isinstance(row, FileOwner)
    assert (row.inode, row.paths) == (inode, (f"/secret/{name}",))
    assert row.encrypted_name is True


def test_files_below_other_mounts_have_paths(tmp_path: Path) -> None:
    with new(tmp_path) as folder:
        (folder / "below").mkdir()
        start = write(folder / "below" / "file", 5000)
        other = tmp_path / "part"
        other.mkdir()
        run(["mount", "--bind", folder / "below", other])
        run(["mount", "-t", "tmpfs", "none", folder / "below"])
        try:
            for place in (folder, other):
                with live(place) as fs:
                    (row,) = fs.owners(start, 4096)
                    assert isinstance(row, FileOwner)
                    assert row.paths == ("/below/file",)
                    assert row.mounted_at == (f"{other}/file",)
        finally:
            run(["umount", folder / "below"])
            run(["umount", other])


def test_no_scan_names_no_file(tmp_path: Path) -> None:
    with new(tmp_path) as folder, live(folder) as fs:
        start = write(folder / "one", 4096)
        fs.scans = False
        answer = fs.owners(start, 4096)
        assert [row.kind for row in answer] == ["unknown"]
        assert any("not permitted" in note for note in answer.notes)
        assert fs.owners(0, 4096).complete


def test_a_journal_that_is_not_replayed_makes_every_answer_doubtful(tmp_path: Path) -> None:
    copy = tmp_path / "copy.img"
    with new(tmp_path) as folder:
        start = write(folder / "one", 4096)
        with live(folder) as fs:
            assert fs.owners(start, 4096).complete
            assert fs.unreplayed_log == ""
        shutil.copyfile(tmp_path / "disk.img", copy)
    with mounted(copy, "ro", "noload", kind="ext4") as place, live(place) as fs:
        answer = fs.owners(0, 4096)
        assert not answer.complete
        assert "its journal is dirty" in fs.unreplayed_log
        assert [one.is_free for one in fs.allocation([(start, 4096)])] == [False]


def test_a_single_question_stops_at_the_owner(tmp_path: Path) -> None:
    with new(tmp_path, size=400) as folder, live(folder) as fs:
        start = write(folder / "one", 4096)
        answer = fs.owners(start, 4096)
        assert answer.complete
        assert answer.notes[-1].endswith("which ended at the owner")
        assert fs.reads["inode table"] < fs.size // 4096 // 100


def lookup(target: Path | str, *arguments: str) -> dict[str, Any]:
    done = subprocess.run(
        [sys.executable, "-m", "whoseblock", "lookup", target, *arguments, "--json"],
        capture_output=True,
        check=True,
    )
    answer: dict[str, Any] = json.loads(done.stdout)
    return answer


def test_processes_and_layers_by_the_command_line(tmp_path: Path) -> None:
    need_loop_mounts()
    image = make_image(tmp_path / "disk.img", 40 * MIB, "-t", "ext4", "-b", "4096")
    with loop_device(image) as loop, mounted(Path(loop), kind="ext4", loop=False) as place:
        path = Path(os.fsdecode(place)) / "one"
        start = write(path, 8192)
        with path.open("rb"):
            for target in (os.fsdecode(place), loop, str(image)):
                (owner,) = lookup(target, str(start), "--processes")["owners"]
                assert owner["paths"] == ["/one"]
                assert os.getpid() in [process["pid"] for process in owner["processes"]]
        shown = run([sys.executable, "-m", "whoseblock", "stack", loop]).decode()
        assert "ext4" in shown
        assert stat.S_ISREG(path.stat().st_mode)


def test_without_its_device_the_note_names_the_reason(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("whoseblock.fs.ext4.mounted.volume.device_node", lambda _device: None)
    with new(tmp_path) as folder:
        start = write(folder / "one", 4096)
        with whoseblock.open(folder) as fs:
            answer = fs.owners(start, 4096)
            assert [row.kind for row in answer] == ["unknown"]
            (note,) = answer.notes
            assert "has no node in /dev here" in note
            assert fs.owners(0, 4096).complete


def test_without_privilege_the_capability_is_named(tmp_path: Path) -> None:
    with new(tmp_path) as folder:
        done = subprocess.run(
            ["setpriv", "--reuid", "65534", "--clear-groups", "--bounding-set=-all",
             sys.executable, "-m", "whoseblock", "lookup", folder, "0"],
            capture_output=True, text=True, check=False, cwd="/",
        )  # fmt: skip
        assert done.returncode != 0
        assert "CAP_" in done.stderr
        assert "Traceback" not in done.stderr
