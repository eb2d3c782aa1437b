"""Mount options without recovery, of every filesystem that has such."""

import os
import shutil
from pathlib import Path

import pytest
from tests.support.mounts import mounted, small_filesystem

import whoseblock
from whoseblock.fs.driver import MountedVolume
from whoseblock.fs.mounted.recovery import unrecovered_by


@pytest.mark.parametrize(
    ("options", "found"),
    [
        ("ro,inode64,noquota", ""),
        ("ro,norecovery,inode64", "norecovery"),
        ("ro,rescue=nologreplay", "rescue=nologreplay"),
        ("ro,rescue=usebackuproot:nologreplay", "rescue=usebackuproot:nologreplay"),
        ("ro,rescue=usebackuproot", ""),
        ("ro,disable_roll_forward", "disable_roll_forward"),
        ("ro,logdev=/dev/norecovery", ""),
    ],
)
def test_options_without_recovery(options: str, found: str) -> None:
    assert unrecovered_by(options.split(",")) == found


def test_no_space_is_certainly_free_without_recovery(tmp_path: Path) -> None:
    image, dirty = tmp_path / "disk.img", tmp_path / "dirty.img"
    with small_filesystem("ext4", image, 16 << 20) as folder:
        (folder / "file").write_bytes(b"x" * 4096)
        os.sync()
        # Its journal has changes for as long as it is mounted.
        shutil.copyfile(image, dirty)
    without = ["ro", "noload"]
    for disk, options, complete in (
        (image, ["ro"], True),
        (image, without, True),
        (dirty, without, False),
    ):
        with (
            mounted(disk, *options, kind="ext4") as place,
            whoseblock.open(os.fsdecode(place)) as fs,
        ):
            assert isinstance(fs, MountedVolume)
            assert fs.is_read_only
            answer = fs.owners(0, fs.size)
            assert any(row.kind == "free" for row in answer)
            free = next(row for row in answer if row.kind == "free")
            assert fs.owners(free.start, free.length).complete is complete
            found = fs.allocation([(free.start, free.length)])
            assert [one.is_free for one in found] == [complete]
            assert bool(fs.unreplayed_log) is not complete
