"""A block that five files share: all are given the good copy, once, and go on sharing it."""

import resource
import shlex
from collections.abc import Callable
from pathlib import Path

import pytest
from tests.support.failing_filesystem import (
    BLOCK,
    KINDS,
    Bench,
    back_up,
    bench,
    pattern,
    write_file,
)
from tests.support.shared_blocks import Five, share_five
from tests.support.system_calls import clone_range
from tests.support.xfs_images import Geometry

from whoseblock.ranges import ByteRange

kinds = pytest.mark.parametrize("kind", KINDS[:2], ids=lambda kind: kind.name)


def from_folder(five: Five, served: Bench) -> list[object]:
    five.keep_only(served.root / "large/d", served)
    return ["--restore-from", five.copies]


def from_file(five: Five, served: Bench) -> list[object]:
    # Without it, the file of another user would get nothing.
    own = five.copy_of(served.root / "c", served)
    return [
        "--restore-file",
        five.keep_only(served.root / "a", served),
        "--restore-from",
        own.parent,
    ]


def from_command(five: Five, served: Bench) -> list[object]:
    copy = five.keep_only(served.root / "last", served)
    command = f"echo {shlex.quote(str(copy))}"
    return ["--restore-command", command, "--restore-from", five.copies]


@pytest.mark.parametrize(
    ("kind", "source"),
    [*((kind, from_folder) for kind in KINDS), (KINDS[0], from_file), (KINDS[1], from_command)],
    ids=lambda given: getattr(given, "name", None) or given.__name__,
)
def test_all_five_files_are_restored_and_still_share_the_block(
    tmp_path: Path, kind: Geometry, source: Callable[[Five, Bench], list[object]]
) -> None:
    with bench(tmp_path, kind) as served:
        five = share_five(served, tmp_path / "copies")
        words = source(five, served)
        lost = ByteRange(five.place.start + 512, 1024)
        served.fail(lost)
        before = served.everything(but=five.files)
        said = served.apply(lost, *words)
        assert "gave the good copy to 5 files" in said
        five.check_whole(served)
        assert served.everything(but=five.files) == before
        assert served.served.bad() == []
        assert {row.kind for row in served.owners(five.place)} == {"free"}
        assert served.states() == [["planned", "started", "done", "verified"]]
        # What could be read of the old block was not touched, and the rest was zeroed.
        old = bytearray(five.content)
        old[512:1536] = bytes(1024)
        assert served.bytes_at(five.place) == old
        assert "no action needed" in served.apply(lost, *words)


@kinds
def test_more_files_than_may_be_open(tmp_path: Path, kind: Geometry) -> None:
    # The limit that a shell has is lower than the one that it could have.
    # So many are open here already, and stay so in what starts the command.
    limit = len(list(Path("/proc/self/fd").iterdir())) + 50
    count = limit + 100
    with bench(tmp_path, kind) as served:
        content = pattern("many", 3 * BLOCK)
        first = write_file(served.root / "0", content)
        copies = tmp_path / "copies"
        back_up(first, copies / "0", content)
        files = [first, *(served.root / str(number) for number in range(1, count))]
        with first.open("rb") as source:
            for path in files[1:]:
                with path.open("wb") as file:
                    clone_range(source.fileno(), 0, len(content), file.fileno(), 0)
        place = served.place(first, 1)
        lost = ByteRange(place.start + 512, 512)
        served.fail(lost)
        soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
        resource.setrlimit(resource.RLIMIT_NOFILE, (limit, hard))
        try:
            said = served.apply(lost, "--restore-from", copies)
        finally:
            resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
        assert f"gave the good copy to {count} files" in said
        assert all(path.read_bytes() == content for path in files)
        assert {row.kind for row in served.owners(place)} == {"free"}
        (shared,) = {served.place(path, 1) for path in (files[0], files[-1])}
        assert {row.inode for row in served.owners(shared)} == {p.stat().st_ino for p in files}
        assert served.served.bad() == []


@kinds
def test_several_blocks_in_one_range(tmp_path: Path, kind: Geometry) -> None:
    with bench(tmp_path, kind) as served:
        five = share_five(served, tmp_path / "copies", count=7)
        first, block = five.place.start, served.block
        bad = [
            ByteRange(first, 512),
            ByteRange(first + block, 2 * block),
            ByteRange(first + 4 * block + 3584, 1024),
        ]
        served.fail(*bad)
        before = served.everything(but=five.files)
        served.apply(five.place, "--restore-from", five.copies)
        for path, facts in five.facts.items():
            assert type(facts).of(path) == facts
        assert served.everything(but=five.files) == before
        assert served.served.bad() == []
        for number in (0, 1, 2, 4, 5):
            news = {served.place(path, at + number) for path, at in five.files.items()}
            assert len(news) == 1
        # Blocks of which nothing failed stayed where they were.
        for number in (3, 6):
            rows = served.owners(ByteRange(first + number * block, block))
            assert len(rows) == 5


@kinds
def test_permanent_sectors_stay_in_quarantine(tmp_path: Path, kind: Geometry) -> None:
    with bench(tmp_path, kind) as served:
        five = share_five(served, tmp_path / "copies")
        five.keep_only(served.root / "a", served)
        lost = ByteRange(five.place.start + 1024, 512)
        served.fail(lost, permanent=True)
        before = served.everything(but=five.files)
        words = [lost, "--restore-from", five.copies, "--quarantine"]
        said = served.apply(*words)
        assert "quarantine" in said
        five.check_whole(served)
        hidden = served.root / ".whoseblock-quarantine"
        (kept,) = hidden.iterdir()
        (row,) = served.owners(five.place)
        assert row.inode == kept.stat().st_ino
        assert hidden.stat().st_mode & 0o777 == 0o700
        with pytest.raises(PermissionError):
            kept.unlink()
        now = served.everything(but=[*five.files, kept])
        assert now == before
        assert served.served.bad() == [lost]
        # Again: it is known, and nothing changes.
        rows = served.rows()
        assert "in quarantine" in served.apply(*words)
        assert served.rows() == rows
        five.check_whole(served)
        # The block is not allocated again, however full the filesystem gets.
        try:
            with pytest.raises(OSError, match="No space"):
                write_file(served.root / "full", bytes(1 << 26))
        finally:
            (served.root / "full").unlink()
        (row,) = served.owners(five.place)
        assert row.inode == kept.stat().st_ino
        (step,) = served.steps()
        assert step.events[-2].detail["kept"] == [list(lost)]


@kinds
def test_permanent_sectors_without_quarantine(tmp_path: Path, kind: Geometry) -> None:
    with bench(tmp_path, kind) as served:
        five = share_five(served, tmp_path / "copies")
        lost = ByteRange(five.place.start + 1024, 512)
        served.fail(lost, permanent=True)
        said = served.apply(lost, "--restore-from", five.copies, code=14)
        assert "failed" in said
        assert served.states() == [["planned", "started", "failed"]]
        # The files are whole all the same.
        five.check_whole(served)
