"""Many questions at once: near ranges, and files that change between the steps."""

from itertools import pairwise
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from tests.fs.ext4.mounted.test_volume import live, new, sync, write
from tests.support.ext4_images import make_image
from tests.support.mounts import mounted
from tests.support.tools import need_loop_mounts

import whoseblock
from whoseblock.fs.base import FileOwner
from whoseblock.fs.ext4.filesystem import Ext4Filesystem
from whoseblock.fs.ext4.mounted.batch import near_runs
from whoseblock.fs.pieces import Piece
from whoseblock.fs.scan.engine import Wanted

_RANGES = st.lists(st.tuples(st.integers(0, 500), st.integers(1, 40)))


@given(ranges=_RANGES, near=st.integers(1, 100))
def test_runs_have_all_ranges_and_are_far_from_each_other(
    ranges: list[tuple[int, int]], near: int
) -> None:
    asked = Wanted((start, start + length) for start, length in ranges)
    runs = list(near_runs(asked, near))
    assert all(before[1] + near <= after[0] for before, after in pairwise(runs))
    for low, high in runs:
        inside = list(asked.within(low, high))
        assert (low, high) == (inside[0][0], inside[-1][1])
        assert all(two[0] - one[1] < near for one, two in pairwise(inside))
    parts = [part for run in runs for part in asked.within(*run)]
    assert parts == list(zip(asked.lows, asked.highs, strict=True))


def test_a_batch_opens_each_file_once(tmp_path: Path) -> None:
    with new(tmp_path) as folder:
        starts = [write(folder / f"file{number}", 16384) for number in range(20)]
        asked = [(start + at, 4096) for start in starts for at in (0, 8192)]
        with live(folder) as fs:
            before = fs.reads
            answers = list(fs.owners_many(asked))
            assert all(answer.complete for answer in answers)
            # Once before and once after.
            assert (fs.reads - before)["fsmap"] == 2
            assert [one.owners for one in answers] == [fs.owners(*one).owners for one in asked]
            assert (fs.reads - before)["fsmap"] > 2 * len(asked)
            rows = fs.owners_of([one[0] for one in asked], [4096] * len(asked))
            assert rows.complete.all()
            assert rows.inode.tolist() == [
                (folder / f"file{number // 2}").stat().st_ino for number in range(40)
            ]


def test_what_changes_during_a_batch_is_asked_alone(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with new(tmp_path) as folder, live(folder) as fs:
        files = [folder / f"file{number}" for number in range(20)]
        asked = [(write(path, 4096), 4096) for path in files]
        read, calls = fs._read_pieces, 0

        def change(ranges: Wanted) -> list[Piece]:
            nonlocal calls
            calls += 1
            if calls == 2:
                # All files were confirmed.
                files[3].unlink()
                with files[4].open("r+b") as file:
                    file.truncate(0)
                files[5].rename(folder / "renamed")
                sync(folder)
            return read(ranges)

        monkeypatch.setattr(fs, "_read_pieces", change)
        answers = list(fs.owners_many(asked))
        assert calls == 2
        assert set(asked) - fs._settled.answers.keys() == {asked[3], asked[4]}
        for number, answer in enumerate(answers):
            (row,) = answer
            if number in {3, 4}:
                assert row.kind in {"free", "unknown"}
            else:
                assert isinstance(row, FileOwner)
                name = "renamed" if number == 5 else f"file{number}"
                assert row.paths == (f"/{name}",)
                assert row.inode == (folder / name).stat().st_ino


def test_an_inode_that_is_lost_makes_all_answers_of_a_batch_doubtful(tmp_path: Path) -> None:
    need_loop_mounts()
    files = tmp_path / "files"
    files.mkdir()
    for number in range(48):
        (files / f"file{number:02}").write_bytes(b"x" * 4096)
    options = ("-t", "ext4", "-b", "4096")
    image = make_image(tmp_path / "disk.img", 40 << 20, *options, folder=files)
    with whoseblock.open(image) as disk:
        assert isinstance(disk, Ext4Filesystem)
        rows = [row for row in disk.owners(0, disk.size) if isinstance(row, FileOwner)]
        data = [row for row in rows if row.what == "data"]
        group, place = disk.volume.inode_place(data[-1].inode)
        at = disk.volume.descriptor(group).inode_table * 4096 + place * disk.volume.sb.inode_size
        tables = -(-disk.volume.sb.inodes_count * disk.volume.sb.inode_size // 4096)
    with image.open("r+b") as file:
        # Its generation: the checksum is wrong.
        file.seek(at + 0x64)
        file.write(b"\xff\xff\xff\xff")
    with mounted(image, "ro", kind="ext4") as folder, live(folder) as fs:
        answers = list(fs.owners_many([(row.start, 4096) for row in data[:40:2]]))
        for row, answer in zip(data[:40:2], answers, strict=True):
            assert not answer.complete
            assert any("1 inode" in note for note in answer.notes)
            assert [one.inode for one in answer if isinstance(one, FileOwner)] == [row.inode]
        # All of them share one scan, of which the lost inode's group is read again.
        assert fs.reads["inode table"] <= 7 * tables
