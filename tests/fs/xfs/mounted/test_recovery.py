"""XFS mounted without the recovery of its log: what the kernel does not know is not reported."""

import os
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

import pytest
from tests.support.failing_filesystem import EXCHANGE, make_disk, pattern, write_file
from tests.support.kernel_oracle import getfsmap
from tests.support.mounts import loop_device, mounted, shut_down
from tests.support.tools import run
from tests.support.xfs_images import MIB, sparse_file

import whoseblock
from whoseblock.fs.base import FileOwner
from whoseblock.fs.driver import MountedVolume
from whoseblock.fs.xfs.mounted import recovery
from whoseblock.ranges import ByteRange

LENGTH = 1 << 16
NOTE = "it is mounted with norecovery, and the log is dirty"


def crash(folder: bytes) -> ByteRange:
    """Write a file, and crash once its extent is in the log; return where the data is."""
    path = write_file(Path(os.fsdecode(folder), "new"), pattern("new", LENGTH))
    run(["sync", "--file-system", os.fsdecode(folder)])
    inode = path.stat().st_ino
    (row,) = (row for row in getfsmap(folder) if row.inode == inode and row.kind == "file")
    run(["sync", "--file-system", os.fsdecode(folder)])
    write_file(Path(os.fsdecode(folder), "newer"), b"another")
    shut_down(folder)
    return ByteRange(row.start, row.length)


@contextmanager
def opened(folder: bytes) -> Iterator[MountedVolume]:
    with whoseblock.open(os.fsdecode(folder)) as fs:
        assert isinstance(fs, MountedVolume)
        yield fs


def test_a_dirty_log_makes_answers_incomplete(tmp_path: Path) -> None:
    image = make_disk(tmp_path / "disk.img", EXCHANGE)
    with mounted(image) as folder:
        lost = crash(folder)
    with mounted(image, "ro", "norecovery") as folder, opened(folder) as fs:
        answer = fs.owners(*lost)
        assert [row.kind for row in answer] == ["free"]
        assert not answer.complete
        assert any(NOTE in note for note in answer.notes)
        assert NOTE in fs.unreplayed_log
        assert not any(one.is_free for one in fs.allocation([lost]))
        columns = fs.owners_of([lost.start], [lost.length])
        assert not columns.complete.any()
        lines = run_lookup(os.fsdecode(folder), str(lost), "--summary")
        assert "incomplete" in lines
        assert NOTE in lines
    with (
        loop_device(image) as loop,
        mounted(Path(loop), "ro", loop=False) as folder,
        opened(folder) as fs,
    ):
        # The kernel has replayed the log, and the owner is there.
        answer = fs.owners(*lost)
        assert (answer.complete, fs.unreplayed_log) == (True, "")
        assert [row.paths for row in answer if isinstance(row, FileOwner)] == [("/new",)]


def run_lookup(*words: str) -> str:
    command = [sys.executable, "-m", "whoseblock", "lookup", *words]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    return done.stdout + done.stderr


def test_the_state_of_an_external_log_is_read(tmp_path: Path) -> None:
    log = sparse_file(tmp_path / "log", 32 * MIB)
    kind = replace(EXCHANGE, more=(*EXCHANGE.more, "-l", f"logdev={log},size=32m"))
    image = make_disk(tmp_path / "disk.img", kind)
    with loop_device(log) as device:
        options = [f"logdev={device}"]
        with mounted(image, *options) as folder:
            pass
        with mounted(image, "ro", "norecovery", *options) as folder, opened(folder) as fs:
            assert (fs.unreplayed_log, fs.owners(0, MIB).complete) == ("", True)
        with mounted(image, *options) as folder:
            lost = crash(folder)
        with mounted(image, "ro", "norecovery", *options) as folder, opened(folder) as fs:
            assert NOTE in fs.unreplayed_log
            assert not fs.owners(*lost).complete


def test_a_log_that_cannot_be_read_is_a_doubt(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    image = make_disk(tmp_path / "disk.img", EXCHANGE)
    with mounted(image, "ro", "norecovery") as folder:
        with opened(folder) as fs:
            assert (fs.unreplayed_log, fs.owners(0, MIB).complete) == ("", True)
        monkeypatch.setattr(recovery, "device_node", lambda _: None)
        with opened(folder) as fs:
            assert "the state of the log is unknown" in fs.unreplayed_log
            assert not fs.owners(0, MIB).complete
